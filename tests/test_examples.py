"""Every script in examples/, run as a user runs it, against the golden numbers."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from goldens import golden_index
from mpi import run_ranks

EXAMPLES = Path(__file__).parent.parent / "examples"
INDEX = golden_index()


def run(script: str, cwd: Path, *arguments: str, timeout: float = 300) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


def after(text: str, label: str) -> list[float]:
    """The numbers on the line that begins with ``label``."""
    return numbers(text.split(label, 1)[1].splitlines()[0])


def matrix(text: str, label: str, rows: int) -> np.ndarray:
    """The numbers of the ``rows`` lines after the line ``label``."""
    lines = text.split(label, 1)[1].splitlines()[1 : rows + 1]
    return np.array([numbers(line) for line in lines])


def test_neurons(tmp_path) -> None:
    out = run("neurons.py", tmp_path)
    for label, name in (("three inputs:", "tutorial1_neuron_3in"),
                        ("four inputs:", "tutorial1_neuron_4in"),
                        ("three neurons:", "tutorial1_layer_3x4")):  # fmt: skip
        expected = INDEX[name]["expected"]["output"]
        assert after(out, label) == pytest.approx(np.atleast_1d(expected), abs=1e-6)


def test_sigmoid_network(tmp_path) -> None:
    out = run("sigmoid_network.py", tmp_path)
    assert after(out, "neuron:") == pytest.approx([0.9990889488055994], abs=1e-15)
    assert after(out, "feedforward:") == pytest.approx([0.7216325609518421], abs=1e-15)
    expected = INDEX["tutorial2_network_train"]["expected"]
    assert after(out, "Emily:") == pytest.approx([expected["emily"]], abs=1e-6)
    assert after(out, "Frank:") == pytest.approx([expected["frank"]], abs=1e-6)
    assert after(out, "Emily:")[0] == pytest.approx(0.95, abs=0.02)
    assert after(out, "Frank:")[0] == pytest.approx(0.04, abs=0.02)


def test_people_2_10_1(tmp_path) -> None:
    out = run("people_2_10_1.py", tmp_path)
    first, last = after(out, "loss:")
    assert last < 0.01 * first
    assert after(out, "Emily:")[0] == pytest.approx(1, abs=0.2)
    assert after(out, "Frank:")[0] == pytest.approx(0, abs=0.2)


def test_xor(tmp_path) -> None:
    out = run("xor.py", tmp_path, "curve.png")
    first, last = after(out, "loss:")
    assert last < 0.02 < first
    for line, y in (("0 xor 0 =", 0), ("0 xor 1 =", 1), ("1 xor 0 =", 1), ("1 xor 1 =", 0)):
        assert after(out, line)[0] == pytest.approx(y, abs=0.1)
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_batch_perceptron(tmp_path) -> None:
    out = run("batch_perceptron.py", tmp_path)
    expected = INDEX["tutorial4_batch"]["expected"]
    np.testing.assert_allclose(matrix(out, "weighted sums:", 3), expected["output"], atol=1e-6)
    np.testing.assert_allclose(matrix(out, "after ReLU:", 3), expected["relu"], atol=1e-6)


def test_stacked_layers(tmp_path) -> None:
    out = run("stacked_layers.py", tmp_path)
    for label, name in (
        ("first layer:", "tutorial5_layer1"),
        ("second layer:", "tutorial5_layer2"),
    ):
        expected = INDEX[name]["expected"]["output"]
        np.testing.assert_allclose(matrix(out, label, 3), expected, atol=2e-6)


def test_spiral(tmp_path) -> None:
    out = run("spiral.py", tmp_path)
    outputs = matrix(out, "first five outputs", 5)
    assert outputs.shape == (5, 3)
    assert np.abs(outputs[1:]).max() < 0.01
    assert after(out, "accuracy after 1000 epochs:")[0] > 0.9
    assert (tmp_path / "spiral.png").stat().st_size > 1000


def test_train_digits(tmp_path) -> None:
    out = run("train_digits.py", tmp_path)
    assert after(out, "validation accuracy")[0] > 0.96
    assert (tmp_path / "digits.safetensors").exists()


def test_own_loop(tmp_path) -> None:
    assert after(run("own_loop.py", tmp_path), "\naccuracy")[0] > 0.97


def test_own_layer(tmp_path) -> None:
    out = run("own_layer.py", tmp_path)
    assert "the gradient is right" in out
    assert after(out, "validation accuracy")[0] > 0.9
    assert "loaded: True" in out


def test_own_loss(tmp_path) -> None:
    out = run("own_loss.py", tmp_path)
    assert after(out, "share below the prediction:")[0] == pytest.approx(0.9, abs=0.03)


def check_bigger_than_memory(folder: Path, gigabytes: str) -> None:
    out = run("bigger_than_memory.py", folder, gigabytes, timeout=1200)
    assert after(out, "largest resident memory")[0] < 500
    assert list(folder.iterdir()) == []


def test_bigger_than_memory_in_small(tmp_path) -> None:
    check_bigger_than_memory(tmp_path, "0.05")


@pytest.mark.slow
def test_bigger_than_memory(tmp_path) -> None:
    check_bigger_than_memory(tmp_path, "4")


def test_cart_pole(tmp_path) -> None:
    steps, most = after(run("cart_pole.py", tmp_path), "a pole stays up for")
    assert (15 < steps < 30, most) == (True, 500)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["policy_gradient.py", "q_learning.py"])
def test_reinforcement_learning(tmp_path, script) -> None:
    out = run(script, tmp_path, "curve.png")
    assert after(out, "mean steps ")[0] > 0
    assert numbers(out.splitlines()[-1])[-1] > 450
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_tested_and_listed() -> None:
    tests = Path(__file__).read_text()
    listed = (EXAMPLES / "README.md").read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in tests
        assert f"`{script.name}`" in listed


def test_many_processes(tmp_path) -> None:
    one = run("many_processes.py", tmp_path)
    two = run_ranks(2, [sys.executable, str(EXAMPLES / "many_processes.py")], tmp_path)
    assert two.returncode == 0, two.stderr
    assert "by 1 process" in one
    assert "by 2 process" in two.stdout
    accuracies = [
        after(text, "accuracy")[0]
        for text in (one.split("epoch 10/10")[1], two.stdout.split("epoch 10/10")[1])
    ]
    assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_dask_search(tmp_path) -> None:
    pytest.importorskip("dask")
    pytest.importorskip("distributed")
    pytest.importorskip("sklearn")
    best = after(run("dask_search.py", tmp_path), "best")[0]
    assert 0.85 < best <= 1
