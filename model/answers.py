"""What an answer is, whoever gave it: a model in this process or a model service. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Answer", "AnswerPiece"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered and what it took.

    `option` is the position of the chosen option and `probabilities` the share of each; None and empty for an open
    question. `visual_tokens` is M·K + (N − K), `prompt_tokens` everything that was prefilled. `timings` in seconds:
    queue (at a service), patches (reading them), dfm, projector (the connector), assembly (the rest of
    the sequence), prefill, decode (all after prefill), and first_token (from the call to the first token or the scores).
    """

    text: str
    option: int | None
    probabilities: tuple[float, ...]
    visual_tokens: int
    prompt_tokens: int
    timings: dict[str, float]


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A piece of the answer's text as it is decoded; the last piece (its text may be empty) carries the `answer`."""

    text: str
    answer: Answer | None = None
