"""Rows of annotation files, and what they say of options and answers, in the one form that every adapter uses.

Read are JSON (a list), JSON Lines (also under the name `.json`, as released files have it), CSV and Parquet. Options
lose their labels; an answer, whether a letter, an index or a text, becomes an index. A row that no adapter can use is
kept with its problem: it counts in the denominator.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from index.errors import UsageError
from pipeline.evaluation.scoring.reply import LETTERS, strip_label

__all__ = [
    "answer_index",
    "answer_or_problem",
    "digest_of",
    "find_file",
    "options_in_text",
    "read_rows",
    "seconds_of",
    "strip_options",
]

Row = Mapping[str, Any]
"""One row of an annotation file."""


def find_file(data: Path, names: Sequence[str]) -> Path:
    """The first of `names` that exists below `data`; names may be globs.

    Raises:
        UsageError: none exists.
    """
    for name in names:
        found = sorted(path for path in data.glob(name) if path.is_file())
        if found:
            return found[0]
    raise UsageError(f"--data {data}: has none of {', '.join(names)}; docs/evaluation.md describes the layout")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, in their order.

    Raises:
        UsageError: the file is not readable as rows.
    """
    try:
        if path.suffix == ".parquet":
            return [dict(row) for row in pq.read_table(path).to_pylist()]
        text = path.read_text("utf-8-sig")
        if path.suffix == ".csv":
            return [dict(row) for row in csv.DictReader(io.StringIO(text))]
        return _json_rows(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as rows: {error}") from None


def _json_rows(text: str) -> list[dict[str, Any]]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = [json.loads(line) for line in text.splitlines() if line.strip()]
    rows = whole if isinstance(whole, list) else [whole]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a row is not an object")
    return rows


def digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 of the contents of some files, as hexadecimal digits; their names do not count."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def strip_options(options: Sequence[Any] | None) -> tuple[str, ...]:
    """Options without labels; `N/A`, which fills up the columns of some Parquet files, and None are left out.

    Labels are stripped only if every option has one, so that an option such as `A. M. Turing` stays whole.
    """
    texts = [str(option).strip() for option in options if option is not None] if options is not None else []
    while texts and texts[-1] in ("N/A", ""):
        texts.pop()
    stripped = [strip_label(text) for text in texts]
    labelled = all(text != short for text, short in zip(texts, stripped, strict=True))
    return tuple(stripped if labelled else texts)


def options_in_text(question: str) -> tuple[str, tuple[str, ...]]:
    """Split a question whose last lines are its options, such as `(A) red`, into question and options.

    The options are empty if the text has none.
    """
    lines = question.rstrip().splitlines()
    for first in range(len(lines)):
        tail = [line.strip() for line in lines[first:]]
        labels = [line[:3].strip("(). :").upper()[:1] for line in tail]
        if len(tail) > 1 and labels == list(LETTERS[: len(tail)]) and all(strip_label(t) != t for t in tail):
            return "\n".join(lines[:first]).strip(), tuple(strip_label(line) for line in tail)
    return question.strip(), ()


def answer_index(answer: Any, options: Sequence[str]) -> int | None:
    """The index of the right option: of a letter, an index (int or digits), or the text of the option.

    Returns:
        None if the answer is hidden: null, −1 or empty.

    Raises:
        ValueError: it is not among the options.
    """
    if answer is None or answer == "" or answer == -1 or answer == "-1":
        return None
    if isinstance(answer, int) or (isinstance(answer, str) and answer.isdigit() and answer not in options):
        number = int(answer)
        if 0 <= number < len(options):
            return number
        raise ValueError(f"the answer {number} is not among the {len(options)} options")
    text = str(answer).strip()
    same = [i for i, option in enumerate(options) if _same(option, text)]
    if len(same) == 1:
        return same[0]
    letter = text.strip("(). :").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    short = [i for i, option in enumerate(options) if _same(option, strip_label(text))]
    if len(short) == 1:
        return short[0]
    raise ValueError(f"the answer {text[:60]!r} is not among the options")


def answer_or_problem(answer: Any, options: Sequence[str]) -> tuple[int | None, str | None]:
    """The index of the right option as `answer_index` gives it, or None and what is wrong with the row."""
    try:
        index = answer_index(answer, options)
    except ValueError as error:
        return None, str(error)
    return index, "the row has no answer" if index is None else None


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def seconds_of(clock: str) -> float | None:
    """Seconds of `MM:SS` or `HH:MM:SS.mmm`; minutes may exceed 59. None if it is neither."""
    parts = clock.strip().replace(",", ".").split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    if not 1 <= len(values) <= 3 or any(value < 0 for value in values):
        return None
    total = 0.0
    for value in values:
        total = total * 60 + value
    return total
