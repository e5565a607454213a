"""How fast we set out to be, and whether a comparison says that we are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

from nnbackend.benchmark.cases import CASES
from peers import CPU, DRIVEN, TRAINING, Field
from peers.measuring import Cell

#: Times as fast as the best peer.
TARGETS: dict[str, dict[str, float]] = {
    "step": {
        "tiny": 12.0, "spiral": 4.5, "digits": 6.0, "mnist-128": 1.5, "mnist-512": 1.1,
        "wide": 1.0, "deep": 2.0,
    },
    "epoch": {
        "tiny": 1.5, "spiral": 2.0, "digits": 2.0, "mnist-128": 1.2, "mnist-512": 1.05,
        "wide": 1.0, "deep": 1.5,
    },
}  # fmt: skip
#: Geometric means over the cases of a kind.
MEANS = {"step": 3.0, "epoch": 1.4}
#: The same for steps driven from outside, beside each peer.
DRIVEN_MEANS = {"torch": 3.0, "jax": 2.0}
#: Beside PyTorch's eager step with the same loss.
OWN_LOSS_RATIO = 5.0
#: A ratio of at least this is a tie with the best peer.
TIE = 0.97
#: Times of the bare products, from mnist size up.
MOST_FLOORS, LARGE = 1.25, ("mnist-128", "mnist-512", "wide")
ROW_SECONDS = 2.5e-6
PROCESS_SECONDS, PROCESS_RATIO = 1.2, 2.0
PROCESS = "process"
#: On a GPU: not behind anybody, and up to this batch so many times as fast as these.
SMALL_BATCH, SMALL_RATIO = 300, 2.0
SMALL_PEERS = ("torch-reduce-overhead", "jax-cuda")


@dataclass(frozen=True)
class Verdict:
    """One target, what was measured, and whether that reaches it."""

    what: str
    measured: float
    target: float
    reached: bool

    @classmethod
    def at_least(cls, what: str, measured: float, target: float) -> Verdict:
        # to be as fast as the best is a tie within TIE
        limit = TIE if target == 1.0 else target
        return cls(what, measured, target, measured >= limit)

    @classmethod
    def at_most(cls, what: str, measured: float, target: float) -> Verdict:
        return cls(what, measured, target, measured <= target)


class Comparison:
    """The cells by kind, case and system, and what follows from them.

    Attributes:
        ours: which of our backends the ratios are of: the best one that was measured.
    """

    def __init__(self, cells: Sequence[Cell], field: Field = CPU) -> None:
        self.cells, self.field = list(cells), field
        self.found = {(c.kind, c.case, c.system): c.seconds for c in cells if c.seconds is not None}
        self._rounds = {(c.kind, c.case, c.system): c.rounds for c in cells}
        systems = {system for _, _, system in self.found}
        self.ours = next((name for name in field.ours if name in systems), None)

    def kinds(self) -> list[str]:
        return list(dict.fromkeys(c.kind for c in self.cells))

    def cases(self, kind: str) -> list[str]:
        return list(dict.fromkeys(c.case for c in self.cells if c.kind == kind))

    def seconds(self, kind: str, case: str, system: str | None) -> float | None:
        return None if system is None else self.found.get((kind, case, system))

    def quotient(self, kind: str, case: str, one: str | None, other: str | None) -> float | None:
        """One system's time over another's: the median of the rounds' quotients. The systems of a
        round follow each other, so that a machine's slow minutes concern them alike."""
        seconds, others = (self.seconds(kind, case, name) for name in (one, other))
        if one is None or other is None or seconds is None or others is None:
            return None
        rounds, theirs = (self._rounds[kind, case, name] for name in (one, other))
        if not rounds or len(rounds) != len(theirs):
            return seconds / others
        return median(a / b for a, b in zip(rounds, theirs, strict=True))

    def best_peer(self, kind: str, case: str, among: Iterable[str] | None = None) -> str | None:
        """The quickest of the others."""
        names = self.field.peers if among is None else among
        measured = [name for name in names if (kind, case, name) in self.found]

        def slowness(name: str) -> float:
            to_ours = self.quotient(kind, case, name, self.ours)
            return self.found[kind, case, name] if to_ours is None else to_ours

        return min(measured, key=slowness, default=None)

    def ratio(self, kind: str, case: str, among: Iterable[str] | None = None) -> float | None:
        """Our speed over the best peer's: above 1 we are faster."""
        return self.quotient(kind, case, self.best_peer(kind, case, among), self.ours)

    def floors(self, kind: str, case: str) -> float | None:
        """Our time over that of the bare products."""
        return self.quotient(kind, case, self.ours, self.field.floor)

    def mean(self, kind: str, cases: Iterable[str]) -> float | None:
        """Geometric mean of the ratios."""
        ratios = [r for r in (self.ratio(kind, case) for case in cases) if r is not None]
        return exp(sum(map(log, ratios)) / len(ratios)) if ratios else None

    def target(self, kind: str, case: str) -> float | None:
        """The ratio to reach; a case without a target of its own must not be behind."""
        if kind not in (*TRAINING, *DRIVEN):
            return None
        if kind in DRIVEN or self.field is not CPU:
            return 1.0
        return TARGETS[kind].get(case, 1.0)

    def verdicts(self) -> list[Verdict]:
        """All targets that the measured cells say something about."""
        if self.field is not CPU:
            return list(self._on_gpu())
        return [*self._training(), *self._driven(), *self._inference(), *self._process()]

    def _on_gpu(self) -> Iterable[Verdict]:
        for kind in TRAINING:
            yield from self._beside_the_best(kind)
        for case in self.cases("step"):
            for peer in SMALL_PEERS if CASES[case].batch <= SMALL_BATCH else ():
                ratio = self.ratio("step", case, [peer])
                if ratio is not None:
                    what = f"step {case}: speed / {peer}'s"
                    yield Verdict.at_least(what, ratio, SMALL_RATIO)

    def _beside_the_best(self, kind: str) -> Iterable[Verdict]:
        for case in self.cases(kind):
            ratio, target = self.ratio(kind, case), self.target(kind, case)
            if ratio is not None and target is not None:
                yield Verdict.at_least(f"{kind} {case}: speed / best peer's", ratio, target)

    def _training(self) -> Iterable[Verdict]:
        for kind in TRAINING:
            cases = self.cases(kind)
            yield from self._beside_the_best(kind)
            mean = self.mean(kind, [c for c in cases if c in TARGETS[kind]])
            if mean is not None:
                what = f"{kind}: geometric mean of the cases with targets"
                yield Verdict.at_least(what, mean, MEANS[kind])
            for case in LARGE:
                floors = self.floors(kind, case)
                if floors is not None:
                    what = f"{kind} {case}: time / bare products'"
                    yield Verdict.at_most(what, floors, MOST_FLOORS)

    def _driven(self) -> Iterable[Verdict]:
        for kind in DRIVEN:
            yield from self._beside_the_best(kind)
        for peer, target in DRIVEN_MEANS.items():
            ratios = [self.ratio("driven", case, [peer]) for case in self.cases("driven")]
            found = [ratio for ratio in ratios if ratio is not None]
            if found:
                what = f"driven: geometric mean of speed / {peer}'s"
                yield Verdict.at_least(what, exp(sum(map(log, found)) / len(found)), target)
        for case in self.cases("driven"):
            driven, step = (self.seconds(kind, case, self.ours) for kind in ("driven", "step"))
            if driven is not None and step is not None:
                what = f"driven {case}: time / (1.25 train_step + 3 us)"
                yield Verdict.at_most(what, driven / (1.25 * step + 3e-6), 1.0)
        ratio = self.ratio("own-loss", "control", ["torch"])
        if ratio is not None:
            yield Verdict.at_least("own-loss control: speed / torch's", ratio, OWN_LOSS_RATIO)

    def _inference(self) -> Iterable[Verdict]:
        seconds = self.seconds("inference", "digits", self.ours)
        if seconds is not None:
            what = "inference digits: us for one row"
            yield Verdict.at_most(what, seconds * 1e6, ROW_SECONDS * 1e6)
        ratio = self.ratio("inference", "mnist-128", ["onnxruntime"])
        if ratio is not None:
            what = "inference mnist-128: speed / onnxruntime's"
            yield Verdict.at_least(what, ratio, 1.0)
        for peer in ("torch", "torch-compiled", "onnxruntime"):
            ratio = self.ratio("predict", "mnist-128", [peer])
            if ratio is not None:
                what = f"predict mnist-128: speed / {peer}'s"
                yield Verdict(what, ratio, 1.0, ratio > 1.0)

    def _process(self) -> Iterable[Verdict]:
        seconds = self.seconds(PROCESS, "digits", self.ours)
        if seconds is not None:
            yield Verdict.at_most("process digits: seconds", seconds, PROCESS_SECONDS)
        ratio = self.ratio(PROCESS, "digits")
        if ratio is not None:
            what = "process digits: speed / torch's"
            yield Verdict.at_least(what, ratio, PROCESS_RATIO)
