"""Writing files: whole or not at all, and nothing of them left behind."""

import io
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

#: Modes, and links that anybody may make.
POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has none")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@POSIX
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


@POSIX
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


@POSIX
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
    temporary = _files._temporary_name(tmp_path / "m")
    file = _files._new_temporary(temporary)
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


@pytest.mark.parametrize("name", ["猫" * 80, "é" * 120, "m" * 255])
def test_names_of_several_bytes_a_character(tmp_path, name) -> None:
    for content in (b"old", b"new"):
        write_atomically(tmp_path / name, content)
    assert (tmp_path / name).read_bytes() == b"new"
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
class TestWhatIsNoFile:
    """A pipe or a device is written to, not replaced."""

    def test_a_named_pipe(self, tmp_path) -> None:
        os.mkfifo(tmp_path / "pipe")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        nn.Sequential([nn.Dense(2, 2)], seed=0).save(tmp_path / "pipe")
        reader.join(30)
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
        (tmp_path / "copy").write_bytes(got[0])
        assert nn.load(tmp_path / "copy").n_parameters == 6

    @pytest.mark.parametrize("through_a_link", [False, True])
    def test_a_device(self, tmp_path, through_a_link) -> None:
        device = Path(os.devnull)
        before = device.lstat()
        if through_a_link:
            (tmp_path / "link").symlink_to(device)
            device = tmp_path / "link"
        check_writable(device)
        write_atomically(device, b"x" * 100_000)
        assert Path(os.devnull).lstat().st_ino == before.st_ino
        assert os.stat(device).st_rdev == before.st_rdev

    @pytest.mark.parametrize("how", ["pipe", "file"])
    def test_standard_output_by_its_name(self, tmp_path, how) -> None:
        """A link to what is open; as root, replacing it would break it for the whole machine."""
        if not Path("/dev/stdout").exists():
            pytest.skip("this system has no /dev/stdout")
        before = Path("/dev/stdout").lstat()
        (tmp_path / "link").symlink_to("/dev/stdout")
        source = (
            "import sys; from nnbackend._files import write_atomically, check_writable\n"
            "print('first', flush=True)\n"
            "for path in sys.argv[1:]: check_writable(path); write_atomically(path, b'x\\n')\n"
            "print('last')"
        )
        command = [sys.executable, "-c", source, "/dev/stdout", str(tmp_path / "link")]
        with (tmp_path / "out").open("ab") as file:
            done = subprocess.run(
                command, stdout=file if how == "file" else subprocess.PIPE, check=True
            )
        output = (tmp_path / "out").read_bytes() if how == "file" else done.stdout
        assert output.split() == [b"first", b"x", b"x", b"last"]
        assert Path("/dev/stdout").lstat().st_ino == before.st_ino

    def test_a_device_that_may_not_be_written_is_said_beforehand(
        self, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(PermissionError, match="null"):
            check_writable(os.devnull)


class TestPredictionsPrinted:
    """Without ``--out``, and with ``--out -``, predictions alone are on standard output."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        rows = "".join(f"{n},{'猫' if n % 2 else 'dog'}\n" for n in range(20))
        (tmp_path / "a.csv").write_text("n,kind\n" + rows, encoding="utf-8")
        data = nn.datasets.read_csv(tmp_path / "a.csv")
        model = nn.Sequential([nn.Dense(1, 2)], seed=0, backend="numpy")
        model.compile("softmax_cross_entropy")
        model.info = {"class_names": data.class_names, "feature_names": ["n"], "kind": "csv"}
        model.save(tmp_path / "m.safetensors")
        return tmp_path

    @pytest.mark.parametrize("out", [[], ["--out", "-"]])
    @pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
    def test_whatever_the_encoding(self, folder, out, encoding) -> None:
        command = [sys.executable, "-m", "nnbackend.cli", "predict", "m.safetensors", "a.csv"]
        done = subprocess.run(
            [*command, *out], cwd=folder, capture_output=True, timeout=60,
            env=os.environ | {"PYTHONIOENCODING": encoding, "NN_BACKEND": "numpy"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().splitlines()
        assert lines[0] == "prediction"
        assert len(lines) == 21
        assert {*lines[1:]} <= {"dog", "猫"}

    def test_names_that_the_encoding_lacks_are_escaped_in_messages(self, folder) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "nnbackend.cli", "summary", "m.safetensors"], cwd=folder,
            capture_output=True, timeout=60, env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert rb"classes: dog, \u732b" in done.stdout


def test_a_training_goes_on_where_its_names_cannot_be_printed(monkeypatch) -> None:
    def metric(y_true, y_pred):
        return 1.0

    metric.__name__ = "größe_猫"
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    model = nn.Sequential([nn.Dense(2, 1)], seed=0, backend="numpy")
    model.compile("mean_squared_error", metrics=[metric])
    model.fit([[1.0, 2.0]], [1.0], epochs=2)
    model.summary()
    assert "größe_\\u732b 1.0000" in out.buffer.getvalue().decode("cp1252")
    monkeypatch.setattr(sys, "stdout", None)  # a program without a console
    model.fit([[1.0, 2.0]], [1.0], epochs=1)
    model.summary()
    assert model.epoch == 3


@POSIX
class TestAsOnWindows:
    """What is open can be neither moved nor removed there; files are text unless one says so."""

    BINARY = 1 << 40

    @pytest.fixture(autouse=True)
    def _rules(self, monkeypatch) -> None:
        replace, unlink, open_ = os.replace, os.unlink, os.open
        self.refused = 0

        def is_open(path) -> bool:
            found = Path("/proc/self/fd")
            return any(os.path.realpath(link) == os.fspath(path) for link in found.iterdir())

        def checked(function):
            def call(path, *others):
                if self.refused or is_open(path):
                    self.refused = max(0, self.refused - 1)
                    raise PermissionError(13, "Sharing violation", str(path))
                function(path, *others)

            return call

        def opened(path, flags, mode=0o777):
            if os.fspath(path).endswith(".tmp"):
                assert flags & self.BINARY, "every line end would become two characters"
            return open_(path, flags & ~self.BINARY, mode)

        monkeypatch.setattr(_files, "_ON_WINDOWS", True)
        monkeypatch.setattr(os, "O_BINARY", self.BINARY, raising=False)
        monkeypatch.setattr(os, "replace", checked(replace))
        monkeypatch.setattr(os, "unlink", checked(unlink))
        monkeypatch.setattr(os, "open", opened)
        monkeypatch.delattr(os, "O_DIRECTORY")

    def test_files_are_written_and_replaced(self, tmp_path) -> None:
        check_writable(tmp_path / "a")
        for content in (b"old\n", b"new\r\n"):
            write_atomically(tmp_path / "a", content)
            assert (tmp_path / "a").read_bytes() == content
        (tmp_path / "hard").hardlink_to(tmp_path / "a")
        write_atomically(tmp_path / "a", b"newer")
        assert (tmp_path / "hard").read_bytes() == b"newer"
        assert leftovers(tmp_path) == []

    def test_who_holds_a_new_file_for_a_moment_is_waited_for(self, tmp_path) -> None:
        self.refused = 3
        write_atomically(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"new"

    def test_who_holds_it_for_longer_is_an_error(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(_files.time, "sleep", lambda seconds: None)
        write_atomically(tmp_path / "a", b"old")
        self.refused = 6  # and then the new content can be removed
        with pytest.raises(PermissionError, match="a'"):
            write_atomically(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
        assert leftovers(tmp_path) == []

    def test_what_is_left_is_removed_unless_somebody_has_it_open(
        self, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(_files, "_ABANDONED", -1.0)
        names = [_files._temporary_name(tmp_path / "a") for _ in range(2)]
        kept, left = (_files._new_temporary(name) for name in names)
        left.close()
        write_atomically(tmp_path / "a", b"new")
        assert leftovers(tmp_path) == [names[0].name]
        kept.close()
