"""The stages of ``benchmarks/gpu_check.sh``, tried without a GPU, with failures planted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_stand_in import compiler

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a part is ended with all it started")


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_stages

    def python(name: str, seconds: float, source: str) -> gpu_stages.Part:
        return gpu_stages.script(name, seconds, "-c", source)

    planted = {
        "good": (python("one", 10, "print('fine')"), python("two", 10, "")),
        "bad": (
            python("loud", 10, "for k in range(5000): print('line', k)\nraise SystemExit(3)"),
            gpu_stages.Part("absent", 10, ("no-such-program",)),
            python("named", 10, "print('FAILED test_a - off by 2')\nprint('more')\nexit(1)"),
            python("hangs", 0.5, "import time\nprint('at work', flush=True)\ntime.sleep(60)"),
            python("last", 10, "print('fine')"),
        ),
    }
    monkeypatch.setattr(gpu_stages, "STAGES", planted)
    return gpu_stages


def test_a_stage_goes_on_after_failures_and_says_why_in_few_lines(stages, tmp_path, capsys) -> None:
    assert stages.main(["--output", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    start = lines.index("== good: 2 of 2 parts passed in 0 s") + 1
    assert len(lines) - start <= stages.MOST_LINES
    for state in (
        "bad:loud FAILED with 3", "bad:absent FAILED with 127", "bad:named FAILED with 1",
        "bad:hangs ENDED at its limit", "bad:last passed", "== bad: 1 of 5 parts passed",
    ):  # fmt: skip
        assert any(line.startswith(state) for line in lines[start:]), state
    for reason in ("line 4999", "No such file", "FAILED test_a - off by 2", "at work"):
        assert reason in printed
    assert "line 4000" not in printed
    assert "line 4000" in (tmp_path / "bad.txt").read_text()
    content = json.loads((tmp_path / "bad.json").read_text())
    assert not content["passed"]
    assert json.loads((tmp_path / "good.json").read_text())["passed"]
    assert [(p["name"], p["exit_code"]) for p in content["parts"]] == [
        ("loud", 3), ("absent", 127), ("named", 1), ("hangs", None), ("last", 0),
    ]  # fmt: skip


def test_many_failures_do_not_crowd_each_other_out(stages, tmp_path, capsys) -> None:
    loud = stages.STAGES["bad"][0]
    stages.STAGES = {"bad": (loud,) * 10}
    assert stages.main(["--output", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= stages.MOST_LINES
    assert sum(line == "line 4999" for line in lines) == 10


def test_single_parts_may_be_asked_for(stages, tmp_path, capsys) -> None:
    assert stages.main(["--output", str(tmp_path), "bad:last", "good:two", "bad:last"]) == 0
    assert "== bad: 1 of 1 parts passed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        stages.main(["bad:first"])
    assert "stage 'bad' has no part 'first'; it has loud, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        stages.main(["worse"])
    assert "no stage 'worse'; there are good, bad" in capsys.readouterr().err


def test_stages_fit_into_the_time_that_a_gpu_can_be_had() -> None:
    listed = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu_check.sh"), "--list"], capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable}, check=True,
    ).stdout  # fmt: skip
    limits = [line for line in listed.splitlines() if not line.startswith(" ")]
    assert limits == [
        "first, 150 s at most", "right, 120 s at most", "memory, 90 s at most",
        "fast, 300 s at most",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(compiler()) is None, reason="the stand-in needs a C++ compiler")
def test_a_stage_runs_on_the_stand_in_from_a_checkout_that_is_not_installed(tmp_path) -> None:
    command = ["bash", str(BENCHMARKS / "gpu_check.sh"), "--stand-in", "--output", str(tmp_path)]
    command += ["first:kernels", "first:products", "first:graphs", "first:training"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "== first: 4 of 4 parts passed" in done.stdout


def test_parts_that_time_nothing_run_side_by_side_and_are_reported_in_order(
    stages, tmp_path, monkeypatch, capsys
) -> None:
    """Each waits for what the other one does."""
    meet = (
        "import pathlib, time\nhere = pathlib.Path({here!r})\nhere.write_text('')\n"
        "other = pathlib.Path({other!r})\n"
        "while not other.exists(): time.sleep(0.01)\nprint({name!r}, pathlib.Path.cwd())"
    )
    paths = [str(tmp_path / name) for name in "ab"]
    parts = tuple(
        stages.script(name, 20, "-c", meet.format(name=name, here=here, other=other))
        for name, here, other in zip("ab", paths, reversed(paths), strict=True)
    )
    monkeypatch.setattr(stages, "STAGES", {"both": parts})
    monkeypatch.setattr(stages, "SIDE_BY_SIDE", ("both",))
    assert stages.main(["--output", str(tmp_path / "out")]) == 0
    assert "both:b passed" in capsys.readouterr().out.splitlines()[1]
    written = (tmp_path / "out" / "both.txt").read_text()
    assert written.index("\na .") < written.index("\nb .")  # not where this checkout lies
