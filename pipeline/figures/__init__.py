"""Page of figures, `sightline bench page`: the committed results of benchmarks, as answers to a reader's questions.

    benchmarks/*.json ─▶ sections (footage, answers) ─▶ charts ─▶ templates/figures.html.j2 ─▶ docs/figures.html

Each section answers one question with a sentence, a chart or a small table, how near the limit the result is, and the
command that made it. The page is one self-contained file. It depends on nothing but the JSON files, so the same files
always give the same page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from index.errors import UsageError
from pipeline.figures.answers import SECTIONS as ANSWERS
from pipeline.figures.footage import SECTIONS as FOOTAGE
from pipeline.figures.section import Section, SectionSpec, Source
from pipeline.pages import page

__all__ = ["figures_page"]

_SPECS = (*FOOTAGE, *ANSWERS)


def figures_page(folder: Path) -> str:
    """Return the page of all results in `folder` as one HTML text.

    A section is left out if its results are missing. Files of which no section knows anything are named at the end.

    Raises:
        UsageError: there are no results, or one is not a JSON object or lacks a field; the message names the file.
    """
    results = {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}
    if not results:
        raise UsageError(f"{folder}: no JSON files; write the output of `sightline bench …` into it")
    specs = [spec for spec in _SPECS if all(name in results for name in spec.files)]
    sections = [
        (spec, _section(spec, results), [_source(name, results[name]) for name in spec.files]) for spec in specs
    ]
    groups: dict[str, list[tuple[SectionSpec, Section, list[Source]]]] = {}
    for row in sections:
        groups.setdefault(row[0].group, []).append(row)
    shown = {name for spec in specs for name in spec.files}
    return page(
        "figures.html.j2",
        groups=groups,
        titles={spec.anchor: spec.title for spec in specs},
        headlines=[(spec.anchor, section.headline) for spec, section, _ in sections if section.headline is not None],
        others=[_source(name, data) for name, data in results.items() if name not in shown],
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file}: not JSON ({error}); write the output of `sightline bench …` into it") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file}: not a JSON object; write the output of `sightline bench …` into it")
    return data


def _section(spec: SectionSpec, results: dict[str, Any]) -> Section:
    try:
        return spec.write(results)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        files = " or ".join(f"{name}.json" for name in spec.files)
        raise UsageError(
            f"{files}: not a result of its benchmark ({type(error).__name__}: {error}); run `sightline bench …` again"
        ) from error


def _source(name: str, data: dict[str, Any]) -> Source:
    return Source(f"{name}.json", str(data.get("command", "")), str(data.get("machine", "")), str(data.get("note", "")))
