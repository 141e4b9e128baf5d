"""Rendered footage whose truth is known, `sightline render`: H.264 files with a `truth.json` beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import as_completed
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from index.child_processes import process_pool
from index.errors import UsageError
from index.records import rfc3339, to_micros
from ingest.video_writer import VideoWriter
from model.world.drawing import draw
from model.world.questions import Question, make_questions
from model.world.scenes import (
    COLOURS,
    EVENTS,
    HEIGHT,
    KINDS,
    PLACES,
    WALK_SECONDS,
    WIDTH,
    Clip,
    make_camera,
    make_timeline,
    rng_of,
)

FPS = 10
GOP = 20
QUESTIONS_EACH = 4
_EPOCH = datetime(2024, 3, 1, tzinfo=UTC)


def camera_name(camera: int) -> str:
    """Return the stream of a camera, from 0: `camera-1`, `camera-2`, …"""
    return f"camera-{camera + 1}"


def began_at(seed: int) -> datetime:
    """Return the start of a seed's footage: a second of a day in 2024."""
    return _EPOCH + timedelta(seconds=int(rng_of("began", seed).integers(200 * 86_400)))


def stream_seed(seed: int, camera: int) -> int:
    """Return the seed of a rendered camera, distinct from all seeds of the training bank."""
    return 1_000_000_000 + seed * 1000 + camera


def timeline(seed: int, camera: int, minutes: float) -> list[Clip]:
    """Return the clips, with their events, of one camera."""
    return make_timeline(stream_seed(seed, camera), minutes * 60)


def questions(seed: int, camera: int, minutes: float, *, each: int = QUESTIONS_EACH) -> list[Question]:
    """Return the questions of one camera: `each` of every kind, if its timeline has that many."""
    clips = timeline(seed, camera, minutes)
    return make_questions(clips, began_at(seed), rng_of("questions", stream_seed(seed, camera)), each=each)


def truth(seed: int, minutes: float, cameras: int) -> dict[str, list[dict[str, Any]]]:
    """Return `events` and `questions` of all cameras; times are RFC 3339 UTC. The same arguments give the same
    result."""
    began = to_micros(began_at(seed))

    def at(seconds: float) -> str:
        """The time of a second of the footage, RFC 3339."""
        return rfc3339(began + round(seconds * 1000) * 1000)

    events: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    for camera in range(cameras):
        stream = camera_name(camera)
        for clip in timeline(seed, camera, minutes):
            for event in clip.events:
                for actor in event.actors:
                    events.append(
                        {
                            "stream_id": stream,
                            "kind": EVENTS[event.kind],
                            "actor": KINDS[actor.kind],
                            "colour": COLOURS[actor.colour],
                            "count": event.count,
                            "place": PLACES[event.place],
                            "start": at(event.seen_from),
                            "end": at(event.seen_until),
                        }
                    )
        for question in questions(seed, camera, minutes):
            asked.append(
                {
                    "question": question.text,
                    "options": list(question.options),
                    "answer": question.answer,
                    "stream_id": stream,
                    "start": at(min(e.seen_from for e in question.evidence)),
                    "end": at(max(e.seen_until for e in question.evidence)),
                    "kind": question.kind,
                    "evidence": [{"start": at(e.seen_from), "end": at(e.seen_until)} for e in question.evidence],
                }
            )
    return {"events": events, "questions": asked}


def _render_camera(job: tuple[int, int, float, str]) -> tuple[str, int]:
    seed, number, minutes, out = job
    began = began_at(seed)
    camera = make_camera(stream_seed(seed, number))
    clips = timeline(seed, number, minutes)
    path = Path(out) / f"{camera_name(number)}.mp4"
    frames = round(minutes * 60 * FPS)
    at = 0
    with VideoWriter(path, WIDTH, HEIGHT, fps=FPS, gop=GOP, created=began) as writer:
        for i in range(frames):
            t = i / FPS
            while at < len(clips) and clips[at].end + WALK_SECONDS < t:
                at += 1
            events = [event for clip in clips[at : at + 2] for event in clip.events]
            clock = (began + timedelta(seconds=t)).strftime("%H:%M:%S")
            writer.write(draw(camera, events, t, clock, i)[0])
    return camera_name(number), frames


def render(
    seed: int,
    minutes: float,
    cameras: int,
    out: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    workers: int = 2,
) -> Path:
    """Write `<camera>.mp4` for every camera, and `truth.json`, into `out`; one process for each camera.

    Args:
        seed: seed of the world, not negative.
        minutes: length of each file, at least 0.1 and at most 24 hours.
        cameras: 1 to 64.
        out: the folder, which is created if it does not exist.
        on_progress: called with the cameras done and the cameras in all.
        workers: processes at once.

    Returns:
        The path of `truth.json`, which is written last: if it exists, the footage is complete.

    Raises:
        UsageError: a number is out of range.
    """
    if not 0.1 <= minutes <= 1440:
        raise UsageError(f"--minutes must lie between 0.1 and 1440, got {minutes}")
    if not 1 <= cameras <= 64:
        raise UsageError(f"--cameras must lie between 1 and 64, got {cameras}")
    if seed < 0:
        raise UsageError(f"--seed must not be negative, got {seed}")
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(seed, i, minutes, str(out)) for i in range(cameras)]
    with process_pool(min(workers, cameras)) as pool:
        for done, future in enumerate(as_completed([pool.submit(_render_camera, job) for job in jobs]), 1):
            future.result()
            on_progress(done, cameras)
    path = out / "truth.json"
    text = json.dumps(truth(seed, minutes, cameras), indent=1) + "\n"
    path.write_text(text)
    return path


__all__ = ["began_at", "camera_name", "questions", "render", "stream_seed", "timeline", "truth"]
