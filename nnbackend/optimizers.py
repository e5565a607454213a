"""Optimizers: their settings, and which backend rule makes a step.

An optimizer keeps no arrays: its state ("slots") lies in flat vectors beside the parameters,
owned by the program, so that one kernel updates everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from nnbackend._checks import check_flag, check_number, declares_all
from nnbackend._names import (
    OPTIMIZER_ATTRIBUTES,
    AnswersNames,
    check_call,
    missing_attribute,
)
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array, UpdateRule
from nnbackend.errors import DTypeError, unknown_name
from nnbackend.schedules import Rates, Schedule, schedule_from_config

_RULES: dict[str, dict[str, Any]] = {
    "lr": {"low": 0.0},
    "momentum": {"low": 0.0, "high": 1.0, "high_open": True},
    "rho": {"low": 0.0, "high": 1.0, "high_open": True},
    "beta1": {"low": 0.0, "high": 1.0, "high_open": True},
    "beta2": {"low": 0.0, "high": 1.0, "high_open": True},
    "eps": {"low": 0.0},
    "eps_hat": {"low": 0.0},
    "weight_decay": {"low": 0.0},
    "clip_norm": {"low": 0.0, "low_open": True},
}


_NO_UPDATE = (
    "{} does not say how it changes the parameters: give it a method update, or use nn.Adam() or "
    "another nnbackend optimizer"
)
#: What ``update`` is called with.
_UPDATED_WITH = (
    "backend", "param", "grad", "slots", "lr", "weight_decay", "step", "scratch",
)  # fmt: skip
#: What a class of one's own must leave as it is for its rule to say all that it does.
_METHODS = ("update", "slots", "rates", "decay")


@dataclass
class Optimizer(AnswersNames):
    """Base of all optimizers.

    Attributes:
        lr: the learning rate, a number or a Schedule; may be assigned between steps.
        clip_norm: if set, the whole gradient is scaled down to at most this Euclidean norm.
    """

    lr: float | Schedule = 0.01
    clip_norm: float | None = field(default=None, kw_only=True)
    #: the slots' names, for an optimizer of one's own
    state_names: ClassVar[tuple[str, ...]] = ()
    #: number of settings made so far, which tells an executor to read them again
    changes = 0

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name, OPTIMIZER_ATTRIBUTES)

    def __setattr__(self, name: str, value: Any) -> None:
        if (name not in _RULES and name in OPTIMIZER_ATTRIBUTES) or (
            name in _RULES and name not in self.__dataclass_fields__
        ):
            self._check_own(name)
        unset = value is None and name == "clip_norm"
        scheduled = isinstance(value, Schedule) and name == "lr"
        if name in _RULES and not scheduled and not unset:
            value = check_number(f"{type(self).__name__}.{name}", value, **_RULES[name])
        elif name == "nesterov":
            value = check_flag(f"{type(self).__name__}.nesterov", value)
        object.__setattr__(self, name, value)
        object.__setattr__(self, "changes", self.changes + 1)

    def _check_own(self, name: str) -> None:
        """Refuse a setting that others have, where it would have no effect."""
        if type(self) in OPTIMIZERS.values():
            own = ", ".join(f.name for f in fields(self))
            raise missing_attribute(self, name, {name: f"it has {own}", **OPTIMIZER_ATTRIBUTES})

    def rates(self, first_step: int, count: int) -> Rates:
        """Learning rates of ``count`` updates, the first being number ``first_step`` (from 0)."""
        if isinstance(self.lr, Schedule):
            return self.lr.rates(np.arange(first_step, first_step + count, dtype=np.int64))
        return np.full(count, self.lr)

    @property
    def rule(self) -> UpdateRule | None:
        """The rule, as passed to a backend; None if ``update`` is written in Python."""
        return None

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state vectors, each as long as the trained parameters."""
        rule = self.rule
        return self.state_names if rule is None else rule.slots

    @property
    def decay(self) -> float:
        """Decoupled weight decay; not applied to biases and norms."""
        rule = self.rule
        return 0.0 if rule is None else rule.weight_decay

    @property
    def is_built_in(self) -> bool:
        """Whether ``rule`` describes this optimizer fully; False if a custom class overrides the
        update, rates, slots or decay."""
        return self.rule is not None and declares_all(type(self), "rule", _METHODS)

    def update(
        self,
        backend: Backend,
        param: Array,
        grad: Array,
        slots: Sequence[Array],
        lr: float,
        weight_decay: float,
        step: int,
        scratch: Array,
    ) -> None:
        """One step over flat vectors, in place. A custom optimizer overrides this.

        Args:
            param, grad: (P,) each.
            slots: (P,) each, in the order of ``self.slots``.
            weight_decay: for these parameters.
            step: number of updates made before.
            scratch: may be overwritten.
        """
        rule = self.rule
        if rule is None:
            raise DTypeError(_NO_UPDATE.format(type(self).__name__))
        rule = rule._replace(weight_decay=weight_decay)
        backend.update(rule, param, grad, slots, lr, step, scratch)

    def config(self) -> dict[str, Any]:
        """Name and settings, for a model file."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.lr, Schedule):
            settings["lr"] = self.lr.config()
        return {"name": type(self).__name__, **settings}


@dataclass
class SGD(Optimizer):
    """v = momentum v - lr g;  w += v. Without momentum w -= lr g.

    With ``nesterov``: w += momentum v - lr g, with the new v (Sutskever et al., 2013).
    """

    lr: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise DTypeError("SGD.nesterov needs a momentum above 0; received momentum=0")

    @property
    def rule(self) -> UpdateRule:
        if not self.momentum:
            return UpdateRule("sgd")
        return UpdateRule("momentum", momentum=self.momentum, nesterov=self.nesterov)


@dataclass
class AdaGrad(Optimizer):
    """c += g^2;  w -= lr g / (sqrt(c) + eps)   (Duchi, Hazan and Singer, 2011)."""

    lr: float | Schedule = 0.01
    eps: float = 1e-7

    @property
    def rule(self) -> UpdateRule:
        return UpdateRule("adagrad", eps=self.eps)


@dataclass
class RMSprop(Optimizer):
    """c = rho c + (1 - rho) g^2;  w -= lr g / (sqrt(c) + eps)   (Hinton, 2012)."""

    lr: float | Schedule = 1e-3
    rho: float = 0.9
    eps: float = 1e-7

    @property
    def rule(self) -> UpdateRule:
        return UpdateRule("rmsprop", rho=self.rho, eps=self.eps)


@dataclass
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), epsilon outside the root; see ``Backend.update``.

    ``eps`` is added to the corrected root sqrt(v_hat), as in PyTorch; ``eps_hat`` to sqrt(v), which
    makes it larger in the first steps, as in Keras and scikit-learn.
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-7
    eps_hat: float = field(default=0.0, kw_only=True)

    @property
    def rule(self) -> UpdateRule:
        return UpdateRule(
            "adam", beta1=self.beta1, beta2=self.beta2, eps=self.eps, eps_hat=self.eps_hat
        )


@dataclass
class AdamW(Adam):
    """Adam with decoupled weight decay: w -= lr weight_decay w before each step, on weight
    matrices only, not on biases and norms (Loshchilov and Hutter, 2019)."""

    weight_decay: float = 0.01

    @property
    def rule(self) -> UpdateRule:
        return super().rule._replace(weight_decay=self.weight_decay)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adagrad": AdaGrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}


def resolve_optimizer(spec: str | Optimizer | Mapping[str, Any]) -> Optimizer:
    """The optimizer behind a name (in lower case), an object or a saved configuration."""
    if isinstance(spec, Optimizer):
        if spec.rule is None and type(spec).update is Optimizer.update:
            raise DTypeError(_NO_UPDATE.format(type(spec).__name__))
        check_call(f"{type(spec).__name__}.update", spec.update, *_UPDATED_WITH)
        return spec
    if isinstance(spec, type) and issubclass(spec, Optimizer):
        return spec()
    settings: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    given = settings.pop("name", None)
    name = given.lower() if isinstance(given, str) else given
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise unknown_name("optimizer", given, OPTIMIZERS)
    if isinstance(settings.get("lr"), Mapping):
        settings["lr"] = schedule_from_config(dict(settings["lr"]))
    return OPTIMIZERS[name](**settings)
