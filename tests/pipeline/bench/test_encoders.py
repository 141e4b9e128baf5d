"""The benchmark of the encoders."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.errors import UsageError
from pipeline.bench.encoders import bench_encoders

SHAPE = """
[encoder_shape]
frame = "ViT-S-32-alt"
image_size = 64
patch_size = 16
width = 32
layers = 3
heads = 2
feed_forward = 48
"""


def test_both_encoders_of_a_profile(profile: str) -> None:
    report = bench_encoders(profile, frames=3, device="cpu", repeats=1)
    assert [row.encoder for row in report.rows] == ["frame", "patch"]
    for row in report.rows:
        assert row.preprocessing_seconds > 0
        assert row.frames_per_second == pytest.approx(3 / row.seconds)
        assert row.flops_fraction is None


def test_random_weights_count_what_a_vision_transformer_does(profile: str) -> None:
    path = Path(profile).with_name("shaped.toml")
    path.write_text(Path(profile).read_text() + SHAPE)
    clip, siglip = bench_encoders(str(path), frames=2, random_weights=True, device="cpu", repeats=1).rows
    tokens, width = 16, 32  # no class token; the pooling head attends once more
    layer = 2 * tokens * (4 * width**2 + 2 * width * 48) + 4 * tokens**2 * width
    embedding = 2 * tokens * 3 * 16**2 * width
    head = 2 * (2 * tokens * width**2 + 2 * width**2 + 2 * width * 48) + 4 * tokens * width
    assert siglip.flops_a_frame == pytest.approx(3 * layer + embedding + head, rel=0.02)
    assert clip.parameters > 20_000_000
    tokens, width = 50, 384  # 49 patches and the class token
    layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    assert clip.flops_a_frame == pytest.approx(12 * layer + 2 * 49 * 3 * 32**2 * width, rel=0.02)


def test_random_weights_need_sizes(profile: str) -> None:
    with pytest.raises(UsageError, match="encoder_shape"):
        bench_encoders(profile, random_weights=True, device="cpu")


@pytest.mark.parametrize("kind", ["siglip", "umt"])
def test_clips_are_encoded_together(profile: str, kind: str) -> None:
    path = Path(profile).with_name(f"clips-{kind}.toml")
    named = Path(profile).read_text().replace('name = "tiny-siglip"', f'name = "tiny-siglip", kind = "{kind}"')
    path.write_text(named + SHAPE + "[hico]\nclip_tokens = 16\nhead_width = 16\n")
    report = bench_encoders(str(path), frames=8, random_weights=True, device="cpu", repeats=1)
    frame, patch = report.rows
    assert (frame.clip_frames, patch.clip_frames) == (1, 4)
    together, width = (64 if kind == "umt" else 16), 32  # tokens that attend to each other
    layer = 2 * 16 * (4 * width**2 + 2 * width * 48) + 4 * 16 * together * width  # of one frame's tokens
    merging = 2 * (32 * 32 + 16 * 16) * 16 / 4  # similarities of 64 → 32 → 16 tokens a clip
    head = 2 * (2 * 16 * width**2 + 2 * width**2 + 2 * width * 48) + 4 * 16 * width if kind == "siglip" else 0
    expected = 3 * layer + 2 * 16 * 3 * 16**2 * width + merging + head
    assert patch.flops_a_frame == pytest.approx(expected, rel=0.01)
