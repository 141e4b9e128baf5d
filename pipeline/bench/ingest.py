"""Benchmark of a whole ingest, `sightline bench ingest`, and of each of its stages alone in the same run.

A stage's limit is what it reaches alone; the whole is divided by it. Work is counted a frame: bytes that a stage must
read and write, operations of the encoders' matrix products, and CPU seconds of all threads and processes. From bytes
and operations, and from what this machine copies and multiplies in a CPU second, follows the least time that a stage
could take. A camera gives one frame a second, so the cameras of a core are frames a CPU second. torch has one thread
here, since its others spin while they wait; a decoder has its own.

The speed of encoders does not depend on their weights: random ones of a profile's sizes measure the same. Does not know
live cameras or Kafka, whose segments pass the same stages.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from index.errors import UsageError
from index.records import EncoderPair, FrameRecords
from index.store import Store
from ingest.decoding.demuxer import Demuxer
from ingest.decoding.frame import FrameBatch
from ingest.decoding.sandbox import Decoding
from ingest.embedding import embed, encode_records, picture
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import Encoders, load_encoders, pick_device
from model.profiles.profile import load_profile
from pipeline.bench.encoders import random_encoders
from pipeline.bench.footage import camera_footage, repeated
from pipeline.bench.scale.synthetic import covering_segment
from pipeline.demo.render import render

__all__ = ["IngestBench", "bench_ingest"]

_BEGAN = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z
_SECOND = 1_000_000
_CODED_SECONDS = 10
_FULL_HD = (1920, 1080)
_COPIED_BYTES, _MATRIX = 64 * 2**20, 1024


class Stage(BaseModel):
    """One stage, measured alone; figures are for one frame."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stage: str
    """demux; decode; convert (to RGB); transfer (out of the confined process); preprocess and encode, of both encoders;
    pictures (JPEG); write (to the store)."""
    cpu_seconds: float
    """CPU seconds of all threads and processes."""
    bytes: int
    """Bytes that it must read and write."""
    flops: float
    """Operations of matrix products."""
    least_cpu_seconds: float
    """Time to copy as many bytes, or to multiply as much, whichever is longer, on this machine."""
    cameras_per_core: float
    """Frames a CPU second."""
    frames_per_second: float
    """Frames a second on the clock."""
    whole_to_stage: float
    """Frames a second of the whole ingest by those of this stage alone."""


class Batch(BaseModel):
    """Both encoders with so many frames at once, preprocessing included."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames in a batch: 1 is one camera by itself, more are filled across cameras."""
    cpu_seconds_per_frame: float
    """CPU seconds of all threads."""
    frames_per_second: float
    """Frames a second on the clock."""


class IngestBench(BaseModel):
    """Result of ingesting footage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    weights: str
    """`random`, or those of the `profile`."""
    cores: int
    """Cores of the machine."""
    load: float
    """Load average of the machine at the end (one minute)."""
    cameras: int
    """Files, one of each camera."""
    width: int
    """Width of a frame in pixels."""
    height: int
    """Height of a frame in pixels."""
    decode_mode: str
    """How the decoder reads the footage, see `ingest.decoding.decoder`."""
    frames: int
    """Frames ingested."""
    frames_per_second: float
    """Frames ingested a second."""
    realtime_factor: float
    """Seconds of footage ingested a second."""
    stages: dict[str, float]
    """Seconds by stage, as in the report of an ingest."""
    limits: list[Stage]
    """Each stage alone."""
    slowest: str
    """The stage with the most CPU seconds."""
    cameras_per_core_decoding: float
    """Cameras of a core that only decodes: demux, decode, convert and transfer."""
    cameras_per_core: float
    """Cameras of a core that does everything."""
    batches: list[Batch]
    """The encoders with one camera's frame, and with batches filled across cameras."""
    copied_bytes_per_cpu_second: float
    """Bytes read and written by copying arrays."""
    flops_per_cpu_second: float
    """Operations of a matrix product in float32."""
    peak_rss_bytes: int
    """Peak resident memory of this process."""


def bench_ingest(
    profile: str = "micro",
    *,
    minutes: float = 5.0,
    cameras: int = 1,
    full_hd: bool = False,
    gop: int = 30,
    random_weights: bool = False,
    batches: Sequence[int] = (1, 8, 32),
    device: str | None = None,
) -> IngestBench:
    """Ingest footage of cameras, then measure each stage alone. Making the footage is not timed.

    Args:
        profile: name of the profile, or the path of its TOML file.
        minutes: length of each camera's footage.
        cameras: number of cameras.
        full_hd: 1920 × 1080 at 30 frames a second, of a made camera, instead of rendered footage.
        gop: distance of intra frames in frames, with `full_hd`.
        random_weights: build the encoders from the profile's `encoder_shape` instead of loading them.
        batches: sizes of the batches of the encoders that are compared.
        device: `cpu`, `cuda`, or None to choose.

    Raises:
        UsageError: the profile has no `encoder_shape`, which `random_weights` needs, or the footage has no frame.
        ModelError: the device is not available, or the weights cannot be loaded.
    """
    encoders, threads = _encoders(profile, device, random_weights=random_weights), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(profile, encoders, minutes, cameras, gop if full_hd else None, batches, random_weights)
    finally:
        torch.set_num_threads(threads)


def _measured(
    profile: str,
    encoders: Encoders,
    minutes: float,
    cameras: int,
    gop: int | None,
    batches: Sequence[int],
    random_weights: bool,
) -> IngestBench:
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as work:
        folder = Path(work) / "footage"
        files = _footage(folder, minutes, cameras, gop)
        store = Store.create(Path(work) / "store", encoders.pair)
        report = ingest_sources([folder], store=store, encoders=encoders)
        if not report.frames:
            raise UsageError(f"--minutes {minutes}: too short, the footage has no frame")
        whole = report.frames_per_second
        with Decoding(files[0]) as decoding:
            mode, pixels = decoding.info().mode, [frame for _, frame in decoding]
        copied, multiplied = _copy_rate(), _multiply_rate()
        limits = [
            _stage(name, *took, whole, copied, multiplied)
            for name, took in _alone(files[0], pixels, encoders, max(batches), Path(work)).items()
        ]
    return IngestBench(
        profile=profile,
        weights="random" if random_weights else "profile",
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2),
        cameras=len(files),
        width=pixels[0].shape[1],
        height=pixels[0].shape[0],
        decode_mode=mode,
        frames=report.frames,
        frames_per_second=whole,
        realtime_factor=report.realtime_factor,
        stages=report.stages,
        limits=limits,
        slowest=max(limits, key=lambda each: each.cpu_seconds).stage,
        cameras_per_core_decoding=1 / sum(each.cpu_seconds for each in limits[:4]),
        cameras_per_core=1 / sum(each.cpu_seconds for each in limits),
        batches=[_batch(encoders, pixels, size) for size in batches],
        copied_bytes_per_cpu_second=copied,
        flops_per_cpu_second=multiplied,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _encoders(profile: str, device: str | None, *, random_weights: bool) -> Encoders:
    chosen = load_profile(profile)
    if not random_weights:
        return load_encoders(chosen, device)
    frame, patch = random_encoders(chosen, pick_device(device))
    clip_frames = 1 if chosen.hico is None else chosen.hico.clip_frames
    pair = EncoderPair(frame=frame.identity, patch=patch.identity, patches=patch.patches, clip_frames=clip_frames)
    return Encoders(frame, patch, pair)


def _footage(folder: Path, minutes: float, cameras: int, gop: int | None) -> list[Path]:
    """One file of each camera: rendered, or at full size if a distance of intra frames is given."""
    if gop is None:
        render(11, minutes, cameras, folder)
        return sorted(folder.glob("*.mp4"))
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as work:
        coded = Path(work) / "coded.mp4"
        seconds = max(1, min(_CODED_SECONDS, round(minutes * 60)))
        camera_footage(coded, gop=gop, frames=30 * seconds, size=_FULL_HD)
        files = [folder / f"camera-{number}.mp4" for number in range(cameras)]
        for file in files:
            repeated(coded, file, times=max(1, round(minutes * 60 / seconds)))
    return files


# ---- stages --------------------------------------------------------------------------------------------------------

_Took = tuple[float, float, int, float]
"""Of a frame: CPU seconds, seconds on the clock, bytes, operations."""


def _alone(file: Path, pixels: list[NDArray[np.uint8]], encoders: Encoders, batch: int, work: Path) -> dict[str, _Took]:
    """Each stage for the frames of one file, and the encoders with `batch` of them at once."""
    count, frame_bytes, coded = len(pixels), pixels[0].nbytes, file.stat().st_size // len(pixels)
    demuxed = _timed(lambda: _demux(file))
    plain, converted = _conversion(file)
    since, used = perf_counter(), process_time()
    with Decoding(file) as decoding:
        copied = sum(1 for _ in decoding)
    clock, ours = perf_counter() - since, process_time() - used
    theirs = decoding.process.cpu_seconds or 0.0
    decoded = max(0.0, theirs / copied - demuxed[0] / count - converted[0])
    took: dict[str, _Took] = {
        "demux": (demuxed[0] / count, demuxed[1] / count, coded, 0.0),
        "decode": (decoded, max(1e-9, clock / copied - converted[1]), coded + plain, 0.0),
        "convert": (*converted, plain + frame_bytes, 0.0),
        "transfer": (ours / copied, ours / copied, 4 * frame_bytes, 0.0),
    }
    some, n = [pixels[row] for row in np.resize(np.arange(count), batch)], batch
    towers: tuple[Any, Any] = (encoders.frame, encoders.patch)
    prepared = _timed(lambda: [each.preprocessing(some, pick_device()) for each in towers])
    clips = np.arange(n) // encoders.pair.clip_frames
    flops = _flops(encoders, some[: encoders.pair.clip_frames])
    encoded = _timed(lambda: embed(encoders, some, clips), warm=False)  # counting the operations was the first run
    took["preprocess"] = (prepared[0] / n, prepared[1] / n, 2 * frame_bytes, 0.0)
    took["encode"] = (
        max(1e-9, (encoded[0] - prepared[0]) / n),
        max(1e-9, (encoded[1] - prepared[1]) / n),
        0,
        flops,
    )
    drawn = _timed(lambda: [picture(frame) for frame in pixels])
    took["pictures"] = (drawn[0] / count, drawn[1] / count, frame_bytes, 0.0)
    took["write"] = _written(encoders, some[: encoders.pair.clip_frames], work / "written")
    return took


def _flops(encoders: Encoders, pixels: list[NDArray[np.uint8]]) -> float:
    """Operations of the matrix products for one frame, counted while the encoders run on those of a clip."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation is not counted
    try:
        with FlopCounterMode(display=False) as counter:
            embed(encoders, pixels, np.zeros(len(pixels), np.int64))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops()) / len(pixels)


def _stage(
    name: str,
    cpu: float,
    clock: float,
    size: int,
    flops: float,
    whole: float,
    copied: float,
    multiplied: float,
) -> Stage:
    return Stage(
        stage=name,
        cpu_seconds=cpu,
        bytes=size,
        flops=flops,
        least_cpu_seconds=max(size / copied, flops / multiplied),
        cameras_per_core=1 / max(cpu, 1e-9),
        frames_per_second=1 / max(clock, 1e-9),
        whole_to_stage=whole * clock,
    )


def _timed(run: Callable[[], object], *, warm: bool = True) -> tuple[float, float]:
    """CPU seconds of this process and seconds on the clock; of the second of two runs with `warm`."""
    if warm:
        run()
    since, used = perf_counter(), process_time()
    run()
    return process_time() - used, perf_counter() - since


def _demux(file: Path) -> int:
    with file.open("rb") as source:
        return sum(1 for _ in Demuxer.open(source.fileno()).packets())


def _conversion(file: Path) -> tuple[int, tuple[float, float]]:
    """Bytes of a decoded frame before its conversion to RGB, and CPU seconds and seconds of converting it."""
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
        reformatter, times = VideoReformatter(), 10
        size = sum(plane.buffer_size for plane in frame.planes)
        cpu, clock = _timed(lambda: [reformatter.reformat(frame, format="rgb24") for _ in range(times)])
    return size, (cpu / times, clock / times)


def _written(encoders: Encoders, pixels: list[NDArray[np.uint8]], place: Path) -> _Took:
    """Appending encoded frames to a store, a minute of a camera at once."""
    frames = 60
    at = [_BEGAN + i * _SECOND for i in range(len(pixels))]
    batch = FrameBatch(at, [float(i) for i in range(len(pixels))], list(pixels))
    (some,) = encode_records(encoders, [("camera", "given", batch)], batch_frames=len(pixels))
    chosen = np.resize(np.arange(len(some)), frames)

    def records(minute: int) -> FrameRecords:
        """The same frames again and again, with the times of a minute."""
        start = _BEGAN + minute * frames * _SECOND
        return FrameRecords(
            stream_id="camera",
            clock_source="given",
            captured_at=start + np.arange(frames, dtype=np.int64) * _SECOND,
            pts_seconds=np.arange(frames, dtype=np.float64),
            frame_vectors=some.frame_vectors[chosen],
            patch_pooled=some.patch_pooled[chosen],
            patches=some.patches[chosen],
            pictures=[some.pictures[row] for row in chosen],
        )

    store = Store.create(place, encoders.pair)
    took = []
    for minute in range(3):
        rows = records(minute)
        segment = covering_segment(rows, source="bench", chunk=minute)
        since, used = perf_counter(), process_time()
        store.append(segment, rows)
        took.append((process_time() - used, perf_counter() - since))
    size = sum(file.stat().st_size for file in place.rglob("*.parquet")) // (3 * frames)
    cpu, clock = (float(np.median([each[i] for each in took])) / frames for i in range(2))
    return cpu, clock, 2 * size, 0.0


def _batch(encoders: Encoders, pixels: list[NDArray[np.uint8]], size: int) -> Batch:
    rows = np.resize(np.arange(len(pixels)), size)
    frames, clips = [pixels[row] for row in rows], np.arange(size) // encoders.pair.clip_frames
    since, used = perf_counter(), process_time()
    embed(encoders, frames, clips)
    return Batch(
        frames=size,
        cpu_seconds_per_frame=(process_time() - used) / size,
        frames_per_second=size / (perf_counter() - since),
    )


def _copy_rate() -> float:
    """Bytes read and written in a CPU second of copying."""
    source, target = np.ones(_COPIED_BYTES, np.uint8), np.empty(_COPIED_BYTES, np.uint8)

    def copy() -> None:
        """Copy four times."""
        for _ in range(4):
            target[:] = source

    return 2 * 4 * _COPIED_BYTES / max(_timed(copy)[0], 1e-9)


def _multiply_rate() -> float:
    """Operations in a CPU second of a matrix product in float32."""
    matrix = torch.ones(_MATRIX, _MATRIX)
    cpu, _ = _timed(lambda: [matrix @ matrix for _ in range(4)])
    return 2 * 4 * _MATRIX**3 / max(cpu, 1e-9)
