"""Answers, as a model in this process and a model service both return them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Answer", "AnswerPiece"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, its size and the time it took."""

    text: str
    """The whole answer."""
    option: int | None
    """Position of the chosen option; None for an open question."""
    probabilities: tuple[float, ...]
    """Probability of each option; empty for an open question."""
    visual_tokens: int
    """Vision tokens of the prompt, M·K + (N − K) and the closing token."""
    prompt_tokens: int
    """Tokens that were prefilled."""
    timings: dict[str, float]
    """Seconds by stage.

    `queue` (at a service), `patches` (reading them), `dfm`, `projector` (the connector), `assembly` (the rest of the
    prompt), `prefill`, `decode` (everything after prefill), and `first_token` (from the call to the first token, or to
    the scores of the options).
    """


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A piece of an answer as it is decoded."""

    text: str
    """The next part of the text; may be empty in the last piece."""
    answer: Answer | None = None
    """The complete answer, in the last piece alone."""
