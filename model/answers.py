"""Answers, as a model in this process and a model service both return them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from index.errors import UsageError

__all__ = ["GREEDY", "Answer", "AnswerPiece", "Sampling"]


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
    completion_tokens: int = 0
    """Tokens of the text, without the one that ends it."""


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A piece of an answer as it is decoded."""

    text: str
    """The next part of the text; may be empty in the last piece."""
    answer: Answer | None = None
    """The complete answer, in the last piece alone."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an open answer is decoded.

    Raises:
        UsageError: the temperature is negative, above 5 or not a number, or the seed is negative or above 2⁶³ − 1.
    """

    temperature: float = 0.0
    """Divides the logits; 0 for greedy decoding."""
    seed: int | None = None
    """Seed of the draws; a random one if None. The same seed gives the same answer on the same device."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 5.0:
            raise UsageError(f"temperature must be from 0 to 5, got {self.temperature}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")


GREEDY = Sampling()
"""Always the most likely token; the default."""
