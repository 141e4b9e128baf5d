"""Atomic writes: the order of syncs and rename, errors, kills, and what is left behind."""

from __future__ import annotations

import ast
import errno
import io
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.files import DAMAGED_ARRAYS, PART, atomic_file, cache_folder, load_array, load_arrays, write_atomically
from tests.support.processes import ROOT


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every fsync (of which kind of file) and rename, in order."""
    made: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        made.append(("fsync", "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"))
        sync(handle)

    def rename(source: Path, target: Path) -> None:
        made.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    return made


@pytest.mark.parametrize("old", [None, b"much longer old content"])
def test_bytes_text_and_functions_are_written(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    write_atomically(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    write_atomically(str(path), "τ\r\n")
    assert path.read_bytes() == "τ\r\n".encode()

    def write(file: BinaryIO) -> None:
        file.write(b"one")
        file.write(b"two")

    write_atomically(path, write)
    assert path.read_bytes() == b"onetwo"
    assert os.listdir(tmp_path) == ["file"]


def test_the_file_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    write_atomically(tmp_path / "file", b"x")
    assert calls == [("fsync", "file"), ("rename", "file"), ("fsync", "folder")]


def test_new_folders_are_made_and_synced_only_on_request(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    path = tmp_path / "a" / "b" / "file"
    with pytest.raises(FileNotFoundError):
        write_atomically(path, b"x")
    assert os.listdir(tmp_path) == []
    write_atomically(path, b"x", parents=True)
    assert path.read_bytes() == b"x"
    assert calls == [("fsync", "folder")] * 2 + [("fsync", "file"), ("rename", "file"), ("fsync", "folder")]


def test_what_need_not_survive_a_power_cut_is_not_synced(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    write_atomically(tmp_path / "a" / "file", b"x", parents=True, durable=False)
    assert calls == [("rename", "file")]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_system_that_cannot_sync_folders_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_atomically(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_library_may_write_to_a_path_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as part:
        assert part.parent == tmp_path
        assert part.name.startswith("file.")
        assert part.name.endswith(PART)
        part.write_bytes(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(FileNotFoundError), atomic_file(path):
        pass  # no file was created
    assert path.read_bytes() == b"content"


KILLED = """
import sys, time
from index.files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    print("in the middle", flush=True)
    time.sleep(600)
write_atomically(sys.argv[1], write)
"""


@pytest.mark.system
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    left = [name for name in os.listdir(tmp_path) if name != "file"]
    assert [name.endswith(PART) for name in left] == [True]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "sightline"
    assert not cache_folder().exists()
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sightline"


@settings(max_examples=300, deadline=None)
@given(zipped=st.booleans(), at=st.integers(0, 10**6), new=st.binary(min_size=1, max_size=4), cut=st.booleans())
def test_damaged_arrays_raise_only_what_is_listed(zipped: bool, at: int, new: bytes, cut: bool) -> None:
    file, array = io.BytesIO(), np.arange(50, dtype=np.float32).reshape(5, 10)
    if zipped:
        np.savez(file, one=array, two=array)
    else:
        np.save(file, array)
    data = bytearray(file.getvalue())
    at %= min(len(data), 400)
    data[at : at + len(new)] = new
    try:
        found = io.BytesIO(bytes(data[: at + 1] if cut else data))
        if zipped:
            assert [each.shape for each in load_arrays(found).values()]
        else:
            np.load(found, allow_pickle=False)
    except DAMAGED_ARRAYS:
        return


def test_threads_do_not_parse_the_headers_of_arrays_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.11 raises SystemError where they do: "AST constructor recursion depth mismatch"."""
    expected, parse = np.arange(96), ast.literal_eval
    np.save(tmp_path / "one.npy", expected)
    np.savez(tmp_path / "some.npz", a=expected, b=expected[:3])
    inside, most = list[str](), list[int]()

    def slow(header: str) -> Any:
        inside.append(header)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()
        return parse(header)

    def read(number: int) -> None:
        if number % 2:
            np.testing.assert_array_equal(load_array(tmp_path / "one.npy", mapped=number % 3 == 0), expected)
        else:
            found = load_arrays(tmp_path / "some.npz")
            assert {name: len(each) for name, each in found.items()} == {"a": 96, "b": 3}

    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(40)))
    assert most == [1] * (20 + 20 * 2)


def test_one_array_of_several_is_read_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", a=np.arange(3), b=np.arange(4))
    assert list(load_arrays(tmp_path / "some.npz", ["b"])) == ["b"]
    with pytest.raises(DAMAGED_ARRAYS):
        load_arrays(tmp_path / "some.npz", ["c"])
