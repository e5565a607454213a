"""The comparison with other systems: its rules, and a run of it with what is always there."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nnbackend.benchmark.cases import CASES

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers are stopped by POSIX signals")


@pytest.fixture(autouse=True)
def _peers_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def comparison(times: dict[tuple[str, str, str], float]):
    from peers.measuring import Cell
    from peers.verdicts import Comparison

    return Comparison([Cell(*key, seconds=seconds) for key, seconds in times.items()])


class TestVerdicts:
    def test_the_ratio_is_that_to_the_best_peer(self) -> None:
        found = comparison({
            ("step", "tiny", "numba"): 2e-6, ("step", "tiny", "numpy"): 1e-6,
            ("step", "tiny", "torch"): 100e-6, ("step", "tiny", "jax"): 30e-6,
            ("step", "tiny", "products"): 1e-6,
        })  # fmt: skip
        assert found.ours == "numba"
        assert found.best_peer("step", "tiny") == "jax"
        assert found.ratio("step", "tiny") == pytest.approx(15)
        assert found.floors("step", "tiny") == pytest.approx(2)
        verdicts = {v.what: v for v in found.verdicts()}
        assert verdicts["step tiny: speed / best peer's"].target == 12
        assert verdicts["step tiny: speed / best peer's"].reached
        assert verdicts["step: geometric mean of the cases with targets"].reached

    @pytest.mark.parametrize(
        ("case", "ratio", "reached"),
        [("wide", 0.98, True), ("wide", 0.96, False), ("momentum", 0.98, True),
         ("momentum", 0.9, False), ("digits", 5.9, False), ("digits", 6.1, True)],
    )  # fmt: skip
    def test_a_tie_is_not_behind_but_a_target_is_a_target(
        self, case: str, ratio: float, reached: bool
    ) -> None:
        found = comparison({("step", case, "numba"): 1.0, ("step", case, "torch"): ratio})
        assert next(iter(found.verdicts())).reached is reached

    def test_ratios_are_medians_of_the_rounds_ratios(self) -> None:
        from peers.measuring import Cell
        from peers.verdicts import Comparison

        times = {"numba": [1.0, 2.0, 3.0], "torch": [1.5, 2.0, 9.0], "jax": [4.0, 3.0, 3.6],
                 "products": [2.0, 1.0, 1.0]}  # fmt: skip
        cells = [Cell("step", "wide", name, sorted(t)[1], t) for name, t in times.items()]
        found = Comparison(cells)
        # jax: 4, 1.5, 1.2; torch: 1.5, 1, 3
        assert found.best_peer("step", "wide") in ("jax", "torch")
        assert found.ratio("step", "wide") == pytest.approx(1.5)
        assert found.floors("step", "wide") == pytest.approx(2.0)
        assert found.ratio("step", "wide", ["numpy"]) is None
        assert (
            Comparison(cells[1:3]).best_peer("step", "wide") == "torch"
        )  # none of ours to compare

    def test_geometric_mean(self) -> None:
        found = comparison({
            ("epoch", "tiny", "numba"): 1.0, ("epoch", "tiny", "jax"): 2.0,
            ("epoch", "binary", "numba"): 1.0, ("epoch", "binary", "jax"): 8.0,
        })  # fmt: skip
        assert found.mean("epoch", ["tiny", "binary"]) == pytest.approx(4)

    def test_without_numba_the_ratios_are_numpys_and_without_peers_there_are_none(self) -> None:
        found = comparison({("step", "tiny", "numpy"): 1.0, ("step", "tiny", "products"): 0.5})
        assert found.ours == "numpy"
        assert found.ratio("step", "tiny") is None
        assert found.verdicts() == []


class TestCheck:
    def test_other_losses_are_found(self) -> None:
        from peers.measuring import difference

        expected = np.array([2.3, 2.2, 2.1, 2.0])
        assert difference("step", [2.3, 2.2, 2.1, 2.0005], expected) == ""
        assert "loss after 0 updates is 2.302" in difference("step", [2.302, 2.2, 2.1, 2], expected)
        assert "loss after 3 updates is 2.1" in difference("step", [2.3, 2.2, 2.1, 2.1], expected)
        assert "loss after 1" in difference("step", [2.3, float("nan"), 2.1, 2.0], expected)
        assert "3 values instead of 4" in difference("step", [2.3, 2.2, 2.1], expected)
        assert "output 1 is 2.202" in difference("predict", [2.3, 2.202, 2.1, 2.0], expected)

    @pytest.mark.parametrize("kind", ["step", "predict"])
    def test_the_reference_is_what_the_backends_compute(self, backend, kind: str) -> None:
        from peers.measuring import difference, reference_values
        from peers.ours import Ours
        from peers.system import Material

        for case in (CASES["dropout-bn"], CASES["momentum"]):
            material = Material.make(case, "step")
            ours = Ours(backend.device)
            values = ours.losses(case, material) if kind == "step" else ours.outputs(case, material)
            expected = reference_values(kind, case, material)
            assert difference(kind, np.ravel(values).tolist(), expected) == ""


def test_material_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    from peers.system import Material

    material = Material.make(CASES["digits"], "step")
    material.save(tmp_path / "m.npz")
    loaded = Material.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(loaded.x, material.x)
    np.testing.assert_array_equal(loaded.y, material.y)
    for (w, b), (w2, b2) in zip(loaded.weights, material.weights, strict=True):
        np.testing.assert_array_equal(w, w2)
        np.testing.assert_array_equal(b, b2)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(BENCHMARKS / "compare.py"), *arguments, "--seconds", "0.001"]


def test_a_whole_run(tmp_path: Path) -> None:
    # one that is not installed, where there is one
    absent = [name for name in ("jax", "onnxruntime") if importlib.util.find_spec(name) is None][:1]
    systems = ",".join(["products", "numpy", *absent])
    done = subprocess.run(
        command("--systems", systems, "--cases", "dropout-bn", "--kinds", "step,epoch",
                "--rounds", "2", "--output", str(tmp_path / "out")),
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in absent:
        assert f"not installed: {name}" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["machine"]["cpu"]
    assert content["ours"] == "numpy"
    measured = {(r["kind"], r["case"], r["system"]) for r in content["results"] if r["seconds"]}
    assert measured == {
        (kind, "dropout-bn", system)
        for kind in ("step", "epoch")
        for system in ("products", "numpy")
    }
    assert all(len(r["rounds"]) == 2 for r in content["results"] if r["seconds"])
    assert all(r["times_products"] > 0 for r in content["ratios"])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def status_of(folder: Path) -> dict[str, str]:
    """What /proc says about a process; nothing if it has ended."""
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def workers_of(parent: int) -> list[Path]:
    folders = Path("/proc").glob("[0-9]*")
    return [folder for folder in folders if status_of(folder).get("PPid") == str(parent)]


def runs(folder: Path) -> bool:
    # one that was killed may wait for its new parent to take notice
    return not status_of(folder).get("State", "Z").startswith("Z")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGKILL)),
    ],
)
def test_no_worker_is_left_behind(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        command("--systems", "products,numpy", "--cases", "tiny", "--kinds", "step",
                "--rounds", "100000", "--output", str(tmp_path / "out")),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        workers: list[Path] = []
        for _ in range(600):
            workers = workers_of(process.pid)
            if len(workers) == 2:
                break
            time.sleep(0.05)
        assert len(workers) == 2
        time.sleep(0.5)  # into the rounds, where one of them is stopped
        process.send_signal(how)
        process.wait(30)
        for _ in range(200):
            if not any(map(runs, workers)):
                break
            time.sleep(0.05)
        assert not any(map(runs, workers))
    finally:
        process.kill()
        process.wait()
