from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index.errors import UsageError, WeightsInvalid
from model.encoders.encoder import Encoders
from model.profiles.profile import HicoSpec, Profile
from model.visual.connector import Connector
from model.visual.dfm import merge_mean
from model.visual.hico import HicoVisual, duration_sentence
from model.visual.interface import Frames, PromptPart
from model.visual.tokens import build_visual

SECOND = 1_000_000
BEGAN = 1_709_280_420 * SECOND
M, DP, WIDTH = 2, 3, 5


class _TextTower:
    patches = M

    def encode_text(self, texts: list[str]) -> NDArray[np.float32]:
        return np.ones((len(texts), DP), np.float32)


class _NoTextTower:
    patches = M

    def encode_text(self, texts: list[str]) -> NDArray[np.float32]:
        raise UsageError("no text tower")


def _visual(connector: Connector, tower: Any = _NoTextTower, **spec: Any) -> HicoVisual:
    return HicoVisual(HicoSpec(**spec), cast("Encoders", SimpleNamespace(patch=tower())), connector)


def _frames(times: list[int], streams: list[int], chunk: int, **more: Any) -> tuple[Frames, torch.Tensor]:
    stored = torch.randn(len(times), M, DP, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []

    def read(rows: slice) -> torch.Tensor:
        sizes.append(rows.stop - rows.start)
        assert sizes[-1] <= chunk
        return stored[rows]

    frames = Frames(
        keyframe=np.zeros(len(times), bool),
        stream_index=np.array(streams, np.int32),
        captured_at=BEGAN + np.array(times, np.int64) * SECOND,
        read=read,
        chunk=chunk,
        **more,
    )
    return frames, stored


def _clock(at: int) -> torch.Tensor:
    return torch.full((1, WIDTH), (at - BEGAN) / SECOND)


TIMES, STREAMS = [2, 3, 4, 5, 6, 7, 8, 30, 30, 31], [0] * 8 + [1] * 2
CLIPS = [[0, 1], [2, 3, 4, 5], [6], [7], [8, 9]]


@pytest.mark.parametrize("chunk", [1, 3, 4, 64])
@pytest.mark.parametrize("relevance", [False, True])
def test_each_clip_follows_its_capture_time(chunk: int, relevance: bool) -> None:
    torch.manual_seed(1)
    connector = Connector(DP, WIDTH, relevance=relevance)
    if connector.relevance is not None:
        torch.nn.init.normal_(connector.relevance)
    visual = _visual(connector, _TextTower if relevance else _NoTextTower)
    frames, stored = _frames(TIMES, STREAMS, chunk)
    query = visual.query("what?")
    assert len(query) == (DP if relevance else 0)
    expected, flags = [], []
    for clip in CLIPS:
        expected.append(_clock(int(frames.captured_at[clip[0]])))
        flags += [False]
        for row in clip:
            expected.append(connector.tokens(stored[row], query, keyframe=True))
            flags += [True] * M
    got = list(visual.embeddings(frames, query, _clock))
    torch.testing.assert_close(torch.cat([part.embeddings for part in got]), torch.cat(expected))
    assert [part.visual for part in got for _ in part.embeddings] == flags
    assert len(flags) <= visual.count(3, 10) + visual.count_times(3, 10)
    plain = torch.cat([part.embeddings for part in visual.embeddings(frames, query, None)])
    torch.testing.assert_close(plain, connector.tokens(stored, query, keyframe=True).flatten(0, 1))
    assert len(plain) == visual.count(3, 10) == 10 * M


def test_clips_that_are_given_take_the_place_of_the_stores() -> None:
    frames, _ = _frames(TIMES[:6], STREAMS[:6], 64, clips=np.array([0, 0, 0, 0, 1, 1]))
    parts: list[PromptPart] = list(_visual(Connector(DP, WIDTH)).embeddings(frames, torch.zeros(0), _clock))
    assert [len(part.embeddings) for part in parts] == [1, 4 * M, 1, 2 * M]
    assert [float(part.embeddings[0, 0]) for part in parts if not part.visual] == [2.0, 6.0]


def test_a_window_without_frames_has_no_tokens() -> None:
    visual = _visual(Connector(DP, WIDTH))
    frames, _ = _frames([], [], 4)
    assert list(visual.embeddings(frames, torch.zeros(0), _clock)) == []
    assert (visual.count(0, 0), visual.preface(0.0, 0)) == (0, "")


def test_the_duration_is_said_as_in_the_published_prompt() -> None:
    expected = "The video lasts for 63.90 seconds, and 64 frames are uniformly sampled from it."
    assert duration_sentence(63.9, 64) == expected
    assert _visual(Connector(DP, WIDTH)).preface(63.9, 64) == expected
    assert _visual(Connector(DP, WIDTH), duration_sentence=False).preface(63.9, 64) == ""


@pytest.mark.parametrize(("room", "clock", "most"), [(100, 0, 50), (101, 0, 50), (100, 3, 20), (-5, 3, 0)])
def test_the_most_frames_fit_whatever_the_clips_are(room: int, clock: int, most: int) -> None:
    visual = _visual(Connector(DP, WIDTH))
    assert visual.most_frames(room, 90, clock) == most
    assert visual.count(0, most) + clock * visual.count_times(0, most) <= max(0, room)


def test_a_profile_with_clips_has_no_other_merge(profile: Profile) -> None:
    clips = profile.model_copy(update={"hico": HicoSpec()})
    encoders = cast("Encoders", SimpleNamespace(patch=_NoTextTower()))
    assert isinstance(build_visual(clips, encoders, Connector(DP, WIDTH)), HicoVisual)
    with pytest.raises(UsageError, match="tiny profile reads clips"):
        build_visual(clips, encoders, Connector(DP, WIDTH), merge_mean)
    with pytest.raises(WeightsInvalid, match="hico or two_stream"):
        build_visual(clips, encoders, cast("Any", object()))
