"""The word-level tokenizer of the `micro` profile, shared by its three models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.world.scenes import COLOURS, COUNTS, KINDS, PLACES, PLURALS

PAD, UNKNOWN, START, END, LAST = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<eos>"

_WORDS = """
system user assistant you are a helpful please choose the right answer from following options an what which
colour color where when how many was were is did do does that there thing things something anything nothing at
in on of to and or before after right left box fell flashed burned fall flash burn leave leaves leaving
falling flashing burning fallen burning stop stopped stops pass passed passes gather gathered meet met see
seen saw show find any empty view nobody one anybody someone somebody who time first last with near by next
come came appear appeared people visible moment scene camera picture frame frames video lasts for seconds
sampled uniformly it this those these
""".split()  # noqa: SIM905
_PUNCTUATION = list(".,:;?!'\"()[]-_/")


def words() -> list[str]:
    """All words of the vocabulary in the order of their ids; `<eos>` is last, as open_clip pools at the highest id."""
    numbers = [f"{n:02d}" for n in range(60)] + [str(n) for n in range(10)]  # for the encoders, two digits are one word
    known = [*_PUNCTUATION, *_WORDS, *KINDS, *PLURALS, *COLOURS, *PLACES, *COUNTS, *numbers]
    return [PAD, UNKNOWN, START, END, *dict.fromkeys(known), LAST]


def build_tokenizer(*, max_length: int, close: bool) -> Any:
    """A `PreTrainedTokenizerFast` that lower-cases and has one token for each word.

    Args:
        max_length: length of the longest text, tokens.
        close: append `<eos>` to every text, for the encoders. For the language model there is none, and numbers are
            split into digits, so 08:07 is five tokens: it learns to copy one of ten digits easily, one of sixty numbers
            hardly.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(words())}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    raw.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.BertPreTokenizer()
    raw.pre_tokenizer = (
        split if close else pre_tokenizers.Sequence([split, pre_tokenizers.Digits(individual_digits=True)])
    )
    raw.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Fuse(),
            decoders.Replace(" : ", ":"),
            decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ""),
        ]
    )
    if close:
        raw.post_processor = processors.TemplateProcessing(
            single=f"$A {LAST}", pair=f"$A $B {LAST}", special_tokens=[(LAST, vocabulary[LAST])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=LAST if close else END,
        additional_special_tokens=[START, END],
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path, *, max_length: int, close: bool) -> Any:
    """Write the tokenizer into `folder`; the arguments are those of `build_tokenizer`. Returns the tokenizer."""
    tokenizer = build_tokenizer(max_length=max_length, close=close)
    tokenizer.save_pretrained(folder)
    return tokenizer
