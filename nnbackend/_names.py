"""Names that other libraries have, and the ones that stand for them here.

A wrong name of an argument or an attribute is answered with the right one.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, wraps
from typing import Any, ParamSpec, Self, TypeVar

from nnbackend.errors import UnknownArgumentError, closest

P = ParamSpec("P")
R = TypeVar("R")

#: What arguments are called elsewhere; the first name here that a function has is meant.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "alpha": ("lr", "slope", "rho", "weight_l2"),
    "base_lr": ("lr",),
    "beta_1": ("beta1",),
    "beta_2": ("beta2",),
    "betas": ("beta1",),
    "bias_initializer": ("bias_init",),
    "bias_regularizer": ("bias_l2",),
    "class_weights": ("class_weight",),
    "clipnorm": ("clip_norm",),
    "criterion": ("loss",),
    "decay": ("weight_decay", "rho"),
    "device": ("backend",),
    "filename": ("path",),
    "filepath": ("path",),
    "epsilon": ("eps",),
    "fn": ("function",),
    "gamma": ("factor", "rho"),
    "global_clipnorm": ("clip_norm",),
    "in_features": ("n_inputs",),
    "init": ("weight_init",),
    "initial_learning_rate": ("lr",),
    "input_dim": ("n_inputs",),
    "input_shape": ("n_inputs",),
    "input_size": ("n_inputs",),
    "kernel_initializer": ("weight_init",),
    "kernel_regularizer": ("weight_l2",),
    "l1": ("weight_l1",),
    "l2": ("weight_l2",),
    "learning_rate": ("lr",),
    "learning_rate_init": ("lr",),
    "lr_scheduler": ("lr",),
    "max_iter": ("epochs",),
    "max_norm": ("clip_norm",),
    "n_epochs": ("epochs",),
    "n_features": ("n_inputs", "n"),
    "n_iter_no_change": ("patience",),
    "n_neurons": ("n_outputs",),
    "nb_epoch": ("epochs",),
    "negative_slope": ("slope",),
    "neurons": ("n_outputs",),
    "normalized_shape": ("n",),
    "num_epochs": ("epochs",),
    "num_features": ("n",),
    "opt": ("optimizer",),
    "out_features": ("n_outputs",),
    "output_dim": ("n_outputs",),
    "output_size": ("n_outputs",),
    "p": ("rate",),
    "period": ("every",),
    "random_state": ("seed",),
    "restore_best_weights": ("restore_best",),
    "save_best_only": ("monitor",),
    "save_freq": ("every",),
    "schedule": ("function",),
    "scheduler": ("lr",),
    "step_size": ("every", "lr"),
    "tol": ("min_delta",),
    "units": ("n_outputs",),
    "use_bias": ("bias",),
    "validation_fraction": ("validation_split",),
    "verbosity": ("verbose",),
    "warmup_steps": ("warmup",),
    "weight_initializer": ("weight_init",),
    "weight_regularizer": ("weight_l2",),
}


def _meant(name: str, choices: Iterable[str]) -> str | None:
    choices = list(choices)
    known = next((own for own in _ARGUMENTS.get(name.lower(), ()) if own in choices), None)
    return known or closest(name, choices)


def check_keywords(what: str, function: Callable[..., object], given: Iterable[str]) -> None:
    """Refuse names of arguments that a function does not have."""
    taken = inspect.signature(function).parameters.values()
    if function is not object.__init__ and any(p.kind is p.VAR_KEYWORD for p in taken):
        return
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in taken if p.kind in kinds and p.name != "self"]
    for name in given:
        if name not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            meant = _meant(name, names)
            hint = f". Did you mean {meant}?" if meant else ""
            raise UnknownArgumentError(f"{what} has no argument {name!r}; {takes}{hint}")


#: What those want who pass sizes to it.
_NO_SIZES = {"Linear": ". nn.Linear is the activation y = x; a layer with weights is nn.Dense"}


def _check_count(cls: type, args: tuple[Any, ...]) -> None:
    """Refuse more arguments without names than a constructor takes."""
    code = getattr(cls.__init__, "__code__", None)  # type: ignore[misc]
    if code is None or code.co_flags & inspect.CO_VARARGS or len(args) < code.co_argcount:
        return
    most = code.co_argcount - 1
    takes = f"at most {most}" if most else "none"
    raise UnknownArgumentError(
        f"{cls.__name__} was given too many arguments without names, of which it takes {takes}; "
        f"received {len(args)}{_NO_SIZES.get(cls.__name__, '')}"
    )


#: What is said to those who expect a layer to find out its number of inputs.
_BOTH_WIDTHS = ". A layer is told how many inputs it has: nn.Dense(n_inputs, n_outputs)"


def _check_missing(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call that leaves out what a constructor cannot do without."""
    init = cls.__init__  # type: ignore[misc]
    code, defaults = getattr(init, "__code__", None), getattr(init, "__defaults__", None) or ()
    if code is None:
        return
    needed = code.co_varnames[1 : code.co_argcount - len(defaults)]
    missing = [name for name in needed[len(args) :] if name not in kwargs]
    if missing:
        hint = _BOTH_WIDTHS if "n_outputs" in needed else ""
        raise UnknownArgumentError(
            f"{cls.__name__} needs {', '.join(needed)}; {' and '.join(missing)} missing{hint}"
        )


def check_signature(cls: type, name: str, *arguments: str, **named: str) -> None:
    """Refuse a method of a subclass that cannot be called as the library calls it."""
    method = vars(cls).get(name)
    if not inspect.isfunction(method):
        return
    try:
        inspect.signature(method, follow_wrapped=False).bind("self", *arguments, **named)
    except TypeError:
        called = ", ".join(["self", *arguments, *(f"{k}={v}" for k, v in named.items())])
        raise UnknownArgumentError(
            f"{cls.__name__}.{name} is called as {name}({called.replace('self, ', '', 1)}): define "
            f"it as def {name}({called})"
        ) from None


def check_call(what: str, function: Callable[..., object], *arguments: str) -> None:
    """Refuse a function that cannot be called as the library calls it."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # such as some in C
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise UnknownArgumentError(
            f"{what} is called with ({', '.join(arguments)}); received one that takes {signature}"
        ) from None


def as_made(what: object, settings: Mapping[str, Any]) -> str:
    """The call that makes an object with these settings, without those that are as usual."""
    parts, named = [], False
    for name, parameter in inspect.signature(type(what)).parameters.items():
        named |= name not in settings or parameter.kind is parameter.KEYWORD_ONLY
        if name not in settings or _is_usual(settings[name], parameter.default):
            continue
        named |= parameter.default is not parameter.empty
        parts.append(f"{name}=" * named + _short(settings[name]))
    return f"{type(what).__name__}({', '.join(parts)})"


def _is_usual(value: object, default: object) -> bool:
    try:
        return type(value) is type(default) and bool(value == default)
    except Exception:  # arrays, for example, are not equal or different as a whole
        return False


def _short(value: object) -> str:
    text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class AnswersNames:
    """Base of classes whose constructors answer wrong names of arguments."""

    def __repr__(self) -> str:
        return as_made(self, vars(self))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if args:
            _check_count(cls, args)
        if kwargs or (args and cls.__init__ is object.__init__):
            check_keywords(cls.__name__, cls.__init__, kwargs)
            if cls.__init__ is object.__init__:
                raise UnknownArgumentError(f"{cls.__name__} takes no arguments")
        if args or kwargs:  # a copy is made without any
            _check_missing(cls, args, kwargs)
        return super().__new__(cls)


def answers_names(function: Callable[P, R]) -> Callable[P, R]:
    """Have a method answer wrong names of arguments."""
    taken = inspect.signature(function).parameters

    @wraps(function)
    def answering(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.keys() <= taken.keys():
            owner = type(args[0]).__name__ if args else function.__qualname__.partition(".")[0]
            check_keywords(f"{owner}.{function.__name__}", function, kwargs)
        return function(*args, **kwargs)

    return answering


def missing_attribute(owner: object, name: str, hints: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that there is not, with what is used instead; or the one that came
    from a property, which Python takes for a sign that there is none."""
    found = inspect.getattr_static(type(owner), name, None)
    if isinstance(found, property | cached_property):
        try:
            found.__get__(owner)
        except AttributeError as error:
            return error
    hint = f"; {hints[name]}" if name in hints else ""
    return AttributeError(f"{type(owner).__name__} has no attribute {name!r}{hint}", name=name,
                          obj=owner)  # fmt: skip


_OUTPUT = "forward returns the output and keeps it for nobody: y = layer.forward(x)"
_INPUT = "a layer shows nobody the input of forward; keep it yourself"
_DX = "backward returns it: dx = layer.backward(dy)"
#: Attributes of layers elsewhere.
LAYER_ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(("weights", "w", "W", "kernel"), "the weights are layer.weight (I, O)"),
    **dict.fromkeys(("biases", "b", "offset"), "the biases are layer.bias (O,)"),
    **dict.fromkeys(
        ("dweights", "dw", "dW", "weights_grad", "weight_gradient"),
        "their gradient is layer.weight_grad (I, O)",
    ),
    **dict.fromkeys(
        ("dbiases", "db", "biases_grad", "bias_gradient"), "their gradient is layer.bias_grad (O,)"
    ),
    **dict.fromkeys(("output", "outputs", "out"), _OUTPUT),
    **dict.fromkeys(("input", "inputs"), _INPUT),
    **dict.fromkeys(("dinputs", "dinput", "dx"), _DX),
    **dict.fromkeys(("units", "out_features", "n_neurons"), "the width is layer.n_outputs"),
    **dict.fromkeys(("in_features", "input_dim"), "the width is layer.n_inputs"),
    **dict.fromkeys(("requires_grad", "frozen"), "layer.trainable = False freezes a layer"),
    **dict.fromkeys(
        ("training", "train", "eval"),
        "nothing has to be switched: layer.forward(x, training=True) trains, layer(x) does not",
    ),
    **dict.fromkeys(("p", "drop_rate", "dropout_rate"), "a Dropout's share is layer.rate"),
    **dict.fromkeys(("epsilon", "variance_epsilon"), "use layer.eps"),
    **{
        f"{array}_{word}_{norm}": f"use layer.{array}_{norm}"
        for array in ("weight", "bias")
        for word in ("regularizer", "regularization", "decay")
        for norm in ("l1", "l2")
    },
    **dict.fromkeys(("kernel_regularizer", "l2"), "use layer.weight_l2"),
}


class NameOfOthers:
    """An attribute that layers or models have elsewhere: neither read nor assigned here, unless a
    class of one's own keeps something under its name."""

    def __init__(self, name: str, hints: Mapping[str, str]) -> None:
        self.name, self.hints = name, hints

    def __get__(self, owner: Any, kind: type) -> Any:
        if owner is not None and self.name in owner.__dict__:
            return owner.__dict__[self.name]
        other = self._of_another_base(kind)
        if other is None:
            raise missing_attribute(kind if owner is None else owner, self.name, self.hints)
        return other.__get__(owner, kind) if hasattr(other, "__get__") else other

    def __set__(self, owner: Any, value: Any) -> None:
        other = self._of_another_base(type(owner))
        if other is None and is_of_ours(type(owner)):
            raise missing_attribute(owner, self.name, self.hints)
        if hasattr(other, "__set__"):
            other.__set__(owner, value)
        else:
            owner.__dict__[self.name] = value

    def _of_another_base(self, kind: type) -> Any:
        """What a class has under the name from a base that comes after ours."""
        found = (vars(base).get(self.name) for base in kind.__mro__)
        return next((f for f in found if f is not None and not isinstance(f, NameOfOthers)), None)


def is_of_ours(kind: type) -> bool:
    """Whether a class is the library's own, which keeps nothing under the names of others."""
    return kind.__module__.startswith("nnbackend.")


def answer_names_of_others(cls: type, hints: Mapping[str, str]) -> None:
    """Have a class answer them: not by __setattr__, which every attribute would pay for."""
    for name in hints:
        setattr(cls, name, NameOfOthers(name, hints))


_ARRAYS = "model.arrays() gives all arrays by name, model.layers[0].weight one of them"
#: Attributes of models elsewhere.
MODEL_ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(
        ("weights", "get_weights", "parameters", "params", "named_parameters", "state_dict",
         "trainable_weights", "coefs_", "intercepts_"),
        _ARRAYS,
    ),
    **dict.fromkeys(
        ("set_weights", "load_state_dict"), "model.set_arrays(arrays) takes what arrays() gave"
    ),
    "call": "call the model: y = model(x)",
    "zero_grad": "backward overwrites the gradient unless accumulate=True",
    **dict.fromkeys(("add", "append"), "pass all layers at once: nn.Sequential([...])"),
    **dict.fromkeys(
        ("train", "eval"), "nothing has to be switched: fit and train_step train, predict does not"
    ),
    **dict.fromkeys(("train_on_batch", "partial_fit"), "one step is model.train_step(x, y)"),
    **dict.fromkeys(("score", "test_on_batch"), "model.evaluate(x, y) gives loss and metrics"),
    **dict.fromkeys(
        ("predict_classes", "predict_labels"),
        "the classes are model.predict(x).argmax(axis=1); with one output, yes is "
        "model.predict_proba(x) > 0.5",
    ),
    **dict.fromkeys(("lr", "learning_rate"), "the rate is model.optimizer.lr"),
    **dict.fromkeys(
        ("trainable", "requires_grad", "requires_grad_"),
        "a layer is frozen by model.layers[0].trainable = False",
    ),
    "stop_training": "a callback ends a training by the reason that its on_epoch_end returns",
    **dict.fromkeys(("cuda", "cpu"), "model.to('cuda') moves a model"),
    "load": "nn.load(path) loads a model, model.load_weights(path) its arrays",
}  # fmt: skip
#: Settings of optimizers elsewhere.
OPTIMIZER_ATTRIBUTES: dict[str, str] = {
    name: f"use {own}"
    for name, own in (
        ("learning_rate", "lr"), ("rate", "lr"), ("step_size", "lr"), ("beta_1", "beta1"),
        ("beta_2", "beta2"), ("epsilon", "eps"), ("clipnorm", "clip_norm"),
        ("param_groups", "optimizer.lr for the rate of all parameters"),
        ("current_learning_rate", "lr"), ("decay", "a schedule, lr=nn.InverseTimeDecay(...)"),
    )
}  # fmt: skip


class AnswersModelNames(AnswersNames):
    """Base of models: attributes that models have elsewhere are answered, too."""

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name, MODEL_ATTRIBUTES)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in MODEL_ATTRIBUTES]


answer_names_of_others(AnswersModelNames, MODEL_ATTRIBUTES)
