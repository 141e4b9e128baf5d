"""Decoding on a real GPU: the pictures agree with software, and what it cannot decode falls back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.errors import SourceUnsupported
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from tests.support.footage import make_video

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("gop", [10, 250])
def test_pictures_agree_with_software(tmp_path: Path, gop: int) -> None:
    path = tmp_path / "v.mp4"
    make_video(path, seconds=5, size=(640, 360), gop=gop)
    with Decoding(path, limits=DecodeLimits(decoder="gpu-only", require_sandbox=True)) as decoding:
        assert decoding.info().gpu
        on_gpu = list(decoding)
    with Decoding(path) as decoding:
        software = list(decoding)
    assert [pts for pts, _ in on_gpu] == [pts for pts, _ in software]
    for (_, one), (_, other) in zip(on_gpu, software, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 1


def test_a_stream_that_the_gpu_cannot_decode_falls_back(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    make_video(path, seconds=2, size=(640, 360), pixel_format="yuv444p")  # no NVDEC decodes H.264 in 4:4:4
    with Decoding(path, limits=DecodeLimits(decoder="gpu")) as decoding:
        assert "yuv444p" in decoding.info().gpu_problem
        assert len(list(decoding)) == 2
    with (
        Decoding(path, limits=DecodeLimits(decoder="gpu-only")) as decoding,
        pytest.raises(SourceUnsupported, match="cannot decode this h264"),
    ):
        decoding.info()
