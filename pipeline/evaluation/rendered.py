"""Accuracy of a profile on rendered footage of seeds it has never seen, `sightline evaluate`.

Footage goes through the same files, decoder and store as any user's, and keyframes are selected as `sightline ask`
selects them. Every question is asked once for each method and once without pictures; each row of the table differs from
the first in one respect. Metrics: share of right answers, and share of questions whose keyframes show the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.keyframes import select_top_k, select_uniform
from index.records import to_micros
from model.answerer import load_answerer
from model.encoders.encoder import load_encoders
from model.profiles.profile import Profile, load_profile
from model.selection import select_rows
from model.visual.dfm import merge_mean
from model.world.questions import QUESTION_KINDS
from pipeline.demo.render import began_at, camera_name, questions
from pipeline.evaluation.camera import Camera
from pipeline.evaluation.footage import evidence_shown, rendered_store
from pipeline.share import Share, share

__all__ = ["Evaluation", "evaluate"]

VARIANTS = ("dks + dfm", "top-k", "uniform", "mean pooling", "keyframes only", "blind")
HICO_VARIANTS = ("hico", "blind")
"""The rows for a profile that reads clips: what it reads does not depend on keyframes."""
METHODS = ("dks", "top-k", "uniform")


class Evaluation(BaseModel):
    """Result of the evaluation."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    seeds: list[int]
    """Seeds of the rendered worlds."""
    minutes: float
    """Length of each camera's footage."""
    cameras: int
    """Cameras of each seed."""
    k: int
    """Largest number of keyframes."""
    tau: float
    """Similarity threshold τ."""
    questions: int
    """Questions that were asked."""
    frames: int
    """Frames of all cameras."""
    accuracy: dict[str, dict[str, Share]]
    """Right answers: `accuracy[variant][kind or "all"]`."""
    hits: dict[str, dict[str, dict[str, Share]]]
    """Questions whose keyframes show the evidence: `hits[k][method]["any" | "all" | "all of several"]`."""

    @property
    def variants(self) -> list[str]:
        """The rows of the table; the first is the profile as it is shipped."""
        return list(self.accuracy)

    def bars(self) -> dict[str, tuple[bool, str]]:
        """Return the five bars of the `micro` profile: for each, whether it holds, and the figure."""
        hits, accuracy = self.hits[str(self.k)], self.accuracy
        dks, top = hits["dks"], hits["top-k"]
        full, blind = accuracy[self.variants[0]]["all"], accuracy["blind"]["all"]
        above = dks["all of several"].share - top["all of several"].share
        lead = full.share - blind.share
        return {
            "any evidence ≥ 95 %": (dks["any"].share >= 0.95, f"{dks['any'].share:.1%}"),
            "all evidence ≥ 75 %": (dks["all of several"].share >= 0.75, f"{dks['all of several'].share:.1%}"),
            "all evidence ≥ 10 points above top-K": (above >= 0.10, f"{100 * above:+.1f} points"),
            "accuracy ≥ 80 %": (full.share >= 0.80, f"{full.share:.1%}"),
            "≥ 20 points above blind": (lead >= 0.20, f"{100 * lead:+.1f} points"),
        }


@dataclass(slots=True)
class _Tally:
    """Counts of right and asked questions, by two or three keys."""

    counts: dict[tuple[str, ...], list[int]]

    def add(self, *key: str, right: bool) -> None:
        """Count one question."""
        pair = self.counts.setdefault(key, [0, 0])
        pair[0] += right
        pair[1] += 1

    def share(self, *key: str) -> Share:
        """Return the share of right questions of a key."""
        return share(*self.counts.get(key, [0, 0]))


def _select(
    method: str,
    vectors: NDArray[np.float32],
    query: NDArray[np.float32],
    profile: Profile,
    k: int,
    tau: float,
) -> NDArray[np.int64]:
    """Rows of the keyframes that `method` selects; `dks` is the selection that a question with this profile makes."""
    if method == "dks":
        return select_rows(vectors, query, profile, k=k, tau=tau).rows
    if method == "top-k":
        return select_top_k(vectors, query, k=k)
    return select_uniform(len(vectors), k=k)


def evaluate(
    work: Path,
    *,
    profile: str = "micro",
    seeds: Sequence[int] = (101, 102, 103),
    minutes: float = 20.0,
    cameras: int = 2,
    each: int = 6,
    k: int | None = None,
    tau: float | None = None,
    more_k: Sequence[int] = (8,),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Render, ingest and ask. Footage and stores are kept under `work` and used again.

    Args:
        work: folder for footage and stores.
        profile: name of the profile, or the path of its TOML file.
        seeds: seeds of the rendered worlds.
        minutes: length of each camera's footage.
        cameras: cameras of each seed.
        each: questions of every kind for each camera, if its timeline has that many.
        k: largest number of keyframes; the profile's if None.
        tau: similarity threshold τ; the profile's if None.
        more_k: further K for which keyframe hits are counted; answers are given for `k` only.
        on_progress: called with the cameras done and the cameras in all.
    """

    settings = load_profile(profile)
    k, tau = settings.k if k is None else k, settings.tau if tau is None else tau
    encoders = load_encoders(settings)
    answerer = load_answerer(settings, encoders)
    averaging = None if settings.hico is not None else load_answerer(settings, encoders, merge=merge_mean)
    variants = VARIANTS if averaging is not None else HICO_VARIANTS
    accuracy, hits = _Tally({}), _Tally({})
    asked = frames = 0
    done, total = 0, len(seeds) * cameras
    for seed in seeds:
        store = rendered_store(work, encoders, seed=seed, minutes=minutes, cameras=cameras)
        began = to_micros(began_at(seed))
        for number in range(cameras):
            window = store.window([camera_name(number)], None, None)
            camera = Camera(store, window, began)
            frames += len(window)
            for question in questions(seed, number, minutes, each=each):
                asked += 1
                query = encoders.frame.encode_text([question.text])[0]
                chosen: dict[str, NDArray[np.int64]] = {}
                for many in (k, *more_k):
                    for method in METHODS:
                        picked = _select(method, window.frame_vectors, query, settings, many, tau)
                        found = evidence_shown(question, camera.seconds[picked])
                        hits.add(str(many), method, "any", right=any(found))
                        hits.add(str(many), method, "all", right=all(found))
                        if len(found) > 1:
                            hits.add(str(many), method, "all of several", right=all(found))
                        if many == k:
                            chosen[method] = picked
                none = np.zeros(0, np.int64)
                answers = {
                    variants[0]: camera.answer(answerer, question, chosen["dks"]).text,
                    "blind": camera.answer_from(answerer, question, none, none).text,
                }
                if averaging is not None:
                    answers |= {
                        "top-k": camera.answer(answerer, question, chosen["top-k"]).text,
                        "uniform": camera.answer(answerer, question, chosen["uniform"]).text,
                        "mean pooling": camera.answer(averaging, question, chosen["dks"]).text,
                        "keyframes only": camera.answer_from(
                            answerer, question, chosen["dks"], np.sort(chosen["dks"])
                        ).text,
                    }
                for variant, text in answers.items():
                    for kind in (question.kind, "all"):
                        accuracy.add(variant, kind, right=text == question.answer)
            done += 1
            on_progress(done, total)
    return Evaluation(
        profile=settings.name,
        seeds=list(seeds),
        minutes=minutes,
        cameras=cameras,
        k=k,
        tau=tau,
        questions=asked,
        frames=frames,
        accuracy={v: {kind: accuracy.share(v, kind) for kind in (*QUESTION_KINDS, "all")} for v in variants},
        hits={
            str(many): {m: {n: hits.share(str(many), m, n) for n in ("any", "all", "all of several")} for m in METHODS}
            for many in (k, *more_k)
        },
    )
