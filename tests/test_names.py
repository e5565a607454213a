"""Names of arguments and attributes that other libraries have are answered with ours."""

import copy
import inspect
import pickle
from functools import cached_property

import numpy as np
import pytest

import nnbackend as nn
from nnbackend import _names, initializers

X, Y = np.ones((6, 2), "float32"), np.zeros(6, int)


def model() -> nn.Sequential:
    made = nn.Sequential([nn.Dense(2, 3)], seed=0)
    made.compile("softmax_cross_entropy")
    return made


WRONG_ARGUMENTS = [
    (lambda: nn.Adam(learning_rate=0.1), "Adam has no argument 'learning_rate'.* mean lr"),
    (lambda: nn.SGD(0.1, momentun=0.9), "SGD has no argument 'momentun'.* mean momentum"),
    (lambda: nn.Adam(beta_2=0.9), "mean beta2"),
    (lambda: nn.RMSprop(epsilon=1e-8), "mean eps"),
    (lambda: nn.AdamW(decay=0.1), "mean weight_decay"),
    (lambda: nn.Linear(64, 32), "of which it takes none; received 2. nn.Linear is the activation"),
    (lambda: nn.Dropout(0.5, 3), "too many arguments without names, of which it takes at most 1"),
    (
        lambda: type("Own", (nn.Layer,), {"forward": lambda self, x: x}),
        r"define it as def forward\(self, x, training=False\)",
    ),
    (
        lambda: type("Own", (nn.Callback,), {"on_epoch_end": lambda self, epoch, logs: None}),
        r"define it as def on_epoch_end\(self, model, epoch, figures, history\)",
    ),
    (lambda: nn.SGD(clipnorm=1.0), "mean clip_norm"),
    (lambda: nn.Dense(2, units=3), "Dense has no argument 'units'.* mean n_outputs"),
    (
        lambda: nn.Dense(64, activation="relu"),
        r"Dense needs n_inputs, n_outputs; n_outputs missing. A layer is told .* nn.Dense",
    ),
    (lambda: nn.Embedding(4), "Embedding needs .*; n_categories and width missing"),
    (lambda: nn.BatchNorm(momentum=0.1), "BatchNorm needs n; n missing"),
    (lambda: nn.Dense(2, 3, kernel_initializer="zeros"), "mean weight_init"),
    (lambda: nn.Dense(2, 3, use_bias=False), "mean bias"),
    (lambda: nn.Dense(2, 3, l2=1e-4), "mean weight_l2"),
    (lambda: nn.Dropout(p=0.5), "mean rate"),
    (lambda: nn.BatchNorm(num_features=3), "mean n"),
    (lambda: nn.LeakyReLU(negative_slope=0.1), "mean slope"),
    (lambda: nn.ReLU(inplace=True), "ReLU has no argument 'inplace'"),
    (lambda: nn.StepDecay(0.1, step_size=3), "mean every"),
    (lambda: nn.losses.Huber(beta=1.0), "Huber has no argument 'beta'; it takes delta"),
    (lambda: nn.losses.MeanSquaredError(reduction="sum"), "MeanSquaredError has no argument"),
    (lambda: nn.metrics.TopKAccuracy(n=3), "it takes k"),
    (lambda: nn.metrics.AUC(curve="PR"), "AUC has no argument 'curve'"),
    (lambda: initializers.Normal(stddev=0.1), "mean std"),
    (lambda: nn.EarlyStopping(restore_best_weights=True), "mean restore_best"),
    (lambda: nn.ModelCheckpoint(filepath="m"), "mean path"),
    (lambda: nn.Callback(model=3), "Callback has no argument 'model'; it takes none"),
    (lambda: nn.Callback(3), "Callback takes no arguments"),
    (lambda: nn.Sequential([nn.Dense(2, 3)], random_state=0), "mean seed"),
    (lambda: nn.Sequential([nn.Dense(2, 3)], device="cuda"), "mean backend"),
    (lambda: model().fit(X, Y, nb_epoch=3), r"Sequential.fit has no .* mean epochs"),
    (lambda: model().fit(X, Y, batchsize=3), "mean batch_size"),
    (lambda: model().compile(optimiser="adam"), "mean optimizer"),
    (lambda: model().evaluate(X, Y, verbose=0), "Sequential.evaluate has no argument 'verbose'"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_answered(call, message) -> None:
    with pytest.raises(nn.UnknownArgumentError, match=message):
        call()
    with pytest.raises(TypeError):  # as Python has it
        call()


@pytest.mark.parametrize(
    "right", sorted({n for names in _names._ARGUMENTS.values() for n in names})
)
def test_every_answer_is_an_argument_of_something(right) -> None:
    kinds = [value for value in vars(nn).values() if inspect.isclass(value)]
    functions = [
        *(kind.__init__ for kind in kinds),
        nn.Sequential.fit,
        nn.Sequential.compile,
        nn.Sequential.evaluate,
    ]
    assert any(right in inspect.signature(function).parameters for function in functions)


def compiled(metric: str) -> None:
    model().compile("softmax_cross_entropy", "sgd", [metric])


class TestOwnClasses:
    def test_arguments_of_any_name_are_left_alone(self) -> None:
        class Free(nn.Callback):
            def __init__(self, **settings) -> None:
                self.settings = settings

        assert Free(learning_rate=3).settings == {"learning_rate": 3}

    def test_they_answer_too(self) -> None:
        class Mine(nn.Callback):
            def __init__(self, threshold) -> None:
                self.threshold = threshold

        assert Mine(threshold=3).threshold == 3
        with pytest.raises(nn.UnknownArgumentError, match="Mine has no .* mean threshold"):
            Mine(treshold=3)

    def test_layers_keep_what_they_like(self) -> None:
        class Watched(nn.Dense):
            def forward(self, x, training=False):
                self.output = super().forward(x, training)
                self.weights = [self.weight]
                return self.output

        layer = Watched(2, 3)
        y = layer(X)
        assert layer.output is y
        assert len(layer.weights) == 1

    def test_optimizers_keep_what_they_like(self) -> None:
        class Mine(nn.Optimizer):
            rate = 3

            def update(self, backend, param, grad, slots, lr, weight_decay, step, scratch):
                pass

        optimizer = Mine()
        optimizer.rate = 4
        assert optimizer.rate == 4


class TestAttributes:
    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("weights", "layer.weight"),
            ("biases", "layer.bias"),
            ("dweights", "layer.weight_grad"),
            ("dbiases", "layer.bias_grad"),
            ("output", "y = layer.forward"),
            ("dinputs", "dx = layer.backward"),
            ("units", "layer.n_outputs"),
        ],
    )
    def test_a_layers(self, name, hint) -> None:
        layer = nn.Dense(2, 3)
        with pytest.raises(AttributeError, match=hint):
            getattr(layer, name)
        with pytest.raises(AttributeError, match=hint):
            setattr(layer, name, 1)
        assert not hasattr(layer, name)
        assert name not in dir(layer)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("weights", r"model.arrays\(\)"),
            ("get_weights", r"model.arrays\(\)"),
            ("state_dict", r"model.arrays\(\)"),
            ("set_weights", r"model.set_arrays"),
            ("train_on_batch", "model.train_step"),
            ("score", "model.evaluate"),
            ("add", "all layers at once"),
            ("eval", "nothing has to be switched"),
        ],
    )
    def test_a_models(self, name, hint) -> None:
        with pytest.raises(AttributeError, match=hint):
            getattr(model(), name)

    @pytest.mark.parametrize(
        ("owner", "name", "hint"),
        [
            (lambda: model(), "trainable", r"model\.layers\[0\]\.trainable = False"),
            (lambda: model(), "stop_training", "reason that its on_epoch_end returns"),
            (lambda: model(), "lr", r"model\.optimizer\.lr"),
            (lambda: model(), "training", "nothing has to be switched"),
            (lambda: nn.Dense(2, 3), "requires_grad", r"layer\.trainable = False"),
            (lambda: nn.Dense(2, 3), "training", "nothing has to be switched"),
            (lambda: nn.Dense(2, 3), "weight_regularizer_l2", r"layer\.weight_l2"),
            (lambda: model().layers[0], "dtype", r"nn\.Sequential\(layers, dtype=\.\.\.\)"),
            (lambda: nn.Dropout(0.5), "p", r"layer\.rate"),
            (lambda: nn.BatchNorm(3), "epsilon", r"layer\.eps"),
            (lambda: nn.Adam(), "weight_decay", "it has lr, clip_norm, beta1"),
            (lambda: nn.Adam(), "current_learning_rate", "use lr"),
            (lambda: nn.SGD(), "beta1", "it has lr"),
        ],
    )
    def test_one_that_would_have_no_effect_is_not_assigned(self, owner, name, hint) -> None:
        made = owner()
        with pytest.raises(AttributeError, match=hint):
            setattr(made, name, False)

    @pytest.mark.parametrize(
        ("ask", "meant"),
        [
            (lambda: nn.Dense(2, 3, "swish"), "'silu'"),
            (lambda: nn.Dense(2, 3, "identity"), "'linear'"),
            (lambda: nn.Dense(2, 3, "logistic"), "'sigmoid'"),
            (lambda: nn.Dense(2, 3, weight_init="kaiming_uniform"), "'he_uniform'"),
            (lambda: nn.Dense(2, 3, weight_init="xavier"), "'glorot_uniform'"),
            (lambda: nn.Dense(2, 3, weight_init="random_normal"), "'normal'"),
            (lambda: model().compile("CrossEntropyLoss"), "'softmax_cross_entropy'"),
            (lambda: model().compile("BCEWithLogitsLoss"), "'sigmoid_cross_entropy'"),
            (lambda: model().compile("smooth_l1"), "'huber'"),
            (lambda: model().compile("mse"), "'mean_squared_error'"),
            (lambda: compiled("categorical_accuracy"), "'accuracy'"),
            (lambda: compiled("f1_score"), "'f1'"),
            (lambda: compiled("mean_absolute_error"), "'mae'"),
            (lambda: nn.Dense(2, 3, "selu"), None),
            (lambda: nn.Dense(2, 3, "softsign"), None),
            (lambda: compiled("rmse"), None),
        ],
    )
    def test_what_a_name_stands_for_elsewhere(self, ask, meant) -> None:
        """Not what merely looks like it."""
        with pytest.raises(nn.UnknownNameError) as error:
            ask()
        said = str(error.value).partition("Did you mean ")[2]
        assert said == ("" if meant is None else f"{meant}?")

    def test_a_class_of_ones_own_may_have_them(self) -> None:
        class Mine(nn.Sequential):
            def train(self) -> str:
                return "mine"

        mine = Mine([nn.Dense(2, 3)])
        mine.trainable = 5
        assert (mine.train(), mine.trainable) == ("mine", 5)
        optimizer = nn.Adam()
        optimizer.note = "mine"

    def test_a_layer_of_ones_own_may_have_them_too(self) -> None:
        class Regularized(nn.Dense):
            def __init__(self, n_inputs, n_outputs, l2) -> None:
                super().__init__(n_inputs, n_outputs, weight_l2=l2)
                self.l2 = l2

        assert Regularized(2, 3, 0.5).l2 == 0.5

    def test_another_base_may_have_them(self) -> None:
        class Scored:
            units = 7

            def score(self) -> int:
                return 5

        class Mine(nn.Sequential, Scored):
            pass

        class Layer(nn.Dense, Scored):
            pass

        assert Mine([nn.Dense(2, 3)]).score() == 5
        assert Layer(2, 3).units == 7

    def test_an_optimizers(self) -> None:
        optimizer = nn.Adam()
        with pytest.raises(AttributeError, match="use lr"):
            optimizer.learning_rate = 0.1
        with pytest.raises(AttributeError, match="use beta1"):
            _ = optimizer.beta_1

    def test_other_names_are_missing_as_ever(self) -> None:
        for owner in (nn.Dense(2, 3), model(), nn.Adam()):
            with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
                _ = owner.nothing

    @pytest.mark.parametrize("kind", [nn.Dense, nn.BatchNorm, nn.ReLU, nn.Dropout, nn.Sequential])
    def test_no_name_of_ours_is_among_them(self, kind) -> None:
        hints = _names.MODEL_ATTRIBUTES if kind is nn.Sequential else _names.LAYER_ATTRIBUTES
        found = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
        names = _names.NameOfOthers
        ours = {name for name, value in found.items() if not isinstance(value, names)}
        assert not hints.keys() & ours

    def test_copies_and_pickles(self) -> None:
        for owner in (nn.Dense(2, 3, "relu"), nn.Adam(0.1), nn.EarlyStopping(patience=3),
                      nn.CosineDecay(0.1, steps=3), nn.losses.Huber(2.0), model()):  # fmt: skip
            for again in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
                assert type(again) is type(owner)


class TestCalls:
    def test_a_layer_is_called_as_forward(self, backend, rng) -> None:
        layer = nn.Sequential([nn.Dense(2, 3, "tanh")], seed=0).layers[0]
        x = rng.normal(size=(4, 2)).astype("float32")
        np.testing.assert_array_equal(
            backend.to_numpy(layer(x)), backend.to_numpy(layer.forward(x))
        )
        drop = nn.Dropout(0.5, seed=0)
        assert (backend.to_numpy(drop(x)) == x).all()
        assert not (backend.to_numpy(drop(x, training=True)) == x).all()

    @pytest.mark.parametrize("wrong", [nn.Softmax(), nn.Dense(2, 3), model()])
    def test_a_layer_or_model_is_no_loss_and_no_metric(self, wrong) -> None:
        made = nn.Sequential([nn.Dense(2, 3)])
        with pytest.raises(nn.DTypeError, match="a loss is a name"):
            made.compile(wrong)
        with pytest.raises(nn.DTypeError, match="a metric one"):
            made.compile("softmax_cross_entropy", metrics=[wrong])
        with pytest.raises(nn.DTypeError, match="a metric one"):
            made.compile("softmax_cross_entropy", metrics=wrong)


class TestTransposedWeights:
    MESSAGE = r"Here a weight is \(n_inputs, n_outputs\): .* its transpose, \.T"

    def test_assigned_given_and_set(self, backend) -> None:
        made, turned = model(), np.ones((3, 2))
        with pytest.raises(nn.ShapeError, match=self.MESSAGE):
            made.layers[0].weight = turned
        with pytest.raises(nn.ShapeError, match=self.MESSAGE):
            made.set_arrays({**made.arrays(), "layers.0.weight": turned})
        with pytest.raises(nn.ShapeError, match=self.MESSAGE):
            _ = nn.Dense(2, 3, weight_init=turned).weight
        made.layers[0].weight = turned.T

    def test_other_shapes_have_no_such_hint(self) -> None:
        with pytest.raises(nn.ShapeError, match=r"received \(3, 3\)$"):
            model().layers[0].weight = np.ones((3, 3))


class TestLookingThrough:
    """What debuggers, notebooks and ``hasattr`` do: ask for every attribute that there is."""

    @pytest.mark.parametrize(
        "made",
        [
            lambda: nn.Sequential([nn.Dense(2, 3), nn.BatchNorm(3), nn.Dropout(0.1)], seed=0),
            lambda: nn.Adam(),
            lambda: nn.History(),
            lambda: nn.EarlyStopping(patience=3),
            lambda: nn.Dense(2, 3),
            lambda: nn.Standardize(3),
        ],
    )
    def test_no_attribute_fails_in_a_way_of_its_own(self, made) -> None:
        assert inspect.getmembers(made())

    def test_a_model_has_no_optimizer_before_compile(self) -> None:
        model = nn.Sequential([nn.Dense(2, 3)], seed=0)
        assert not hasattr(model, "optimizer")
        assert getattr(model, "optimizer", None) is None
        with pytest.raises(nn.NotCompiledError, match=r"call model\.compile"):
            _ = model.optimizer
        with pytest.raises(nn.DataError, match=r"call model\.compile"):
            model.fit(np.ones((4, 2)), np.ones((4, 3)))

    @pytest.mark.parametrize("kind", [property, cached_property])
    @pytest.mark.parametrize(
        ("base", "arguments"),
        [(nn.Sequential, ([nn.Dense(2, 3)], 0)), (nn.Dense, (2, 3)), (nn.Adam, ())],
    )
    def test_the_fault_within_a_property_of_an_own_class_is_said(
        self, base, arguments, kind
    ) -> None:
        class Own(base):
            @kind
            def longest(self) -> int:
                return self.nowhere

        with pytest.raises(AttributeError, match="has no attribute 'nowhere'"):
            _ = Own(*arguments).longest
