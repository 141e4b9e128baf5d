"""Counted questions against published numbers and against what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionConfig, SiglipVisionModel

from index.errors import UsageError
from model.profiles.profile import (
    ConnectorSpec,
    DroppingSpec,
    EncoderShape,
    HicoSpec,
    ModelShape,
    PatchEncoderSpec,
    Profile,
    Source,
    load_profile,
)
from pipeline.bench.cost import Tower, linear_products, merge_tokens, vision
from pipeline.bench.counted import question
from pipeline.bench.counted.question import count_questions
from tests.support.command import Command


def test_table_5_of_vilamp_is_reproduced() -> None:
    rows = count_questions("vilamp", [64, 256, 1024, 8192]).rows
    for row in rows:
        assert row.table5 is not None
        assert row.table5_count == pytest.approx(row.table5, rel=0.002)
    assert [row.visual_tokens for row in rows] == [32 * 196 + n - 32 + 1 for n in (64, 256, 1024, 8192)]
    last = rows[-1]
    assert last.ingest["vision"].flops == pytest.approx(5257e12, rel=0.001)  # 26 layers of SigLIP, attention included
    assert last.question["prefill"].flops == pytest.approx((189.5 + 42.3) * 1e12, rel=0.005)  # weights, attention
    assert last.stored_bytes == 8192 * 729 * 1152 * 2
    assert last.cache_bytes == last.prompt_tokens * 28 * 2 * 512 * 2


def _flash(size: int = 448) -> Profile:
    """VideoChat-Flash at 7B: Qwen2-7B, UMT-L over clips of four frames."""
    vilamp = load_profile("vilamp")
    assert vilamp.shape is not None
    encoder = EncoderShape(
        frame="ViT-B-32", image_size=size, patch_size=16, width=1024, layers=23, heads=16, feed_forward=4096
    )
    return vilamp.model_copy(
        update={
            "name": "videochat_flash",
            "hico": HicoSpec(),
            "patch_encoder": PatchEncoderSpec(name="umt", kind="umt", source=Source(folder="umt")),
            "connector": ConnectorSpec(source=Source(folder="flash")),
            "shape": ModelShape.model_validate({**vilamp.shape.model_dump(), "patches": 16, "patch_dim": 1024}),
            "encoder_shape": encoder,
        }
    )


def test_clips_have_16_tokens_a_frame_and_dropping_saves_39_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "load_profile", lambda _: _flash(224))
    got = count_questions("videochat_flash", [64, 9_999, 10_000])
    assert got.reads == "clips"
    short, cut, whole = got.rows
    assert (short.visual_tokens, whole.visual_tokens, whole.stored_bytes) == (1024, 160_000, 327_680_000)
    assert cut.ingest == whole.ingest  # the last clip is padded
    # a clip: 784 tokens, 23 layers, the convolution, all pairs of tokens
    clip = 784 * (23 * 12 * 1024**2 + 768 * 1024) * 2 + 4 * 784**2 * 1024 * 23
    assert short.ingest["vision"].flops == 16 * clip
    assert (short.table5, whole.table5) == (29.6, None)
    dropped = whole.dropped
    assert dropped is not None
    assert dropped.visual_tokens_saved == pytest.approx(0.393, abs=0.0005)
    assert dropped.cache_bytes / whole.cache_bytes == pytest.approx(0.607, abs=0.001)
    assert 0.4 < dropped.prefill.flops / whole.question["prefill"].flops < 0.607
    assert dropped.prefill.bytes < whole.question["prefill"].bytes


def test_a_profile_with_dropping_is_counted_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    flash = _flash()
    own = DroppingSpec(layers=(14,), ratios=(1, 0.5), kind="uniform")
    spec = flash.language_model.model_copy(update={"dropping": own})
    monkeypatch.setattr(question, "load_profile", lambda _: flash.model_copy(update={"language_model": spec}))
    (row,) = count_questions("own", [400]).rows
    assert row.dropped is not None
    assert (row.dropped.layers, row.dropped.visual_tokens_saved) == ((14,), 0.25)


def test_a_tower_has_the_products_that_torch_counts() -> None:
    config = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    model = SiglipVisionModel(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=torch.randn(1, 3, 32, 32))
    tower = Tower(tokens=16, patch_values=3 * 64, width=24, layers=3, feed_forward=40)
    assert counter.get_total_flops() == vision(tower, 4).products
    assert vision(tower, 4).products == 2 * linear_products(tower) + 3 * 4 * 16 * 16 * 24


@pytest.mark.parametrize(
    ("tokens", "rounds"),
    [(784, [(392, 392), (196, 196), (98, 98), (49, 49)]), (196, [(98, 98), (49, 49)]), (65, [(33, 32)]), (64, [])],
)
def test_rounds_of_merging(tokens: int, rounds: list[tuple[int, int]]) -> None:
    expected = sum(2 * 64 * even * odd for even, odd in rounds)
    assert merge_tokens(tokens, 64, 1024, 64).products == expected


def test_a_profile_with_few_layers_has_no_dropping_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_profile("micro").model_copy(update={"encoder_shape": load_profile("vilamp").encoder_shape})
    monkeypatch.setattr(question, "load_profile", lambda _: small)
    assert count_questions("micro", [64]).rows[0].dropped is None


@pytest.mark.parametrize("frames", [[], [0]])
def test_sizes_that_are_invalid(frames: list[int]) -> None:
    with pytest.raises(UsageError, match="number of frames"):
        count_questions("micro", frames)


def test_a_profile_without_sizes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"micro has no \[shape\] or no \[encoder_shape\] section"):
        count_questions("micro")


def test_the_command_counts_without_weights(sightline: Command) -> None:
    result = sightline("bench", "model", "--profile", "vilamp", "--counted", "--frames", "64,10000")
    assert result.code == 0, result.err
    assert (result.data["profile"], result.data["reads"]) == ("vilamp", "frames")
    assert [row["visual_tokens"] for row in result.data["rows"]] == [6305, 16241]
