"""Tables on the command line, as they are written."""

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import figure, run

TRAIN = ("--epochs", "40", "--hidden", "8", "--save", "m")


@pytest.fixture
def sales(tmp_path: Path) -> Path:
    """Semicolons, decimal commas, latin-1, an id, and names in two of the columns."""
    rng = np.random.default_rng(0)
    lines = ["id;größe;breite;laune;art"]
    for k in range(120):
        size = rng.normal() + 3 * (k % 2)
        lines.append(f"A{k:04};{size:.3f};{rng.normal():.3f};gut;{('süß', 'bitter')[k % 2]}")
    path = tmp_path / "sales.csv"
    path.write_bytes("\n".join(lines).replace(".", ",").encode("latin-1"))
    return path


def test_columns_are_chosen_and_others_repeated(sales: Path) -> None:
    done = run("train", "sales.csv", "--drop", "id,laune", *TRAIN, cwd=sales.parent)
    assert done.returncode == 0, done.stderr
    assert "target 'art': 2 classes" in done.stdout
    evaluated = run("evaluate", "m", "sales.csv", cwd=sales.parent)  # with columns too many
    assert "rows          120" in evaluated.stdout, evaluated.stderr
    done = run("predict", "m", "sales.csv", "--keep", "id,laune", cwd=sales.parent)
    header, first, *others = done.stdout.splitlines()
    assert header == "id,laune,art"
    assert first.startswith("A0000,gut,")
    assert len(others) == 119
    done = run("train", "sales.csv", "--features", "breite,größe", "--target", "art", *TRAIN,
               cwd=sales.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = run("summary", "m", cwd=sales.parent).stdout
    assert "columns: breite, größe" in shown


def test_how_a_table_is_written_is_remembered(tmp_path: Path) -> None:
    """What was said in the training holds in predictions: there it could not be found out."""
    rows = "".join(f"{k % 7},{k % 3}~{k % 2}~{k % 2}\n" for k in range(60))
    (tmp_path / "odd.csv").write_text(rows)
    written = ("--sep", "~", "--decimal", ",", "--no-header")
    done = run("train", "odd.csv", *written, *TRAIN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "one.csv").write_text("3,0~1~9\n")
    done = run("predict", "m", "one.csv", cwd=tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr


def test_all_kinds_of_columns_from_training_to_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["id,when,city,age,pay"]
    for k in range(400):
        city, age = rng.integers(3), rng.integers(20, 60)
        day = np.datetime64("2024-01-01") + np.timedelta64(int(rng.integers(700)), "D")
        pay = 1.7e9 + 10 * city + 0.2 * age + 0.01 * (day - np.datetime64("2024-01-01")).astype(int)
        shown = "" if k % 9 == 0 else age
        lines.append(f"u{k},{day},{('rome', 'oslo', 'bern')[city]},{shown},{pay:.3f}")
    (tmp_path / "pay.csv").write_text("\n".join(lines) + "\n")
    done = run("train", "pay.csv", "--epochs", "150", "--hidden", "16", "--save", "m", "--plot",
               "p.png", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in (r"id +left out +its text differs in every row", r"city +category +3 categories",
                 r"when +time +its number, place in the year and week",
                 r"age +number +missing values as \d+\.?\d*, and marked",
                 r"the target +number +its distance from 17000"):  # fmt: skip
        assert re.search(said, done.stdout), said
    assert figure(done.stdout, "r2", "validation") > 0.95
    evaluated = run("evaluate", "m", "pay.csv", cwd=tmp_path).stdout
    assert float(re.search(r"r2 +(\S+)", evaluated)[1]) > 0.95
    done = run("predict", "m", "pay.csv", "--keep", "id", cwd=tmp_path)
    predicted = [line.split(",") for line in done.stdout.splitlines()[1:]]
    true = np.array([float(line.split(",")[-1]) for line in lines[1:]])
    error = np.array([float(pay) for _, pay in predicted]) - true
    assert [name for name, _ in predicted] == [f"u{k}" for k in range(400)]
    assert np.abs(error).mean() < 2.0
    again = run("train", "pay.csv", "--resume", "m", "--epochs", "151", "--save", "m", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "sales.csv", "--sep", ";;"], "sep must be one character"),
        (["train", "sales.csv", "--decimal", "'"], "decimal must be one of"),
        (["train", "sales.csv", "--encoding", "klingon"], "encoding must be one that Python knows"),
        (["train", "sales.csv", "--drop", "idd"], "no column 'idd', which is to be left out"),
        (["train", "sales.csv", "--drop", "art"], "'art' is the target, so it cannot be left out"),
        (["train", "sales.csv", "--features", "breite"], "name it with target, too"),
        (["train", "sales.csv", "--features", "art,breite", "--target", "art"], "learns nothing"),
        (["train", "digits", "--drop", "a"], "is for tables"),
        (["train", "digits", "--target", "3"], "target is for data of your own"),
        (["train", "digits", "--task", "regression"], "digits is for classification"),
        (["train", "sine", "--task", "classification"], "sine is for regression"),
    ],
)
def test_wrong_options(sales: Path, arguments, message) -> None:
    done = run(*arguments, cwd=sales.parent)
    assert done.returncode == 1
    assert message in done.stderr


def test_many_categories_get_vectors_from_training_to_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    worth, shops = rng.normal(size=40), rng.integers(0, 40, 1500)
    lines = ["shop,size,sold"]
    for shop in shops:
        size = rng.normal()
        lines.append(f"shop {shop},{size:.3f},{100 + 10 * worth[shop] + size:.3f}")
    (tmp_path / "shops.csv").write_text("\n".join(lines) + "\n")
    done = run(
        "train", "shops.csv", "--epochs", "60", "--save", "m", "--plot", "p.png", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"shop +category +40 categories, 13 learnt numbers for each", done.stdout)
    assert figure(done.stdout, "r2", "validation") > 0.97
    assert "Embedding" in run("summary", "m", cwd=tmp_path).stdout
    (tmp_path / "new.csv").write_text("size,shop\n0,shop 7\n0,nowhere\n")
    done = run("predict", "m", "new.csv", cwd=tmp_path)
    known, unknown = (float(line) for line in done.stdout.splitlines()[1:])
    assert abs(known - (100 + 10 * worth[7])) < 3
    assert np.isfinite(unknown)
    again = run(
        "train", "shops.csv", "--resume", "m", "--epochs", "61", "--save", "m", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
