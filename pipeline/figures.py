"""`sightline bench page`: what the other benchmarks printed, as one page to look at.

Every JSON file of a folder becomes a card: how it was measured, its figures, and its lists as tables whose cells are
filled in proportion to the largest number of their column. Units are read from the names, as everywhere in this project.
It knows no benchmark in particular.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.errors import UsageError
from pipeline.pages import page

__all__ = ["figures_page"]

_SAID = ("command", "machine", "note")
_TITLES = {
    "alerts": "Standing questions",
    "backfill": "Backfills by Beam",
    "consume": "The Kafka worker beside its encoder",
    "day": "A day of segments",
    "decode": "Decoding beside ffmpeg",
    "dks": "Keyframe selection (DKS)",
    "encoders": "CLIP and SigLIP",
    "live": "Cameras from capture to search",
    "memory": "Memory of minutes and of hours",
    "micro": "What micro gets right",
    "model": "DFM, projector and prefill",
    "patches": "Ways to keep patches",
    "patches_real": "Ways to keep patches, real footage",
    "service": "Many clients at the model service",
}


@dataclass(frozen=True, slots=True)
class _Cell:
    """One value as text; `share` is its part of the column's largest, None where that says nothing."""

    text: str
    share: float | None = None


@dataclass(slots=True)
class _Table:
    name: str
    columns: list[str]
    rows: list[list[_Cell]]


@dataclass(slots=True)
class _Card:
    name: str
    title: str
    said: dict[str, str] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[_Table] = field(default_factory=list)


def figures_page(folder: Path) -> str:
    """One self-contained HTML page of all `*.json` in `folder`, by name.

    Raises:
        UsageError: no such files, or one that is not a JSON object.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UsageError(f"{folder}: no JSON there; write what `sightline bench …` prints into it")
    return page("figures.html.j2", cards=[_card(file) for file in files])


def _card(file: Path) -> _Card:
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file}: not JSON ({error}); write what `sightline bench …` prints into it") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file}: a JSON object was expected, as `sightline bench …` prints")
    card = _Card(file.stem, _TITLES.get(file.stem, file.stem.replace("_", " ").capitalize()))
    for name, value in data.items():
        if name in _SAID:
            card.said[name] = str(value)
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            card.tables.append(_table(name, value))
        elif isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            card.tables.append(_table(name, [{"": key, **row} for key, row in value.items()]))
        else:
            card.facts += [(_label(key), _text(key, leaf)) for key, leaf in _leaves({name: value})]
    return card


def _leaves(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and not _is_interval(value):
            yield from _leaves(value, f"{before}{name} ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for item in value:
                yield from _leaves(item, f"{before}{name} ") if isinstance(item, dict) else [(f"{before}{name}", item)]
        else:
            yield f"{before}{name}", value


def _table(name: str, rows: list[dict[str, Any]]) -> _Table:
    flat = [dict(_leaves(row)) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    sizes = {column: [_size(row.get(column)) for row in flat] for column in columns}
    most = {column: max(filter(None, found), default=0.0) for column, found in sizes.items()}
    cells = [
        [
            _Cell(_text(column, row.get(column)), _share(sizes[column][at], most[column]) if len(flat) > 1 else None)
            for column in columns
        ]
        for at, row in enumerate(flat)
    ]
    return _Table(_label(name), [_label(column) for column in columns], cells)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    """A share with its confidence interval, as `sightline evaluate` prints."""
    return isinstance(value, dict) and {"share", "low", "high"} <= value.keys()


def _size(value: Any) -> float | None:
    if _is_interval(value):
        return float(value["share"])
    return abs(float(value)) if _is_number(value) else None


def _share(size: float | None, most: float) -> float | None:
    return size / most if size is not None and most else None


def _label(name: str) -> str:
    """The name without the unit that `_text` writes behind the number."""
    for unit in ("_bytes_per_second", "_seconds", "_bytes", "_milliseconds"):
        if name.endswith(unit):
            name = name.removesuffix(unit)
    return name.replace("_", " ")


def _text(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if _is_interval(value):
        return "{share:.0%} ({low:.0%} to {high:.0%})".format(**value)
    if isinstance(value, list):
        return ", ".join(_text("", item) for item in value)
    if not _is_number(value):
        return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    if name.endswith("bytes_per_second"):
        return _text("bytes", value) + "/s"
    if name.endswith("bytes") or name.startswith("bytes_"):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if name.endswith("flops"):
        return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))
    if name.endswith("milliseconds"):
        return f"{value:,.1f} ms"
    if name.endswith("seconds"):
        return (
            f"{value:,.1f} s"
            if value >= 10 or value == 0
            else f"{value * 1e3:,.4g} ms"
            if value < 1
            else f"{value:.2f} s"
        )
    if "ratio" in name or name.endswith("factor"):
        return f"{value:,.2f}×"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    size, unit = float(value), 0
    while abs(size) >= step and unit < len(units) - 1:
        size, unit = size / step, unit + 1
    return f"{size:,.4g} {units[unit]}"
