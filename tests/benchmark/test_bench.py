"""Benchmark cases, their measuring, and the command that shows it. No test asks for speed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run

import nnbackend as nn
from nnbackend.benchmark import cases as bench
from nnbackend.benchmark import operations as measuring
from nnbackend.benchmark import report as bench_report
from nnbackend.benchmark.cases import CASES, Case
from nnbackend.benchmark.operations import OPERATIONS, Trial

ROOT = Path(__file__).parent.parent.parent
QUICK = [CASES[name] for name in ("tiny", "digits", "tanh-mse", "binary", "dropout-bn")]


class Clock:
    """A clock that only work moves on: a millisecond for each repetition."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def trial(self, name: str = "", milliseconds: float = 1.0) -> Trial:
        def repeat(count: int) -> None:
            self.calls.append((name, count))
            self.now += 1e-3 * milliseconds * count

        return Trial(repeat, rows=10, flops=1000, steps=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    return clock


class TestCases:
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_sizes(self, case: Case) -> None:
        assert bench.EPOCH_BATCHES <= case.n_batches <= bench.MOST_BATCHES
        assert len(case.name) <= 10  # a column of that width
        dense = [layer for layer in case.layers() if isinstance(layer, nn.Dense)]
        assert [layer.n_inputs for layer in dense] == list(case.widths[:-1])
        assert dense[-1].activation.name == "linear"

    def test_shapes_are_written_short(self) -> None:
        assert CASES["digits"].shape == "32 x (64-32-10)"
        assert CASES["wide"].shape == "1024 x (1024-1024-1024-1024)"
        assert CASES["deep"].shape == "64 x (64[8]-10)"

    def test_flops_of_the_products(self) -> None:
        case = CASES["mnist-128"]
        forward = 2 * 128 * (784 * 128 + 128 * 128 + 128 * 10)
        first = 2 * 128 * 784 * 128
        assert case.forward_flops(128) == forward
        assert case.backward_flops(128) == 2 * forward - first
        assert case.backward_flops(128, first_dx=True) == 2 * forward
        assert case.step_flops() == 3 * forward - first

    def test_data_fit_the_loss(self) -> None:
        x, y = CASES["digits"].data(50)
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((50, 64), np.float32, (50,), np.int64)
        assert set(np.unique(y)) <= set(range(10))
        np.testing.assert_array_equal(x, CASES["digits"].data(50)[0])
        for name, values in (("binary", {0.0, 1.0}), ("tanh-mse", None)):
            _, y = CASES[name].data(50)
            assert (y.shape, y.dtype) == ((50, 1), np.float32)
            assert values is None or set(y.ravel()) == values

    def test_batches_differ(self) -> None:
        batches = CASES["tiny"].batches()
        assert len(batches) == CASES["tiny"].n_batches
        assert len({x.tobytes() for x, _ in batches}) == len(batches)

    def test_models_begin_alike_and_dropout_can_be_left_out(self, backend) -> None:
        case = CASES["dropout-bn"]
        with_dropout, without = case.model(), case.model(dropout=False)
        assert with_dropout.backend is backend
        assert len(with_dropout.layers) == len(without.layers) + 2
        dense = [[k for k in m.layers if isinstance(k, nn.Dense)] for m in (with_dropout, without)]
        for a, b in zip(*dense, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(a.weight), backend.to_numpy(b.weight))
        assert str(case.model(dtype="float64").dtype) == "float64"

    def test_names_are_chosen_by_commas(self) -> None:
        assert bench.choose("case", None, CASES) == list(CASES)
        assert bench.choose("case", " deep, tiny,deep", CASES) == ["deep", "tiny"]
        assert bench.choose("backend", "mine", ["numpy"], open_end=True) == ["mine"]
        with pytest.raises(nn.UnknownNameError, match="Did you mean 'tiny'"):
            bench.choose("case", "tine", CASES)
        with pytest.raises(nn.DataError, match="name at least one operation: forward, "):
            bench.choose("operation", " , ", OPERATIONS)


class TestOperations:
    @pytest.mark.parametrize("operation", OPERATIONS)
    @pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
    def test_every_operation_of_every_case_runs(self, backend, case: Case, operation: str) -> None:
        trial = OPERATIONS[operation](case, case.model(backend))
        trial.repeat(1)
        trial.reset()
        trial.repeat(1)
        assert trial.flops > 0

    @pytest.mark.parametrize("operation", ["step", "epoch"])
    def test_reset_goes_back_to_the_beginning(self, backend, operation: str) -> None:
        case = CASES["momentum"]
        model = case.model(backend)
        trial = OPERATIONS[operation](case, model)
        before = {**model.arrays(), **model.optimizer_state()}
        trial.repeat(2)
        assert model.step == 2 * trial.steps
        trained = {**model.arrays(), **model.optimizer_state()}
        assert all(not np.array_equal(trained[key], before[key]) for key in before)
        trial.reset()
        assert model.step == 0
        after = {**model.arrays(), **model.optimizer_state()}
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value)


class TestMeasuring:
    def test_repetitions_fill_the_time(self, clock: Clock) -> None:
        assert measuring.repetitions(clock.trial(), 0.25) == 250
        assert [count for _, count in clock.calls[:5]] == [1, 1, 1, 10, 10]
        assert measuring.repetitions(clock.trial(milliseconds=900), 0.25) == 1

    def test_what_is_compiled_only_after_some_steps_is_not_part_of_the_time(self, clock) -> None:
        trial, done = clock.trial(), []

        def repeat(count: int) -> None:
            if sum(done) < 20 <= sum(done) + count:
                clock.now += 60
            done.append(count)
            trial.repeat(count)

        assert measuring.repetitions(replace(trial, repeat=repeat), 0.25) == 250

    def test_rounds_alternate_and_the_median_counts(
        self, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        speeds = {"a": 1.0, "b": 4.0}
        monkeypatch.setitem(OPERATIONS, "step", lambda case, model: clock.trial(*model))
        case = CASES["tiny"]
        monkeypatch.setattr(Case, "model", lambda self, backend: (backend.device, backend.speed))
        backends = [FakeBackend(name, speed) for name, speed in speeds.items()]
        found = measuring.measure(case, "step", backends, rounds=3, seconds=0.1)
        timed = [name for name, count in clock.calls if (name, count) in {("a", 100), ("b", 25)}]
        assert timed[-6:] == ["a", "b"] * 3
        for result, speed in zip(found, speeds.values(), strict=True):
            assert result.rounds == pytest.approx([speed * 1e-3 / 2] * 3)
            assert result.seconds == pytest.approx(speed * 1e-3 / 2)
            assert result.samples_per_second == pytest.approx(10 / result.seconds)
            assert result.gflop_per_second == pytest.approx(1e-6 / result.seconds)

    def test_a_real_backend(self, backend) -> None:
        (result,) = measuring.measure(CASES["tiny"], "step", [backend], rounds=3, seconds=1e-3)
        assert (result.case, result.operation, result.backend) == ("tiny", "step", backend.device)
        assert len(result.rounds) == 3
        assert min(result.rounds) <= result.seconds <= max(result.rounds)


class FakeBackend:
    def __init__(self, device: str, speed: float) -> None:
        self.device, self.speed = device, speed


def results_of(*backends: str, cases=("tiny", "digits"), operations=("step", "row")) -> list:
    seconds = {"numpy": 8e-5, "numba": 2e-6}
    return [
        measuring.Result(
            case, operation, backend, seconds[backend], 4e5, 1.5, (seconds[backend],) * 2
        )
        for case in cases
        for operation in operations
        for backend in backends
    ]


class TestReport:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(9.44e-7, "0.944 us"), (4.7849e-4, "478 us"), (4.84e-3, "4.84 ms"), (9.996e-4, "1.00 ms"),
         (1.2, "1.20 s"), (1234.0, "1,234 s"), (12.34e-6, "12.3 us")],
    )  # fmt: skip
    def test_durations(self, seconds: float, text: str) -> None:
        assert bench_report.duration_text(seconds) == text

    @pytest.mark.parametrize(
        ("value", "text"), [(0.0012, "0.0012"), (0.5, "0.500"), (9.996, "10.0"), (99.96, "100")]
    )
    def test_three_digits(self, value: float, text: str) -> None:
        assert bench_report.three_digits(value) == text

    def test_json_names_the_machine_and_compares_with_numpy(self) -> None:
        content = bench_report.to_json(results_of("numpy", "numba"), 2, 0.1)
        content = json.loads(json.dumps(content))
        machine = content["machine"]
        assert machine["cpu"]
        assert machine["blas"]
        assert machine["packages"]["numpy"] == np.__version__
        assert f"numpy {np.__version__}" in bench_report.machine_text(machine)
        ratios = [record["times_numpy"] for record in content["results"]]
        assert ratios == pytest.approx([1, 40] * 4)
        alone = bench_report.to_json(results_of("numba"), 2, 0.1)
        assert {record["times_numpy"] for record in alone["results"]} == {None}

    def test_what_is_special_about_a_case_is_said(self) -> None:
        describe = bench_report.describe
        assert describe(CASES["tiny"]) == "4 x (2-2-2)"
        assert describe(CASES["tanh-mse"]) == "128 x (32-64-64-1), tanh, mean squared error"
        assert describe(CASES["dropout-bn"]).endswith("dropout 0.2, BatchNorm")

    def test_picture_has_a_panel_for_each_operation(self) -> None:
        figure = bench_report.picture(results_of("numpy", "numba"))
        titles = [ax.get_title() for ax in figure.axes]
        assert titles == ["model.train_step on one batch after the other", "model(x) of one row"]
        ax = figure.axes[0]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["tiny", "digits"]
        assert [t.get_text() for t in ax.texts] == ["80.0 us"] * 2 + ["2.00 us"] * 2
        assert ax.get_xscale() == "log"
        near = bench_report.picture(results_of("numpy"))
        assert near.axes[0].get_xscale() == "linear"
        near.canvas.draw()
        assert near.axes[0].get_xticklabels()[1].get_text() == "20 us"


class TestCommand:
    def test_table_json_and_picture(self, tmp_path: Path) -> None:
        done = run(
            "bench", "--backends", "numpy", "--cases", "tiny,digits", "--operations", "step,row",
            "--rounds", "2", "--seconds", "0.001", "--json", "b.json", "--plot", "b.png",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        tables = [k for k, line in enumerate(lines) if line.split()[:1] in (["tiny"], ["digits"])]
        assert len(tables) == 2
        assert "32 x (64-32-10)" in lines[tables[1]]
        rows = [line.split() for line in lines if " numpy " in line and " x" in line]
        assert [row[0] for row in rows] == ["step", "row"] * 2
        content = json.loads((tmp_path / "b.json").read_text())
        assert [len(record["rounds"]) for record in content["results"]] == [2] * 4
        assert content["settings"]["rounds"] == 2
        assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(os.listdir(tmp_path)) == ["b.json", "b.png"]

    def test_a_terminal_sees_how_far_it_is(self, tmp_path: Path) -> None:
        done = run("bench", "--backends", "numpy", "--cases", "tiny", "--operations", "row",
                   "--rounds", "1", "--seconds", "0.001", cwd=tmp_path, FORCE_COLOR="1",
                   TERM="xterm", COLUMNS="80")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "tiny: row" in done.stdout
        assert "0/1" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--cases", "digit"], "Did you mean 'digits'"),
            (["--operations", "steps"], "Did you mean 'step'"),
            (["--backends", "nunpy"], "Did you mean 'numpy'"),
            (["--rounds", "0"], "rounds must be at least 1; received 0"),
            (["--seconds", "0"], "seconds must be above 0"),
            (["--json", "no/b.json"], "does not exist"),
            (["--plot", "b.xyz"], "--plot takes a file ending in .png"),
        ],
    )
    def test_users_errors(self, tmp_path: Path, arguments: list[str], message: str) -> None:
        done = run("bench", *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_pytest_benchmark_suite_runs() -> None:
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-disable", "-k",
               "numpy and tiny", "-p", "no:cacheprovider"]  # fmt: skip
    environment = {**os.environ, "NN_TEST_BACKENDS": "numpy"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{len(OPERATIONS)} passed" in done.stdout
