"""Answers one question about one window of frames: DFM, connector, prefill, decode.

    patches ─merge_frames─▶ one token a frame, M a keyframe ─connector─▶ embeddings ─Qwen2─▶ text, or the best option

Does not know stores, streams' names or how keyframes were chosen: it is handed rows, and which of them are keyframes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.errors import BudgetExceeded, UsageError, WeightsInvalid
from model.answers import Answer, AnswerPiece
from model.encoders.encoder import Encoders, pick_device
from model.language.transformers_engine import LanguageModel, load_language
from model.profiles.profile import Profile
from model.read_ahead import ReadAhead, chunk_rows
from model.stage_clock import StageClock
from model.visual.connector import AnyConnector, ReleasedConnector, load_connector
from model.visual.dfm import Merge, merge
from model.visual.prompt import build_prompt, clock_ids, count_visual
from model.visual.tokens import Frames, build_visual

__all__ = ["AnswerRequest", "Answerer", "load_answerer"]

# A token may still change how the two before it are written (joined characters, "08 : 07"), so they wait for it.
_UNSETTLED_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """A question and the frames to answer it from; row i of every array is the same frame.

    Rows are grouped by stream and ascend in time inside each. Shapes: stream_index int[N], captured_at int64[N] (UTC
    microseconds), keyframe bool[N]. `read_patches` fills float16[n, M, Dp] for a slice of rows; slices are asked for in
    ascending order, by one thread that is not the caller's. `read_vectors` gives the frame encoder's float32[n, Df], which only the `single_token` weights
    need. N may be 0: the model then answers blind.

    Raises:
        UsageError: arrays of different length, an empty question or an empty option.
    """

    question: str
    options: tuple[str, ...] = ()
    stream_index: NDArray[np.integer]
    captured_at: NDArray[np.int64]
    keyframe: NDArray[np.bool_]
    read_patches: Callable[[slice, NDArray[np.float16]], object]
    read_vectors: Callable[[slice], NDArray[np.float32]] | None = None

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UsageError("the question is empty; type what you want to know")
        if not all(option.strip() for option in self.options):
            raise UsageError("an option is empty; give every --option a text")
        lengths = {len(self.stream_index), len(self.captured_at), len(self.keyframe)}
        if len(lengths) != 1:
            raise UsageError(f"stream_index, captured_at and keyframe must have one length, got {sorted(lengths)}")


class Answerer:
    """One profile's connector and language model, ready to answer. `merge` is how frames become tokens."""

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
        self.visual = build_visual(profile.dfm, encoders, connector, merge)

    @property
    def notice(self) -> str:
        """What users of this profile should be told; may be empty."""
        profile, notices = self.profile, [self.profile.notice] if self.profile.notice else []
        if isinstance(self.connector, ReleasedConnector) and profile.dfm.mode == "released":
            notices += self.connector.config.differences(
                k=profile.k, tau=profile.tau, floor=profile.dfm.relevance_floor
            )
        return "; ".join(notices)

    def unknown_words(self, question: str) -> list[str]:
        """The words of `question` that the language model's vocabulary lacks, in their order, each once."""
        tokenizer = self.language.tokenizer
        if tokenizer.unk_token_id is None:
            return []
        found = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(found.input_ids, found.offset_mapping, strict=True)
        return list(dict.fromkeys(question[a:b] for i, (a, b) in spans if i == tokenizer.unk_token_id))

    def max_frames(self, k: int, question: str = "", options: tuple[str, ...] = ()) -> int:
        """The most frames, keyframes among them, that one question with `k` keyframes can take.

        Raises:
            BudgetExceeded: the keyframes alone are too many.
        """
        room = self.language.max_context - self._text_tokens(question, options) - self.visual.closing_tokens
        left = room - k * (self.visual.keyframe_tokens + self._clock_tokens())
        if left < 0:
            raise BudgetExceeded(
                f"{k} keyframes need {room - left} tokens and the {self.profile.name} profile has room for {room}; "
                "ask for fewer keyframes (--k)"
            )
        return min(self.profile.max_frames, k + left)

    def check_budget(self, *, keyframes: int, frames: int, question: str, options: tuple[str, ...] = ()) -> int:
        """The tokens that prompt and answer need.

        Raises:
            BudgetExceeded: they do not fit; nothing is ever cut off.
        """
        text = self._text_tokens(question, options)
        visual = self._visual_tokens(keyframes, frames) + keyframes * self._clock_tokens()
        if text + visual > self.language.max_context:
            raise BudgetExceeded(
                f"{frames} frames with {keyframes} keyframes need {text + visual} tokens, the {self.profile.name} "
                f"profile has room for {self.language.max_context}; ask about a shorter time, or for fewer keyframes"
            )
        return text + visual

    def answer(self, request: AnswerRequest) -> Iterator[AnswerPiece]:
        """Answer `request`, piece by piece. With options the best one is the whole answer, in one piece.

        An option's score is the log-likelihood of its tokens and the end of the turn, times the options' mean length
        over its own length: long options are not punished for being long, and options of one length (as in `micro`)
        keep their plain likelihoods. `probabilities` is the softmax of the scores.

        Raises:
            BudgetExceeded: more tokens than the language model can hold; said before any work is done.
            UsageError: rows that are not grouped by stream, or patches of another shape.
        """
        frames, keyframes = len(request.keyframe), int(np.count_nonzero(request.keyframe))
        self.check_budget(keyframes=keyframes, frames=frames, question=request.question, options=request.options)
        clock = StageClock(self.language.device)
        embeddings = self._embed(request, clock)
        since = clock.now()
        reading = self.language.read(embeddings, room=self._answer_tokens(request.options))
        since = clock.add("prefill", since)
        visual = self._visual_tokens(keyframes, frames)
        prompt = len(embeddings)
        del embeddings

        def finish(text: str, option: int | None = None, probabilities: tuple[float, ...] = ()) -> Answer:
            clock.add("decode", since)
            return Answer(text, option, probabilities, visual, prompt, clock.seconds)

        if request.options:
            ids = [self._option_ids(option) for option in request.options]
            totals = self.language.score(reading, ids)
            clock.add("first_token", clock.began)
            mean = sum(map(len, ids)) / len(ids)
            scores = torch.tensor([t * mean / len(i) for t, i in zip(totals, ids, strict=True)], dtype=torch.float64)
            best = int(scores.argmax())
            text = request.options[best]
            yield AnswerPiece(text)
            yield AnswerPiece("", finish(text, best, tuple(torch.softmax(scores, 0).tolist())))
            return
        sent, tokens = "", list[int]()
        for token in self.language.decode(reading, max_new_tokens=self.profile.language_model.max_new_tokens):
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
        yield AnswerPiece(text[len(sent) :], finish(text.strip()))

    @torch.inference_mode()
    def _embed(self, request: AnswerRequest, clock: StageClock) -> Tensor:
        """The whole prompt, [T, width]."""
        language = self.language
        prefix, suffix = build_prompt(language.tokenizer, request.question, request.options)
        query = self.visual.query(request.question)
        count, width = self.encoders.patch.patches, self.encoders.patch.identity.dimension

        chunk, total = chunk_rows(language.device, count, width), len(request.keyframe)
        stamp = (lambda at: language.embed(clock_ids(language.tokenizer, at))) if self.profile.timestamps else None
        since = clock.now()
        parts = [language.embed(prefix)]
        with ReadAhead(
            request.read_patches, total=total, chunk=chunk, shape=(count, width), device=language.device
        ) as ahead:

            def read(rows: slice) -> Tensor:
                with clock.stage("patches"):
                    return ahead(rows)

            frames = Frames(
                keyframe=request.keyframe,
                stream_index=request.stream_index,
                captured_at=request.captured_at,
                read=read,
                chunk=chunk,
                read_vectors=request.read_vectors,
            )
            pieces = self.visual.embeddings(frames, query, stamp, clock.stage)
            parts += [piece.to(language.device, language.dtype) for piece in pieces]
        parts.append(language.embed(suffix))
        embeddings = torch.cat(parts)
        elsewhere = clock.seconds.setdefault("patches", 0.0) + clock.seconds.setdefault("dfm", 0.0)
        elsewhere += clock.seconds.get("projector", 0.0)
        clock.add("assembly", since + elsewhere)
        return embeddings

    def _option_ids(self, option: str) -> list[int]:
        ids = self.language.tokenizer(option.strip(), add_special_tokens=False).input_ids
        return [*(int(i) for i in ids), self.language.end_id]

    def _text(self, tokens: list[int]) -> str:
        return str(self.language.tokenizer.decode(tokens, skip_special_tokens=True))

    def _clock_tokens(self) -> int:
        return len(clock_ids(self.language.tokenizer, 0)) if self.profile.timestamps else 0

    def _visual_tokens(self, keyframes: int, frames: int) -> int:
        closing = self.visual.closing_tokens if frames else 0
        return count_visual(keyframes, frames, self.visual.keyframe_tokens) + closing

    def _answer_tokens(self, options: tuple[str, ...]) -> int:
        """Tokens that the cache must hold behind the prompt: every option's, or those of the longest answer."""
        return sum(len(self._option_ids(o)) for o in options) or self.profile.language_model.max_new_tokens

    def _text_tokens(self, question: str, options: tuple[str, ...]) -> int:
        """Tokens of the prompt's text and of the longest answer."""
        prefix, suffix = build_prompt(self.language.tokenizer, question, options)
        longest = max((len(self._option_ids(o)) for o in options), default=self.profile.language_model.max_new_tokens)
        return len(prefix) + len(suffix) + longest


def load_answerer(profile: Profile, encoders: Encoders, device: str | None = None, *, merge: Merge = merge) -> Answerer:
    """The answering side of `profile`; `merge` may be `model.visual.dfm.merge_mean` to compare with.

    Raises:
        WeightsNotFound: weights are neither in the folder the profile names, nor cached, nor can they be fetched.
        WeightsInvalid: a checkpoint that does not fit, or a connector that does not fit encoder and language model.
        ModelError: CUDA was asked for and is not there.
    """
    where = pick_device(device)
    language = load_language(profile.language_model, where)
    connector = load_connector(profile.connector, where)
    patch_dim = encoders.patch.identity.dimension
    if (connector.patch_dim, connector.width) != (patch_dim, language.width):
        raise WeightsInvalid(
            f"connector: {profile.connector.source} goes from {connector.patch_dim} to {connector.width} dimensions, "
            f"patch encoder and language model need {patch_dim} to {language.width}"
        )
    connector.to(language.dtype).requires_grad_(False)
    return Answerer(profile, encoders, connector, language, merge=merge)


def _common(a: str, b: str) -> str:
    """The start that two texts share, without a character that is still incomplete."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length].rstrip("\ufffd")
