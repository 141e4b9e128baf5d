"""Benchmark of standing questions, `sightline bench alerts`: precision and recall of alerts on rendered footage.

Each camera has standing questions of four forms ("a dog", "a red dog", "a dog at the gate", "a red dog at the gate"):
for each form, up to a dozen things that appear there and a dozen that never do. They are scored by the workers' own
scorer with the profile's rule. The baselines are fixed thresholds on raw cosines with the same hysteresis, one
threshold for all cameras and questions, chosen in hindsight: the one with the highest F1 on these events. A rule that
does not know the truth cannot choose better.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.columns import digest
from index.records import to_micros
from index.second_grid import seconds_of
from index.standing_questions import AlertRule, StandingQuestion, make_question
from index.store import Store
from ingest.alerts.detector import UNIT, AlertDetector, Hysteresis
from ingest.alerts.scorer import StreamScorer, score_frames
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import load_profile
from model.world.questions import Constraint
from model.world.scenes import COLOURS, KINDS, PLACES, Event, rng_of
from pipeline.demo.render import began_at, camera_name, render, stream_seed, timeline
from pipeline.share import Share, share

__all__ = ["AlertsBench", "bench_alerts"]

_EACH = 12
_FORMS = ("actor", "actor + colour", "actor + place", "actor + colour + place")
_SLACK = 1.0  # seconds; frames are a second apart
_SECOND = 1_000_000
_CANDIDATES = 60  # thresholds to choose from in hindsight


class Figures(BaseModel):
    """Quality of one way to raise alerts."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    precision: Share
    """Share of alerts that are right."""
    recall: Share
    """Share of events that raise an alert; an event counts once for each question about it."""
    f1: float
    """Harmonic mean of both."""
    false_alerts: int
    """Number of wrong alerts."""
    false_per_hour: float
    """Wrong alerts of one question at one camera in an hour."""
    false_never: int
    """Wrong alerts of questions about things that never appear."""
    latency_seconds: tuple[float, float] | None
    """Seconds from the actor's entrance to the frame that raises the alert: median and 95 % quantile; None without
    alerts."""
    by_form: dict[str, dict[str, Share]]
    """Precision and recall by form of question."""


class AlertsBench(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    seeds: list[int]
    """Seeds of the rendered worlds."""
    minutes: float
    """Length of each camera's footage."""
    cameras: int
    """Cameras of each seed."""
    camera_hours: float
    """Hours of footage that count, after the rule has warmed up."""
    questions: int
    """Standing questions."""
    questions_never: int
    """Those about things that never appear."""
    rule: AlertRule
    """The rule of the alerts."""
    calibrated: Figures
    """Quality of the workers' rule."""
    hindsight: dict[str, tuple[float, Figures]]
    """Baselines by signal: the best fixed threshold, and its quality."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An alert: UTC seconds of its start, of the frame that raised it, and of its end."""

    start: int
    raised: int
    end: int


@dataclass(slots=True)
class _Asked:
    """One question at one camera, and when it is true: (start, end) in UTC seconds."""

    form: str
    question: StandingQuestion
    clip: NDArray[np.float32]
    spans: list[tuple[float, float]]


@dataclass(slots=True)
class _Camera:
    """The scores of one camera, and the alerts they raise."""

    seconds: list[int]
    asked: list[_Asked]
    signals: dict[str, NDArray[np.int64]]  # by name, [frames, questions] in 1/UNIT
    found: list[list[_Found]]  # by question, of the workers' scorer


@dataclass(slots=True)
class _Tally:
    """Alerts and events by form of question, each with whether it is right or raised an alert."""

    alerts: dict[str, list[bool]] = field(default_factory=lambda: {form: [] for form in _FORMS})
    events: dict[str, list[bool]] = field(default_factory=lambda: {form: [] for form in _FORMS})
    never: int = 0
    late: list[float] = field(default_factory=list)

    def add(self, asked: _Asked, found: Iterable[_Found], counted: float) -> None:
        """Count alerts from UTC second `counted` on. Alerts of events that began earlier are neither right nor
        wrong."""
        spans = [span for span in asked.spans if span[0] >= counted]
        before = [span for span in asked.spans if span[0] < counted]
        first: dict[tuple[float, float], float] = {}
        for one in found:
            if one.raised < counted or any(_meet(one, span) for span in before):
                continue
            right = [span for span in spans if _meet(one, span)]
            self.alerts[asked.form].append(bool(right))
            self.never += not asked.spans
            for span in right:
                first.setdefault(span, max(0.0, one.raised - span[0]))
        self.events[asked.form] += [span in first for span in spans]
        self.late += first.values()

    def figures(self, question_hours: float) -> Figures:
        """Return the figures; `question_hours` are hours of footage, summed over the questions."""

        def shares(forms: Sequence[str]) -> dict[str, Share]:
            alerts = [right for form in forms for right in self.alerts[form]]
            events = [seen for form in forms for seen in self.events[form]]
            return {"precision": share(sum(alerts), len(alerts)), "recall": share(sum(events), len(events))}

        every = shares(_FORMS)
        wrong = sum(not right for form in _FORMS for right in self.alerts[form])
        late = None if not self.late else (_rounded(np.median(self.late)), _rounded(np.quantile(self.late, 0.95)))
        return Figures(
            **every,
            f1=_rounded(self.f1()),
            false_alerts=wrong,
            false_per_hour=_rounded(wrong / question_hours),
            false_never=self.never,
            latency_seconds=late,
            by_form={form: shares([form]) for form in _FORMS},
        )

    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        alerts = [right for rows in self.alerts.values() for right in rows]
        events = [seen for rows in self.events.values() for seen in rows]
        precision, recall = sum(alerts) / max(1, len(alerts)), sum(events) / max(1, len(events))
        return 2 * precision * recall / max(1e-9, precision + recall)


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def _meet(one: _Found, span: tuple[float, float]) -> bool:
    return one.start <= span[1] + _SLACK and one.end >= span[0] - _SLACK


def bench_alerts(
    profile: str = "micro",
    *,
    seeds: Sequence[int] = (201, 202, 203),
    minutes: float = 20.0,
    cameras: int = 2,
    work: Path | None = None,
) -> AlertsBench:
    """Render and ingest footage, and score standing questions on it.

    Args:
        profile: name of the profile, or the path of its TOML file.
        seeds: seeds of the rendered worlds.
        minutes: length of each camera's footage.
        cameras: cameras of each seed.
        work: folder that keeps footage and stores; results of an earlier run there are used again.
    """
    chosen = load_profile(profile)
    encoders, rule = load_encoders(chosen), AlertRule(floor=chosen.alert_floor)
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        seen = [
            _camera(store, encoders, rule, seed, number, minutes)
            for seed in seeds
            for store in [_filled(work or Path(folder), encoders, seed, minutes, cameras)]
            for number in range(cameras)
        ]
    hours = sum(max(0, len(camera.seconds) - rule.warm_up) for camera in seen) / 3600
    question_hours = sum(max(0, len(c.seconds) - rule.warm_up) / 3600 * len(c.asked) for c in seen)
    ours = _tallied(seen, rule, lambda camera, q: camera.found[q])
    hindsight: dict[str, tuple[float, Figures]] = {}
    for name in seen[0].signals:
        threshold, tally = _best(seen, rule, name)
        hindsight[name] = (_rounded(threshold / UNIT), tally.figures(question_hours))
    return AlertsBench(
        profile=profile,
        seeds=list(seeds),
        minutes=minutes,
        cameras=cameras,
        camera_hours=_rounded(hours),
        questions=sum(len(camera.asked) for camera in seen),
        questions_never=sum(not asked.spans for camera in seen for asked in camera.asked),
        rule=rule,
        calibrated=ours.figures(question_hours),
        hindsight=hindsight,
    )


def _filled(work: Path, encoders: Encoders, seed: int, minutes: float, cameras: int) -> Store:
    name = f"{seed}-{minutes:g}-{cameras}"
    footage = work / f"footage-{name}"
    if not (footage / "truth.json").exists():
        render(seed, minutes, cameras, footage)
    store = Store.open_or_create(work / f"store-{name}", encoders.pair)
    ingest_sources([footage], store=store, encoders=encoders)
    return store


def _camera(store: Store, encoders: Encoders, rule: AlertRule, seed: int, number: int, minutes: float) -> _Camera:
    stream = camera_name(number)
    events = [event for clip in timeline(seed, number, minutes) for event in clip.events]
    asked = _questions(events, encoders, rule, seed, number)
    window = store.window([stream])
    patches = store.patches(window)
    watched = StreamScorer(stream)
    for one in asked:
        watched.add(one.question, AlertDetector(rule))
    where = {one.question.id: q for q, one in enumerate(asked)}
    open_: dict[str, _Found] = {}
    found: list[list[_Found]] = [[] for _ in asked]
    for alert in watched.score(window.captured_at, patches, lambda row: b""):
        if alert.state == "raised":
            start, at = to_micros(alert.start) // _SECOND, to_micros(alert.at) // _SECOND
            open_[alert.id] = _Found(start, at, 2**40)
        elif alert.end is not None:
            one_found = open_.pop(alert.id)
            found[where[alert.question]].append(
                _Found(one_found.start, one_found.raised, to_micros(alert.end) // _SECOND)
            )
    for which, watch in watched.detectors.items():  # alerts that are open at the end
        now = watch.hysteresis
        if now.start is not None and not watch.silent:
            raised = open_[digest(which, stream, now.start)].raised
            found[where[which]].append(_Found(now.start, raised, now.held))
    seconds = seconds_of(window.captured_at).tolist()
    clip = np.stack([one.clip for one in asked])
    return _Camera(
        seconds=seconds,
        asked=asked,
        signals={
            "CLIP frame vector": np.rint(window.frame_vectors @ clip.T * UNIT).astype(np.int64),
            "SigLIP best patch": score_frames(patches, watched.vectors()),
        },
        found=found,
    )


def _questions(events: Sequence[Event], encoders: Encoders, rule: AlertRule, seed: int, number: int) -> list[_Asked]:
    began = began_at(seed).timestamp()
    rng = rng_of("alerts", stream_seed(seed, number))
    chosen: list[tuple[str, Constraint]] = []
    for form in _FORMS:
        all_ = [
            Constraint(kind=kind, colour=colour, place=place)
            for kind in range(len(KINDS))
            for colour in (range(len(COLOURS)) if "colour" in form else (-1,))
            for place in (range(len(PLACES)) if "place" in form else (-1,))
        ]
        seen = [about for about in all_ if any(about.matches(e, a) for e in events for a in e.actors)]
        never = [about for about in all_ if about not in seen]
        for some in (seen, never):
            chosen += [(form, some[i]) for i in rng.permutation(len(some))[:_EACH]]
    texts = [_text(about) for _, about in chosen]
    patch, clip = encoders.patch.encode_text(texts), encoders.frame.encode_text(texts)
    return [
        _Asked(
            form,
            make_question(text, vector, encoders.pair.patch, rule=rule, created_at=0),
            clip[i],
            sorted(
                (began + event.seen_from, began + event.seen_until)
                for event in events
                if any(about.matches(event, actor) for actor in event.actors)
            ),
        )
        for i, ((form, about), text, vector) in enumerate(zip(chosen, texts, patch, strict=True))
    ]


def _text(about: Constraint) -> str:
    colour = f"{COLOURS[about.colour]} " if about.colour >= 0 else ""
    place = f" at the {PLACES[about.place]}" if about.place >= 0 else ""
    return f"a {colour}{KINDS[about.kind]}{place}"


def _tallied(seen: Sequence[_Camera], rule: AlertRule, found: Callable[[_Camera, int], Iterable[_Found]]) -> _Tally:
    tally = _Tally()
    for camera in seen:
        for q, asked in enumerate(camera.asked):
            tally.add(asked, found(camera, q), camera.seconds[0] + rule.warm_up)
    return tally


def _best(seen: Sequence[_Camera], rule: AlertRule, signal: str) -> tuple[float, _Tally]:
    """Find the one threshold for all cameras and questions that has the highest F1 on these events."""
    scores = np.concatenate([camera.signals[signal].reshape(-1) for camera in seen])
    best: tuple[float, _Tally] | None = None
    for high in np.unique(np.quantile(scores, 1 - np.geomspace(0.2, 0.001, _CANDIDATES))).tolist():

        def found(camera: _Camera, q: int, high: float = high) -> Iterable[_Found]:
            return _plain(camera.seconds, camera.signals[signal][:, q].tolist(), rule, high)

        tally = _tallied(seen, rule, found)
        if best is None or tally.f1() > best[1].f1():
            best = high, tally
    assert best is not None  # there is at least one candidate
    return best


def _plain(seconds: Sequence[int], scores: Sequence[int], rule: AlertRule, high: float) -> list[_Found]:
    """Apply the same hysteresis with fixed thresholds."""
    state, found, raised = Hysteresis(rule), [], 0
    for second, score in zip(seconds, scores, strict=True):
        for turn in state.step(second, score, high, rule.low_share * high):
            if turn.state == "raised":
                raised = turn.at
            elif turn.end is not None:
                found.append(_Found(turn.start, raised, turn.end))
    if state.start is not None:
        found.append(_Found(state.start, raised, state.held))
    return found
