"""The one parser of replies to multiple-choice questions.

The rules, in this order; the first that applies decides:

1. the reply begins with a letter that is alone or followed by `)`, `.`, `:` or `,`, but not an abbreviation ("U.S.");
2. `(X)` anywhere;
3. `X.` or `X)` anywhere, after white space;
4. `answer is X`, `answer: X`, `option X`;
5. the reply is the text of one option.

Letters go from A to the last option of the question, so that E is invalid for four options. A rule whose matches name
two different options does not decide, and neither do the rules after it: such a reply is ambiguous. A letter that no
option has decides nothing either, but the reply may still be the text of an option, such as "E. coli". Lower-case
letters count in rule 1, alone or before `)`, and in rule 2 only, because "a" is an article. What no rule reads is
*unparsed*, and counts as wrong; there is no random choice. The parser does not know which option is right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["LETTERS", "PARSER_ID", "parse_reply", "strip_label"]

PARSER_ID = "sightline-letters-2"
"""Recorded with every result; changes whenever a reply may be read differently."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters of the options, in their order."""

_ORNAMENT = re.compile(r"[*_`\"'“”‘’]+")
_LABEL = re.compile(r"^\s*(?:\(([A-Za-z])\)|([A-Z])[.):]|([a-z])\))\s*")
_STARTS = (
    re.compile(r"^([A-Za-z])[.):,]?$"),
    re.compile(r"^([A-Z])(?:[.:,](?![A-Za-z](?:[.,:)]|$))|\))"),
    re.compile(r"^([a-z])\)"),
)
_ANYWHERE = (
    re.compile(r"\(([A-Za-z])\)"),
    re.compile(r"(?:(?<=\s)|^)([A-Z])(?:\.(?!\w)|\))"),
    re.compile(
        r"\b(?:answer|option|choice)\b(?:\s+is|\s*[:=])?\s*(?:option\s+|choice\s+)?\(?([A-Z])"
        r"(?=\)?(?:$|[.,;:!?\n)]|\s*[-–—]|\s+(?:because|since|as|is)\b))",
        re.IGNORECASE,
    ),
)


def strip_label(option: str) -> str:
    """The text of an option without its label: `A. red`, `(A) red` and `A) red` become `red`."""
    text = option.strip()
    stripped = _LABEL.sub("", text, count=1)
    return stripped or text


def parse_reply(reply: str, options: Sequence[str]) -> int | None:
    """The option that a reply names, as an index into `options`; None if it is unparsed.

    Args:
        reply: the text of the model, unchanged.
        options: texts of the options without labels, 1 to 26.
    """
    text = _ORNAMENT.sub("", unicodedata.normalize("NFKC", reply)).strip()
    if not text:
        return None
    for pattern in _STARTS:
        if found := pattern.match(text):
            return _index(found.group(1), options, text)
    for pattern in _ANYWHERE:
        letters = {letter for letter in pattern.findall(text) if pattern is not _ANYWHERE[2] or letter.isupper()}
        if letters:
            return _index(letters.pop(), options, text) if len({each.upper() for each in letters}) == 1 else None
    return _named(options, text)


def _index(letter: str, options: Sequence[str], text: str) -> int | None:
    """The option of a letter; if there is no such option, the one whose text the reply is."""
    number = LETTERS.index(letter.upper())
    return number if number < len(options) else _named(options, text)


def _named(options: Sequence[str], text: str) -> int | None:
    """The option whose text a reply is; None if there is not exactly one."""
    named = [number for number, option in enumerate(options) if _plain(option) == _plain(text)]
    return named[0] if len(named) == 1 else None


def _plain(text: str) -> str:
    """A text as it is compared: without label, ornament, case and closing signs."""
    return " ".join(_ORNAMENT.sub("", strip_label(text)).casefold().split()).rstrip(".!?")
