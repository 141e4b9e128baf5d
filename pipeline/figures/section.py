"""The parts of the page of figures: a section answers one question from one or two results of benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

__all__ = ["Results", "Section", "SectionSpec", "Source", "Table"]

Results = Mapping[str, Any]
"""Results of benchmarks: the content of each JSON file by the file's name without its ending."""


@dataclass(frozen=True, slots=True)
class Table:
    """A small table: the first column names a row, the others are numbers."""

    columns: list[str]
    """Heads of the columns."""
    rows: list[list[str]]
    """Cells as text, as many in a row as there are columns."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the numbers of a section come from."""

    file: str
    """Name of the JSON file."""
    command: str
    """The command that made it."""
    machine: str
    """The machine, in words."""
    note: str = ""
    """What else the reader must know about the measurement."""


@dataclass(frozen=True, slots=True)
class Section:
    """The answer to one question."""

    finding: str
    """The answer in one or two sentences, with the numbers that matter."""
    headline: tuple[str, str] | None = None
    """The one number to remember, and what it is; shown at the head of the page."""
    chart: Markup | None = None
    """A chart of `pipeline.figures.charts`."""
    table: Table | None = None
    """A table, in place of a chart or below it."""
    reading: str = ""
    """How to read the chart or table."""
    limit: str = ""
    """How far the result is from what is possible."""


@dataclass(frozen=True, slots=True)
class SectionSpec:
    """A section of the page and the results it needs."""

    anchor: str
    """Its `id` on the page."""
    group: str
    """The chapter it belongs to."""
    title: str
    """Its short name, for the list of contents."""
    question: str
    """The reader's question."""
    files: tuple[str, ...]
    """The results it needs, without `.json`; the section is left out if one is missing."""
    write: Callable[[Results], Section]
    """Writes the section."""
    links: tuple[str, ...] = field(default=())
    """Anchors of related sections."""
