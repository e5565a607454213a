"""Writing files: whole or not at all, and nothing of them left behind."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import nnbackend as nn
from nnbackend import _files
from nnbackend._files import check_writable, write_atomically


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path) -> None:
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            write_atomically(tmp_path / f"{umask}", b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}").stat().st_mode) == mode


def test_the_umask_of_the_process_is_never_changed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "umask", lambda *_: pytest.fail("other threads make files, too"))
    write_atomically(tmp_path / "a", b"x")


def test_an_existing_file_keeps_its_mode(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="not root")
def test_and_its_owner(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    write_atomically(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_links_lead_to_the_new_content(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a long old content")
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "soft").symlink_to(path)
    write_atomically(path, b"new")
    assert (tmp_path / "hard").read_bytes() == (tmp_path / "soft").read_bytes() == b"new"
    write_atomically(tmp_path / "soft", b"newer")
    assert (tmp_path / "soft").is_symlink()
    assert path.read_bytes() == (tmp_path / "hard").read_bytes() == b"newer"
    assert leftovers(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch) -> None:
    source = (
        "import os, nnbackend._files as f\n"
        "f.os.replace = lambda *_: os._exit(9)\n"
        f"f.write_atomically({str(tmp_path / 'm')!r}, b'x' * 1000)"
    )
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", source]).returncode == 9
    assert len(leftovers(tmp_path)) == 3
    write_atomically(tmp_path / "m", b"new")
    assert len(leftovers(tmp_path)) == 3  # they might be of a process that has just begun
    monkeypatch.setattr(_files, "_ABANDONED", -1.0)
    write_atomically(tmp_path / "other", b"new")
    assert len(leftovers(tmp_path)) == 3
    write_atomically(tmp_path / "m", b"new")
    assert leftovers(tmp_path) == []


def test_what_another_one_is_writing_is_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_files, "_ABANDONED", -1.0)
    temporary, file = _files._new_temporary(tmp_path / "m")
    write_atomically(tmp_path / "m", b"new")
    assert leftovers(tmp_path) == [temporary.name]
    file.close()


def test_two_threads_write_one_file_whole(tmp_path) -> None:
    path, wrong = tmp_path / "m", []

    def write(letter: bytes) -> None:
        for _ in range(30):
            write_atomically(path, letter * 50_000)
            if len(set(path.read_bytes())) != 1:
                wrong.append(1)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("call", [write_atomically, lambda path, _: check_writable(path)])
def test_errors_name_the_file_that_was_asked_for(tmp_path, call, monkeypatch) -> None:
    with pytest.raises(OSError, match="gone"):
        call(tmp_path / "gone" / "m", b"x")
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        call(tmp_path, b"x")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "some.tmp")

    monkeypatch.setattr(_files.os, "open", refuse)
    with pytest.raises(PermissionError, match="m'") as caught:
        call(tmp_path / "m", b"x")
    assert ".tmp" not in str(caught.value)


def test_names_as_long_as_they_may_be(tmp_path) -> None:
    write_atomically(tmp_path / ("m" * 250), b"x")
    assert leftovers(tmp_path) == []


def test_a_checkpoint_that_cannot_be_written_is_found_before_training(
    tmp_path, monkeypatch
) -> None:
    model = nn.Sequential([nn.Dense(2, 2)], seed=0)
    model.compile("mean_squared_error")

    def refuse(target):
        raise PermissionError(30, "Read-only file system", str(target))

    monkeypatch.setattr(_files, "_new_temporary", refuse)
    with pytest.raises(nn.DataError, match="checkpoints cannot be written.*Read-only"):
        model.fit([[1.0, 2.0]], [[1.0, 2.0]], verbose=0,
                  callbacks=[nn.ModelCheckpoint(tmp_path / "m.safetensors")])  # fmt: skip
    assert model.step == 0


def test_a_file_that_may_not_be_read_is_not_called_truncated(tmp_path, monkeypatch) -> None:
    path = tmp_path / "m.safetensors"
    nn.Sequential([nn.Dense(2, 2)], seed=0).save(path)
    opened = open

    def refuse(file, *rest, **more):
        if Path(file) == path:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *rest, **more)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(nn.CheckpointError, match="cannot be read: Permission denied"):
        nn.load(path)


def test_a_pipe_that_is_closed_does_not_cost_the_model(tmp_path) -> None:
    command = [sys.executable, "-m", "nnbackend.cli", "train", "spiral", "--epochs", "400",
               "--save", "m.safetensors"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()  # as head -1 does
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0, errors
    assert b"BrokenPipe" not in errors
    assert nn.load(tmp_path / "m.safetensors").epoch == 400
