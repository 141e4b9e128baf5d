"""Appends that are killed, concurrent appends, and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from index.errors import StoreFull
from index.store import Store
from tests.support.killed_append import KILLED, start
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

ROOT = Path(__file__).parents[2]

APPENDS = """
import sys
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment
from index.store import Store
store = Store.open(sys.argv[1], encoders=PAIR)
for chunk in range(6):
    records = make_records("front", BEGAN + chunk * 20 * SECOND, seed=chunk)
    store.append(make_segment(records, chunk), records)
"""


@pytest.mark.system
@pytest.mark.parametrize("stop", ["patches", "frames", "segments"])
def test_an_append_that_was_killed_is_finished_by_appending_again(store: Store, stop: str) -> None:
    child = start(KILLED, store.url, stop)
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    assert child.poll() is None  # alive, between two commits
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    again = Store.open(store.url)
    assert again.segments() == []
    records = make_records()
    assert again.append(make_segment(records), records)
    assert again.streams()[0].frames == 20
    assert again.verify() == []
    assert (again.patches(again.window()) == records.patches).all()


@pytest.mark.system
def test_two_processes_appending_the_same_footage_double_nothing(store: Store) -> None:
    children = [start(APPENDS, store.url) for _ in range(2)]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    assert store.streams()[0].frames == 120
    assert store.verify() == []


@pytest.mark.system
def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:  # not root: limit the size of files instead, which fails in the same place
        pytest.fail("mounting a small tmpfs needs root; run the tests as root or in a container")
    try:
        store = Store.create(disk / "store", PAIR)
        stored, began = 0, time.monotonic()
        with pytest.raises(StoreFull, match="no space left"):  # noqa: PT012
            while time.monotonic() - began < 600:
                records = make_records("front", BEGAN + stored * 20 * SECOND, seed=stored)
                store.append(make_segment(records, stored), records)
                stored += 1
        assert stored > 0
        again = Store.open(store.url)
        window = again.window()
        assert len(window) >= stored * 20
        assert len(again.patches(window)) == len(window)
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        records = make_records("front", BEGAN + stored * 20 * SECOND, seed=stored)
        assert again.append(make_segment(records, stored), records)
        assert again.streams()[0].frames == (stored + 1) * 20
        assert again.verify() == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
