"""Questions with a profile that reads clips: from a store, through a model service, and from footage read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.store import Store
from ingest.decoding.sandbox import Decoding
from ingest.file_ingest import ingest_sources
from model.encoders.clips import clip_numbers
from model.encoders.encoder import load_encoders
from model.profiles.profile import HicoSpec, load_profile
from pipeline.evaluation.rendered import HICO_VARIANTS, evaluate
from pipeline.evaluation.table import table
from pipeline.media.footage import FootageFinder, RecordedFootage
from pipeline.media.stretch import read_stretch
from pipeline.questions.asker import Asker
from pipeline.questions.short_windows import ReadAgain, read_again
from pipeline.service.client import ServiceClient
from pipeline.service.store_frames import make_service
from tests.support.command import BEGAN, Command
from tests.support.model_service import served
from tests.support.played import record_segments

QUESTION = "what colour was the truck at the gate ?"
OPTIONS = ["red", "blue", "green"]
SECOND = 1_000_000
START = round(BEGAN.timestamp()) * SECOND
M = 2  # tokens of a frame


def _window(first: int, last: int) -> dict[str, Any]:
    """Seconds `first` to `last` of the stream `front`."""
    return {"streams": ["front"], "start": START + first * SECOND, "end": START + last * SECOND}


@pytest.fixture(scope="module")
def clips(footage: Path, clip_profile: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of 24 seconds of `front` and 12 of `back`, written by the clip encoder."""
    encoders = load_encoders(load_profile(clip_profile), "cpu")
    store = Store.create(tmp_path_factory.mktemp("clips") / "store", encoders.pair)
    ingest_sources([footage], store=store, encoders=encoders, segment_seconds=20)
    return store.url


@pytest.fixture(scope="module")
def asker(clips: str, clip_profile: str) -> Asker:
    return Asker(clips, clip_profile, "cpu", footage=FootageFinder(Store.open(clips)))


@pytest.fixture(scope="module")
def client(clips: str, clip_profile: str) -> Iterator[ServiceClient]:
    service = make_service(clips, clip_profile, "cpu", token=None)
    with served(service) as url, ServiceClient(url) as opened:
        yield opened


def test_the_command_reads_whole_clips(sightline: Command, clips: str, clip_profile: str) -> None:
    at = ("--store", clips, "--profile", clip_profile)
    got = sightline("ask", QUESTION, *at, "--option", "red", "--option", "blue", "--json").data
    assert (got["window_frames"], got["frames"], got["visual_tokens"]) == (36, 16, 16 * M)
    assert got["option"] in ("red", "blue")
    assert any("36 frames, of which 16 were read, whole clips" in notice for notice in got["notices"])
    assert 0 < len(got["keyframes"]) <= 32
    whole = sightline("ask", QUESTION, *at, "--max-frames", "40", "--json").data
    assert (whole["frames"], whole["visual_tokens"]) == (36, 36 * M)
    refused = sightline("ask", QUESTION, *at, "--max-frames", "3")
    assert (refused.code, "less than one clip of 4 frames" in refused.err) == (2, True)


def test_a_model_service_gives_the_same_answers(asker: Asker, client: ServiceClient, clips: str) -> None:
    remote = Asker(clips, service=client)
    assert remote.profile.hico == asker.profile.hico
    for where in ({}, {"streams": ["back"]}, {"max_frames": 9}):
        here, there = (each.ask(QUESTION, options=OPTIONS, **where) for each in (asker, remote))
        assert (here.frames, here.visual_tokens, here.keyframes) == (there.frames, there.visual_tokens, there.keyframes)
        np.testing.assert_allclose([*here.probabilities.values()], [*there.probabilities.values()], atol=1e-5)


def test_a_short_window_is_read_from_its_footage_again(asker: Asker) -> None:
    asked = asker.ask(QUESTION, options=OPTIONS, **_window(2, 6))
    assert (asked.window_frames, asked.frames, asked.visual_tokens) == (4, 8, 8 * M)
    assert any("footage was read again: 8 frames" in notice for notice in asked.notices)
    stored = asker.ask(QUESTION, options=OPTIONS, max_frames=100, **_window(2, 6))
    assert (stored.frames, stored.visual_tokens) == (4, 4 * M)
    both = asker.ask(QUESTION, start=START + 57 * SECOND, end=START + 61 * SECOND)
    assert (both.window_frames, both.frames) == (1, 4)  # five frames in that second: one whole clip


def test_without_footage_the_answer_says_why_the_store_was_read(
    clips: str, clip_profile: str, client: ServiceClient
) -> None:
    alone = Asker(clips, clip_profile, "cpu").ask(QUESTION, **_window(2, 6))
    nowhere = Asker(clips, clip_profile, "cpu", footage=FootageFinder(Store.open(clips), roots=[]))
    away = nowhere.ask(QUESTION, **_window(2, 6))
    remote = Asker(clips, service=client).ask(QUESTION, **_window(2, 6))
    reasons = ("no footage was given", "footage of front is not at hand", "a model service reads the store alone")
    for asked, reason in zip((alone, away, remote), reasons, strict=True):
        assert asked.frames == 4
        assert any(reason in notice for notice in asked.notices), asked.notices


def test_what_was_forgotten_is_not_read_from_footage(asker: Asker) -> None:
    window = asker.store.window(["front"], START + 2 * SECOND, START + 8 * SECOND)
    left = window.take(np.flatnonzero(window.captured_at != START + 4 * SECOND))
    assert (asker.footage is not None, asker.profile.hico is not None) == (True, True)
    spec = HicoSpec(clip_tokens=8, head_width=12, min_frames=24, max_frames=64)
    again = read_again(FootageFinder(asker.store), left, asker.encoders, spec)
    assert isinstance(again, ReadAgain)
    seconds = np.unique((again.captured_at - START) // SECOND, return_counts=True)
    assert (seconds[0].tolist(), seconds[1].tolist()) == ([2, 3, 5, 6, 7], [3, 3, 4, 3, 3])  # of five a second
    assert np.bincount(again.clips).tolist() == [4] * 4
    assert again.patches.shape == (16, M, 24)


def _all_frames(path: Path) -> tuple[NDArray[np.float64], list[NDArray[np.uint8]]]:
    with Decoding(path, fps=1000) as decoding:
        found = list(decoding)
    return np.array([pts for pts, _ in found]), [pixels for _, pixels in found]


@pytest.mark.parametrize(("first", "last", "count"), [(0.0, 4.0, 8), (2.3, 5.1, 6), (3.0, 7.0, 20), (3.0, 5.0, 64)])
@pytest.mark.parametrize("recorded", [False, True])
def test_frames_are_the_first_after_the_middles(
    footage: Path, clips: str, tmp_path: Path, first: float, last: float, count: int, recorded: bool
) -> None:
    times, pixels = _all_frames(footage / "front.mp4")
    start, end = START + round(first * SECOND), START + round(last * SECOND)
    if recorded:
        place = record_segments(tmp_path, footage / "front.mp4", "front", 10, began=START)
        found = FootageFinder(Store.open(clips), [place]).find("front", start, end)
        assert isinstance(found, RecordedFootage)
    else:
        found = FootageFinder(Store.open(clips)).find("front", start, end)
        assert found is not None
    got, pictures = read_stretch(found, start, end, count)
    step = (last - first) / count
    rows = [int(np.flatnonzero(times - times[0] >= first + (i + 0.5) * step - 1e-4)[0]) for i in range(count)]
    expected = sorted({row for row in rows if times[row] - times[0] < last})
    np.testing.assert_allclose(got, START + (times[expected] - times[0]) * SECOND, atol=2)
    for row, picture in zip(expected, pictures, strict=True):
        assert np.abs(pixels[row].astype(int) - picture).mean() < 8  # a recording is encoded once more


def test_stored_clips_are_those_that_questions_count(asker: Asker) -> None:
    window = asker.store.window(["front"], None, None)
    numbers = clip_numbers(window.captured_at, window.stream_index)
    assert np.bincount(numbers).tolist() == [4] * 6
    patches = asker.store.patches(window)
    assert patches.shape == (24, M, 24)
    assert len(np.unique(patches.reshape(24, -1), axis=0)) == 24


def test_such_a_profile_is_evaluated(clip_profile: str, tmp_path: Path) -> None:
    result = evaluate(tmp_path, profile=clip_profile, seeds=[7], minutes=1, cameras=1, each=1, more_k=())
    assert result.variants == list(HICO_VARIANTS)
    assert result.accuracy["hico"]["all"].total == result.accuracy["blind"]["all"].total == result.questions > 0
    assert "| clips (as shipped) |" in table(result)
