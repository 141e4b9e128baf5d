"""Commands that run for long end in time after SIGINT and SIGTERM, whatever they are doing, and a hung worker ends itself.

With SIGHTLINE_LONG_TESTS=1 every command gets both signals, in processes that run at the same time; otherwise some
commands get one, because each has to load its models first.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from index.store import Store
from ingest.kafka.clients import Sender, make_topics
from ingest.messages import segment_message
from ingest.shutdown import COMMIT_SECONDS, STOP_SECONDS
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from tests.support.footage import make_video
from tests.support.kafka_server import Broker, broker  # a fixture
from tests.support.live import convert
from tests.support.processes import environment

__all__ = ["broker"]

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]

_SLACK = 60.0
"""Seconds that other work on the machine may add. A command that its own deadline ends has another exit code, and says so,
so they do not hide one that ends late."""


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of footage whose work no machine ends before a signal: three files of twenty hours."""
    folder = tmp_path_factory.mktemp("site") / "footage"
    folder.mkdir()
    make_video(folder.parent / "part.mp4", seconds=900, rate=1, gop=2)
    for day in (1, 2, 3):
        convert(folder.parent / "part.mp4", folder / f"gate_2024030{day}T000000Z.mp4", "-c", "copy", loops=79)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of the shipped model, without frames."""
    encoders = load_encoders(load_profile("micro"), "cpu")
    return str(Store.create(tmp_path_factory.mktemp("site") / "store", encoders.pair).url)


def topics(server: Broker, prefix: str) -> dict[str, str]:
    """The environment of a command with topics of its own."""
    make_topics(server.settings(prefix=prefix, partitions=1))
    return {"SIGHTLINE_KAFKA_SERVERS": server.servers, "SIGHTLINE_KAFKA_PREFIX": prefix}


class Running:
    """A command in a folder of its own. Its output goes to a file."""

    def __init__(self, home: Path, *arguments: object, program: str | None = None, **variables: str) -> None:
        home.mkdir(parents=True)
        self.home, self.log = home, home / "log"
        command = ["-m", "pipeline.cli"] if program is None else ["-c", program]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *map(str, arguments)],
                cwd=home,
                env=environment(home, **variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], Any], seconds: float = 600.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode}:\n{self.output()[-3000:]}")
            if time.monotonic() > deadline:
                pytest.fail(f"it does not get to work:\n{self.output()[-3000:]}")
            time.sleep(0.1)

    def children(self) -> list[int]:
        """Processes that it started, and those that they started."""
        found, parents = [], {self.process.pid}
        for status in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
            try:
                parent = int(status.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent in parents:
                found.append(int(status.parent.name))
                parents.add(found[-1])
        return found

    def seconds_to_end(self, number: signal.Signals, limit: float) -> float:
        """Send the signal; seconds until the process has ended. Its children must end with it."""
        children, began = self.children(), time.monotonic()
        self.process.send_signal(number)
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it still runs {limit:.0f} s after {number.name}:\n{self.output()[-3000:]}")
        took = time.monotonic() - began
        deadline = time.monotonic() + 120
        while any(Path(f"/proc/{child}/exe").exists() for child in children):
            assert time.monotonic() < deadline, f"children outlive the command: {children}"
            time.sleep(0.05)
        return took


@contextmanager
def running(*arguments: Any, **more: Any) -> Iterator[Running]:
    command = Running(*arguments, **more)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


def _commits(store: Path) -> int:
    return len(list((store / "segments" / "_delta_log").glob("*.json")))


def _connected(run: Running) -> bool:
    """Whether it has a socket: for a command that waits for messages and shows nothing."""
    try:
        return any(os.readlink(entry).startswith("socket:") for entry in Path(f"/proc/{run.process.pid}/fd").iterdir())
    except OSError:
        return False


def _used(seconds: float) -> Callable[[Running], bool]:
    """For a command that shows nothing while it computes: whether it has used so much CPU time, with its children."""

    def works(run: Running) -> bool:
        ticks = 0
        for pid in (run.process.pid, *run.children()):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK") > seconds

    return works


@dataclass(frozen=True, slots=True)
class Case:
    """One command, and how to see that it works."""

    arguments: Callable[[Path, str, Path], list[object]]
    """Of the folder of footage, the store and its own folder."""
    works: Callable[[Running], Any]
    """Whether it is in the middle of its work."""
    seconds: float = STOP_SECONDS
    kafka: bool = False
    store: bool = False
    until_stopped: bool = False
    """Whether it runs until it is stopped, which is then its success."""


_CAMERA = "gate=loop:{}"
CASES = {
    "ingest": Case(
        lambda footage, _, home: ["ingest", footage, "--store", home / "store"],
        lambda run: _commits(run.home / "store") >= 2,
        COMMIT_SECONDS,
    ),
    "backfill": Case(
        lambda footage, _, home: ["backfill", "--manifest", footage, "--store", home / "store"],
        lambda run: (run.home / "store" / "staging").exists() or _commits(run.home / "store") >= 2,
        COMMIT_SECONDS,
    ),
    "publish": Case(
        lambda footage, _, home: ["publish", footage, "--seconds", 1],
        lambda run: len(run.children()) >= 2,
        kafka=True,
    ),
    "consume": Case(
        lambda footage, _, home: ["consume", "--group", "g", "--store", home / "store"],
        lambda run: (run.home / "store" / "segments").exists(),
        COMMIT_SECONDS,
        kafka=True,
        until_stopped=True,
    ),
    "watch": Case(
        lambda footage, _, home: [
            *("watch", _CAMERA.format(next(footage.iterdir())), "--store", home / "store"),
            *("--folder", home / "live", "--seconds", 1),
        ],
        lambda run: _commits(run.home / "store") >= 2,
        COMMIT_SECONDS,
        until_stopped=True,
    ),
    "record": Case(
        lambda footage, _, home: [
            *("record", _CAMERA.format(next(footage.iterdir())), "--to", home / "tape"),
            *("--folder", home / "live", "--seconds", 1),
        ],
        lambda run: any((run.home / "tape").rglob("*.mp4")),
        until_stopped=True,
    ),
    "alerts watch": Case(
        lambda footage, _, home: ["alerts", "watch", "--beginning"],
        _connected,
        kafka=True,
        until_stopped=True,
    ),
    "compact": Case(
        lambda _, store, home: ["compact", "--store", store, "--every", 3600, "--heartbeat", home / "beat"],
        lambda run: (run.home / "beat").exists() or "another compaction is active" in run.output(),  # that of the other
        store=True,
        until_stopped=True,
    ),
    "model-service": Case(
        lambda _, store, home: ["model-service", "--store", store, "--port", 0],
        lambda run: "listening on" in run.output(),
        store=True,
        until_stopped=True,
    ),
    "demo": Case(
        lambda footage, _, home: ["demo", "--out", home / "out", "--minutes", 60],
        lambda run: (run.home / "out").exists(),
        COMMIT_SECONDS,
    ),
    "bench": Case(
        lambda footage, _, home: ["bench", "ingest", "--minutes", 600],
        _used(8),
    ),
}


BOTH = (signal.SIGINT, signal.SIGTERM)
LONG = bool(os.environ.get("SIGHTLINE_LONG_TESTS"))
CHOSEN = {
    "backfill": (signal.SIGTERM,),
    "publish": (signal.SIGINT,),
    "watch": (signal.SIGTERM,),
    "demo": (signal.SIGTERM,),
}
"""What the short form tries."""


@pytest.mark.parametrize(("name", "signals"), (dict.fromkeys(CASES, BOTH) if LONG else CHOSEN).items())
def test_a_command_ends_in_time_after_a_signal(
    name: str, signals: tuple[signal.Signals, ...], footage: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case, variables = CASES[name], {"SIGHTLINE_SEGMENT_SECONDS": "10"}
    if case.kafka:
        variables |= topics(request.getfixturevalue("broker"), f"signals-{name.replace(' ', '-')}")
    store = request.getfixturevalue("store") if case.store else ""
    homes = [tmp_path / number.name for number in signals]
    with ExitStack() as stack:
        commands = [
            stack.enter_context(running(home, *case.arguments(footage, store, home), **variables)) for home in homes
        ]
        for command, number in zip(commands, signals, strict=True):
            command.until(partial(case.works, command))
            took = command.seconds_to_end(number, case.seconds + _SLACK)
            assert took <= case.seconds + _SLACK
            assert command.process.returncode == (0 if case.until_stopped else 128 + number)
            assert "Traceback" not in command.output()
            assert "Warning" not in command.output()
    for home in homes:
        if (home / "store" / "segments").exists():
            assert Store.open(home / "store").verify() == []


def test_ctrl_c_in_a_terminal_says_what_is_safe(footage: Path, tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        command = [sys.executable, "-m", "pipeline.cli", "ingest", str(footage), "--store", "store"]
        os.execve(
            sys.executable, command, environment(tmp_path, TERM="xterm", COLUMNS="100", SIGHTLINE_SEGMENT_SECONDS="10")
        )
    output = b""
    try:
        deadline, pressed = time.monotonic() + 600, False
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    data = os.read(terminal, 65536)
                except OSError:  # the other end is closed
                    break
                if not data:
                    break
                output += data
            if not pressed and _commits(tmp_path / "store") >= 2:
                os.write(terminal, b"\x03")
                pressed, deadline = True, time.monotonic() + COMMIT_SECONDS + _SLACK
        assert pressed, output[-3000:]
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode(errors="replace"))
    assert os.waitstatus_to_exitcode(status) == 130
    assert "Traceback" not in text
    assert "0 of 3 files are stored, and of gate_20240301T000000Z.mp4 whole parts of" in " ".join(text.split())
    assert "run the same command again to continue" in " ".join(text.split())
    store = Store.open(tmp_path / "store")
    assert store.verify() == []
    assert len(store.segments()) >= 1


_HUNG = """
import ctypes, sys
from ingest.kafka.record_batches import RecordBatches
def hang(*_):
    print("hangs", flush=True)
    while True:
        ctypes.CDLL(None).poll(None, 0, -1)  # in a library, where Python runs no signal handler
RecordBatches.has_next = hang
RecordBatches.next_batch = hang
from pipeline.cli.main import run
run()
"""


def test_a_worker_whose_poll_hangs_ends_after_the_signal_or_by_its_watchdog(broker: Broker, tmp_path: Path) -> None:
    with ExitStack() as stack:
        workers = []
        for name, seconds in (("watched", 30), ("signalled", 600)):
            variables = topics(broker, name)
            settings = broker.settings(prefix=name)
            with Sender(settings) as sender:
                message = segment_message("gate", 1_709_280_000_000_000, 2.0, b"footage")
                sender.send(settings.segments, key="gate", value=message.to_bytes())
                sender.flush()
            home = tmp_path / name
            arguments = (
                "consume",
                "--group",
                name,
                "--store",
                home / "store",
            )  # a group each: none rebalances the other
            variables["SIGHTLINE_KAFKA_POLL_SECONDS"] = str(seconds)
            workers.append(stack.enter_context(running(home, *arguments, program=_HUNG, **variables)))
        watched, signalled = workers
        signalled.until(lambda: "hangs" in signalled.output())
        assert signalled.seconds_to_end(signal.SIGTERM, STOP_SECONDS + _SLACK) >= STOP_SECONDS - 1
        assert signalled.process.returncode == 1
        assert "did not stop within 10 s of the signal" in signalled.output()
        assert watched.process.wait(600) == 1
        assert "hangs" in watched.output()
        assert "the thread that polls Kafka stands still for" in watched.output()


def test_a_worker_ends_in_time_while_the_broker_does_not_answer(broker: Broker, tmp_path: Path) -> None:
    variables = topics(broker, "silent")
    arguments = ("consume", "--group", "g", "--store", tmp_path / "worker" / "store")
    assert broker.process is not None
    with running(tmp_path / "worker", *arguments, **variables) as worker:
        worker.until(lambda: (tmp_path / "worker" / "store" / "segments").exists())
        os.kill(broker.process.pid, signal.SIGSTOP)
        try:
            time.sleep(3)
            worker.seconds_to_end(signal.SIGTERM, COMMIT_SECONDS + _SLACK)
        finally:
            os.kill(broker.process.pid, signal.SIGCONT)
