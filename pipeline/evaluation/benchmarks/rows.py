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
from typing import Any, Literal

import pyarrow.parquet as pq

from index.errors import UsageError
from pipeline.evaluation.scoring.reply import LETTERS, strip_label

__all__ = [
    "AnswerForm",
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

AnswerForm = Literal["letter", "text", "index"]
"""How a file states the right option: its letter, its text with or without a label, or its number from 0."""
_ANY: tuple[AnswerForm, ...] = ("text", "letter", "index")


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


def answer_index(answer: Any, options: Sequence[str], forms: Sequence[AnswerForm] = _ANY) -> int | None:
    """The index of the right option.

    Args:
        answer: the answer of the row; null, empty and -1 mean that it is hidden.
        options: texts of the options without labels.
        forms: how the file states answers; the first form that fits decides. It matters where options are letters or
            numbers, such as the counts "1", "2", "4" and "5": an answer "2" is the option "2" in a file of texts, and
            the third option in a file of indices, and an answer "3" is no option of the former.

    Returns:
        None if the answer is hidden.

    Raises:
        ValueError: it is not among the options.
    """
    text = "" if answer is None else str(answer).strip()
    if text in ("", "-1"):
        return None
    for form in forms:
        if (found := _FORMS[form](text, options)) is not None:
            return found
    raise ValueError(f"the answer {text[:60]!r} is not among the options")


def _by_letter(text: str, options: Sequence[str]) -> int | None:
    letter = text.strip("(). :").upper()
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS[: len(options)] else None


def _by_text(text: str, options: Sequence[str]) -> int | None:
    for wanted in (text, strip_label(text)):
        same = [i for i, option in enumerate(options) if _same(option, wanted)]
        if len(same) == 1:
            return same[0]
    return None


def _by_index(text: str, options: Sequence[str]) -> int | None:
    return int(text) if text.isdecimal() and int(text) < len(options) else None


_FORMS = {"letter": _by_letter, "text": _by_text, "index": _by_index}


def answer_or_problem(
    answer: Any, options: Sequence[str], forms: Sequence[AnswerForm] = _ANY
) -> tuple[int | None, str | None]:
    """The index of the right option as `answer_index` gives it, or None and what is wrong with the row."""
    try:
        index = answer_index(answer, options, forms)
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
