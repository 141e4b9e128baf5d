"""A pool's processes end with a parent that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.processes import environment

POOL = """
import os, time
from index.child_processes import process_pool

if __name__ == "__main__":
    with process_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""
YOUNG = """
import os
from index.child_processes import process_pool

if __name__ == "__main__":
    with process_pool(1):  # its process still starts
        tasks = "/proc/self/task"
        for task in os.listdir(tasks):
            print(open(f"{tasks}/{task}/children").read(), end="")
        print(flush=True)
        os.kill(os.getpid(), 9)
"""
BUSY = """
import os, time
from index.child_processes import process_pool

def work():
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with process_pool(2) as pool:
        pool.submit(work)
        pool.submit(work).result()
"""
SLOW = """
import os, time
from index.child_processes import process_pool

if __name__ == "__mp_main__":
    time.sleep(600)  # a process that starts on a busy machine

if __name__ == "__main__":
    with process_pool(2) as pool:
        pool.submit(os.getpid)
        raise ValueError("the block failed")
"""


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _ends(pid: int) -> bool:
    until = time.monotonic() + 120
    while _is_running(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_processes_of_a_pool_end_with_their_parent(tmp_path: Path) -> None:
    program = tmp_path / "pool.py"
    program.write_text(POOL)
    with subprocess.Popen(
        [sys.executable, str(program)], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _is_running(child)
        os.kill(parent.pid, signal.SIGKILL)
    assert _ends(child)


def test_a_process_that_still_starts_ends_with_its_parent(tmp_path: Path) -> None:
    program = tmp_path / "young.py"
    program.write_text(YOUNG)
    done = subprocess.run(
        [sys.executable, str(program)], env=environment(tmp_path), stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    children = [int(word) for word in done.stdout.split()]
    assert children
    assert all(_ends(child) for child in children)


def test_an_interrupted_pool_ends_its_processes_in_their_work_and_silently(tmp_path: Path) -> None:
    program = tmp_path / "busy.py"
    program.write_text(BUSY)
    with subprocess.Popen(
        [sys.executable, str(program)],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        children = [int(parent.stdout.readline()) for _ in range(2)]
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        assert parent.wait(300) == -signal.SIGINT
        assert all(_ends(child) for child in children)
        assert parent.stderr.read().count("Traceback") == 1  # the parent's own


def test_a_block_that_fails_does_not_wait_for_processes_that_still_start(tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert "ValueError: the block failed" in done.stderr.splitlines()[-1]
