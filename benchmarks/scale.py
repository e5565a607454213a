"""How training scales with ranks: measured here, and modelled up to 1,024.

    python benchmarks/scale.py --output scale.json --plot scale.png

Measured on this machine, each system in a process of its own, in alternating rounds:

- a step of mnist-512 at batch 512 by one process with two threads, by one process with a
  communicator of size 1, and by two ranks with one thread each;
- the sum over ranks of vectors of many sizes, by ``comm.all_reduce`` and by mpi4py's own;
- the same sum begun while lower layers are computed, and after them;
- a step of three networks, alone with one thread and different numbers of rows.

The model, with latency a and bandwidth 1 / b of a fabric, for p ranks and a gradient of n bytes
(Rabenseifner, 2004: halving and doubling):

    t(p) = t_compute(rows / p) + 2 log2(p) a + 2 (p - 1) / p n b

t_compute is a line through the measured times of a step. It leaves out: waiting for the slowest
rank, more than one rank on a machine, congestion, and overlap of the sum with computing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import nnbackend as nn

NETWORKS = {
    "digits-128": ((64, 128, 64, 10), 256),
    "mnist-512": ((784, 512, 512, 10), 512),
    "wide-2048": ((784, 2048, 2048, 2048, 10), 2048),
}
#: Latency in seconds and bandwidth in bytes a second: assumed, not measured.
FABRICS = {"25 Gb/s Ethernet": (20e-6, 2.5e9), "200 Gb/s InfiniBand": (2e-6, 22e9)}
SIZES = (1, 100, 1_000, 10_000, 100_000, 400_000, 1_000_000, 4_000_000)
RANKS = [2**k for k in range(11)]


def model_of(widths: tuple[int, ...]) -> nn.Sequential:
    layers = [nn.Dense(i, o, "relu") for i, o in pairwise(widths[:-1])]
    model = nn.Sequential([*layers, nn.Dense(widths[-2], widths[-1])], seed=0, backend="numba")
    model.compile("softmax_cross_entropy", nn.Adam(1e-4))
    return model


def parameters_of(widths: tuple[int, ...]) -> int:
    return sum(i * o + o for i, o in pairwise(widths))


# -- in a process of its own -----------------------------------------------------------------


def step_seconds(network: str, rows: int, threads: int, comm: Any, repeats: int = 5) -> float:
    """Median time of a step on so many rows."""
    widths, _ = NETWORKS[network]
    nn.set_num_threads(threads)
    # some half a second, and fewer than MNIST has
    steps = max(4, min(117, int(5e10 / (3 * parameters_of(widths) * rows))))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * rows, widths[0]), dtype=np.float32)
    y = rng.integers(0, widths[-1], len(x))
    model = model_of(widths)
    settings: dict[str, Any] = {"batch_size": rows, "verbose": 0, "comm": comm}
    model.fit(x, y, epochs=2, **settings)
    return timed(lambda: model.fit(x, y, epochs=2, **settings), 2 * steps, repeats)


def timed(work: Callable[[], object], count: int, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) / count)
    return statistics.median(taken)


def sums(comm: Any) -> list[list[float]]:
    """For each size: bytes, seconds of ``comm.all_reduce`` and of mpi4py's Allreduce."""
    from mpi4py import MPI

    found = []
    for size in SIZES:
        array, count = np.zeros(size, np.float32), max(5, min(500, 2_000_000 // size))
        taken: dict[str, list[float]] = {"ours": [], "mpi4py": []}
        for _ in range(9):  # alternating
            for name, call in (
                ("ours", comm.all_reduce),
                ("mpi4py", lambda a: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, a)),
            ):
                comm.barrier()
                start = time.perf_counter()
                for _ in range(count):
                    call(array)
                taken[name].append((time.perf_counter() - start) / count)
        found.append([array.nbytes, *(statistics.median(taken[name]) for name in taken)])
    return found


def overlap() -> dict[str, float]:
    """Seconds of computing and summing up the gradient of mnist-512: one after the other; and in
    buckets, each summed while the next lower layers are computed, whose products are divided so
    that MPI is looked after in between."""
    from mpi4py import MPI

    world, (widths, _) = MPI.COMM_WORLD, NETWORKS["mnist-512"]
    rows = np.ones((256, widths[0]), np.float32)
    buckets = [np.zeros(i * o + o, np.float32) for i, o in reversed(list(pairwise(widths)))]
    whole = np.zeros(sum(bucket.size for bucket in buckets), np.float32)
    weights = [np.ones((widths[0], o), np.float32) for o in reversed(widths[1:])]

    def compute(layer: int, requests: list[Any]) -> None:
        for start in range(0, 256, 32):
            rows[start : start + 32] @ weights[layer]
            for request in requests:
                request.Test()

    def in_turn() -> None:
        for layer in range(len(buckets)):
            compute(layer, [])
        world.Iallreduce(MPI.IN_PLACE, whole).Wait()

    def at_once() -> None:
        requests: list[Any] = []
        for layer, bucket in enumerate(buckets):
            compute(layer, requests)
            requests.append(world.Iallreduce(MPI.IN_PLACE, bucket))
        for request in requests:
            request.Wait()

    taken: dict[str, list[float]] = {"one after the other": [], "overlapped": []}
    for _ in range(15):  # alternating
        for name, work in (("one after the other", in_turn), ("overlapped", at_once)):
            world.Barrier()
            taken[name].append(timed(work, 1, 5))
    return {name: statistics.median(times) for name, times in taken.items()}


def worker(arguments: list[str]) -> None:
    """Measure one thing, and print it as JSON on rank 0."""
    what, *rest = arguments
    ranked = nn.distributed.is_launched()
    comm = nn.distributed.init(backend="numba") if ranked else None
    if what == "sums":
        result: Any = sums(comm)
    elif what == "overlap":
        result = overlap()
    else:
        network, rows, threads = rest
        result = step_seconds(network, int(rows), int(threads), comm)
    if comm is None or comm.rank == 0:
        print(json.dumps(result))


# -- the whole -------------------------------------------------------------------------------


def measure(ranks: int, *arguments: object) -> Any:
    """What a worker measures, on so many ranks; 0 is a process without a communicator."""
    command = [sys.executable, __file__, "--worker", *map(str, arguments)]
    if ranks:
        own = Path(sys.executable).with_name("mpiexec")
        command = [str(own) if own.exists() else "mpiexec", "-n", str(ranks), *command]
    one = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's products, of the overlap
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=one)
    return json.loads(done.stdout.splitlines()[-1])


def against_one_process(rounds: int) -> dict[str, Any]:
    """mnist-512 at batch 512: medians over alternating rounds, and the ratios of each round."""
    systems = {"one process, 2 threads": (0, 2), "size 1, 2 threads": (1, 2), "2 ranks": (2, 1)}
    taken: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, (ranks, threads) in systems.items():
            taken[name].append(measure(ranks, "step", "mnist-512", 512, threads))
            print(f"{name:24} {1e3 * taken[name][-1]:.2f} ms a step", flush=True)
    first = taken["one process, 2 threads"]
    ratios = {
        name: statistics.median(one / other for one, other in zip(first, times, strict=True))
        for name, times in taken.items()
    }
    return {"seconds": taken, "throughput against one process": ratios}


def line_of(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Intercept, at least 0, and slope of seconds over rows or bytes, by relative errors."""
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    if intercept < 0:
        intercept, slope = 0.0, float((y / x).mean())
    return float(intercept), float(slope)


def step_model(line: tuple[float, float], rows: float, ranks: int, size: int, fabric: Any) -> float:
    latency, bandwidth = fabric
    share = (ranks - 1) / ranks
    return float(
        line[0] + line[1] * rows + 2 * np.log2(ranks) * latency + 2 * share * size / bandwidth
    )


def scaling(lines: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Speed-up with the batch fixed, and efficiency with the rows of a rank fixed."""
    found: dict[str, Any] = {}
    for fabric, figures in FABRICS.items():
        for name, (widths, batch) in NETWORKS.items():
            size, line = 4 * parameters_of(widths), lines[name]
            alone = step_model(line, batch, 1, size, figures)
            found[f"{name}, {fabric}"] = {
                "strong": [alone / step_model(line, batch / p, p, size, figures) for p in RANKS],
                "weak": [alone / step_model(line, batch, p, size, figures) for p in RANKS],
            }
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex=True, layout="constrained")
    for column, fabric in enumerate(FABRICS):
        strong, weak = axes[0][column], axes[1][column]
        strong.plot(RANKS, RANKS, color="0.7", linewidth=1, label="ideal")
        for name, (widths, batch) in NETWORKS.items():
            curves = result["model"]["scaling"][f"{name}, {fabric}"]
            label = f"{name}: {parameters_of(widths):,} parameters, batch {batch}"
            strong.plot(RANKS, curves["strong"], marker="o", markersize=3, label=label)
            weak.plot(RANKS, curves["weak"], marker="o", markersize=3, label=label)
        strong.set(title=fabric, xscale="log", yscale="log", ylim=(0.2, 1200))
        weak.set(xscale="log", ylim=(0, 1.05), xlabel="ranks, one machine each")
        weak.set_xticks(RANKS[::2], [f"{p:,}" for p in RANKS[::2]])
        weak.minorticks_off()
        for axis in (strong, weak):
            axis.grid(color="0.9")
    axes[0][0].set_ylabel("speed-up, the batch divided")
    axes[1][0].set_ylabel("efficiency, as many rows on each rank")
    axes[0][0].legend(fontsize=8)
    figure.suptitle("A model, not a measurement: steps measured on one core, fabrics assumed")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file; default none")
    parser.add_argument("--plot", type=Path, help="picture; default none")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        worker(chosen.worker)
        return
    result: dict[str, Any] = {"processors": os.cpu_count(), "nnbackend": nn.__version__}
    result["mnist-512 at batch 512"] = against_one_process(chosen.rounds)
    result["sums"] = {str(ranks): measure(ranks, "sums") for ranks in (1, 2, 4)}
    result["overlap, 2 ranks"] = measure(2, "overlap")
    latency, per_byte = line_of([(size, ours) for size, ours, _ in result["sums"]["2"]])
    result["this machine, 2 ranks"] = {"latency": latency / 2, "bandwidth": 1 / per_byte}
    steps: dict[str, list[tuple[float, float]]] = {}
    for name, (_, batch) in NETWORKS.items():
        steps[name] = []
        for part in (1, 2, 4, 8, 16):
            steps[name].append((batch // part, measure(0, "step", name, batch // part, 1)))
            print(
                f"{name} {steps[name][-1][0]:5} rows {1e3 * steps[name][-1][1]:9.3f} ms", flush=True
            )
    lines = {name: line_of(points) for name, points in steps.items()}
    result["steps on one thread"] = steps
    result["model"] = {
        "lines": lines,
        "fabrics": FABRICS,
        "ranks": RANKS,
        "scaling": scaling(lines),
    }
    print(json.dumps({name: value for name, value in result.items() if name != "model"}, indent=1))
    if chosen.output:
        chosen.output.write_text(json.dumps(result, indent=1) + "\n")
    if chosen.plot:
        draw(result, chosen.plot)


if __name__ == "__main__":
    main()
