"""How near the CUDA backend comes to what the GPU can do, each figure beside its floor.

    python benchmarks/gpu_limits.py
    python benchmarks/gpu_limits.py --size 1000000 --width 256 --rows 512    # a quick look

- bandwidth: update rules and losses over ``--size`` numbers, against a copy on the device;
- products: a training step of ``--rows`` x (width-width-width-width) with bfloat16 and TF32
  products, against its bare products and the update's bytes at the speed of the copy;
- chunks: many steps in one call, against a step's time on the device alone;
- ways: a step of many, by graphs and by each kernel that does many steps in one launch.

Rounds alternate between a figure and its floor; medians are taken. The result goes to
benchmarks/results/gpu-limits.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers.cuda_products import products_of
from rich.console import Console
from rich.table import Table

import nnbackend as nn
from nnbackend._files import write_atomically
from nnbackend.backends.cuda.arrays import BF16
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.executor import LAUNCHED_FIRST
from nnbackend.backends.cuda.graphs import GraphSteps
from nnbackend.backends.types import LossFormula, UpdateRule
from nnbackend.benchmark.cases import CASES, Case
from nnbackend.benchmark.report import duration_text, machine
from nnbackend.data.sources import make_source
from nnbackend.executor.base import Run

RESULTS = Path(__file__).resolve().parent / "results"
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
#: Share of the floor's speed that is to be reached, and times a step's time for a step of many.
BANDWIDTH, PRODUCTS, CHUNKS = 0.80, 0.85, 1.05
#: Updates that are timed.
RULES = (
    UpdateRule("sgd"),
    UpdateRule("momentum", momentum=0.9),
    UpdateRule("adagrad", eps=1e-7),
    UpdateRule("rmsprop", rho=0.9, eps=1e-7),
    UpdateRule("adam", beta1=0.9, beta2=0.999, eps=1e-7),
)
#: Bytes that an update moves for each parameter: gradient, weight, state, each read or written.
UPDATE_BYTES = {"sgd": 12, "momentum": 20, "adagrad": 20, "rmsprop": 20, "adam": 28}
#: Bytes that a loss with its gradient moves for each output.
LOSS_BYTES = {"mean_squared_error": 12, "sigmoid_cross_entropy": 12, "softmax_cross_entropy": 8}
CLASSES = 1000
#: Steps of a chunk, and of a launch of a network that stays in shared memory.
STEPS, ALONE = 320, 4
Work = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """What was measured, in seconds, beside its floor; ``share`` is floor / seconds."""

    what: str
    seconds: float
    floor: float
    share: float
    target: float
    reached: bool

    @classmethod
    def of(
        cls, what: str, seconds: Sequence[float], floors: Sequence[float], target: float
    ) -> Figure:
        """Of rounds: the share is the median of theirs, and the floor that of the floors."""
        share = statistics.median(f / s for f, s in zip(floors, seconds, strict=True))
        floor = statistics.median(floors)
        return cls(what, floor / share, floor, share, target, share >= target)


class Bench:
    """Measures on one GPU."""

    def __init__(self, backend: CudaBackend, rounds: int = 9, repeats: int = 4) -> None:
        self.backend, self.gpu = backend, backend.gpu
        self.rounds, self.repeats = rounds, repeats

    def alternate(self, *works: Callable[[], float]) -> list[list[float]]:
        """The seconds that each returns, round by round; a first round does not count."""
        found: list[list[float]] = [[] for _ in works]
        for number in range(self.rounds + 1):
            for work, seconds in zip(works, found, strict=True):
                taken = work()
                if number:
                    seconds.append(taken)
        return found

    def graph(self, work: Work) -> Callable[[], float]:
        """Times ``work``, several times in one graph."""
        work()

        def several() -> None:
            for _ in range(self.repeats):
                work()

        replay = self.gpu.capture(several)
        return lambda: self.wall(replay) / self.repeats

    def wall(self, work: Work) -> float:
        self.gpu.synchronize()
        start = time.perf_counter()
        work()
        self.gpu.synchronize()
        return time.perf_counter() - start

    # -- bandwidth ----------------------------------------------------------------------------

    def copy(self, size: int) -> Work:
        """A copy of ``size`` numbers of four bytes on the device."""
        x, out = (self.backend.zeros(size, FLOAT32) for _ in "ab")

        def copy() -> None:
            if hasattr(out.data, "copy_from_device_async"):  # CuPy's
                out.data.copy_from_device_async(x.data, x.nbytes)
            else:
                out[...] = x

        return copy

    def copies(self, size: int) -> Callable[[], float]:
        """The faster of a copy in a graph and one without."""
        work = self.copy(size)
        captured = self.graph(work)

        def several() -> None:
            for _ in range(self.repeats):
                work()

        return lambda: min(captured(), self.wall(several) / self.repeats)

    def against_copy(self, what: str, work: Work, size: int, bytes_each: int) -> Figure:
        own, copies = self.alternate(self.graph(work), self.copies(size))
        floors = [copy * bytes_each / 8 for copy in copies]  # a copy reads and writes
        return Figure.of(what, own, floors, BANDWIDTH)

    def updates(self, size: int) -> list[Figure]:
        rng, backend = np.random.default_rng(0), self.backend
        grad = backend.asarray(rng.standard_normal(size, np.float32), FLOAT32)
        w, m, v, none = *(backend.zeros(size, FLOAT32) for _ in range(3)), backend.zeros(0, FLOAT32)
        slots = (m, v)

        def update(rule: UpdateRule) -> Work:
            own = slots[: len(rule.slots)]
            return lambda: backend.update(rule, w, grad, own, 1e-3, 10, none)

        return [
            self.against_copy(f"update {rule.name}", update(rule), size, UPDATE_BYTES[rule.name])
            for rule in RULES
        ]

    def losses(self, size: int) -> list[Figure]:
        rng, backend = np.random.default_rng(0), self.backend
        rows = max(1, size // CLASSES)
        shape = (rows, CLASSES)
        pred = backend.asarray(rng.standard_normal(shape, np.float32), FLOAT32)
        target = backend.asarray(rng.integers(0, 2, shape).astype(np.float32), FLOAT32)
        labels = backend.asarray(rng.integers(0, CLASSES, rows).astype(np.int32), np.dtype("int32"))
        dpred, loss = backend.zeros(shape, FLOAT32), backend.zeros((), FLOAT64)
        found = []
        for name, bytes_each in LOSS_BYTES.items():
            own = labels if name == "softmax_cross_entropy" else target
            work = partial(backend.loss, LossFormula(name), pred, own, None, dpred, loss)

            found.append(self.against_copy(f"loss {name}", work, pred.size, bytes_each))
        return found

    # -- products -----------------------------------------------------------------------------

    def large_step(self, rows: int, width: int, precision: str) -> Figure:
        """A step whose time is nearly all products."""
        case = Case("large", rows, (width,) * 4, loss="mean_squared_error")
        model = case.model(self.backend, precision=precision)
        data = make_source(model.program, *case.data(2 * rows)).data
        steps = 8
        rates, size = model.program.rates(model.step, steps), model.storage.parameters.size
        products = products_of(
            self.backend, [(width, width)] * 3, rows, BF16 if precision == "bf16" else FLOAT32,
            precision == "tf32",
        )  # fmt: skip

        def multiply() -> None:
            for product in products:
                self.gpu.product(product)

        own, bare, copies = self.alternate(
            lambda: self.wall(lambda: model.executor.run(Run(data, None, rows, rates, 0))) / steps,
            self.graph(multiply),
            self.copies(size),
        )
        floors = [b + c * UPDATE_BYTES["adam"] / 8 for b, c in zip(bare, copies, strict=True)]
        return Figure.of(f"step {precision} {rows} x ({width}[4])", own, floors, PRODUCTS)

    # -- chunks -------------------------------------------------------------------------------

    def chunk(self, case: Case) -> Figure:
        """Many steps in one call; the floor is a step's time on the device, between events."""
        model = case.model(self.backend)
        data = make_source(model.program, *case.data(case.n_batches * case.batch)).data
        rates = model.program.rates(model.step, STEPS)
        executor: Any = model.executor
        many = Run(data, None, case.batch, rates, LAUNCHED_FIRST)
        executor.run(many)
        kernels = [steps for steps in executor._kernels.values() if steps is not None]
        steps = next(iter(kernels or executor._steps.values()))

        own, alone = self.alternate(
            lambda: self.wall(lambda: executor.run(many)) / STEPS,
            lambda: self.alone(executor, steps, data, case.batch, rates),
        )
        return Figure.of(f"chunk of {STEPS}, {case.name}", own, alone, 1 / CHUNKS)

    def ways(self, case: Case) -> dict[str, float]:
        """Seconds of a step of many on the device, by each way that there is."""
        model = case.model(self.backend)
        executor: Any = model.executor
        data = make_source(model.program, *case.data(case.batch)).data
        found = {"graphs": executor._steps_of(case.batch, data)}
        found |= {name.split()[0]: make() for name, make in executor._makers(case.batch, data)}
        return {
            name: executor._time_of(partial(way.advance, STEPS), data) / STEPS
            for name, way in found.items()
        }

    def alone(self, executor: Any, steps: Any, data: Any, batch: int, rates: Any) -> float:
        """Between events, of launches that follow each other, without the beginning and the end of
        a run; a run has more steps than are timed here."""
        trace = self.backend.zeros((len(rates), 3 + executor.program.n_sums), FLOAT64)
        device_rates = self.backend.asarray(rates, FLOAT64)
        executor._begin(data, None, device_rates, 0.0, trace, None, 0, len(data.x), batch)
        if not isinstance(steps, GraphSteps):
            return self.gpu.time(lambda: steps.advance(ALONE), captured=False) / ALONE
        return self.gpu.time(steps._launch)


def measure(bench: Bench, options: argparse.Namespace, show: Callable[[str], None]) -> list[Figure]:
    found: list[Figure] = []
    show("bandwidth")
    found += bench.updates(options.size)
    found += bench.losses(options.size)
    for precision in ("bf16", "tf32"):
        show(f"products, {precision}")
        found.append(bench.large_step(options.rows, options.width, precision))
    for case in CASES.values():
        show(f"chunk, {case.name}")
        found.append(bench.chunk(case))
    return found


def table_of(figures: Sequence[Figure]) -> Table:
    table = Table("", "time", "floor", "share", "target", "")
    for figure in figures:
        state = "[green]reached[/]" if figure.reached else "[red]missed[/]"
        times = (duration_text(figure.seconds), duration_text(figure.floor))
        table.add_row(figure.what, *times, f"{figure.share:.3f}", f"{figure.target:.3f}", state)
    return table


def main(arguments: Sequence[str] | None = None, backend: CudaBackend | None = None) -> int:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=10**8, help="numbers, default %(default)s")
    parser.add_argument("--rows", type=int, default=8192, help="of a batch, default %(default)s")
    parser.add_argument("--width", type=int, default=4096, help="of layers, default %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default %(default)s")
    parser.add_argument("--output", default="gpu-limits", help="in results/, default %(default)s")
    options = parser.parse_args(arguments)
    console = Console()
    if backend is None:
        try:
            backend = nn.get_backend("cuda")  # type: ignore[assignment]
        except nn.NNBackendError as error:
            console.print(str(error), markup=False)
            return 1
    bench = Bench(backend, options.rounds)  # type: ignore[arg-type]
    device = bench.gpu.tuning.kind
    console.print(device, highlight=False)
    figures = measure(bench, options, lambda text: console.print(text, style="dim"))
    console.print(table_of(figures))
    ways = {}
    for case in CASES.values():
        ways[case.name] = bench.ways(case)
        times = (f"{name} {duration_text(time)}" for name, time in ways[case.name].items())
        console.print(f"{case.name}: {', '.join(times)}", highlight=False)
    content = {
        "device": device,
        "ways": ways,
        "machine": machine(),
        "settings": vars(options),
        "figures": [asdict(figure) for figure in figures],
    }
    path = RESULTS / f"{options.output}.json"
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")
    console.print(f"written {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
