"""Benchmark of patch encodings, `sightline bench patches`: bytes on disk, exactness and loading speed of each.

The same footage is stored as fp16, as int8 and differentially with several ε. The patches that each store returns are
compared with those of fp16: cosines with the questions, weights and tokens of DFM, and the answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.patches.codec import PatchEncoding, decode_chain, encode_chain, split_chains
from index.store import Store
from ingest.file_ingest import ingest_sources
from model.answerer import AnswerRequest, load_answerer
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from model.selection import keyframe_mask, select_rows
from model.visual.dfm import merge, merge_frames
from pipeline.bench.patches.loading import LoadRow, bench_load, fill, full_size, patch_bytes
from pipeline.demo.render import questions, render

__all__ = ["EPSILONS", "EncodingRow", "PatchesReport", "bench_patches"]

EPSILONS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
COSINE_GOAL = 2e-3
BYTES_GOAL = 0.10
_BISECTIONS = 6


class EncodingRow(BaseModel):
    """One encoding of patches, compared with fp16."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    encoding: str
    """Kind of the encoding."""
    epsilon: float | None = None
    """ε of a differential encoding."""
    bytes_an_hour: float
    """Bytes on disk for an hour of footage at one frame a second."""
    share_of_fp16: float
    """Bytes by those of fp16."""
    worst_cosine: float
    """Smallest cosine of a patch with its original."""
    delta_cosine_max: float
    """Largest |cos(p, q) − cos(p̂, q)| over all patches and questions."""
    delta_cosine_p999: float
    """Its 99.9 % quantile."""
    delta_cosine_mean: float
    """Its mean."""
    bound: float
    """√(2 max(1 − cos(p, p̂))), an upper bound of `delta_cosine_max`."""
    weight_variation_max: float
    """Largest half L1 distance of DFM's weights of a frame, over all questions."""
    weight_variation_mean: float
    """Its mean."""
    token_error_max: float
    """Largest |t − t̂| / |t| of DFM's tokens."""
    token_error_mean: float
    """Its mean."""
    answers: int | None = None
    """Answers that were compared; None if there were none."""
    answers_changed: int | None = None
    """Answers that differ from those with fp16."""
    right: int | None = None
    """Answers that are right; None where the truth is not known."""


class PatchesReport(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    footage: str
    """The footage, in words."""
    frames: int
    """Frames of the footage."""
    shape: list[int]
    """Patches a frame and their dimension, [M, D]."""
    questions: int
    """Questions that were asked."""
    delta_cosine_goal: float = COSINE_GOAL
    """Goal for |Δcos|."""
    share_of_fp16_goal: float = BYTES_GOAL
    """Goal for the bytes by those of fp16."""
    largest_epsilon: float | None
    """Largest ε that meets the goal for |Δcos|, found by bisection; None if none does."""
    goal_met: bool
    """Whether a differential row meets both goals."""
    stillness: dict[str, float]
    """Quantiles of 1 − cos between a patch and the patch at its place a second before; an ε below them leaves nothing
    out."""
    still_delta_cosine: dict[str, float]
    """Quantiles of |cos(p, q) − cos(p', q)| for the stiller half of the patches, p' being the patch a second before:
    the effect of the camera's noise."""
    rows: list[EncodingRow]
    """One row for each encoding."""
    loading: list[LoadRow]
    """Loading speed of each encoding."""


class _Truth:
    """The fp16 patches of one stream, and everything that is compared with them."""

    def __init__(self, profile: str, seed: int, minutes: float, store: Any, *, each: int, answers: bool) -> None:
        self.settings = load_profile(profile)
        encoders = load_encoders(self.settings)
        self.window = store.window(store.streams()[0].stream_id.split(), None, None)
        self.patches: NDArray[np.float16] = store.patches(self.window)
        self.asked = questions(seed, 0, minutes, each=each)
        texts = [question.text for question in self.asked]
        self.queries = torch.from_numpy(encoders.patch.encode_text(texts))
        directions = encoders.patch.encode_text(texts).astype(np.float32)
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self.keyframes = [
            keyframe_mask(select_rows(self.window.frame_vectors, query, self.settings).rows, len(self.window))
            for query in encoders.frame.encode_text(texts)
        ]
        self.cosines = self._cosines(self.patches)
        self.merged = [self._merged(self.patches, i) for i in range(len(texts))]
        self.answerer = load_answerer(self.settings, encoders) if answers else None
        self.answers = self._answers(self.patches)

    def _cosines(self, patches: NDArray[np.float16]) -> NDArray[np.float32]:
        """float32[N, M, questions]."""
        result: NDArray[np.float32] = _unit(patches) @ self.directions.T
        return result

    def _merged(self, patches: NDArray[np.float16], number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights float32[n, M] and tokens float32[n, D] of DFM for every frame that is not a keyframe, for one
        question."""

        def both(
            patches: torch.Tensor,
            reference: torch.Tensor | None,
            query: torch.Tensor,
            *,
            alpha: float = 0.01,
            lam: float = 1.0,
        ) -> torch.Tensor:
            unit = torch.nn.functional.normalize(patches, dim=-1)
            gain = unit @ torch.nn.functional.normalize(query, dim=0)
            if reference is not None:
                gain = gain - lam * (unit * torch.nn.functional.normalize(reference, dim=-1)).sum(-1)
            tokens = merge(patches, reference, query, alpha=alpha, lam=lam)
            return torch.cat([torch.softmax(gain / alpha, dim=-1), tokens], dim=-1)

        walked = merge_frames(
            lambda rows: torch.from_numpy(patches[rows].astype(np.float32)),
            self.keyframes[number],
            self.window.stream_index,
            self.queries[number],
            alpha=self.settings.dfm.alpha,
            lam=self.settings.dfm.lam,
            merge=both,
        )
        found = torch.cat([part.features for part in walked if not part.is_keyframe]).numpy()
        return found[:, : patches.shape[1]], found[:, patches.shape[1] :]

    def _answers(self, patches: NDArray[np.float16]) -> list[str] | None:
        if self.answerer is None:
            return None
        texts = []
        for question, mask in zip(self.asked, self.keyframes, strict=True):
            request = AnswerRequest(
                question=question.text,
                options=question.options,
                stream_index=self.window.stream_index,
                captured_at=self.window.captured_at,
                keyframe=mask,
                read_patches=lambda rows, out: np.copyto(out, patches[rows]),
            )
            *_, last = self.answerer.answer(request)
            texts.append(last.answer.text if last.answer else last.text)
        return texts

    def delta_cosine(self, patches: NDArray[np.float16]) -> NDArray[np.float32]:
        """|Δcos| of every patch and question, float32[N, M, questions]."""
        moved: NDArray[np.float32] = np.abs(self._cosines(patches) - self.cosines)
        return moved

    def compare(self, encoding: PatchEncoding, size: int, fp16_size: int, patches: NDArray[np.float16]) -> EncodingRow:
        """Compare the patches that a store returned with those of fp16."""
        moved = self.delta_cosine(patches)
        apart = _apart(self.patches, patches)
        variation, error = [], []
        for number, (weights, tokens) in enumerate(self.merged):
            others, theirs = self._merged(patches, number)
            variation.append(0.5 * np.abs(weights - others).sum(axis=1))
            error.append(np.linalg.norm(tokens - theirs, axis=1) / np.maximum(np.linalg.norm(tokens, axis=1), 1e-30))
        varied, erred = np.concatenate(variation), np.concatenate(error)
        answers = self._answers(patches)
        counts: dict[str, int | None] = {}
        if answers is not None and self.answers is not None:
            counts = {
                "answers": len(answers),
                "answers_changed": sum(a != b for a, b in zip(answers, self.answers, strict=True)),
                "right": sum(a == q.answer for a, q in zip(answers, self.asked, strict=True)),
            }
        return EncodingRow(
            encoding=encoding.kind,
            epsilon=encoding.epsilon if encoding.kind == "differential" else None,
            bytes_an_hour=size * 3600 / len(self.window),
            share_of_fp16=size / fp16_size,
            worst_cosine=1 - float(apart.max()),
            delta_cosine_max=float(moved.max()),
            delta_cosine_p999=float(np.quantile(moved[:: max(1, len(moved) // 200)], 0.999)),
            delta_cosine_mean=float(moved.mean()),
            bound=float(np.sqrt(2 * apart.max())),
            weight_variation_max=float(varied.max()),
            weight_variation_mean=float(varied.mean()),
            token_error_max=float(erred.max()),
            token_error_mean=float(erred.mean()),
            **counts,
        )

    def largest_epsilon(self) -> float | None:
        """Find the largest ε, to within a factor of 1.3, whose |Δcos| meets the goal; None if no ε does."""

        def meets(epsilon: float) -> bool:
            """Whether |Δcos| of every patch meets the goal with `epsilon`."""
            worst = 0.0
            for part in split_chains(len(self.patches)):
                true = self.patches[part]
                rebuilt = np.empty_like(true)
                decode_chain(encode_chain(true, epsilon), true.shape[1], true.shape[2], list(rebuilt))
                worst = max(worst, float(np.abs(self._cosines(rebuilt) - self.cosines[part]).max()))
                if worst > COSINE_GOAL:
                    return False
            return True

        low, high = 1e-7, 1e-1
        if not meets(low):
            return None
        for _ in range(_BISECTIONS):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if meets(middle) else (low, middle)
        return low


def _unit(patches: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = patches.astype(np.float32)
    result: NDArray[np.float32] = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-30)
    return result


def _apart(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float32]:
    """1 − cosine of each patch, as half the squared distance of the unit vectors, which is exact where they are
    close."""
    result: NDArray[np.float32] = 0.5 * np.square(_unit(a) - _unit(b)).sum(axis=-1)
    return result


def bench_patches(
    profile: str = "micro",
    *,
    path: Path | None = None,
    store: Path | None = None,
    seed: int = 101,
    minutes: float = 20.0,
    each: int = 6,
    epsilons: Sequence[float] = EPSILONS,
    load_frames: int = 10_000,
    full_frames: int = 0,
    work: Path | None = None,
) -> PatchesReport:
    """Measure every encoding; see `EncodingRow` and `LoadRow`.

    Args:
        profile: name of the profile, or the path of its TOML file.
        path: a video file in place of rendered footage. The questions of `seed` are asked about it, and their answers
            are not counted.
        store: a store of fp16 patches of the rendered footage of `seed` and `minutes`; its first stream is used.
        seed: seed of the rendered footage and the questions.
        minutes: length of the rendered footage.
        each: questions of every kind.
        epsilons: of the differential rows, beside the largest that meets the goal.
        load_frames: frames whose loading is timed; the footage is repeated.
        full_frames: the same with synthetic patches of full size.
        work: folder for the stores, on the disk to measure.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-bench-", dir=work) as name:
        folder = Path(name)
        if store is None:
            encoders = load_encoders(load_profile(profile))
            source = Store.create(folder / "source", encoders.pair)
            if path is None:
                render(seed, minutes, 1, folder / "footage")
            ingest_sources([path or folder / "footage"], store=source, encoders=encoders)
        else:
            source = Store.open(store)
        truth = _Truth(profile, seed, minutes, source, each=each, answers=path is None)
        found = truth.largest_epsilon()
        chosen = sorted({*epsilons, *([] if found is None else [found])})
        kinds = [PatchEncoding(), PatchEncoding(kind="int8")]
        kinds += [PatchEncoding(kind="differential", epsilon=epsilon) for epsilon in chosen]
        rows: list[EncodingRow] = []
        fp16 = 0
        for number, encoding in enumerate(kinds):
            kept = fill(folder / str(number), source.encoders, encoding, truth.patches, truth.window.captured_at)
            size = patch_bytes(kept)
            fp16 = fp16 or size
            rows.append(truth.compare(encoding, size, fp16, kept.patches(kept.window())))
        timed = [PatchEncoding(), PatchEncoding(kind="int8"), PatchEncoding(kind="differential")]
        loading = []
        if load_frames:
            loading += [bench_load(work, source.encoders, e, truth.patches, load_frames) for e in timed]
        if full_frames:
            pair, synthetic = full_size(full_frames)
            loading += [bench_load(work, pair, e, synthetic, full_frames) for e in timed]
    still = _apart(truth.patches[1:], truth.patches[:-1])
    noise = np.abs(truth.cosines[1:] - truth.cosines[:-1])[still <= np.median(still)]
    return PatchesReport(
        profile=profile,
        footage="a file" if path is not None else f"rendered, seed {seed}, {minutes:g} minutes",
        frames=len(truth.window),
        shape=list(truth.patches.shape[1:]),
        questions=len(truth.asked),
        largest_epsilon=found,
        goal_met=any(
            r.epsilon is not None and r.share_of_fp16 <= BYTES_GOAL and r.delta_cosine_max <= COSINE_GOAL for r in rows
        ),
        stillness={f"{q:g}": float(np.quantile(still, q)) for q in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)},
        still_delta_cosine={f"{q:g}": float(np.quantile(noise, q)) for q in (0.5, 0.9, 0.99, 0.999, 1.0)},
        rows=rows,
        loading=loading,
    )
