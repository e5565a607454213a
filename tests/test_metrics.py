"""AUC, and what precision, recall and f1 mean for two classes."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.metrics import AUC


def pairs_area(positive, score, weight) -> float:
    """Every pair of a row of the class and another row."""
    right = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    pairs = weight[:, None] * weight * np.outer(positive, ~positive)
    return float((right * pairs).sum() / pairs.sum())


class TestAUC:
    @pytest.mark.parametrize("levels", [2, 5, 1000])
    def test_every_pair_counts_and_ties_count_half(self, rng, levels) -> None:
        score = rng.integers(0, levels, 80) / levels
        y = rng.integers(0, 2, 80)
        for weight in (np.ones(80), rng.uniform(size=80), rng.integers(0, 2, 80).astype(float)):
            expected = pairs_area(y == 1, score, weight)
            assert AUC()(y, score, weight) == pytest.approx(expected, rel=1e-12)
            assert AUC()(y[:, None], score[:, None], weight) == pytest.approx(expected, rel=1e-12)
            two = np.column_stack([1 - score, score])
            assert AUC()(y, two, weight) == pytest.approx(expected, rel=1e-12)
            assert AUC()(np.eye(2)[y], two, weight) == pytest.approx(expected, rel=1e-12)

    def test_perfect_random_and_reversed(self) -> None:
        y = np.repeat([0, 1], 50)
        assert AUC()(y, np.arange(100.0)) == 1
        assert AUC()(y, -np.arange(100.0)) == 0
        assert AUC()(y, np.zeros(100)) == 0.5

    def test_several_classes_are_averaged_where_they_occur(self, rng) -> None:
        p = rng.dirichlet(np.ones(4), 60)
        y = rng.integers(0, 3, 60)  # class 3 never occurs
        w = rng.uniform(size=60)
        expected = np.mean([pairs_area(y == k, p[:, k], w) for k in range(3)])
        assert AUC()(y, p, w) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("y", [np.zeros(5, int), np.ones(5, int)])
    def test_one_class_alone_has_none(self, y) -> None:
        assert np.isnan(AUC()(y, np.arange(5.0)))

    def test_targets_and_scores_must_fit(self) -> None:
        with pytest.raises(nn.ShapeError, match="a target for each score"):
            AUC()([0, 1, 1], np.ones(4))
        with pytest.raises(nn.ShapeError, match="a target for each score"):
            AUC()(np.ones((4, 2)), np.ones((4, 3)))

    @pytest.mark.parametrize(
        ("loss", "outputs", "activation"),
        [
            ("softmax_cross_entropy", 2, None),
            ("softmax_cross_entropy", 4, None),
            ("categorical_cross_entropy", 3, "softmax"),
            ("sigmoid_cross_entropy", 1, None),
            ("sigmoid_cross_entropy", 3, None),
            ("binary_cross_entropy", 1, "sigmoid"),
        ],
    )
    def test_of_a_model_it_is_that_of_its_probabilities(
        self, backend, rng, loss, outputs, activation
    ) -> None:
        model = nn.Sequential([nn.Dense(3, outputs, activation)], seed=1, dtype="float64")
        model.compile(loss, nn.SGD(0.0), ["auc"])
        x, w = rng.normal(size=(90, 3)), rng.uniform(size=90)
        labels = "softmax" in loss or "categorical" in loss
        y = rng.integers(0, outputs, 90) if labels else rng.integers(0, 2, (90, outputs))
        p = model.predict_proba(x)
        columns = y[:, None] == np.arange(outputs) if labels else y == 1
        kept = range(outputs) if outputs != 2 else [1]
        expected = np.mean([pairs_area(columns[:, k], p[:, k], w) for k in kept])
        assert model.evaluate(x, y, w)["auc"] == pytest.approx(expected, rel=1e-9)
        history = model.fit(x, y, sample_weight=w, validation_data=(x, y, w), verbose=0)
        assert history["auc"][-1] == history["val_auc"][-1] == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("outputs", [1, 2, 4])
    @pytest.mark.parametrize("offset", [0.0, 60.0])
    def test_rows_whose_probabilities_round_to_1_have_an_order(
        self, backend, rng, outputs, offset
    ) -> None:
        z, y = rng.normal(size=(300, outputs)), rng.integers(0, max(2, outputs), 300)
        z[:, 0] += offset  # of the first class, or of the only output
        model = nn.Sequential([nn.Dense(outputs, outputs, weight_init=np.eye(outputs))])
        loss = "sigmoid_cross_entropy" if outputs == 1 else "softmax_cross_entropy"
        model.compile(loss, metrics=["auc"])
        logits, areas = model.predict(z).astype(float), []
        for k in range(outputs):
            others = np.delete(logits, k, axis=1)
            score = logits[:, k] - (np.logaddexp.reduce(others, axis=1) if outputs > 1 else 0.0)
            areas.append(pairs_area(y == (1 if outputs == 1 else k), score, np.ones(300)))
        expected = areas[1] if outputs == 2 else np.mean(areas)
        found = model.evaluate(z, y[:, None].astype(float) if outputs == 1 else y)["auc"]
        assert found == pytest.approx(expected, rel=1e-12)

    def test_it_is_known_by_name_and_as_better_when_higher(self, rng, tmp_path) -> None:
        x, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
        model = nn.Sequential([nn.Dense(3, 2)], seed=1)
        model.compile("softmax_cross_entropy", nn.SGD(0.5), ["accuracy", nn.metrics.AUC()])
        stop = nn.EarlyStopping("val_auc", patience=3)
        history = model.fit(x, y, epochs=30, validation_split=0.3, callbacks=stop, verbose=0)
        assert stop.best_epoch == 1 + int(np.argmax(history["val_auc"]))
        model.save(tmp_path / "m.safetensors")
        again = nn.load(tmp_path / "m.safetensors")
        assert again.evaluate(x, y) == model.evaluate(x, y)

    @pytest.mark.parametrize("loss", ["mean_squared_error", "huber", "poisson"])
    def test_numbers_have_no_ranks_of_a_class(self, loss) -> None:
        model = nn.Sequential([nn.Dense(3, 1)])
        with pytest.raises(nn.DataError, match="auc ranks rows by the probability of a class"):
            model.compile(loss, metrics=["auc"])
        assert model.loss is None


class TestSeveralClasses:
    """As scikit-learn's average="macro", with 0 for what is divided by 0."""

    @pytest.mark.parametrize("occurring", [[0], [0, 3], [0, 1, 2, 3]])
    @pytest.mark.parametrize("predicted", [[0], [1, 3], [0, 1, 2, 3]])
    def test_a_class_that_is_nowhere_does_not_count(
        self, backend, rng, occurring, predicted
    ) -> None:
        y, guess = rng.choice(occurring, 40), rng.choice(predicted, 40)
        model = nn.Sequential([nn.Dense(4, 4, weight_init=np.eye(4))])
        model.compile("softmax_cross_entropy", metrics=["precision", "recall", "f1"])
        found = model.evaluate(np.eye(4)[guess], y)
        shares = {"precision": [], "recall": [], "f1": []}
        for k in {*y, *guess}:
            hits, said, there = ((y == k) & (guess == k)).sum(), (guess == k).sum(), (y == k).sum()
            shares["precision"].append(hits / max(said, 1))
            shares["recall"].append(hits / max(there, 1))
            shares["f1"].append(2 * hits / (said + there))
        for name, values in shares.items():
            assert found[name] == pytest.approx(np.mean(values), rel=1e-6), name


class TestTwoClasses:
    """As scikit-learn's average="binary": hits of class 1."""

    def test_softmax_and_one_sigmoid_say_the_same(self, backend, rng) -> None:
        y = rng.integers(0, 2, 200)
        z = rng.normal(size=200) + y
        hits, predicted = ((z > 0) & (y == 1)).sum(), (z > 0).sum()
        expected = {
            "precision": hits / predicted,
            "recall": hits / (y == 1).sum(),
            "f1": 2 * hits / (predicted + (y == 1).sum()),
        }
        for loss, weight in (
            ("softmax_cross_entropy", [[-0.5, 0.5]]),
            ("sigmoid_cross_entropy", [[1.0]]),
            (own_loss, [[-0.5, 0.5]]),
        ):
            model = nn.Sequential([nn.Dense(1, len(weight[0]), bias=False, weight_init=weight)])
            model.compile(loss, metrics=list(expected))
            figures = model.evaluate(z[:, None], y)
            assert {name: figures[name] for name in expected} == pytest.approx(expected)

    def test_two_yes_or_no_outputs_are_still_averaged(self, backend) -> None:
        model = nn.Sequential([nn.Dense(2, 2, bias=False, weight_init=np.eye(2))])
        model.compile("sigmoid_cross_entropy", metrics=["recall"])
        x = np.array([[1.0, -1], [1, -1], [-1, -1], [1, 1]])
        assert model.evaluate(x, [[1, 1], [1, 0], [1, 0], [0, 1]])["recall"] == pytest.approx(
            (2 / 3 + 1 / 2) / 2
        )

    def test_a_class_that_never_occurs_counts_as_nothing(self, backend) -> None:
        model = nn.Sequential([nn.Dense(2, 2)], seed=0)
        model.compile("softmax_cross_entropy", metrics=["precision", "recall", "f1"])
        model.layers[0].bias = [10.0, 0.0]
        figures = model.evaluate(np.zeros((5, 2)), np.zeros(5, int))
        assert [figures[n] for n in ("precision", "recall", "f1")] == [0, 0, 0]


def own_loss(y_true, y_pred):
    return 0.0, 0 * y_pred


class TestLossOfOnesOwn:
    """It says nothing of what its outputs mean."""

    @staticmethod
    def logistic(t, z):
        p = 1 / (1 + np.exp(-z))
        return -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), (p - t) / z.size

    @staticmethod
    def fitted(loss, x, y, metrics):
        model = nn.Sequential([nn.Dense(x.shape[1], y.shape[1])], seed=0)
        model.compile(loss, nn.SGD(0.1), metrics)
        model.fit(x, y, epochs=5, verbose=0)
        return model.evaluate(x, y)

    @pytest.mark.parametrize("outputs", [1, 3])
    def test_with_a_threshold_the_figures_are_those_of_the_built_in_loss(
        self, backend, rng, outputs
    ) -> None:
        x = rng.normal(size=(200, 3))
        y = (x @ rng.normal(size=(3, outputs)) + 0.3 > rng.normal(size=(200, outputs))) * 1.0
        kinds = (nn.metrics.Accuracy, nn.metrics.Precision, nn.metrics.Recall, nn.metrics.F1)
        own = self.fitted(self.logistic, x, y, [kind(threshold=0) for kind in kinds])
        usual = self.fitted("sigmoid_cross_entropy", x, y, [kind.name for kind in kinds])
        for name in ("accuracy", "precision", "recall", "f1"):
            assert own[name] == pytest.approx(usual[name], abs=1e-9), name

    @pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1"])
    def test_one_output_asks_for_a_threshold(self, name) -> None:
        model = nn.Sequential([nn.Dense(3, 1)])
        with pytest.raises(nn.DataError, match=r"threshold=0\.5\) for probabilities, threshold=0"):
            model.compile(self.logistic, "sgd", [name])

    @pytest.mark.parametrize("row", [[1, 1, 0], [0, 0, 0]])
    def test_targets_of_no_one_class_are_refused(self, row, backend) -> None:
        model = nn.Sequential([nn.Dense(2, 3)])
        model.compile(self.logistic, "sgd", ["accuracy"])
        with pytest.raises(nn.DataError, match="row 1 has .* of them, .*threshold=0.5"):
            model.fit(np.ones((2, 2)), np.array([[0, 1, 0], row], float), verbose=0)

    def test_shares_of_classes_may_be_equal(self, backend) -> None:
        model = nn.Sequential([nn.Dense(2, 3)])
        model.compile(self.logistic, "sgd", ["accuracy"])
        model.fit(np.ones((2, 2)), np.array([[0.5, 0.5, 0], [0, 1, 0]]), verbose=0)

    def test_after_a_sigmoid_it_is_known(self, backend, rng) -> None:
        x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, (40, 1)).astype(float)
        model = nn.Sequential([nn.Dense(3, 1, "sigmoid")], seed=0)
        model.compile(
            lambda t, p: (((p - t) ** 2).mean(), 2 * (p - t) / t.size), "sgd", ["accuracy"]
        )
        right = ((model.predict(x) > 0.5) == (y > 0.5)).mean()
        assert model.evaluate(x, y)["accuracy"] == pytest.approx(right)

    def test_a_file_without_a_threshold_is_older_and_means_a_half(self, tmp_path) -> None:
        model = nn.Sequential([nn.Dense(2, 1)], seed=0)
        model.compile(squared, "sgd", [nn.metrics.F1(threshold=0.5)])
        model.save(tmp_path / "m")
        content = (tmp_path / "m").read_bytes()
        size = int.from_bytes(content[:8], "little")
        head = content[8 : 8 + size].replace(b', \\"threshold\\": 0.5', b"").rstrip()
        assert b"threshold" not in head
        (tmp_path / "m").write_bytes(content[:8] + head.ljust(size) + content[8 + size :])
        again = nn.load(tmp_path / "m", custom_objects={"squared": squared})
        assert again.metrics == [nn.metrics.F1(threshold=0.5)]

    def test_class_numbers_have_no_threshold(self) -> None:
        model = nn.Sequential([nn.Dense(2, 3)])
        model.compile(lambda t, p: (0.0, p * 0), "sgd", [nn.metrics.F1(threshold=0.5)])
        with pytest.raises(nn.ShapeError, match="a target of its own"):
            model.fit(np.ones((2, 2)), np.array([0, 2]), verbose=0)
        with pytest.raises(nn.DataError, match="leave the threshold out"):
            model.compile("softmax_cross_entropy", "sgd", [nn.metrics.Accuracy(threshold=0.5)])

    def test_a_threshold_is_saved_with_the_model(self, tmp_path) -> None:
        model = nn.Sequential([nn.Dense(2, 1)], seed=0)
        model.compile("mean_squared_error", "sgd", [nn.metrics.Accuracy(threshold=0.25)])
        model.save(tmp_path / "m")
        again = nn.load(tmp_path / "m").metrics[0]
        assert again == nn.metrics.Accuracy(threshold=0.25)
        assert repr(again) == "Accuracy(threshold=0.25)"

    def test_a_function_does_it_for_one_hot_targets_and_squared_errors(self) -> None:
        model = nn.Sequential([nn.Dense(2, 3)])
        with pytest.raises(nn.DataError, match=r"t\.argmax\(1\) == p\.argmax\(1\)"):
            model.compile("mean_squared_error", "sgd", ["accuracy"])


def squared(t, p):
    return ((p - t) ** 2).mean(), 2 * (p - t) / p.size
