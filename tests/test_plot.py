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


def test_given_axes_are_drawn_into() -> None:
    ax = nn.plot.new_figure(3, 3).add_subplot()
    assert nn.plot.history({"loss": [1.0]}, ax=ax) is ax


def test_confusion_matrix_counts(digits_model) -> None:
    ax = nn.plot.confusion_matrix([0, 0, 1, 2], [0, 1, 1, 2], ["a", "b", "class c"])
    assert sorted(texts(ax)) == ["1", "1", "1", "1"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "class c"]
    long = nn.plot.confusion_matrix([0, 1], [0, 1], ["a", "a very long class name"])
    assert long.get_yticklabels()[1].get_text() == "a ver…s name"
    for labels, names in (([-1, 0], None), ([0, 2], ["a", "b"])):
        with pytest.raises(nn.DataError, match="labels must lie in 0"):
            nn.plot.confusion_matrix(labels, labels, names)
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
