"""The model benchmark at small sizes: operations and bytes are right; no duration is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from index.errors import UsageError
from model.profiles.profile import DroppingSpec, HicoSpec, ModelShape, Profile, load_profile
from model.visual.dfm import merge
from model.visual.dfm_learned import Composer, LearnedMerger, projector_mlp
from pipeline.bench.cost import Counts, learned_dfm, paper_dfm, peak_of, prefill, two_mlps
from pipeline.bench.model import bench_model, random_model
from tests.support.command import Command

SHAPE = ModelShape(
    patches=16,
    patch_dim=12,
    query_dim=10,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    feed_forward=48,
    vocabulary=50,
    tied=False,
    positions=512,
)


def _tiny(name: str) -> Profile:
    return load_profile(name).model_copy(update={"shape": SHAPE, "k": 3})


@pytest.mark.parametrize("stored", [False, True])
def test_the_learned_mergers_products_are_what_torch_counts(stored: bool) -> None:
    counts = Counts(merged=9, before=2, keyframes=2, keyframe_tokens=4)
    merger = LearnedMerger(projector_mlp(12, 32), Composer(10, 32), keyframe_tokens=4)
    keyframe = np.isin(np.arange(11), [2, 6])
    patches = torch.randn(11, 16, 12)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        norms = (lambda rows: torch.ones(rows.stop - rows.start, 16, 2)) if stored else None
        list(merger.tokens(lambda rows: patches[rows], keyframe, np.zeros(11, int), torch.randn(10), read_norms=norms))
    dfm, tokens = learned_dfm(SHAPE, counts, 4, stored=stored)
    vectors = 2 * (9 * 16 * 32 + 32 * 32 + 32)  # relevance and the question's direction: torch counts matrices only
    assert counter.get_total_flops() == dfm.products + tokens.products - vectors


def test_the_papers_products_are_what_torch_counts() -> None:
    patches = torch.randn(9, 16, 12)
    with FlopCounterMode(display=False) as counter:
        merge(patches, torch.randn(16, 12), torch.randn(12))
    counts = Counts(merged=9, before=0, keyframes=0, keyframe_tokens=16)
    assert counter.get_total_flops() == paper_dfm(SHAPE, counts).products


def test_the_projectors_products_are_what_torch_counts() -> None:
    mlp = projector_mlp(12, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mlp(torch.randn(2, 16, 12))
        mlp(torch.randn(9, 12))
    counts = Counts(merged=9, before=0, keyframes=2, keyframe_tokens=16)
    assert counter.get_total_flops() == two_mlps(SHAPE, counts, 4).products


def test_the_prefills_products_are_what_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.language.transformers_engine.PREFILL_TOKENS", 7)
    _, language = random_model(_tiny("vilamp"), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        language.prefill(torch.randn(20, 32), room=1)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(flops for op, flops in counted.items() if "attention" not in op)
    attention = 2 * 2 * 2 * 32 * 20 * 21 // 2  # layers, two products, FLOPs of one, width, causal pairs
    rotary = 2 * 3 * 7  # positions times frequencies is a product of width one; four of eight
    assert linear == pytest.approx(prefill(SHAPE, 20, 7, 4).products - attention, rel=0.001, abs=rotary * 8)


def test_a_7b_model_and_its_merger_build_without_memory() -> None:
    visual, language = random_model(load_profile("vilamp"), torch.device("meta"))
    parameters = sum(p.numel() for p in language.model.parameters())
    assert parameters == 7_615_616_512
    assert language.model.model.layers[27].mlp.down_proj.weight.shape == (3584, 18944)
    assert (visual.keyframe_tokens, visual.closing_tokens) == (196, 1)
    assert all(p.device.type == "meta" for p in language.model.parameters())


def test_edge_builds_without_memory() -> None:
    visual, language = random_model(load_profile("edge"), torch.device("meta"))
    assert language.model.lm_head.weight is language.model.model.embed_tokens.weight
    assert (visual.keyframe_tokens, visual.closing_tokens) == (196, 1)


@pytest.mark.parametrize("name", ["micro", "vilamp", "edge"])
def test_every_stage_of_every_size_is_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = _tiny(name)
    dfm = profile.dfm.model_copy(update={"keyframe_tokens": 4})
    small = profile.language_model.model_copy(update={"max_context": 200})
    monkeypatch.setattr(
        "pipeline.bench.model.load_profile",
        lambda _: profile.model_copy(update={"dfm": dfm, "language_model": small}),
    )
    got = bench_model(name, [1, 40, 500], random_weights=True, device="cpu", repeats=1)
    assert (got.device_kind, got.weights, got.dtype, got.peak_flops) == ("CPU", "random", "float32", None)
    one, forty, refused = got.rows
    assert refused.refused is not None
    assert "do not fit into 200" in refused.refused
    assert (one.keyframes, forty.keyframes) == (1, 3)
    assert forty.visual_tokens == 3 * 4 + 37 + int(dfm.image_newline)
    assert forty.patch_bytes == 2 * 40 * 16 * 12 == forty.stages["patch_load"].bytes
    for row in (one, forty):
        assert set(row.stages) == {"patch_load", "dfm", "projector", "prefill"}
        assert row.first_token_seconds is not None
        assert row.flops == sum(stage.flops for stage in row.stages.values()) > 0
        assert row.peak_memory_bytes is not None
    assert all(stage.seconds > 0 and stage.flops_fraction is None for stage in forty.stages.values())


def test_stored_lengths_leave_the_first_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = _tiny("vilamp")
    monkeypatch.setattr("pipeline.bench.model.load_profile", lambda _: profile)
    computed, stored = (
        bench_model("vilamp", [40], random_weights=True, stored_lengths=flag, device="cpu", repeats=1).rows[0]
        for flag in (False, True)
    )
    assert stored.stages["dfm"].flops < computed.stages["dfm"].flops
    assert stored.stages["prefill"].flops == computed.stages["prefill"].flops


def test_only_the_learned_merger_has_lengths_to_store() -> None:
    with pytest.raises(UsageError, match="stored-lengths"):
        bench_model("micro", [4], random_weights=True, stored_lengths=True)


def test_the_shipped_weights_can_be_measured_too() -> None:
    got = bench_model("micro", [8], device="cpu", repeats=1)
    assert got.weights == "profile"
    assert got.rows[0].visual_tokens == 8 * 36


def test_the_command_speaks_json(sightline: Command) -> None:
    result = sightline("bench", "model", "--random-weights", "--frames", "4,12", "--repeats", "1")
    assert result.code == 0, result.err
    assert [row["frames"] for row in result.data["rows"]] == [4, 12]
    assert result.data["profile"] == "micro"


def test_sizes_that_are_no_numbers_are_wrong_usage(sightline: Command) -> None:
    result = sightline("bench", "model", "--random-weights", "--frames", "4,many")
    assert (result.code, result.out) == (2, "")
    assert "--frames 4,many" in result.err


@pytest.mark.parametrize("frames", [[], [0], [-3, 4]])
def test_invalid_sizes_are_refused(frames: list[int]) -> None:
    with pytest.raises(UsageError, match="number of frames"):
        bench_model("micro", frames, random_weights=True)


def test_a_disk_that_is_too_small_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2**30 + 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UsageError, match="TMPDIR"):
        bench_model("micro", [64], random_weights=True, device="cpu")


def test_devices_are_known_by_their_drivers_name() -> None:
    assert peak_of("NVIDIA H200") != peak_of("NVIDIA H100 80GB HBM3")
    assert peak_of("NVIDIA L4") != peak_of("NVIDIA L40S")
    assert peak_of("CPU, 2 threads") is None


def _hico(**dropping: object) -> Profile:
    """Micro with a hico section: what a store holds of a frame are 4 tokens, 16 of a clip."""
    micro = _tiny("micro")
    spec = DroppingSpec.model_validate({"layers": [1], "ratios": [1, 0.5], **dropping})
    return micro.model_copy(
        update={
            "shape": SHAPE.model_copy(update={"patches": 4}),
            "hico": HicoSpec(clip_tokens=16, head_width=12),
            "language_model": micro.language_model.model_copy(update={"dropping": spec, "max_context": 400}),
        }
    )


@pytest.mark.parametrize("kind", ["uniform", "attention"])
def test_a_prefill_with_dropping_has_the_products_that_torch_counts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.language.transformers_engine.PREFILL_TOKENS", 7)
    profile = _hico(kind=kind)
    _, language = random_model(profile, torch.device("cpu"))
    visual = torch.arange(40) < 30
    with FlopCounterMode(display=False) as counter:
        language.prefill(torch.randn(40, 32), room=1, visual=visual)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(flops for op, flops in counted.items() if "attention" not in op)
    attention = 2 * 2 * 32 * (40 * 41 // 2 + 25 * 26 // 2)  # the second layer reads 25 tokens
    expected = prefill(SHAPE, [40, 25], 7, 4, attended=[1] if kind == "attention" else []).products - attention
    assert linear == pytest.approx(expected, rel=0.002)
    less = prefill(SHAPE, [40, 25], 7, 4).products - attention
    assert (expected - less) == (2 * 40 * 32 * 16 + 2 * 32 * 32 + 2 * 40 * 32 if kind == "attention" else 0)


def test_clips_are_measured_with_and_without_dropping(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = _hico()
    monkeypatch.setattr("pipeline.bench.model.load_profile", lambda _: profile)
    dropped, kept = (
        bench_model("own", [40], random_weights=True, device="cpu", repeats=1, dropping=choice)
        for choice in (None, False)
    )
    assert (dropped.dfm, kept.dfm, kept.dropping) == ("clips", "clips", None)
    assert dropped.dropping == profile.language_model.dropping
    (short,), (whole,) = dropped.rows, kept.rows
    assert set(short.stages) == {"patch_load", "projector", "prefill"}
    assert short.visual_tokens == whole.visual_tokens == 40 * 4
    assert whole.cache_bytes - short.cache_bytes == 2 * 16 * 4 * 80  # K and V, width, bytes, tokens of one layer
    assert short.stages["prefill"].flops < whole.stages["prefill"].flops
