"""What a command checks before it loads a model, and what it reports when it is interrupted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.file_ingest import IngestProgress
from pipeline.cli import ingest as ingest_commands
from pipeline.cli import options
from pipeline.cli import store as store_commands
from tests.support.command import Command


@pytest.fixture
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(options, "load_encoders", fail)


@pytest.mark.usefixtures("_no_models")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("ingest", "no.mp4"), 1, "no.mp4: no such file or folder"),
        (("ingest", "no*.mp4"), 1, "the pattern matches no file"),
        (("ingest", "x.mp4", "--overlap", "both"), 2, "--overlap both: must be one of"),
        (("ingest", "x.mp4", "--timezone", "Europe/Amsterdm"), 2, "Europe/Amsterdm"),
        (("ingest", "x.mp4", "--names", "{camera}.mp4"), 2, "{camera} is unknown"),
        (("ingest", "x.mp4", "--stream", "../x"), 2, "cannot name a stream"),
        (("ingest", "x.mp4", "--profile", "micr"), 1, "no profile 'micr'"),
        (("backfill", "--dry-run", "--manifest", "none.csv"), 1, "none.csv"),
        (("backfill", "--dry-run", "--manifest", "x", "--profile", "micr"), 1, "no profile 'micr'"),
        (("watch", "--cameras", "none.toml"), 2, "none.toml: not a list of cameras"),
        (("watch", "loop:x.mp4", "--profile", "micr"), 1, "no profile 'micr'"),
    ],
)
def test_mistakes_are_reported_before_models_are_loaded(
    sightline: Command, arguments: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    result = sightline(*arguments, "--store", tmp_path / "store")
    assert (result.code, result.out) == (code, "")
    assert says in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("_no_models")
def test_an_absent_broker_is_reported_before_models_are_loaded(
    sightline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_KAFKA_CONNECT_SECONDS", "1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    result = sightline("consume", "--group", "a", "--servers", f"127.0.0.1:{port}", "--store", "none")
    assert result.code == 1
    assert f"Kafka at 127.0.0.1:{port}: no answer" in result.err


@pytest.mark.usefixtures("_no_models")
def test_a_store_of_another_patch_encoding_is_reported_before_models_are_loaded(
    sightline: Command, store: str, profile: str, footage: Path
) -> None:
    result = sightline("ingest", footage, "--store", store, "--profile", profile, "--patches", "int8")
    assert result.code == 2
    assert "keeps patches as" in result.err


def test_an_interrupted_ingest_says_what_is_stored(
    sightline: Command, monkeypatch: pytest.MonkeyPatch, store: str, profile: str, footage: Path
) -> None:
    def interrupted(*_: object, on_progress: Callable[[IngestProgress], None], **__: object) -> None:
        on_progress(IngestProgress("a/gate.mp4", 2, 5, 60.0, 100.0, 60))
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest_commands, "ingest_sources", interrupted)
    result = sightline("ingest", footage, "--store", store, "--profile", profile, "--quiet")
    assert result.code == 130
    assert result.err == (
        "sightline: interrupted; 2 of 5 files are stored, and of gate.mp4 whole parts of 300 s; run the same command "
        "again to continue\n"
    )


def test_any_interrupted_command_says_so(sightline: Command, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_commands, "open_store", interrupted)
    result = sightline("verify", "--store", store)
    assert (result.code, result.out) == (130, "")
    assert result.err == "sightline: interrupted; what was stored stays; the same command may be run again\n"


@pytest.mark.parametrize(
    "command",
    [("deadletter", "list"), ("deadletter", "replay", "--all"), ("alerts", "watch"), ("publish", "film.mp4")],
)
def test_commands_for_people_do_not_wait_for_an_absent_broker(sightline: Command, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    began = time.monotonic()
    for servers, reason in (
        (f"127.0.0.1:{port}", f"127.0.0.1:{port}: Connection refused"),
        ("localhost:99999", "localhost:99999: "),
        (" , ", "no address is given"),
    ):
        result = sightline(*command, "--servers", servers)
        assert (result.code, result.out) == (1, "")
        assert "no broker accepts connections" in result.err
        assert reason in result.err
        assert result.err.count("\n") == 1
    assert time.monotonic() - began < 85, "three times less than the limit for connections, 30 s"
