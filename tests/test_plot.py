"""Pictures: what is drawn, and what is refused."""

import numpy as np
import pytest

import nnbackend as nn


@pytest.fixture(scope="module")
def digits_model() -> nn.Sequential:
    x, y = nn.datasets.digits()
    model = nn.Sequential([nn.Dense(64, 16, "relu"), nn.Dense(16, 10)], seed=0)
    model.compile("softmax_cross_entropy", nn.Adam(5e-3), ["accuracy"])
    model.fit(x, y, epochs=3, validation_split=0.2, verbose=0)
    return model


def texts(ax) -> list[str]:
    return [t.get_text() for t in ax.texts]


def test_history_draws_training_and_validation(digits_model) -> None:
    ax = nn.plot.history(digits_model.history, "accuracy")
    assert [line.get_label() for line in ax.lines] == ["training", "validation"]
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), digits_model.history["accuracy"])
    assert ax.get_xlabel() == "epoch"
    with pytest.raises(nn.DataError, match="no curve 'f1'; the curves are"):
        nn.plot.history(digits_model.history, "f1")


def draw_every_way():
    """``(name, call, wrong values)`` for each argument."""
    model = nn.Sequential([nn.Dense(4, 3, "relu"), nn.Dense(3, 2)], seed=0)
    model.compile("softmax_cross_entropy")
    plane = nn.Sequential([nn.Dense(2, 2)], seed=0)
    x, y = np.ones((5, 4)), np.array([0, 1, 0, 1, 1])
    points, plot = np.ones((5, 2)), nn.plot
    arrays = [None, 3, "text", [], {}, [[1.0], [1.0, 2.0]], np.full((5, 4), np.nan), x[0], [["a"]]]
    labels = [None, "ab", [], [0, 1], [-1, 0, 1, 0, 1], [0.5] * 5, [np.nan] * 5, [1e30] * 5, [y, y],
              [0, 1, 0, 1, "x"], object()]  # fmt: skip
    names = ["ab", ["a"], [None, 1], 3, {1: "a"}, object()]
    sizes = [None, 0, -1, 1.5, "3", np.inf, [3]]
    shapes = [(3, 3), (4,), 4, "22", (2.0, 2), (-2, -2), (0, 4), [None, 4]]
    models = [None, 3, "model", nn.Dense(2, 2), nn.Sequential]
    curves = [
        None,
        3,
        [1.0],
        {1: [1.0]},
        {"loss": 3},
        {"loss": None},
        {"loss": [[1.0]]},
        {"loss": ["a"]},
        {},
    ]
    predicted = plane.predict(points)
    return [
        ("curves", plot.history, curves),
        ("name", lambda v: plot.history({"loss": [1.0]}, v), [None, 3, [], "f1"]),
        ("ax", lambda v: plot.history({"loss": [1.0]}, ax=v), [3, "ax", plot, object()]),
        ("regions model", lambda v: plot.decision_regions(v, points, y), [*models, model]),
        ("regions x", lambda v: plot.decision_regions(plane, v, y), [*arrays, x]),
        ("regions y", lambda v: plot.decision_regions(plane, points, v), labels),
        ("resolution", lambda v: plot.decision_regions(plane, points, y, None, v), [1, *sizes]),
        ("regions classes", lambda v: plot.decision_regions(plane, points, y, None, 9, v), names),
        ("features", lambda v: plot.decision_regions(plane, points, y, None, 9, None, v), names),
        ("y_true", lambda v: plot.confusion_matrix(v, y), labels),
        ("y_pred", lambda v: plot.confusion_matrix(y, v), labels),
        ("classes", lambda v: plot.confusion_matrix(y, y, v), names),
        ("mistakes model", lambda v: plot.worst_mistakes(v, x, y), models),
        ("mistakes x", lambda v: plot.worst_mistakes(model, v, y), arrays),
        ("mistakes y", lambda v: plot.worst_mistakes(model, x, v), labels),
        ("mistakes shape", lambda v: plot.worst_mistakes(model, x, y, v), shapes),
        ("mistakes count", lambda v: plot.worst_mistakes(model, x, y, None, v), sizes),
        ("mistakes classes", lambda v: plot.worst_mistakes(model, x, y, None, 3, v), names),
        ("weights model", plot.first_layer_weights, models),
        ("weights shape", lambda v: plot.first_layer_weights(model, v), shapes),
        ("weights count", lambda v: plot.first_layer_weights(model, None, v), sizes),
        ("patterns model", lambda v: plot.neuron_patterns(v, x), models),
        ("patterns x", lambda v: plot.neuron_patterns(model, v), arrays),
        ("patterns shape", lambda v: plot.neuron_patterns(model, x, v), shapes),
        ("patterns count", lambda v: plot.neuron_patterns(model, x, None, v), sizes),
        ("fit model", lambda v: plot.regression_fit(v, x, predicted), models),
        ("fit x", lambda v: plot.regression_fit(model, v, predicted), arrays),
        ("fit y", lambda v: plot.regression_fit(model, x, v), [*arrays, y, np.ones((4, 2))]),
        ("fit names", lambda v: plot.regression_fit(model, x, predicted, v), names),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "value"),
    [
        pytest.param(call, value, id=f"{name}-{number}")
        for name, call, values in draw_every_way()
        for number, value in enumerate(values)
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(call, value) -> None:
    with pytest.raises(nn.NNBackendError, match="."):
        call(value)


def test_names_may_be_numbers_or_go_by_the_number_of_each() -> None:
    y = np.array([0, 1, 0])
    numbers, letters = ["0", "1"], ["a", "b"]
    for names, shown in ((np.unique(y), numbers), ({0: "a", 1: "b"}, letters),
                         (("a", "b"), letters), ([], numbers), (None, numbers)):  # fmt: skip
        ax = nn.plot.confusion_matrix(y, y, names)
        assert [t.get_text() for t in ax.get_xticklabels()] == shown


def test_labels_of_any_form_and_type_are_labels() -> None:
    y = [0, 1, 1]
    for form in (np.array(y, bool), np.array(y, float), np.array(y, object), np.array([y]),
                 np.array(y)[:, None], pytest.importorskip("pandas").Series(y)):  # fmt: skip
        assert sorted(texts(nn.plot.confusion_matrix(form, y))) == ["1", "2"]


def test_curves_come_from_anything_with_names_and_only_those_drawn_matter() -> None:
    frame = pytest.importorskip("pandas").DataFrame({"loss": [3.0, 1.0], "epoch": [1, 2]})
    others = {"loss": [3.0, 1.0], "seconds": 3.5, "note": [None, None], 0: [1]}
    for curves in (frame, others, {"loss": (3, 1)}):
        assert list(nn.plot.history(curves).lines[0].get_ydata()) == [3, 1]
    gap = nn.plot.history({"loss": [3, 1], "val_loss": [None, 2]}).lines[1].get_ydata()
    np.testing.assert_array_equal(gap, [np.nan, 2])


def test_given_axes_are_drawn_into() -> None:
    ax = nn.plot.new_figure(3, 3).add_subplot()
    assert nn.plot.history({"loss": [1.0]}, ax=ax) is ax


def test_confusion_matrix_counts(digits_model) -> None:
    ax = nn.plot.confusion_matrix([0, 0, 1, 2], [0, 1, 1, 2], ["a", "b", "class c"])
    assert sorted(texts(ax)) == ["1", "1", "1", "1"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "class c"]
    long = nn.plot.confusion_matrix([0, 1], [0, 1], ["a", "a very long class name"])
    assert long.get_yticklabels()[1].get_text() == "a ver…s name"
    with pytest.raises(nn.DataError, match="class labels, whole numbers from 0.*from -1 to 0"):
        nn.plot.confusion_matrix([-1, 0], [-1, 0])
    with pytest.raises(nn.DataError, match=r"a name for each class, 0 ... 2; received 2 names"):
        nn.plot.confusion_matrix([0, 2], [0, 2], ["a", "b"])
    with pytest.raises(nn.ShapeError, match="received 2 and 1"):
        nn.plot.confusion_matrix([0, 1], [0])


def test_worst_mistakes_come_first(digits_model) -> None:
    x, y = nn.datasets.digits()
    ax = nn.plot.worst_mistakes(digits_model, x, y, count=6)
    p = digits_model.predict_proba(x)
    wrong = np.flatnonzero(p.argmax(axis=1) != y)
    worst = wrong[p[wrong].max(axis=1).argmax()]
    assert texts(ax)[0] == f"{y[worst]} > {p[worst].argmax()}"
    assert len(ax.images) == 6
    assert texts(nn.plot.worst_mistakes(digits_model, x, p.argmax(axis=1))) == ["no mistakes"]
    with pytest.raises(nn.ShapeError, match="64 values are no pictures of 3 x 3"):
        nn.plot.worst_mistakes(digits_model, x, y, shape=(3, 3))


def test_worst_mistakes_of_yes_or_no(rng) -> None:
    x = rng.normal(size=(20, 4))
    model = nn.Sequential([nn.Dense(4, 1)], seed=0)
    model.compile("sigmoid_cross_entropy")
    y = 1 - nn.plot.predicted_classes(model, x)
    assert len(nn.plot.worst_mistakes(model, x, y).images) == 12


def test_first_layer_weights(digits_model) -> None:
    ax = nn.plot.first_layer_weights(digits_model, count=9)
    assert len(ax.images) == 9
    with pytest.raises(nn.DataError, match="no Dense layer"):
        nn.plot.first_layer_weights(nn.Sequential([nn.BatchNorm(4)]))


@pytest.mark.parametrize("outputs", [1, 3])
def test_decision_regions(outputs: int) -> None:
    x, y = nn.datasets.spiral(20, max(outputs, 2), seed=0)
    model = nn.Sequential([nn.Dense(2, 8, "tanh"), nn.Dense(8, outputs)], seed=0)
    model.compile("sigmoid_cross_entropy" if outputs == 1 else "softmax_cross_entropy")
    ax = nn.plot.decision_regions(model, x, y, resolution=20, feature_names=["a", "b"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    assert len(ax.collections) >= max(outputs, 2)
    with pytest.raises(nn.ShapeError, match="two inputs"):
        nn.plot.decision_regions(nn.Sequential([nn.Dense(3, 2)]), x, y)


@pytest.mark.parametrize("inputs", [1, 2])
def test_regression_fit(inputs: int) -> None:
    x, y = nn.datasets.sine(50)
    x = np.repeat(x, inputs, axis=1)
    model = nn.Sequential([nn.Dense(inputs, 2 if inputs == 2 else 1)], seed=0)
    targets = np.repeat(y, 2, axis=1) if inputs == 2 else y
    ax = nn.plot.regression_fit(model, x, targets, names=["a", "b"])
    assert ax.get_xlabel() == ("true" if inputs == 2 else "x")
