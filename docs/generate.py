"""The generated pages of the documentation: the references of commands and of settings.

`mkdocs` loads this file as a hook and adds both pages to the site, so that they always equal the code. Run as a script,
`python docs/generate.py`, it prints them. It reads the Typer application and the pydantic settings, and it knows
nothing else of the project: a new command or setting appears without a change here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import BaseMetadata
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli.main import app
from pipeline.settings import Settings

__all__ = ["commands_page", "on_files", "pages", "settings_page", "walk_commands", "walk_settings"]

_COMMANDS = """\
# Commands

This page is generated from the command line itself; `sightline COMMAND --help` prints the same.

Every command that finds or does something accepts `--json` and then writes JSON to standard output; the benchmarks
always do. An error is one line on standard error. The exit code is 1, or 2 for wrong usage. A command that is
interrupted says what is safe and ends with 130 (Ctrl-C, SIGINT) or 143 (SIGTERM), within 10 seconds, or 30 while it
commits; one that runs until it is stopped, such as `watch`, ends with 0. `--debug`, at any place in the line, adds the
traceback. Times are RFC 3339 with their zone; `--from`, `--to` and `--before` also take
local times with `--timezone` and phrases such as `2 hours ago`, and say how they were understood. `--config FILE` may stand at any
place as well, except after `watch` and `record`, whose `--config` is the list of cameras.

`sightline --install-completion` installs the completion of commands and options for your shell;
`sightline --show-completion` prints it.
"""

_SETTINGS = """\
# Settings

This page is generated from the code. The value of a setting is the first of these that is given:

1. the option of the command, where it has one;
2. the environment variable;
3. the key of the TOML file: `--config FILE`, else `$SIGHTLINE_CONFIG`, else `sightline.toml` in the current folder;
4. the default.

A name that no setting has is an error, in the environment as well as in the file.

```toml title="sightline.toml"
store = "/var/lib/sightline/store"
profile = "micro"

[kafka]
servers = "kafka-1:9092,kafka-2:9092"

[live]
folder = "/var/lib/sightline/live"
```
"""


# ---- commands --------------------------------------------------------------------------------------------------------


def walk_commands() -> Iterator[tuple[str, Any, Any]]:
    """Every command as (its full name, the command, its context); groups come before their commands."""
    root = get_command(app)
    yield from _walk(root, root.make_context("sightline", [], resilient_parsing=True), "sightline")


def _walk(command: Any, context: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    yield name, command, context
    if hasattr(command, "list_commands"):
        for child in command.list_commands(context):
            _, found, _ = command.resolve_command(context, [child])  # imports it: the group is lazy
            yield from _walk(
                found, found.make_context(child, [], parent=context, resilient_parsing=True), f"{name} {child}"
            )


def commands_page() -> str:
    """The reference of commands, in Markdown: one section a command, with its usage, arguments and options."""
    commands = list(walk_commands())
    lines = [_COMMANDS, "| command | what it does |", "|---|---|"]
    for name, command, _ in commands[1:]:
        if not hasattr(command, "list_commands"):
            lines.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {_first_paragraph(command.help)} |")
    for name, command, context in commands:
        depth = "##" if name.count(" ") < 2 else "###"
        lines += ["", f"{depth} {name} {{#{name.replace(' ', '-')}}}", "", _text(command.help), ""]
        lines += ["```text", _usage(command, context), "```", ""]
        rows = [_row(parameter, context) for parameter in command.params if not getattr(parameter, "hidden", False)]
        rows = [row for row in rows if row is not None]
        if rows:
            lines += ["| argument or option | meaning |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _usage(command: Any, context: Any) -> str:
    usage: str = command.get_usage(context)
    return " ".join(usage.removeprefix("Usage:").split())


def _row(parameter: Any, context: Any) -> str | None:
    record = parameter.get_help_record(context)
    if record is None:
        return None
    signature, meaning = record
    return f"| `{signature.replace('|', chr(92) + '|')}` | {_cell(meaning or '')} |"


def _first_paragraph(text: str | None) -> str:
    return _text(text).split("\n\n")[0].replace("|", "\\|")


def _text(text: str | None) -> str:
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(_escape(" ".join(paragraph.split())) for paragraph in paragraphs)


# ---- settings --------------------------------------------------------------------------------------------------------


def walk_settings() -> Iterator[tuple[str | None, str, FieldInfo]]:
    """Every setting as (its table in TOML, None at the top level; its name; the field)."""
    tables = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables.append((name, field.annotation))
        else:
            yield None, name, field
    for table, model in tables:
        for name, field in model.model_fields.items():
            yield table, name, field


def settings_page() -> str:
    """The reference of settings, in Markdown: one table for the top level and one for each TOML table."""
    lines, current = [_SETTINGS], object()
    for table, name, field in walk_settings():
        if table != current:
            current = table
            lines += ["", "## General {#general}" if table is None else f"## `[{table}]` {{#{table}}}", ""]
            lines += ["| setting, environment variable | default | meaning |", "|---|---|---|"]
        variable = "_".join(part.upper() for part in ("sightline", table, name) if part)
        meaning = _cell(field.description or "")
        limits = _limits(field)
        text = " ".join(part for part in (meaning, limits) if part)
        lines.append(f"| `{name}`<br>`{variable}` | {_default(field)} | {text} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, SecretStr):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
        return f"`{value}` ({value / 2**30:g} GiB)" if value >= 2**30 else f"`{value}` ({value / 2**20:g} MiB)"
    if isinstance(value, int | float):
        return f"`{value:,}`".replace(",", "_")
    if isinstance(value, tuple | list):
        return f"`{json.dumps(list(value))}`"
    return f"`{value}`"


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = []
    for each in field.metadata:
        if isinstance(each, BaseMetadata):
            found += [f"{sign} {getattr(each, name):,}" for name, sign in signs.items() if hasattr(each, name)]
    choices = getattr(field.annotation, "__args__", ())
    texts = [text for choice in choices for text in (choice, *getattr(choice, "__args__", ())) if isinstance(text, str)]
    if texts:
        found.append(", ".join(f"`{text}`" for text in texts))
    return f"*{'; '.join(found)}*" if found else ""


# ---- Markdown --------------------------------------------------------------------------------------------------------


def _escape(text: str) -> str:
    """`text` with what Markdown would read as HTML or emphasis made plain, outside backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_])", r"\\\1", part.replace("<", "&lt;")) for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return _escape(" ".join(text.split())).replace("|", "\\|")


def pages() -> dict[str, str]:
    """The Markdown of each generated page, by its path below `docs/`."""
    return {"reference/commands.md": commands_page(), "reference/settings.md": settings_page()}


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: add the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


if __name__ == "__main__":
    for text in pages().values():
        sys.stdout.write(text + "\n")
