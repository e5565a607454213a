"""Full disks and read-only folders: an error that names the file, and nothing lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nnbackend as nn

#: Puts a file system with these options over a folder, for one command.
MOUNT = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'


def on_a_disk(options: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sees a new, empty disk at ``folder``."""
    who = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]
    return subprocess.run(
        [*who, options, str(folder), *command],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def python_on_a_disk(options: str, folder: Path, source: str) -> str:
    start = f"import os, sys, errno, numpy as np, nnbackend as nn\nos.chdir({str(folder)!r})\n"
    source = start + "nn.set_backend('numpy')\n" + textwrap.dedent(source)
    done = on_a_disk(options, folder, sys.executable, "-c", source)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def disk(tmp_path):
    if shutil.which("unshare") is None or on_a_disk("size=64k", tmp_path, "true").returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    return tmp_path


def test_a_full_disk_keeps_the_old_file_and_the_model(disk) -> None:
    out = python_on_a_disk(
        "size=256k",
        disk,
        """
        nn.Sequential([nn.Dense(30, 30)], seed=0).save("model.safetensors")
        before = open("model.safetensors", "rb").read()
        large = nn.Sequential([nn.Dense(300, 300)], seed=0)
        try:
            large.save("model.safetensors")
        except OSError as error:
            print(error.errno == errno.ENOSPC, "model.safetensors" in str(error))
        print(open("model.safetensors", "rb").read() == before, os.listdir())
        """,
    )
    assert out == "True True\nTrue ['model.safetensors']\n"


def test_a_disk_that_fills_while_a_network_trains_leaves_the_last_checkpoint(disk) -> None:
    out = python_on_a_disk(
        "size=256k",
        disk,
        """
        class Fills(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                if epoch == 3:
                    with open("other", "wb") as file:
                        try:
                            file.write(bytes(1 << 20))
                        except OSError:
                            pass

        x, y = nn.datasets.spiral(50, 3, seed=0)
        model = nn.Sequential([nn.Dense(2, 64, "relu"), nn.Dense(64, 3)], seed=0)
        model.compile("softmax_cross_entropy")
        try:
            model.fit(x, y, epochs=9, verbose=0,
                      callbacks=[Fills(), nn.ModelCheckpoint("model.safetensors")])
        except OSError as error:
            print(error.errno == errno.ENOSPC, "model.safetensors" in str(error))
        print(nn.load("model.safetensors").epoch, model.epoch, len(model.history["loss"]))
        model.fit(x, y, epochs=1, verbose=0)
        print(model.epoch)
        """,
    )
    assert out == "True True\n2 3 3\n4\n"


def test_the_command_line_says_that_the_disk_is_full(disk) -> None:
    for command in (
        ("train", "spiral", "--epochs", "1", "--save", f"{disk}/model.safetensors"),
        ("train", "spiral", "--epochs", "1", "--plot", f"{disk}/curves.png"),
    ):
        program = [sys.executable, "-m", "nnbackend.cli", *command, "--backend", "numpy"]
        done = on_a_disk("size=4k", disk, *program)
        said = " ".join(done.stderr.split())
        assert done.returncode == 1, (command, said)
        assert "No space left" in said
        assert "Traceback" not in said


def test_a_read_only_folder_is_said_before_training(disk) -> None:
    for option, name in (("--save", "m.safetensors"), ("--plot", "curves.png")):
        command = ["train", "spiral", option, f"{disk}/{name}", "--backend", "numpy"]
        program = [sys.executable, "-m", "nnbackend.cli", *command]
        done = on_a_disk("ro", disk, *program)
        said = " ".join(done.stderr.split())
        assert done.returncode == 1, said
        assert "Read-only file system" in said
        assert "Traceback" not in said
        assert "epoch" not in done.stdout


def test_a_file_with_several_names_keeps_its_content_on_a_full_disk(disk) -> None:
    """Such a file is overwritten, so room for all of it is taken before."""
    out = python_on_a_disk(
        "size=300k",
        disk,
        """
        nn.Sequential([nn.Dense(100, 100)], seed=0).save("model.safetensors")
        os.link("model.safetensors", "backup.safetensors")
        try:  # the new one fits once, and not twice
            nn.Sequential([nn.Dense(230, 230)], seed=0).save("model.safetensors")
        except OSError as error:
            print(error.errno == errno.ENOSPC)
        print([nn.load(name).n_inputs for name in sorted(os.listdir())])
        nn.Sequential([nn.Dense(20, 20)], seed=0).save("model.safetensors")
        print([nn.load(name).n_inputs for name in sorted(os.listdir())])
        """,
    )
    assert out == "True\n[100, 100]\n[20, 20]\n"


def test_a_trained_model_that_finds_no_room_is_written_elsewhere(disk, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("temporary")
    source = f"""
        os.environ["TMPDIR"] = {str(other)!r}
        from nnbackend.cli.app import main
        sys.argv = ["nnbackend", "train", "spiral", "--epochs", "1", "--backend", "numpy",
                    "--save", "m.safetensors", "--plot", {str(other / "curves.png")!r}]
        try:
            main()
        except SystemExit as stop:
            print("code", stop.code)
        """
    out = python_on_a_disk("size=4k", disk, source)
    assert out.rstrip().endswith("code 1")
    assert "accuracy" in out
    assert (other / "curves.png").exists()
    (kept,) = other.glob("*-m.safetensors")
    assert nn.load(kept).epoch == 1


def test_a_log_on_a_full_disk_does_not_cost_the_training(tmp_path) -> None:
    program = [sys.executable, "-m", "nnbackend.cli", "train", "spiral", "--epochs", "3"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*program, "--save", str(tmp_path / "m.safetensors"), "--backend", "numpy"],
            stdout=full, stderr=full, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0
    assert nn.load(tmp_path / "m.safetensors").epoch == 3
    source = """
        sys.stdout = sys.stderr = open("/dev/full", "w")
        model = nn.Sequential([nn.Dense(2, 3)], seed=0)
        model.compile("softmax_cross_entropy")
        saves = nn.ModelCheckpoint("m.safetensors")
        model.fit(*nn.datasets.spiral(20, 3, seed=0), epochs=2, callbacks=[saves])
        os._exit(nn.load("m.safetensors").epoch)
        """
    start = f"import os, sys, nnbackend as nn\nos.chdir({str(tmp_path)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(source)], timeout=120, check=False
    )
    assert done.returncode == 2
