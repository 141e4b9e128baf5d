"""Words that a model does not know: found with its tokenizer, and reported to the user.

A tokenizer of whole words replaces a word that it does not know by one token, so the model reads nothing of it. A
tokenizer of parts of words knows every text, and finds none. Knows Hugging Face tokenizers; does not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["unknown_words", "unknown_words_notice"]


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Words of `text` outside the vocabulary of a transformers `PreTrainedTokenizerFast`, in their order, each once."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(found.input_ids, found.offset_mapping, strict=True)
    return list(dict.fromkeys(text[a:b] for token, (a, b) in spans if token == unknown))


def unknown_words_notice(profile: str, words: Sequence[str], consequence: str) -> list[str]:
    """The notice about words that a profile does not know, none if there are no such words.

    Args:
        profile: name of the profile.
        words: the unknown words.
        consequence: what the user must expect, as in "the answer may be a guess".
    """
    if not words:
        return []
    return [f"The {profile} profile does not know the word{'s' * (len(words) > 1)} {', '.join(words)}; {consequence}."]
