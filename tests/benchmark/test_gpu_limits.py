"""The measurements of a GPU's limits, tried on the stand-in device: its times mean nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cuda_stand_in import StandInBackend, compiler

from nnbackend.benchmark.cases import CASES

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_figure_has_its_floor(tmp_path, monkeypatch) -> None:
    import gpu_limits

    monkeypatch.setattr(gpu_limits, "STEPS", 18)
    monkeypatch.setattr(gpu_limits, "CLASSES", 20)
    monkeypatch.setattr(gpu_limits, "CASES", {"tiny": CASES["tiny"]})
    arguments = ["--size", "2000", "--rows", "16", "--width", "24", "--rounds", "2"]
    arguments += ["--output", str(tmp_path / "limits")]
    assert gpu_limits.main(arguments, StandInBackend()) == 0
    content = json.loads((tmp_path / "limits.json").read_text())
    assert content["device"] == "a stand-in"
    assert list(content["ways"]["tiny"]) == ["graphs", "resident", "phased"]
    figures = {figure["what"]: figure for figure in content["figures"]}
    assert list(figures) == [
        *(f"update {name}" for name in gpu_limits.UPDATE_BYTES),
        *(f"loss {name}" for name in gpu_limits.LOSS_BYTES),
        "step bf16 16 x (24[4])", "step tf32 16 x (24[4])", "chunk of 18, tiny",
    ]  # fmt: skip
    for figure in figures.values():
        assert figure["share"] == pytest.approx(figure["floor"] / figure["seconds"])
        assert figure["reached"] == (figure["share"] >= figure["target"])


def test_bare_products_are_those_of_a_training_step() -> None:
    from peers.cuda_products import products_of

    backend = StandInBackend()
    found = products_of(backend, [(5, 7), (7, 3)], 11)
    assert [product.out.shape for product in found] == [
        (11, 7), (11, 3), (7, 3), (11, 7), (5, 7),
    ]  # fmt: skip
    flops = sum(
        2 * product.out.size * product.a.shape[0 if product.a_t else 1] for product in found
    )
    case = CASES["digits"]
    products = products_of(backend, [(64, 32), (32, 10)], case.batch, np.dtype(np.uint16))
    assert flops == 2 * 11 * (5 * 7 * 2 + 7 * 3 * 3)
    assert case.step_flops() == sum(2 * p.out.size * p.a.shape[0 if p.a_t else 1] for p in products)
    for product in products:
        backend.gpu.product(product)


def test_systems_on_a_gpu_compute_the_same_losses(monkeypatch) -> None:
    from peers import CUDA
    from peers.cuda_products import CudaProducts
    from peers.measuring import difference, reference_values
    from peers.ours import Ours
    from peers.system import Material

    case = CASES["digits"]
    material = Material.make(case, "step")
    monkeypatch.setattr(Ours, "gpu", lambda self: "a stand-in")
    for precision in ("fp32", "tf32"):
        monkeypatch.setenv("NN_COMPARE_PRECISION", precision)
        ours = Ours("cuda_stand_in")
        expected = reference_values("step", case, material)
        assert difference("step", ours.losses(case, material), expected, precision) == ""
        for kind in ("step", "epoch"):
            getattr(ours, kind)(case, material).repeat(2)
        assert CudaProducts(StandInBackend()).losses(case, material) == []
        CudaProducts(StandInBackend()).step(case, material).repeat(2)
    assert CUDA.peers == ("torch-cuda", "torch-reduce-overhead", "torch-graph", "jax-cuda")


def test_on_a_gpu_nobody_may_be_ahead_and_small_batches_have_to_be_twice_as_fast() -> None:
    from peers import CUDA
    from peers.measuring import Cell
    from peers.verdicts import Comparison

    times = {"cuda": 1.0, "torch-graph": 1.5, "torch-reduce-overhead": 3.0, "jax-cuda": 1.8}
    cells = [Cell("step", case, name, t) for case in ("tiny", "wide") for name, t in times.items()]
    verdicts = {v.what: v for v in Comparison(cells, CUDA).verdicts()}
    assert verdicts["step tiny: speed / best peer's"].measured == 1.5
    assert verdicts["step tiny: speed / best peer's"].reached
    assert verdicts["step tiny: speed / torch-reduce-overhead's"].reached
    assert not verdicts["step tiny: speed / jax-cuda's"].reached
    assert "step wide: speed / jax-cuda's" not in verdicts
