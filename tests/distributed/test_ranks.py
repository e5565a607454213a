"""Ranks, here threads that meet, train what one process trains."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from crew import together
from needs import need_backend
from shared_networks import (
    CLASSES,
    NETWORKS,
    ROWS,
    WEIGHT,
    WIDTH,
    X,
    Y,
    coupled,
    divided,
    make,
    normalised,
    plain,
)

import nnbackend as nn
from nnbackend.distributed import Alone, Communicator
from nnbackend.distributed.ranks import EXACT_BLOCKS, Ranks
from nnbackend.errors import DataError, DTypeError, NonFiniteLossError, RankError


def train(comm, layers, backend, exact=False, weight=None, **settings):
    model = make(layers, backend)
    history = model.fit(
        X, Y, epochs=3, batch_size=32, validation_split=0.2, sample_weight=weight, verbose=0,
        comm=comm, exact=exact, **settings,
    )  # fmt: skip
    figures = model.evaluate(X, Y, comm=comm, exact=exact)
    curves = [*history["loss"], *history["val_loss"], *history["f1"], *figures.values()]
    return np.array(curves), model.get_flat(), model.predict(X, comm=comm)


@pytest.fixture(params=["numpy", "numba"])
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["equal", "weighted"])
@pytest.mark.parametrize("layers", NETWORKS)
def test_any_number_of_ranks_trains_what_one_process_does(backend, layers, weight):
    curves, parameters, outputs = train(None, layers, backend, weight=weight)
    for size in (2, 3, 4):
        ranks = together(size, partial(_on_rank, layers, backend, weight))
        for own in ranks:
            np.testing.assert_allclose(own[0], curves, rtol=0, atol=1e-12)
            np.testing.assert_allclose(own[1], parameters, rtol=0, atol=1e-10)
            np.testing.assert_allclose(own[2], outputs, rtol=0, atol=1e-10)
            assert np.array_equal(own[1], ranks[0][1])


def _on_rank(layers, backend, weight, comm):
    return train(comm, layers, backend, weight=weight)


@pytest.mark.parametrize("layers", NETWORKS)
def test_exact_gives_the_same_bits_for_any_number_of_ranks(layers):
    alone = train(Alone(), layers, "numpy", exact=True, weight=WEIGHT)
    for size in (2, 3, 5):
        ranks = together(size, lambda comm: train(comm, layers, "numpy", exact=True, weight=WEIGHT))
        for own in ranks:
            for mine, whole in zip(own[:2], alone[:2], strict=True):
                assert np.array_equal(mine, whole)


def test_exact_leaves_the_number_of_threads_as_it_was():
    need_backend("numba")
    before = nn.get_num_threads()
    together(3, lambda comm: train(comm, divided, "numba", exact=True))
    assert nn.get_num_threads() == before


def test_more_ranks_than_rows_of_a_batch(backend):
    def work(comm):
        model = nn.Sequential([nn.Dense(WIDTH, CLASSES)], seed=1, dtype="float64", backend=backend)
        model.compile("softmax_cross_entropy", nn.SGD(0.1))
        model.fit(X[:10], Y[:10], epochs=2, batch_size=6, verbose=0, comm=comm)
        return model.get_flat()

    whole = work(None)
    for own in together(5, work):
        np.testing.assert_allclose(own, whole, atol=1e-13)


@pytest.mark.parametrize("loss", ["sum_squared_error", "huber", "a function"])
def test_other_losses(backend, loss):
    def squares(y_true, y_pred):
        error = y_pred - y_true
        return (error**2).mean(), 2 * error / error.size

    target = X[:, :2] ** 2

    def work(comm):
        model = nn.Sequential(
            [nn.Dense(WIDTH, 2, weight_l2=0.1)], seed=1, dtype="float64", backend=backend
        )
        chosen = squares if loss == "a function" else loss
        model.compile(chosen, nn.SGD(1e-3), metrics=[] if callable(chosen) else ["r2"],
                      penalties_per_row=True)  # fmt: skip
        history = model.fit(X, target, epochs=2, batch_size=50, verbose=0, comm=comm)
        return np.array([*history["loss"], *model.get_flat()])

    whole = work(None)
    for own in together(3, work):
        np.testing.assert_allclose(own, whole, rtol=1e-12)


def test_metrics_over_all_rows(backend):
    def spread(y_true, y_pred):
        return float(np.abs(y_pred).sum() + (y_true == 1).sum())

    def work(comm):
        model = make(plain, backend, metrics=["auc", spread])
        history = model.fit(X, Y, epochs=2, verbose=0, validation_data=(X[:50], Y[:50]), comm=comm)
        return [history[name] for name in ("auc", "val_auc", "spread", "val_spread")]

    whole = work(None)
    for own in together(3, work):
        np.testing.assert_allclose(own, whole, rtol=1e-12)


def test_rows_in_a_file_are_read_by_their_own_rank_alone(backend, tmp_path, monkeypatch):
    monkeypatch.setattr("nnbackend.data.sources.resident_bytes", lambda: 0)
    np.save(tmp_path / "x.npy", X)

    def work(comm):
        model = make(divided, backend)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
        model.fit(x, Y, epochs=2, batch_size=32, verbose=0, comm=comm)
        return model.get_flat()

    whole = work(None)
    for own in together(3, work):
        np.testing.assert_allclose(own, whole, atol=1e-12)


def test_a_model_goes_on_by_itself_after_a_shared_training(backend):
    """What the ranks had compiled code do, a part of a batch without penalties, is over."""

    def work(comm):
        model = make(plain, backend)
        model.fit(X[:200], Y[:200], epochs=2, batch_size=50, shuffle=False, verbose=0, comm=comm)
        losses = [float(model.train_step(X[:50], Y[:50])) for _ in range(3)]
        return losses, model.gradient(X[:50], Y[:50]), model.get_flat()

    losses, loss, parameters = work(None)
    for own in together(2, work):
        np.testing.assert_allclose(own[0], losses, rtol=1e-12)
        assert own[1] == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(own[2], parameters, atol=1e-10)


class TestRowsOfTheirOwn:
    """``sharded=True``: a batch is made of each rank's next rows."""

    def test_nobodys_row_is_lost(self, backend):
        seen = []

        def work(comm):
            mine = slice(*[0, 20, 21, 90][comm.rank : comm.rank + 2])
            model = nn.Sequential([nn.Dense(1, 1)], seed=0, dtype="float64", backend=backend)
            model.compile("mean_squared_error", nn.SGD(0.0), metrics=["mae"])
            x = np.arange(90.0)[mine, None]
            history = model.fit(
                x, x * 3, epochs=2, batch_size=16, verbose=0, comm=comm, sharded=True
            )
            seen.append(len(x))
            return history["mae"]

        ranks = together(3, work)
        assert sum(seen) == 90
        model = nn.Sequential([nn.Dense(1, 1)], seed=0, dtype="float64", backend=backend)
        model.compile("mean_squared_error", nn.SGD(0.0), metrics=["mae"])
        x = np.arange(90.0)[:, None]
        whole = model.evaluate(x, x * 3)["mae"]
        for own in ranks:
            np.testing.assert_allclose(own, [whole, whole])

    def test_gradients_are_those_of_the_whole_batch(self, backend):
        """All rows in one batch, in storage order: then the ranks' rows are the batch."""
        weight = WEIGHT[:90]

        def work(comm):
            model = make(coupled, backend)
            cut = slice(None) if comm is None else slice(*[0, 20, 21, 90][comm.rank :][:2])
            model.fit(
                X[:90][cut], Y[:90][cut], epochs=3, batch_size=90, sample_weight=weight[cut],
                verbose=0, shuffle=False, comm=comm, sharded=comm is not None,
            )  # fmt: skip
            return model.get_flat()

        whole = work(None)
        for own in together(3, work):
            np.testing.assert_allclose(own, whole, atol=1e-12)

    def test_standardize_learns_from_all_rows(self, backend):
        def work(comm):
            model = make(normalised, backend)
            cut = slice(*[0, 150, ROWS][comm.rank :][:2])
            model.fit(X[cut], Y[cut], verbose=0, comm=comm, sharded=True)
            return model.layers[0].mean, model.layers[0].scale

        for mean, scale in together(2, work):
            np.testing.assert_allclose(mean, X.mean(axis=0), atol=1e-12)
            np.testing.assert_allclose(scale, 1 / X.std(axis=0), rtol=1e-12)

    def test_iterables_of_unequal_length(self, backend):
        def work(comm):
            batches = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 60, 10)]
            own = batches[:5] if comm.rank == 0 else batches[5:]
            model = make(divided, backend)
            history = model.fit(own, epochs=2, verbose=0, comm=comm, sharded=True)
            return model.step, history["loss"], model.get_flat()

        (steps, loss, flat), other = together(2, work)
        assert steps == 10  # the longest rank's
        assert loss == other[1]
        assert np.array_equal(flat, other[2])

    def test_evaluate_over_all_ranks_rows(self, backend):
        def work(comm):
            cut = slice(*[0, 150, ROWS][comm.rank :][:2])
            model = make(plain, backend)
            return model.evaluate(X[cut], Y[cut], WEIGHT[cut], comm=comm, sharded=True)

        whole = make(plain, backend).evaluate(X, Y, WEIGHT)
        for own in together(2, work):
            assert own == pytest.approx(whole, rel=1e-12)

    def test_fewer_rows_in_a_step_than_ranks(self, backend):
        def work(comm):
            model = make(divided, backend)
            rows = slice(5 * comm.rank, 5 * comm.rank + 5)
            return model.fit(X[rows], Y[rows], batch_size=2, verbose=0, comm=comm, sharded=True)

        first, *others = [history["loss"] for history in together(3, work)]
        assert all(other == first for other in others)

    def test_what_one_rank_refuses_ends_all(self):
        def work(comm):
            model = make(divided, "numpy")
            x = X.copy()
            if comm.rank == 1:
                x[3, 2] = np.nan
            with pytest.raises(nn.NNBackendError) as error:
                model.fit(x, Y, verbose=0, comm=comm, sharded=True)
            return str(error.value)

        first, second = together(2, work)
        assert "received nan in row 3, column 2" in second
        assert first == f"rank 1: {second}"

    def test_balanced_weights_need_all_rows(self):
        with pytest.raises(DataError, match="counts the rows of all ranks"):
            together(
                2,
                lambda comm: make(divided, "numpy").fit(
                    X, Y, class_weight="balanced", verbose=0, comm=comm, sharded=True
                ),
            )

    def test_shared_files_go_with_sharded(self, tmp_path):
        np.savez(tmp_path / "0.npz", x=X, y=Y)

        def work(comm, sharded, own):
            shards = nn.datasets.Shards(tmp_path, 32, comm=comm if own else None)
            return make(divided, "numpy").fit(shards, verbose=0, comm=comm, sharded=sharded)

        for sharded, own in ((True, False), (False, True)):
            with pytest.raises(DataError, match="Shards whose files the ranks share"):
                together(2, partial(work, sharded=sharded, own=own))

    def test_a_rank_without_batches_in_evaluation(self, backend):
        def work(comm):
            own = [(X[:40], Y[:40])] if comm.rank else []
            model = make(divided, backend)
            model.fit(own, verbose=0, comm=comm, sharded=True, validation_data=own)
            return model.evaluate(own, comm=comm, sharded=True)

        first, second = together(2, work)
        assert first == second


class TestAgreement:
    def test_what_stops_one_rank_stops_all(self):
        class Stop(nn.Callback):
            def __init__(self, rank):
                self.rank = rank

            def on_epoch_end(self, model, epoch, figures, history):
                return "enough" if self.rank == 1 and epoch == 2 else None

        def work(comm):
            history = make(divided, "numpy").fit(
                X, Y, epochs=9, verbose=0, comm=comm, callbacks=Stop(comm.rank)
            )
            return history.epochs, history.stopped

        assert together(3, work) == [(2, "enough")] * 3

    def test_files_are_written_by_the_first_rank(self, tmp_path):
        def work(comm):
            logger = nn.CSVLogger(tmp_path / f"{comm.rank}.csv")
            make(divided, "numpy").fit(X, Y, verbose=0, comm=comm, callbacks=logger)

        together(3, work)
        assert [path.name for path in tmp_path.iterdir()] == ["0.csv"]

    def test_weights_start_from_rank_0(self):
        def work(comm):
            model = make(divided, "numpy")
            model.set_flat(model.get_flat() * (comm.rank + 1))
            model.fit(X, Y, verbose=0, comm=comm)
            return model.get_flat()

        reference = work(Alone())
        for own in together(2, work):
            np.testing.assert_allclose(own, reference, atol=1e-12)

    def test_a_loss_that_is_not_finite_is_found_by_all(self, backend):
        def work(comm):
            model = make(divided, backend, optimizer=nn.SGD(1e200))
            before = model.get_flat()
            with pytest.raises(NonFiniteLossError) as error:
                model.fit(X, Y, epochs=3, batch_size=20, verbose=0, comm=comm)
            assert np.array_equal(model.get_flat(), before)
            return error.value.epoch, error.value.step

        first, *others = together(3, work)
        assert all(other == first for other in others)
        assert first == work_alone(backend)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("seed", {"seed": 4}),
            ("dtype", {"dtype": "float32"}),
            ("layer 0", {"width": 13}),
            ("batch_size", {"batch_size": 16}),
            ("optimizer", {"lr": 0.5}),
            ("layer 0", {"columns": 6}),
            ("rows", {"rows": 100}),
            ("data", {"shift": 1.0}),
            ("sample weights", {"weight": WEIGHT}),
            ("nnbackend", {"version": "9.9"}),
            ("layer 0's weight_l2", {"penalty": 0.5}),
            ("validation data", {"validation": X[:9] + 1}),
            ("metrics", {"metrics": ["accuracy"]}),
        ],
    )
    def test_ranks_that_differ_are_named_with_the_difference(self, name, change, monkeypatch):
        def work(comm):
            own = change if comm.rank == 2 else {}
            columns, rows = own.get("columns", WIDTH), own.get("rows", ROWS)
            width, penalty = own.get("width", 12), own.get("penalty", 0.0)
            layers = [nn.Dense(columns, width, weight_l2=penalty), nn.Dense(width, 3)]
            model = nn.Sequential(
                layers, seed=own.get("seed", 3), dtype=own.get("dtype", "float64"), backend="numpy"
            )
            metrics = own.get("metrics", [])
            model.compile("softmax_cross_entropy", nn.SGD(own.get("lr", 0.1)), metrics)
            weight = own.get("weight")
            if "version" in own:
                comm = _OtherVersion(comm)
            model.fit(
                X[:rows, :columns] + own.get("shift", 0.0), Y[:rows], verbose=0, comm=comm,
                batch_size=own.get("batch_size", 32), sample_weight=weight,
                validation_data=(own.get("validation", X[:9])[:, :columns], Y[:9]),
            )  # fmt: skip

        with pytest.raises(RankError, match=f"rank 2 has {name} ") as error:
            together(3, work)
        assert error.value.ranks == (2,)

    def test_other_weights_or_rows_are_not_mixed(self):
        def work(comm, call):
            model = make(divided, "numpy")
            shift = 0.0 if call == "rows" else float(comm.rank)
            model.set_flat(model.get_flat() + shift)
            x = X + comm.rank if call == "rows" else X
            model.evaluate(x, Y, comm=comm) if call == "evaluate" else model.predict(x, comm)

        for call, name in (("evaluate", "weights"), ("predict", "weights"), ("rows", "x ")):
            with pytest.raises(RankError, match=f"rank 1 has {name}"):
                together(2, partial(work, call=call))

    def test_layers_in_python_that_use_the_whole_batch(self):
        class Centred(nn.Layer):
            couples_rows = True

            def __init__(self):
                super().__init__(n_inputs=WIDTH, n_outputs=WIDTH)

            def forward(self, x, training=False):
                return x - x.mean(axis=0)

            def backward(self, dy):
                return dy - dy.mean(axis=0)

        def work(comm):
            model = make(lambda: [Centred(), nn.Dense(WIDTH, CLASSES)], "numpy")
            model.fit(X, Y, verbose=0, comm=comm)

        with pytest.raises(DataError, match="Centred uses all rows of a batch"):
            together(2, work)

    def test_other_calls_are_named(self):
        def work(comm):
            model = make(divided, "numpy")
            if comm.rank:
                model.evaluate(X, Y, comm=comm)
            else:
                model.fit(X, Y, verbose=0, comm=comm)

        with pytest.raises(RankError, match="rank 1 has call 'evaluate', rank 0 has 'fit'"):
            together(2, work)


class _OtherVersion(Communicator):
    """A rank whose library says that it is another version."""

    def __init__(self, comm):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size

    def all_reduce(self, array):
        self.comm.all_reduce(array)

    def broadcast(self, array, root=0):
        self.comm.broadcast(array, root)

    def gather(self, array):
        text = array.tobytes().replace(nn.__version__.encode(), b"9.9.9")
        if len(array) == 32:  # a hash
            text = b"x" * 32
        return self.comm.gather(np.frombuffer(text, array.dtype))

    def barrier(self):
        self.comm.barrier()


def work_alone(backend):
    model = make(divided, backend, optimizer=nn.SGD(1e200))
    with pytest.raises(NonFiniteLossError) as error:
        model.fit(X, Y, epochs=3, batch_size=20, verbose=0)
    return error.value.epoch, error.value.step


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 4, 31, 64, 512, 1001])
def test_blocks_cover_all_rows_once(rows, exact):
    for size in (1, 2, 3, 4, 7, EXACT_BLOCKS, 40):
        covered = []
        for rank in range(size):
            comm = Alone()
            comm.rank, comm.size = rank, size
            covered += Ranks(comm, exact).blocks(rows)
        assert [i for first, last in covered for i in range(first, last)] == list(range(rows))
        assert all(first % 4 == 0 for first, _ in covered)


class TestBadInput:
    def test_no_communicator(self):
        with pytest.raises(DTypeError, match="comm must be what nn.distributed.init"):
            make(divided, "numpy").fit(X, Y, comm="mpi")

    @pytest.mark.parametrize("name", ["exact", "sharded"])
    def test_without_a_communicator(self, name):
        with pytest.raises(DataError, match=f"{name}=True is about ranks"):
            make(divided, "numpy").fit(X, Y, **{name: True})

    def test_exact_needs_all_rows(self):
        with pytest.raises(DataError, match="exact=True gives the same bits"):
            make(divided, "numpy").fit(X, Y, comm=Alone(), exact=True, sharded=True)

    def test_exact_needs_arrays(self):
        with pytest.raises(DataError, match="exact=True works only with arrays"):
            make(divided, "numpy").fit([(X, Y)], comm=Alone(), exact=True)

    def test_one_process_says_so_once(self, capsys, monkeypatch):
        monkeypatch.setattr("nnbackend.distributed.launch._made", {})
        assert nn.distributed.init().size == nn.distributed.init().size == 1
        assert capsys.readouterr().err.count("so it is the only rank") == 1
