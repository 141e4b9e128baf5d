"""What goes wrong is said in one line on standard error: exit code 1, or 2 for wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from index.errors import SourceNotFound
from pipeline.cli import store as store_commands
from pipeline.cli.main import COMMANDS, global_options_first, load_command
from tests.support.command import Command

ASK = ("ask", "what colour was the truck", "--store", "none")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing command"),
        (("bench",), "Missing command"),
        (("train",), "Missing command"),
        (("look",), "No such command 'look'"),
        (("serch", "q"), "No such command 'serch'. Did you mean 'search'"),
        (("alerts", "lsit"), "Did you mean 'list'?"),
        (("streams", "--config", "none.toml"), "none.toml: not a settings file"),
        (("ask",), "Missing argument 'question'"),
        (("forget", "--yes"), "Missing option '--stream'"),
        (("ask", "q", "--colour"), "No such option"),
        ((*ASK, "--k", "many"), "'--k'"),
        ((*ASK, "--k", "0"), "k must be at least 1, got 0"),
        ((*ASK, "--tau", "1.5"), "tau must lie above −1 and be at most 1, got 1.5"),
        ((*ASK, "--tau", "-1"), "tau must lie above −1"),
        ((*ASK, "--tau", "nan"), "tau must lie above −1"),
        ((*ASK, "--max-frames", "0"), "--max-frames must be at least 1"),
        ((*ASK, "--option", "red", "--option", "red"), "two options are the same"),
        ((*ASK, "--option", " "), "an option is empty"),
        (("ask", "  ", "--store", "none"), "the question is empty"),
        (("keyframes", "q", "--store", "none", "--k", "0"), "k must be at least 1"),
        (("search", "", "--store", "none"), "the text is empty"),
        (("search", "q", "--store", "none", "--top", "0"), "--top must be at least 1"),
        (
            (*ASK, "--from", "2024-03-01T08:00:00"),
            "has no time zone; write 2024-03-01T08:00:00Z for UTC, or pass --timezone",
        ),
        ((*ASK, "--to", "the other day"), "'the other day' is not a time; write 2024-03-01T08:00:00Z"),
        ((*ASK, "--to", "01/02/2024"), "Write the year first"),
        ((*ASK, "--from", "2024-03-01 08:00", "--timezone", "Mars"), "--timezone Mars: unknown time zone"),
        ((*ASK, "--from", "2024-03-01T09:00:00Z", "--to", "2024-03-01T08:00:00Z"), "is not before --to"),
        ((*ASK, "--from", "2024-03-01T09:00:00Z", "--to", "2024-03-01T09:00:00Z"), "is not before --to"),
        (("forget", "--stream", "a", "--store", "none", "--yes", "--before", "2024-03-01"), "has no time zone"),
        (("ingest", "x.mp4", "--start", "2024-03-01T08:00:00", "--store", "none"), "has no time zone"),
        (("render", "--seed", "1", "--out", "x", "--minutes", "0"), "--minutes must lie between"),
        (("render", "--seed", "1", "--out", "x", "--cameras", "0"), "--cameras must lie between"),
        (("train", "micro", "--out", "x", "--plan", "none.json"), "not a plan"),
        (("--config", "none.toml", "streams"), "none.toml: not a settings file"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(sightline: Command, arguments: tuple[str, ...], says: str) -> None:
    result = sightline(*arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert result.err.startswith("sightline: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "q"),
        ("keyframes", "q"),
        ("search", "q"),
        ("streams",),
        ("verify",),
        ("reindex",),
        ("forget", "--stream", "a", "--yes"),
    ],
)
def test_a_store_that_is_not_there(sightline: Command, arguments: tuple[str, ...]) -> None:
    result = sightline(*arguments, "--store", "s3-none/store", "--json")
    assert (result.code, result.out) == (1, "")
    assert "no store there; `sightline ingest … --store" in result.err
    assert result.err.count("\n") == 1


def test_what_the_store_does_not_hold(sightline: Command, filled: str, profile: str) -> None:
    place = ("--store", filled, "--profile", profile)
    unknown = sightline("ask", "what", "--stream", "roof", *place)
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err == "sightline: roof: the store has no such stream; it has back, front\n"
    early = sightline("keyframes", "what", "--to", "2020-01-01T00:00:00Z", *place)
    assert (early.code, early.out) == (1, "")
    assert early.err.startswith("sightline: no frames in that time; the store has back 2024-03-01T08:01:00Z to")
    assert early.err.count("\n") == 1
    gone = sightline("forget", "--stream", "roof", "--yes", "--store", filled)
    assert (gone.code, gone.err.count("\n")) == (1, 1)


def test_a_store_of_another_encoder_is_refused(sightline: Command, filled: str, models: Path, tmp_path: Path) -> None:
    text = (models / "tiny.toml").read_text().replace('name = "tiny-clip"', 'name = "other-clip"')
    other = models / "other.toml"
    other.write_text(text)
    result = sightline("ask", "what", "--store", filled, "--profile", other)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "holds vectors of tiny-clip" in result.err
    assert "other-clip" in result.err


def test_a_profile_that_is_not_there_and_weights_that_are_not(sightline: Command, filled: str, models: Path) -> None:
    result = sightline("ask", "what", "--store", filled, "--profile", "huge")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "no profile 'huge': give one of edge, micro, micro-hico, videochat_flash, vilamp" in result.err
    missing = models / "missing.toml"
    missing.write_text((models / "tiny.toml").read_text().replace('folder = "clip"', 'folder = "clap"'))
    result = sightline("ask", "what", "--store", filled, "--profile", missing)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "clap" in result.err


def test_a_keyframe_budget_above_what_may_be_read(sightline: Command, filled: str, profile: str) -> None:
    result = sightline("ask", "what", "--store", filled, "--profile", profile, "--k", "6", "--max-frames", "3")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--max-frames 3 is less than the 6 keyframes" in result.err


def test_forgetting_asks_first_and_does_nothing_where_nobody_can_answer(sightline: Command, store: str) -> None:
    result = sightline("forget", "--stream", "front", "--store", store)
    assert (result.code, result.out) == (2, "")
    assert "pass --yes" in result.err
    assert {row["stream_id"] for row in sightline("streams", "--store", store, "--json").data} == {"front", "back"}


def test_a_traceback_only_with_debug_wherever_it_stands(sightline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("rtsp://user:hunter2@camera\nfell over\x1b[2J")

    monkeypatch.setattr(store_commands, "open_store", broken)
    result = sightline("streams", "--store", "x")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "RuntimeError: rtsp://***@camera fell over" in result.err
    assert "\x1b" not in result.err
    assert "run again with --debug" in result.err
    for arguments in (("--debug", "streams"), ("streams", "--debug")):
        result = sightline(*arguments)
        assert result.code == 1
        assert "Traceback (most recent call last)" in result.err


def test_global_options_may_follow_the_command() -> None:
    assert global_options_first(["ask", "--debug", "--", "--debug"]) == ["--debug", "ask", "--", "--debug"]
    assert global_options_first(["ask", "--", "--debug"]) == ["ask", "--", "--debug"]
    assert global_options_first(["ask", "record", "--config", "a.toml", "--debug"]) == [
        "--debug", "--config", "a.toml", "ask", "record",
    ]  # fmt: skip
    assert global_options_first(["streams", "--config=a.toml"]) == ["--config=a.toml", "streams"]
    assert global_options_first(["streams", "--config"]) == ["streams", "--config"]
    cameras = ["watch", "--config", "cameras.toml"]  # of `watch` and `record` it is another option
    assert global_options_first(["--config", "a.toml", *cameras]) == ["--config", "a.toml", *cameras]


def test_a_settings_file_may_follow_the_command(sightline: Command, filled: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'store = "{filled}"\n')
    for arguments in (("--config", "mine.toml", "streams"), ("streams", "--config", "mine.toml")):
        assert len(sightline(*arguments, "--json").data) == 2


def test_credentials_never_appear(sightline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise SourceNotFound("https://me:hunter2@host/v.mp4?X-Amz-Signature=abcd: gone")

    monkeypatch.setattr(store_commands, "open_store", denied)
    result = sightline("streams")
    assert result.err == "sightline: https://***@host/v.mp4?***: gone\n"
    listed = sightline("ingest", "ftp://me:hunter2@host/v.mp4", "--store", "s", "--json")
    assert "hunter2" not in listed.out + listed.err


def _fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "av", "faiss", "pyarrow", "deltalake", "transformers", "open_clip", "numpy", "pandas", "rich"]
    code = (
        "import sys, json\nsys.argv = ['sightline', '--help']\nfrom pipeline.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    out = _fresh_python(code)
    assert "Ask questions about hours of video" in out
    assert json.loads(out.splitlines()[-1]) == []


@pytest.mark.alone
def test_the_help_is_fast() -> None:
    seconds = []
    for _ in range(3):  # the first run warms the disk cache; other work on the machine only ever adds time
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "command",
    [
        "render",
        "ingest",
        "search",
        "keyframes",
        "ask",
        "streams",
        "verify",
        "reindex",
        "forget",
        "demo",
        "eval rendered",
    ],
)
def test_every_command_explains_itself_and_can_speak_json(sightline: Command, command: str) -> None:
    result = sightline(*command.split(), "--help")
    assert result.code == 0
    assert "--json" in result.out


def test_version_and_short_help(sightline: Command) -> None:
    assert sightline("--version").out == f"sightline {version('sightline')}\n"
    for command in ((), ("ask",), ("alerts",), ("alerts", "add"), ("bench", "dks")):
        assert sightline(*command, "-h").out == sightline(*command, "--help").out != ""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_listed_help_is_that_of_the_command(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    assert (command.help or "").startswith(COMMANDS[name].help + ".")


def test_the_help_of_commands_imports_no_models() -> None:
    heavy = ["torch", "transformers", "open_clip", "apache_beam", "fastapi"]
    code = (
        "import sys, json\nfrom pipeline.cli.main import COMMANDS, load_command\n"
        "for name in COMMANDS:\n    load_command(name)\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    assert json.loads(_fresh_python(code)) == []


def test_shell_completion() -> None:
    def completions(line: str) -> list[str]:
        words = line.split(" ")
        asked = {"_SIGHTLINE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    assert completions("sightline se") == ["search", "serve"]
    assert completions("sightline alerts ") == ["add", "list", "remove", "watch", "test"]
    assert "--max-frames" in completions("sightline ask --m")
