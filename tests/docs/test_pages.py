"""What the pages say agrees with the code: command lines, options, the glossary, the generated references."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ingest.kafka.settings import KafkaSettings
from tests.support.documents import Block, blocks_of, pages
from tests.support.processes import ROOT

GLOSSARY = (
    "frame",
    "segment",
    "chunk",
    "moment",
    "window",
    "keyframe",
    "standing question",
    "alert",
    "stream",
    "camera",
)
_SEPARATORS = {"&&", "||", "|", "&", ";", "do", "done", ">", ")", "("}


@cache
def _generate() -> Any:
    return importlib.import_module("docs.generate")


@cache
def _commands() -> dict[str, set[str]]:
    """The options of every command, by the command's full name."""
    found: dict[str, set[str]] = {}
    for name, command, _ in _generate().walk_commands():
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        found[name] = {option for option in options if option.startswith("-")} | {"--help", "--debug"}
    return found


def _command_lines(block: Block) -> list[list[str]]:
    """The words of every `sightline` command in a shell block."""
    found: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "sightline" in words:
            words = words[words.index("sightline") :]
            end = next((i for i, word in enumerate(words) if word in _SEPARATORS), len(words))
            found.append(words[:end])
            words = words[end:]
    return found


def _problem(words: list[str]) -> str | None:
    """Why a command line is invalid, None if it is not."""
    name = words[0]
    rest = words[1:]
    while rest and f"{name} {rest[0]}" in _commands():
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name == "sightline" and rest and not rest[0].startswith("-"):
        return f"no command {rest[0]}"
    ours = rest[: rest.index("--")] if "--" in rest else rest
    unknown = [word for word in ours if word.startswith("--") and word.partition("=")[0] not in _commands()[name]]
    return f"{name} has no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_of_a_page_are_valid(page: Path) -> None:
    lines = [words for block in blocks_of(page) if block.kind == "sh" for words in _command_lines(block)]
    assert [problem for words in lines if (problem := _problem(words))] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_inline_commands_of_a_page_exist(page: Path) -> None:
    inline = re.findall(r"`(sightline [a-z][^`]*)`", page.read_text())
    plain = [text for text in inline if "COMMAND" not in text and "…" not in text]
    assert [problem for text in plain if (problem := _problem(shlex.split(text)))] == []


def _missing(name: str) -> bool:
    """Whether a dotted name or a path that a page mentions is not in the tree."""
    if "/" in name:
        return not (ROOT / name).exists()
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:size])
        file = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
        if file.is_file():
            text = file.read_text()
            return not all(re.search(rf"\b{re.escape(part)}\b", text) for part in parts[size:])
    return True


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    names = re.findall(r"`((?:index|ingest|model|pipeline|sightline)(?:\.(?!py`)\w+)+)`", text)
    paths = re.findall(
        r"`((?:index|ingest|model|pipeline|sightline|tests|infra|benchmarks|docs|examples)/[\w./-]*)`", text
    )
    handlers = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    kafka = KafkaSettings()
    others = {kafka.segments, kafka.indexed, kafka.alerts, kafka.deadletter}  # topics
    assert [name for name in {*names, *paths, *handlers} - others if _missing(name)] == []


def test_a_wrong_command_line_is_found() -> None:
    assert _problem(["sightline", "asks", "x"]) == "no command asks"
    assert _problem(["sightline", "alerts", "add", "x", "--flor", "1"]) == "sightline alerts add has no option --flor"
    assert _problem(["sightline", "backfill", "--", "--direct_num_workers=2"]) is None


def test_the_glossary_has_every_word() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert set(GLOSSARY) <= set(words)
    assert words == sorted(words, key=str.lower)


def test_the_reference_of_commands_has_every_command_and_option() -> None:
    page = _generate().commands_page()
    for name, options in _commands().items():
        assert f"{{#{name.replace(' ', '-')}}}" in page
        section = page.split(f"{{#{name.replace(' ', '-')}}}", 1)[1].split("\n## ")[0].split("\n### ")[0]
        missing = {option for option in options - {"--debug", "--help"} if f"`{option}" not in section}
        assert {option for option in missing if f" {option}" not in section and f"/{option}" not in section} == set()


def test_every_option_and_every_setting_is_described() -> None:
    parameters = [(name, each) for name, command, _ in _generate().walk_commands() for each in command.params]
    assert [(name, each.name) for name, each in parameters if not each.help] == []
    assert [(table, name) for table, name, field in _generate().walk_settings() if not field.description] == []


def test_the_reference_of_settings_has_every_setting() -> None:
    page = _generate().settings_page()
    settings = list(_generate().walk_settings())
    assert {table for table, _, _ in settings} >= {None, "kafka", "consume", "live"}
    for table, name, _ in settings:
        variable = "_".join(part.upper() for part in ("sightline", table, name) if part)
        assert f"| `{name}`<br>`{variable}` |" in page
    assert "**********" not in page  # no secret's value
