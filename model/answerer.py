"""The answerer of one question about one window of frames: DFM or HiCo, connector, prefill, decode.

    patches ─DFM─▶ M tokens a keyframe, one token any other frame ┐
    tokens of clips ──────────────────────────────────────────────┴─connector─▶ embeddings ─Qwen2─▶ text or best option

The caller passes rows of frames and marks the keyframes among them. Does not know stores, names of streams, or how
keyframes are selected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.errors import BudgetExceeded, UsageError, WeightsInvalid
from model.answers import GREEDY, Answer, AnswerPiece, Sampling
from model.encoders.encoder import Encoders, pick_device
from model.hico.sampling import covered_seconds
from model.language.engine import LanguageModel
from model.language.loader import load_language
from model.profiles.profile import Profile
from model.read_ahead import ReadAhead, chunk_rows
from model.stage_clock import StageClock
from model.visual.connector import AnyConnector, ReleasedConnector, load_connector
from model.visual.dfm import Merge, merge
from model.visual.interface import Frames
from model.visual.prompt import build_prompt, clock_ids, plain_ids
from model.visual.tokens import build_visual
from model.vocabulary import unknown_words

__all__ = ["AnswerRequest", "Answerer", "load_answerer"]

# The text of the last two tokens may change with the next one (joined characters, "08 : 07"), so it is held back.
_UNSETTLED_TOKENS = 2
# Seconds of footage of the longest text about it, for budgets before the frames are known.
_LONGEST_SECONDS = 9_999_999.99


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """A question and the N frames to answer it from; row i of every array is the same frame.

    Rows are grouped by stream and ascend in time within each stream. N may be 0: the model then answers without frames.

    Raises:
        UsageError: the arrays differ in length, or the question or an option is empty.
    """

    question: str
    """The question as the user typed it."""
    options: tuple[str, ...] = ()
    """Answers to choose from; empty for an open question."""
    stream_index: NDArray[np.integer]
    """Which stream a row belongs to, int[N]."""
    captured_at: NDArray[np.int64]
    """Capture times, int64[N], UTC microseconds."""
    keyframe: NDArray[np.bool_]
    """True for keyframes, bool[N]."""
    read_patches: Callable[[slice, NDArray[np.float16]], object]
    """Fills float16[n, M, Dp] with the patches of a slice of rows. Slices come in ascending order, from another
    thread."""
    read_features: Callable[[slice], NDArray[np.float32]] | None = None
    """The frame encoder's embeddings of a slice of rows, float32[n, Df], not of unit norm; only `single_token` weights
    need them."""
    clips: NDArray[np.int64] | None = None
    """Number of the clip of each row, ascending, int64[N]; None for the clips of the store. Only HiCo reads clips."""
    footage_seconds: float | None = None
    """Seconds of footage that the frames were sampled from; None for the seconds that they cover themselves."""
    sampling: Sampling = GREEDY
    """How an open answer is decoded; options are compared by likelihood, whatever it is."""
    generate: bool = False
    """Decode the answer to a question with options, as the published evaluation does, in place of comparing the
    options by likelihood."""
    max_new_tokens: int | None = None
    """Most tokens of a decoded answer; the profile's number if None."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UsageError("the question is empty; type what you want to know")
        if not all(option.strip() for option in self.options):
            raise UsageError("an option is empty; give every --option a text")
        lengths = {len(self.stream_index), len(self.captured_at), len(self.keyframe)}
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if len(lengths) != 1:
            raise UsageError(f"stream_index, captured_at and keyframe must have one length, got {sorted(lengths)}")

    @property
    def seconds(self) -> float:
        """Seconds of footage that the frames were sampled from."""
        if self.footage_seconds is not None:
            return self.footage_seconds
        return covered_seconds(self.captured_at, self.stream_index)


class Answerer:
    """The connector and the language model of one profile, loaded.

    Args:
        profile: settings of DFM, budgets and timestamps.
        encoders: their text towers encode questions.
        connector: maps vision tokens into the space of `language`.
        language: the language model.
        merge: how a frame that is not a keyframe becomes one token.
    """

    def __init__(
        self,
        profile: Profile,
        encoders: Encoders,
        connector: AnyConnector,
        language: LanguageModel,
        *,
        merge: Merge = merge,
    ) -> None:
        self.profile, self.encoders = profile, encoders
        self.connector, self.language = connector, language
        self.visual = build_visual(profile, encoders, connector, merge)

    @property
    def notice(self) -> str:
        """A notice for users of this profile; may be empty."""
        profile, notices = self.profile, [self.profile.notice] if self.profile.notice else []
        if isinstance(self.connector, ReleasedConnector) and profile.dfm.mode == "released":
            notices += self.connector.config.differences(
                k=profile.k, tau=profile.tau, floor=profile.dfm.relevance_floor
            )
        return "; ".join(notices)

    def unknown_words(self, question: str) -> list[str]:
        """Words of `question` outside the language model's vocabulary, in their order, each once."""
        return unknown_words(self.language.tokenizer, question)

    def max_frames(self, k: int, question: str = "", options: tuple[str, ...] = ()) -> int:
        """Largest number of frames, keyframes included, for one question with `k` keyframes.

        Raises:
            BudgetExceeded: the text or the keyframes alone exceed the context.
        """
        text = self._text_tokens(question, options)
        room = self.language.max_context - text
        if room < 0:
            raise BudgetExceeded(
                f"question, options and the longest answer need {text} tokens, the {self.profile.name} profile has room"
                f" for {self.language.max_context}; shorten the question"
            )
        return min(self.profile.max_frames, self.visual.most_frames(room, k, self._clock_tokens()))

    def check_budget(
        self,
        *,
        keyframes: int,
        frames: int,
        question: str,
        options: tuple[str, ...] = (),
        new_tokens: int | None = None,
    ) -> int:
        """Most tokens that prompt and answer need; `new_tokens` is the length of an answer that is decoded.

        Raises:
            BudgetExceeded: they exceed the context; a prompt is never truncated.
        """
        text = self._text_tokens(question, options, new_tokens)
        visual = self.visual.count(keyframes, frames)
        visual += self.visual.count_times(keyframes, frames) * self._clock_tokens()
        if text + visual > self.language.max_context:
            raise BudgetExceeded(
                f"{frames} frames with {keyframes} keyframes need {text + visual} tokens, the {self.profile.name} "
                f"profile has room for {self.language.max_context}; ask about a shorter time, or for fewer keyframes"
            )
        return text + visual

    def answer(self, request: AnswerRequest) -> Iterator[AnswerPiece]:
        """Answer `request`; yields the text piece by piece, or the best option as one piece.

        The score of an option is the log-likelihood of its tokens and of the end of the turn, times the mean length of
        all options, divided by its own length in tokens. Long options are so not at a disadvantage, and options of
        equal length (as in `micro`) keep their plain likelihoods. `probabilities` is the softmax of the scores.

        Yields:
            Pieces of text; the last piece has the complete `Answer`.

        Raises:
            BudgetExceeded: the request has more tokens than the language model's context. Raised before any work.
            UsageError: the rows are not grouped by stream, or the patches have another shape.
        """
        frames, keyframes = len(request.keyframe), int(np.count_nonzero(request.keyframe))
        limit = request.max_new_tokens or self.profile.language_model.max_new_tokens
        compared = request.options if not request.generate else ()
        self.check_budget(
            keyframes=keyframes,
            frames=frames,
            question=request.question,
            options=request.options,
            new_tokens=None if compared else limit,
        )
        clock = StageClock(self.language.device)
        embeddings, mask = self.embed_prompt(request, clock)
        since = clock.now()
        room = self._answer_tokens(compared) or limit
        prompt = self.language.prefill(embeddings, room=room, visual=mask)
        since = clock.add("prefill", since)
        visual = self.visual.count(keyframes, frames)
        del embeddings

        def finish(text: str, count: int, option: int | None = None, probabilities: tuple[float, ...] = ()) -> Answer:
            clock.add("decode", since)
            return Answer(text, option, probabilities, visual, prompt.length, clock.seconds, count)

        if compared:
            ids = [self.option_ids(option) for option in compared]
            totals = self.language.score(prompt, ids)
            clock.add("first_token", clock.began)
            mean = sum(map(len, ids)) / len(ids)
            scores = torch.tensor([t * mean / len(i) for t, i in zip(totals, ids, strict=True)], dtype=torch.float64)
            best = int(scores.argmax())
            text = compared[best]
            yield AnswerPiece(text)
            yield AnswerPiece("", finish(text, len(ids[best]) - 1, best, tuple(torch.softmax(scores, 0).tolist())))
            return
        sent, tokens = "", list[int]()
        for token in self.language.decode(prompt, max_new_tokens=limit, sampling=request.sampling):
            if not tokens:
                clock.add("first_token", clock.began)
            tokens.append(token)
            settled = _common(self._text(tokens[:-_UNSETTLED_TOKENS]), self._text(tokens))
            if len(settled) > len(sent) and settled.startswith(sent):
                yield AnswerPiece(settled[len(sent) :])
                sent = settled
        if not tokens:
            clock.add("first_token", clock.began)
        text = self._text(tokens)
        yield AnswerPiece(text[len(sent) :], finish(text.strip(), len(tokens)))

    @torch.inference_mode()
    def embed_prompt(self, request: AnswerRequest, clock: StageClock) -> tuple[Tensor, Tensor]:
        """Embeddings of the whole prompt, text and frames, [T, width], and which of them are vision tokens, bool[T].

        Adds the seconds of `patches`, `dfm`, `projector` and `assembly` to `clock`.

        Raises:
            UsageError: the rows are not grouped by stream, or the patches have another shape.
        """
        language = self.language
        preface = self.visual.preface(request.seconds, len(request.keyframe))
        prefix, suffix = build_prompt(language.tokenizer, request.question, request.options, preface=preface)
        query = self.visual.query(request.question)
        count, width = self.encoders.patch.patches, self.encoders.patch.identity.dimension

        chunk, total = chunk_rows(language.device, count, width), len(request.keyframe)

        def embed_time(at: int) -> Tensor:
            """Embeddings of a capture time, [n, width]."""
            return language.embed(clock_ids(language.tokenizer, at))

        since = clock.now()
        parts, visual = [language.embed(prefix)], [False]
        with ReadAhead(
            request.read_patches, total=total, chunk=chunk, shape=(count, width), device=language.device
        ) as ahead:

            def read(rows: slice) -> Tensor:
                """Patches of a slice of rows, measured."""
                with clock.stage("patches"):
                    return ahead(rows)

            frames = Frames(
                keyframe=request.keyframe,
                stream_index=request.stream_index,
                captured_at=request.captured_at,
                read=read,
                chunk=chunk,
                clips=request.clips,
                read_features=request.read_features,
            )
            timed = embed_time if self.profile.timestamps else None
            for part in self.visual.embeddings(frames, query, timed, clock.stage):
                parts.append(part.embeddings.to(language.device, language.dtype))
                visual.append(part.visual)
        parts.append(language.embed(suffix))
        visual.append(False)
        embeddings = torch.cat(parts)
        lengths = torch.tensor([len(part) for part in parts], device=language.device)
        mask = torch.repeat_interleave(torch.tensor(visual, device=language.device), lengths)
        elsewhere = clock.seconds.setdefault("patches", 0.0) + clock.seconds.setdefault("dfm", 0.0)
        elsewhere += clock.seconds.get("projector", 0.0)
        clock.add("assembly", since + elsewhere)
        return embeddings, mask

    def option_ids(self, option: str) -> list[int]:
        """Token ids of an answer, the end of the turn included."""
        return [*plain_ids(self.language.tokenizer, option.strip()), self.language.end_id]

    def _text(self, tokens: list[int]) -> str:
        """Token ids as text."""
        return str(self.language.tokenizer.decode(tokens, skip_special_tokens=True))

    def _clock_tokens(self) -> int:
        """Tokens of one capture time."""
        return len(clock_ids(self.language.tokenizer, 0)) if self.profile.timestamps else 0

    def _answer_tokens(self, options: tuple[str, ...]) -> int:
        """Tokens that the cache must hold after the prompt for options that are compared."""
        return sum(len(self.option_ids(o)) for o in options)

    def _text_tokens(self, question: str, options: tuple[str, ...], new_tokens: int | None = None) -> int:
        """Most tokens of the prompt's text and of the longest answer."""
        preface = self.visual.preface(_LONGEST_SECONDS, self.profile.max_frames)
        prefix, suffix = build_prompt(self.language.tokenizer, question, options, preface=preface)
        decoded = new_tokens or self.profile.language_model.max_new_tokens
        scored = 0 if new_tokens else max((len(self.option_ids(o)) for o in options), default=0)
        longest = scored or decoded
        return len(prefix) + len(suffix) + longest


def load_answerer(profile: Profile, encoders: Encoders, device: str | None = None, *, merge: Merge = merge) -> Answerer:
    """Load the connector and the language model of `profile`.

    Args:
        profile: names the weights.
        encoders: the profile's encoders.
        device: see `model.encoders.encoder.pick_device`.
        merge: `model.visual.dfm.merge_mean` gives the baseline of the paper's table 2.

    Raises:
        WeightsNotFound: the weights are not in the profile's folder, nor in the cache, and cannot be downloaded.
        WeightsInvalid: a checkpoint does not fit, or the connector does not fit encoder and language model.
        ModelError: `device` is invalid or not available.
    """
    chosen = pick_device(device)
    language = load_language(profile.language_model, chosen)
    connector = load_connector(profile.connector, chosen)
    patch_dim = encoders.patch.identity.dimension
    if (connector.patch_dim, connector.width) != (patch_dim, language.width):
        raise WeightsInvalid(
            f"connector: {profile.connector.source} goes from {connector.patch_dim} to {connector.width} dimensions, "
            f"patch encoder and language model need {patch_dim} to {language.width}"
        )
    connector.to(language.dtype).requires_grad_(False)
    return Answerer(profile, encoders, connector, language, merge=merge)


def _common(a: str, b: str) -> str:
    """The common prefix of two texts, without a character whose bytes are incomplete."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length].rstrip("\ufffd")
