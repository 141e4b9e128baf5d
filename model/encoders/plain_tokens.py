"""Texts of users for an encoder's tokenizer, in which no text becomes a control token.

A control token, such as CLIP's `<end_of_text>`, ends a text where it occurs: what follows has no effect on the vector.
Tokenizers make control tokens of text, some after they have changed it (`&lt;end_of_text&gt;`, capitals). The ids tell:
a row may have the control tokens of any text, the first and the last, and no other. Knows ids and texts, no models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, cat

from index.errors import UsageError

__all__ = ["controls_of", "plain_tokenize"]

Tokenize = Callable[[Sequence[str]], Tensor]


def controls_of(tokenizer: Any) -> dict[str, int]:
    """Control tokens of a tokenizer of transformers or of open_clip, with their ids.

    Without the unknown token, unless it has another meaning too, as CLIP's end of a text has.
    """
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if added is not None:
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        unknown = None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id
        return {str(token): int(number) for number, token in added.items() if int(number) != unknown}
    return {tokenizer.decoder[number]: int(number) for number in tokenizer.all_special_ids}


def plain_tokenize(tokenize: Tokenize, controls: Mapping[str, int]) -> Tokenize:
    """`tokenize` for texts of users: a control token in a text is read as ordinary text.

    Args:
        tokenize: token ids of texts, int64[n, length].
        controls: the control tokens and their ids.

    Returns:
        The same function of texts; it raises UsageError if a text has a control token in whatever way it is written.
    """
    ids = frozenset(controls.values())
    usual = _controls_in(tokenize(["a"])[0].tolist(), ids)

    def clean(row: Tensor) -> bool:
        """Whether a row of ids has no control token but those of every text."""
        return _controls_in(row.tolist(), ids) <= usual

    def one(text: str) -> Tensor:
        """The ids of a text, int64[1, length], without what could be a control token."""
        for separated in (_separated(text, controls), _letters(text), _letters(_separated(text.lower(), controls))):
            found = tokenize([separated])
            if clean(found[0]):
                return found
        raise UsageError("the text contains a control token of the encoder; leave it out")

    def plain(texts: Sequence[str]) -> Tensor:
        """Token ids of texts, int64[n, length]."""
        found = tokenize(texts)
        bad = [number for number, row in enumerate(found) if not clean(row)]
        rows = {number: one(texts[number]) for number in bad}
        return cat([rows.get(number, found[number : number + 1]) for number in range(len(texts))]) if bad else found

    return plain


def _controls_in(row: Sequence[int], ids: Collection[int]) -> Counter[int]:
    """How often each control token occurs; the padding at the end counts once."""
    end = len(row)
    while end > 1 and row[end - 2] == row[-1]:
        end -= 1
    return Counter(number for number in row[:end] if number in ids)


def _separated(text: str, controls: Collection[str]) -> str:
    """The text with a blank after the first character of each control token."""
    for token in sorted(controls, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _letters(text: str) -> str:
    """The text with a blank for each character that is no letter, no digit, and no mark that ends or joins words."""
    return "".join(letter if letter.isalnum() or letter in ".,:'-" else " " for letter in text)
