"""The training footage of `micro`: thousands of short rendered clips, one frame a second, labelled with what each
shows.

A stream for the training of the language model is assembled from clips of one camera. A bank of a few thousand clips
therefore gives a practically unlimited number of different streams, and each picture is rendered once.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.child_processes import process_pool
from index.files import load_array
from model.world.drawing import Drawn, draw
from model.world.scenes import HEIGHT, PLACES, SLOTS, WIDTH, Clip, Event, SceneCamera, make_camera, make_clip, rng_of

SIZE, GRID = 96, 6
"""Side of a frame in pixels, and of its grid of patches."""
PARTICIPANTS = 4
"""Most actors in one frame."""
EMPTY_FRAMES = 16
"""Frames without actors, for each camera."""
_COVER = 0.25  # a patch belongs to a sprite that covers this share of it


@dataclass(frozen=True, slots=True)
class ClipBank:
    """The frames of many clips, by columns; row i of every array is the same frame."""

    pixels: NDArray[np.uint8]
    """The frames, uint8[N, 96, 96, 3]."""
    seen: NDArray[np.int8]
    """Kind, colour, place, event and count of each participant, int8[N, 4, 5]; -1 for unknown or absent."""
    patch_seen: NDArray[np.int8]
    """The participant that covers each patch, int8[N, 36]; -1 for none."""
    patch_place: NDArray[np.int8]
    """The place that each patch shows, int8[N, 36]; -1 for none."""
    camera: NDArray[np.int32]
    """Seed of the camera, int32[N]."""
    clip: NDArray[np.int32]
    """Number of the clip, int32[N]; -1 for empty frames."""
    second: NDArray[np.float32]
    """Seconds since the start of the clip, float32[N]."""

    def __len__(self) -> int:
        return len(self.camera)


def bank_clips(camera_seed: int, count: int) -> list[Clip]:
    """The clips of one camera of the bank; a pure function of the seed, so they need not be stored."""
    rng = rng_of("bank", camera_seed)
    return [make_clip(rng, float(rng.uniform(0, 3600))) for _ in range(count)]


def _compressed(pixels: NDArray[np.uint8], rng: np.random.Generator) -> Image.Image:
    """The picture after lossy 4:2:0 compression, as in decoded footage, for four pictures of five."""
    image = Image.fromarray(pixels)
    if rng.random() < 0.8:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(45, 92)), subsampling=2)
        image = Image.open(buffer)
    return image


def _place_map(camera: SceneCamera) -> NDArray[np.int8]:
    """The place that each patch shows, int8[36]; -1 for none."""
    result = np.full((GRID, GRID), -1, np.int8)
    for place in range(len(PLACES)):
        x, y = SLOTS[camera.layout[place]]
        column = x * GRID // WIDTH // 2 * 2
        rows = slice(1, 3) if y < HEIGHT / 2 else slice(4, 6)
        result[rows, column : column + 2] = place
    return result.reshape(-1)


def _labels(events: tuple[Event, ...], drawn: list[Drawn], t: float) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """One row of `seen`, int8[4, 5], and of `patch_seen`, int8[36]."""
    seen = np.full((PARTICIPANTS, 5), -1, np.int8)
    patches = np.full((GRID, GRID), -1, np.int8)
    order = [(n, i) for n, event in enumerate(events) for i in range(len(event.actors))]
    pw, ph = WIDTH / GRID, HEIGHT / GRID
    for one in drawn:
        x0, y0, x1, y1 = one.box
        if not (0 < (x0 + x1) / 2 < WIDTH):
            continue
        event, row = events[one.event], order.index((one.event, one.actor))
        actor = event.actors[one.actor]
        standing = event.start <= t <= event.end
        seen[row] = (
            actor.kind,
            actor.colour,
            event.place if standing else -1,
            event.kind if event.start + 1 <= t <= event.end else -1,
            event.count,
        )
        for py in range(GRID):
            for px in range(GRID):
                wide = min(x1, (px + 1) * pw) - max(x0, px * pw)
                high = min(y1, (py + 1) * ph) - max(y0, py * ph)
                if wide > 0 and high > 0 and wide * high >= _COVER * pw * ph:
                    patches[py, px] = row
    return seen, patches.reshape(-1)


def _render_camera(job: tuple[int, int]) -> tuple[NDArray[np.generic], ...]:
    """The columns of one camera (seed, number of clips) in the order of `make_bank`; runs in a process of its own."""
    seed, clips = job
    camera = make_camera(seed)
    rng = rng_of("bank frames", seed)
    places = _place_map(camera)
    columns: list[list[Any]] = [[] for _ in range(6)]

    def add(clip: int, events: tuple[Event, ...], t: float, second: float) -> None:
        """Append one frame to the columns."""
        clock = f"{rng.integers(24):02d}:{rng.integers(60):02d}:{rng.integers(60):02d}"
        pixels, drawn = draw(camera, events, t, clock, int(rng.integers(1 << 30)))
        seen, patches = _labels(events, drawn, t)
        small = _compressed(pixels, rng).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for column, value in zip(columns, (np.asarray(small), seen, patches, places, clip, second), strict=True):
            column.append(value)

    for number, clip in enumerate(bank_clips(seed, clips)):
        for t in np.arange(clip.start + rng.uniform(0, 1), clip.end, 1.0):
            add(number, clip.events, float(t), float(t - clip.start))
    for _ in range(EMPTY_FRAMES):
        add(-1, (), float(rng.uniform(0, 3600)), 0.0)
    types = (np.uint8, np.int8, np.int8, np.int8, np.int32, np.float32)
    arrays = [np.asarray(column, dtype) for column, dtype in zip(columns, types, strict=True)]
    return (*arrays, np.full(len(arrays[0]), seed, np.int32))


def make_bank(
    folder: Path, *, seed: int, cameras: int, clips: int, workers: int = 2, on_progress: Callable[[int, int], None]
) -> ClipBank:
    """Render the bank into `folder`, or open it if it is complete (a marker file is written last).

    Args:
        folder: one `.npy` file for each column.
        seed: seed of the cameras.
        cameras: number of cameras.
        clips: clips of each camera.
        workers: processes that render.
        on_progress: called with cameras done and cameras in all.
    """
    names = ("pixels", "seen", "patch_seen", "patch_place", "clip", "second", "camera")
    marker = folder / f"done-{seed}-{cameras}-{clips}"
    if not marker.exists():
        folder.mkdir(parents=True, exist_ok=True)
        parts: list[tuple[NDArray[np.generic], ...]] = []
        jobs = [(seed * 100_000 + i, clips) for i in range(cameras)]
        with process_pool(workers) as pool:
            for part in pool.map(_render_camera, jobs):
                parts.append(part)
                on_progress(len(parts), cameras)
        for i, name in enumerate(names):
            np.save(folder / f"{name}.npy", np.concatenate([part[i] for part in parts]))
        marker.touch()
    loaded = {name: load_array(folder / f"{name}.npy", mapped=name == "pixels") for name in names}
    return ClipBank(**loaded)
