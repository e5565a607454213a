"""``nnbackend train``'s defaults on tables, beside what scikit-learn offers, five folds each.

    pip install -e ".[numba,tables,sklearn,peers]" && python benchmarks/tables.py
    python benchmarks/tables.py --cases wine,diabetes

Beside it: scikit-learn's MLP with a StandardScaler, HistGradientBoosting, and a linear model, with
their defaults. Classes: accuracy and log loss; numbers: r2 and root mean squared error, in standard
deviations of the target. diamonds is the file that the package plotnine brings. The table goes to
benchmarks/results/tables.json.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from nnbackend._files import write_atomically
from nnbackend.benchmark.report import PACKAGES, machine
from nnbackend.cli.settings import Settings
from nnbackend.cli.train_job import build_model, train
from nnbackend.data.csv import read_csv

RESULTS = Path(__file__).resolve().parent / "results" / "tables.json"
FOLDS, TARGET = 5, "target"
CASES = ("breast_cancer", "wine", "digits", "diabetes", "diamonds")


class Fold(NamedTuple):
    """Rows to learn from and rows to be judged by, each with a column named TARGET."""

    training: pd.DataFrame
    test: pd.DataFrame
    classes: list[Any] | None


def table_of(case: str) -> pd.DataFrame:
    if case == "diamonds":
        package = find_spec("plotnine")
        if package is None or not package.submodule_search_locations:
            raise SystemExit("diamonds comes with the package plotnine, which is not installed")
        path = Path(package.submodule_search_locations[0]) / "data" / "diamonds.csv"
        return pd.read_csv(path).rename(columns={"price": TARGET})
    bunch = getattr(datasets, f"load_{case}")(as_frame=True)
    return bunch.frame.rename(columns={"target": TARGET})


def ours(fold: Fold) -> np.ndarray:
    """Probabilities of classes, or numbers, from what ``nnbackend train`` does by default."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        fold.training.to_csv(path, index=False)
        task = "regression" if fold.classes is None else "classification"
        data = read_csv(path, TARGET, task)
        settings = Settings(target=TARGET, task=task).with_epochs(len(data.x)).for_tables(())
        model = build_model(settings, data)
        with redirect_stdout(io.StringIO()):
            train(settings, model, data)
        fold.test.to_csv(path, index=False)
        test = read_csv(path, preparation=data.preparation)
    if fold.classes is None:
        return model.predict(test.x)[:, 0] + data.preparation.target_offset
    shares = np.zeros((len(test.x), len(fold.classes)))
    names = [str(c) for c in fold.classes]
    shares[:, [names.index(name) for name in data.class_names]] = model.predict_proba(test.x)
    return shares


def scikit(model: Any, scales: bool = True) -> Callable[[Fold], np.ndarray]:
    """The same from one of scikit-learn's models, after a StandardScaler if it needs one."""

    def run(fold: Fold) -> np.ndarray:
        x, y = fold.training.drop(columns=TARGET), fold.training[TARGET]
        encoder = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
        columns = make_column_transformer(
            (encoder, make_column_selector(dtype_include=object)),
            (encoder, make_column_selector(dtype_include="string")),
            remainder=StandardScaler() if scales else "passthrough",
        )
        pipe = make_pipeline(columns, model).fit(x, y)
        rest = fold.test.drop(columns=TARGET)
        return pipe.predict(rest) if fold.classes is None else pipe.predict_proba(rest)

    return run


def systems(classes: bool) -> dict[str, Callable[[Fold], np.ndarray]]:
    if classes:
        return {
            "nnbackend train": ours,
            "MLPClassifier": scikit(MLPClassifier(random_state=0)),
            "HistGradientBoosting": scikit(HistGradientBoostingClassifier(random_state=0), False),
            "LogisticRegression": scikit(LogisticRegression(max_iter=1000)),
        }
    return {
        "nnbackend train": ours,
        "MLPRegressor": scikit(MLPRegressor(random_state=0)),
        "HistGradientBoosting": scikit(HistGradientBoostingRegressor(random_state=0), False),
        "RidgeCV": scikit(RidgeCV()),
    }


def folds_of(frame: pd.DataFrame) -> list[Fold]:
    y = frame[TARGET]
    classes = sorted(y.unique()) if y.nunique() <= 20 else None
    kind = KFold if classes is None else StratifiedKFold
    parts = kind(FOLDS, shuffle=True, random_state=0).split(frame, y)
    return [Fold(frame.iloc[a], frame.iloc[b], classes) for a, b in parts]


def figures(fold: Fold, found: np.ndarray) -> tuple[float, float]:
    """Accuracy and log loss; or r2 and the error's root mean square in standard deviations."""
    y = fold.test[TARGET].to_numpy()
    if fold.classes is not None:
        right = np.array(fold.classes)[found.argmax(axis=1)] == y
        return float(right.mean()), float(log_loss(y, found, labels=fold.classes))
    rest = float(((found - y) ** 2).mean() / y.var())
    return 1.0 - rest, rest**0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="default %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default %(default)s")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    console, results = Console(), []
    for case in options.cases.split(","):
        folds = folds_of(table_of(case))
        names = ("r2", "rms error") if folds[0].classes is None else ("accuracy", "log loss")
        shown = Table("", *names, "seconds", box=None, title=case)
        for system, run in systems(folds[0].classes is not None).items():
            start = time.perf_counter()
            pairs = [figures(fold, run(fold)) for fold in folds]
            seconds = (time.perf_counter() - start) / FOLDS
            means = [statistics.mean(side) for side in zip(*pairs, strict=True)]
            spread = [statistics.stdev(side) for side in zip(*pairs, strict=True)]
            shown.add_row(system, *(f"{m:.4f} +- {s:.4f}" for m, s in zip(means, spread,
                                                                       strict=True)),
                          f"{seconds:.2f}")  # fmt: skip
            results.append({"case": case, "system": system, "figures": names, "folds": pairs,
                            "means": means, "seconds": seconds})  # fmt: skip
        console.print(shown)
    described = machine((*PACKAGES, "scikit-learn"))
    write_atomically(
        options.output, json.dumps({"machine": described, "results": results}, indent=1).encode()
    )
    console.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
