"""What a terminal shows while a model trains."""

from __future__ import annotations

import io

import pytest

from nnbackend.training.progress import LiveProgress, figures_text

FIGURES = {"loss": 0.0963, "accuracy": 0.975, "val_loss": 0.1103, "val_accuracy": 0.9694, "lr": 1}


@pytest.fixture
def lines(monkeypatch):
    """The last line, as a terminal of a width shows it, after so many of 1,000 rows."""
    rich = pytest.importorskip("rich.console")

    def shown(width: int, rows: int, figures: dict[str, float]) -> list[str]:
        file = io.StringIO()
        console = rich.Console(file=file, width=width, force_terminal=True, color_system=None)
        monkeypatch.setattr("rich.get_console", lambda: console)
        with LiveProgress(0, 10, 100) as progress:
            progress.advance(rows)
            progress.epoch_end(rows // 100, figures)
            file.seek(0)
            file.truncate()
        found = file.getvalue().replace("\x1b[?25h", "").replace("\r\x1b[2K", "")
        return [line.rstrip() for line in found.split("\n") if line.strip()]

    return shown


@pytest.mark.parametrize("width", [80, 92, 110, 140])
def test_figures_have_room_before_anything_else(lines, width) -> None:
    (line,) = lines(width, 1000, FIGURES)
    assert line.startswith("epoch 10/10 ")
    assert figures_text(FIGURES) in line
    assert len(line) <= width
    assert ("━" in line, "left" in line, "samples/s" in line) == {
        80: (False, False, False),
        92: (True, False, False),
        110: (True, True, False),
        140: (True, True, True),
    }[width]


def test_where_figures_are_too_long_they_take_several_lines(lines) -> None:
    found = lines(40, 1000, FIGURES)
    assert len(found) > 1
    assert figures_text(FIGURES).split() == " ".join(found).removeprefix("epoch 10/10").split()


def test_before_the_first_epoch_ends_there_are_a_bar_and_the_time_left(lines) -> None:
    (line,) = lines(80, 50, {})
    assert line.startswith("epoch  0/10 ")
    assert "╸" in line
    assert "left" in line
