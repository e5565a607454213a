"""Where compiled code is kept, who may have written it, and what happens to damaged files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from numba.core import config

import nnbackend as nn
from nnbackend.backends.numba import cache, runtime
from nnbackend.kernels.cpu.codegen.drivers import driver
from nnbackend.kernels.cpu.codegen.store import Store


def double(x):
    """A driver."""
    return x * 2


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """A folder for each place that is looked at, all of them this test's."""
    found = {name: tmp_path / name for name in ("numba", "home", "temporary")}
    for path in found.values():
        path.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(found["numba"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(found["home"]))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(found["temporary"]))

    def is_private(folder: Path) -> bool:
        """What lies above the test's folder is this machine's business."""
        inside = [p for p in (folder, *folder.parents) if p.is_relative_to(tmp_path)]
        return not any(path.lstat().st_mode & 0o022 for path in inside)

    monkeypatch.setattr(cache, "is_private", is_private)
    return found


class TestFolders:
    def test_the_name_says_what_decides_about_the_code(self, places) -> None:
        folders = cache.cache_folders()
        assert folders.write == places["numba"] / f"nnbackend-{cache._fingerprint()}"
        assert folders.read == (folders.write,)

    @pytest.mark.parametrize("setting", ["OPT", "LOOP_VECTORIZE", "BOUNDSCHECK", "CPU_NAME"])
    def test_settings_of_numba_that_change_the_code_are_part_of_it(
        self, monkeypatch, setting
    ) -> None:
        before = cache._fingerprint()
        monkeypatch.setattr(config, setting, 77)
        assert cache._fingerprint() != before

    def test_folders_are_made_for_this_user_alone(self, places, monkeypatch) -> None:
        deep = places["numba"] / "a" / "b"
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(deep))
        before = os.umask(0)
        try:
            folder = cache.cache_folders().write
        finally:
            os.umask(before)
        for path in (folder, deep, deep.parent):
            assert path.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("which", ["leaf", "base"])
    def test_folders_that_others_can_write_to_are_not_used(self, places, which) -> None:
        own = cache.cache_folders().write
        (own if which == "leaf" else places["numba"]).chmod(0o777)
        found = cache.cache_folders()
        assert places["numba"] not in [path.parent for path in found.read]
        assert found.write.is_relative_to(places["home"])

    def test_one_that_cannot_be_written_to_is_read(self, places, monkeypatch) -> None:
        complete = cache.cache_folders().write
        access = os.access
        monkeypatch.setattr(
            cache.os, "access", lambda p, mode: Path(p) != complete and access(p, mode)
        )
        found = cache.cache_folders()
        assert found.read[0] == complete
        assert found.write.is_relative_to(places["home"])

    def test_without_any_folder_nothing_is_kept(self, places, monkeypatch) -> None:
        monkeypatch.setattr(cache, "is_private", lambda folder: False)
        assert cache.cache_folders() == cache.CacheFolders((), None)

    def test_no_temporary_folder_is_no_error(self, places, monkeypatch) -> None:
        def none() -> str:
            raise FileNotFoundError("no usable temporary directory")

        monkeypatch.setattr(cache.tempfile, "gettempdir", none)
        assert cache.cache_folders().write is not None

    def test_without_a_home_no_folder_is_named_by_a_tilde(self, monkeypatch) -> None:
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert all(path.is_absolute() and "~" not in path.parts for path in cache._cache_bases())


class TestPrivate:
    def test_a_parent_that_others_can_write_to_is_seen(self, tmp_path) -> None:
        parent = tmp_path / "parent"
        leaf = parent / "leaf"
        leaf.mkdir(parents=True, mode=0o700)
        parent.chmod(0o755)
        expected = cache.is_private(tmp_path)  # whatever lies above
        assert cache.is_private(leaf) == expected
        parent.chmod(0o777)
        assert not cache.is_private(leaf)
        parent.chmod(0o1777)  # like /tmp: others can add entries, but not touch this one
        assert cache.is_private(leaf) == expected
        leaf.chmod(0o1777)
        assert not cache.is_private(leaf)

    def test_a_link_is_no_folder(self, tmp_path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert not cache.is_private(tmp_path / "link")

    @pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="not root")
    def test_what_another_user_owns_is_not_private(self, tmp_path) -> None:
        (tmp_path / "theirs").mkdir(mode=0o700)
        os.chown(tmp_path / "theirs", 12345, 12345)
        assert not cache.is_private(tmp_path / "theirs")


class TestStore:
    def test_whole_pieces_only(self, tmp_path) -> None:
        store = Store([tmp_path], tmp_path)
        store.write("some", b"code")
        assert Store([tmp_path], None).read("some") == b"code"
        stored = (tmp_path / "some").read_bytes()
        for damaged in (
            b"",
            stored[:-1],
            stored[:10],
            bytes([stored[0] ^ 1]) + stored[1:],
            stored + b"x",
        ):
            (tmp_path / "some").write_bytes(damaged)
            assert Store([tmp_path], None).read("some") is None

    def test_pieces_that_have_been_exchanged_are_none(self, tmp_path) -> None:
        store = Store([tmp_path], tmp_path)
        store.write("phase_float32.o", b"code")
        store.write("phase_float64.o", b"other code")
        (tmp_path / "phase_float64.o").replace(tmp_path / "phase_float32.o")
        assert store.read("phase_float32.o") is None

    def test_a_damaged_piece_is_looked_for_in_the_next_folder(self, tmp_path) -> None:
        for name in "ab":
            (tmp_path / name).mkdir()
            Store([], tmp_path / name).write("some", name.encode())
        (tmp_path / "a" / "some").write_bytes(b"")
        assert Store([tmp_path / "a", tmp_path / "b"], None).read("some") == b"b"

    @pytest.mark.parametrize("folder", [None, "gone"])
    def test_what_cannot_be_kept_lasts_as_long_as_the_process(
        self, tmp_path, folder, capsys
    ) -> None:
        store = Store([], None if folder is None else tmp_path / folder)
        for name in ("some", "other"):
            store.write(name, b"code")
        assert store.read("some") == b"code"
        assert store.has("other")
        assert capsys.readouterr().err.count("could not be kept") == 1


class TestDrivers:
    def test_another_process_s_code_is_found(self, tmp_path) -> None:
        x = np.arange(3.0)
        np.testing.assert_array_equal(driver(double, Store([tmp_path], tmp_path))(x), 2 * x)
        again = driver(double, Store([tmp_path], None))
        np.testing.assert_array_equal(again(x), 2 * x)
        assert sum(again.stats.cache_hits.values()) == 1
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("damage", [b"", b"short", None])
    def test_a_damaged_file_is_compiled_again(self, tmp_path, damage) -> None:
        x = np.arange(3.0)
        driver(double, Store([tmp_path], tmp_path))(x)
        (path,) = tmp_path.iterdir()
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        path.write_bytes(bytes(flipped) if damage is None else damage)
        np.testing.assert_array_equal(driver(double, Store([tmp_path], tmp_path))(x), 2 * x)
        assert len(path.read_bytes()) == len(whole)

    def test_a_folder_that_is_gone_is_no_error(self, tmp_path) -> None:
        x = np.arange(3.0)
        made = driver(double, Store([tmp_path / "gone"], tmp_path / "gone"))
        np.testing.assert_array_equal(made(x), 2 * x)


def test_without_just_in_time_compilation_the_backend_says_so() -> None:
    done = run_python("import nnbackend as nn; nn.get_backend('numba')", NUMBA_DISABLE_JIT="1")
    assert "NUMBA_DISABLE_JIT is set; unset it" in done.stderr
    done = run_python("import nnbackend as nn; print(nn.get_backend().name)", NUMBA_DISABLE_JIT="1")
    assert done.stdout.strip() == "numpy"


def test_a_helper_ends_with_its_parent(tmp_path) -> None:
    """It would compile on for seconds, and write to a folder that may be gone."""
    parent = subprocess.Popen(
        [sys.executable, "-c",
         "from nnbackend.backends.numba.runtime import start_python\n"
         "import time\n"
         "print(start_python('import time; time.sleep(60)').pid, flush=True)\n"
         "time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    helper = int(parent.stdout.readline())
    os.kill(helper, 0)
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not alive(helper):
            return
        time.sleep(0.1)
    pytest.fail("the helper lives on")


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_backend_says_where_code_is_kept(backend) -> None:
    if backend.name == "numba":
        assert backend.kept_in() == str(runtime.runtime().folders.write)
    assert nn.get_backend("numpy").kept_in() == ""
