"""Half an hour of training and serving in one process: memory, throughput, and results.

    python benchmarks/long_run.py --minutes 30 --output benchmarks/results/long_run.json

A round trains a network on the digits, evaluates, saves and loads it, and moves it to NumPy and
back, while two threads predict single rows and batches on another one. Each round's weights have to
be, bit for bit, those of the first round with its seed, and in the end those of a process of their
own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import nnbackend as nn

SEEDS = 6
LAYERS = {0: [64], 1: [32, 32], 2: [128, 64]}


def network(seed: int) -> nn.Sequential:
    layers: list[nn.Layer] = []
    width = 64
    for hidden in LAYERS[seed % 3]:
        layers += [nn.Dense(width, hidden, "relu"), nn.BatchNorm(hidden), nn.Dropout(0.1)]
        width = hidden
    model = nn.Sequential([*layers, nn.Dense(width, 10)], seed=seed)
    model.compile("softmax_cross_entropy", nn.AdamW(1e-3), ["accuracy"])
    return model


def trained(seed: int, folder: Path) -> tuple[str, int]:
    """The digest of the weights after all that a round does, and the steps that it made."""
    x, y = nn.datasets.digits()
    model, batch = network(seed), 32 << seed % 3
    model.fit(x, y, epochs=3, batch_size=batch, validation_split=0.2, verbose=0)
    for start in range(0, 640, 64):
        model.train_step(x[start : start + 64], y[start : start + 64])
    model.evaluate(x, y)
    model.save(folder / "model.safetensors")
    model = nn.load(folder / "model.safetensors").to("numpy").to(nn.get_backend())
    model.fit(x, y, epochs=1, batch_size=50, class_weight="balanced", verbose=0)
    digest = hashlib.sha256()
    for name, array in sorted(model.arrays().items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest(), model.step


class Server(threading.Thread):
    """Predicts until it is told to stop; counts, and compares with its first answers."""

    def __init__(self, model: nn.Sequential, rows: int) -> None:
        super().__init__(daemon=True)
        self.model, self.rows = model, rows
        self.calls, self.wrong, self.over = 0, 0, threading.Event()

    def run(self) -> None:
        x, _ = nn.datasets.digits()
        x = x[: self.rows]
        expected = self.model.predict(x)
        while not self.over.is_set():
            self.wrong += not np.array_equal(self.model.predict(x), expected)
            self.calls += 1
            time.sleep(0.001)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def fresh(seeds: range) -> dict[str, str]:
    """The digests from a process of their own."""
    done = subprocess.run(
        [sys.executable, __file__, "--digests", str(len(seeds))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file; default none")
    parser.add_argument("--digests", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.digests:
            print(json.dumps({str(s): trained(s, folder)[0] for s in range(options.digests)}))
            return
        first = {str(seed): trained(seed, folder)[0] for seed in range(SEEDS)}
        servers = [Server(network(0), 1), Server(network(2), 500)]
        for server in servers:
            server.start()
        start = minute = time.perf_counter()
        processor = time.process_time()
        rounds = steps = wrong = 0
        minutes: list[dict[str, float]] = []
        counted = (0, 0)
        while (now := time.perf_counter()) < start + 60 * options.minutes:
            seed = rounds % SEEDS
            digest, made = trained(seed, folder)
            wrong += digest != first[str(seed)]
            rounds, steps = rounds + 1, steps + made
            if now - minute >= 60:
                calls = sum(server.calls for server in servers)
                minutes.append({
                    "resident MB": round(resident_bytes() / 1e6, 1),
                    "steps a second": round((steps - counted[0]) / (now - minute), 1),
                    "steps a second of processor": round(
                        (steps - counted[0]) / (time.process_time() - processor), 1
                    ),
                    "predictions a second": round((calls - counted[1]) / (now - minute), 1),
                })  # fmt: skip
                minute, counted, processor = now, (steps, calls), time.process_time()
                print(f"minute {len(minutes)}: {minutes[-1]}", flush=True)
        for server in servers:
            server.over.set()
        for server in servers:
            server.join()
    same = fresh(range(SEEDS)) == first
    half = len(minutes) // 2
    # of processor: on a shared machine others take their part of the seconds
    rates = [m["steps a second of processor"] for m in minutes]
    memory = [m["resident MB"] for m in minutes]
    result = {
        "backend": nn.get_backend().device, "minutes": options.minutes, "rounds": rounds,
        "steps": steps, "predictions": sum(s.calls for s in servers),
        "rounds with other weights than the first": wrong,
        "predictions that differed": sum(s.wrong for s in servers),
        "the same in a process of its own": same,
        "resident MB after 2 minutes": memory[1] if len(memory) > 1 else None,
        "resident MB at the end": memory[-1] if memory else None,
        "steps a second of processor, second half over first": round(
            statistics.median(rates[half:]) / statistics.median(rates[:half]), 3
        ) if half else None,
        "each minute": minutes, "processors": os.cpu_count(), "python": sys.version.split()[0],
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    sys.exit(0 if same and not wrong and not result["predictions that differed"] else 1)


if __name__ == "__main__":
    main()
