from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from index.errors import WeightsInvalid
from model.checkpoints.videochat_flash import FlashConfig
from model.language.transformers_engine import load_transformers
from model.profiles.profile import ConnectorSpec, DroppingSpec, LanguageModelSpec, Source
from model.visual.connector import Connector, load_connector
from tests.support import tiny_checkpoints as tiny
from tests.support.tiny_flash import TOWER, save_videochat_flash

CPU = torch.device("cpu")


def _language(folder: Path, **spec: Any) -> LanguageModelSpec:
    return LanguageModelSpec(source=Source(folder=folder), layout="videochat_flash", max_context=400, **spec)


def _connector(folder: Path) -> ConnectorSpec:
    return ConnectorSpec(source=Source(folder=folder), layout="hico")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("flash") / "checkpoint"
    save_videochat_flash(made, shards=2)
    return made


@pytest.mark.parametrize(("tied", "shards"), [(False, 2), (True, 1)])
def test_the_language_model_is_the_one_that_was_saved(tmp_path: Path, tied: bool, shards: int) -> None:
    saved, _ = save_videochat_flash(tmp_path / "flash", tied=tied, shards=shards)
    loaded = load_transformers(_language(tmp_path / "flash"), CPU)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, saved(ids).logits)
    assert loaded.model.config.rope_parameters["rope_theta"] == 1e6


def test_the_connector_is_linear_gelu_linear(tmp_path: Path) -> None:
    _, tensors = save_videochat_flash(tmp_path / "flash")
    connector = load_connector(_connector(tmp_path / "flash"), CPU)
    assert isinstance(connector, Connector)
    assert (connector.patch_dim, connector.width, connector.relevance) == (64, tiny.LANGUAGE_WIDTH, None)
    features = torch.randn(3, 16, 64)
    hidden = nn.functional.linear(features, *(tensors[f"model.mm_projector.mlp.0.{k}"] for k in ("weight", "bias")))
    expected = nn.functional.linear(
        nn.functional.gelu(hidden), *(tensors[f"model.mm_projector.mlp.2.{k}"] for k in ("weight", "bias"))
    )
    torch.testing.assert_close(connector.tokens(features, torch.zeros(0), keyframe=True), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_qwen"}, "model_type"),
        ({"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type"),
        ({"mm_vision_tower": "internvideo2"}, "mm_vision_tower: .*only umt-large and umt-hd-large"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type"),
        ({"mm_newline_position": "frame"}, "mm_newline_position"),
        ({"vision_encode_type": "image"}, "vision_encode_type"),
        ({"frame_aspect_ratio": "pad"}, "frame_aspect_ratio"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_fields_that_are_not_supported_are_named(folder: Path, tmp_path: Path, changes: Any, message: str) -> None:
    save_videochat_flash(tmp_path / "flash", **changes)
    for load in (load_transformers, load_connector):
        spec: Any = _language(tmp_path / "flash") if load is load_transformers else _connector(tmp_path / "flash")
        with pytest.raises(WeightsInvalid, match=rf"config\.json: .*{message}"):
            load(spec, CPU)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, r"model\.layers\.1\.mlp\.up_proj\.weight \[48, 32\] is missing"),
        ("model.layers.1.mlp.up_proj.weight", (4, 4), r"up_proj\.weight should be \[48, 32\], got \[4, 4\]"),
        (
            "model.layers.2.mlp.up_proj.weight",
            (4, 4),
            r"model\.layers\.2\.mlp\.up_proj\.weight \[4, 4\] is one too many",
        ),
        ("model.image_newline", (32,), r"model\.image_newline \[32\] is one too many"),
        ("model.mm_projector.mlp.2.bias", None, r"model\.mm_projector\.mlp\.2\.bias \[32\] is missing"),
        ("model.mm_projector.mlp.0.weight", (32, 63), r"mlp\.0\.weight should be \[32, 64\], got \[32, 63\]"),
        ("model.mm_projector.mlp.4.bias", (32,), r"model\.mm_projector\.mlp\.4\.bias \[32\] is one too many"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    folder: Path, tmp_path: Path, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    state = tiny.load_state(folder)
    state.pop(name, None)
    if shape is not None:
        state[name] = torch.zeros(shape)
    broken = tmp_path / "flash"
    save_videochat_flash(broken)
    tiny.save_state(broken, state, shards=1)
    load: Any = load_connector if "mm_projector" in name else load_transformers
    spec: Any = _connector(broken) if "mm_projector" in name else _language(broken)
    with pytest.raises(WeightsInvalid, match=message):
        load(spec, CPU)


def test_the_clip_encoders_tensors_belong_to_neither(folder: Path) -> None:
    assert any(name.startswith(f"{TOWER}blocks.1.attn.qkv") for name in tiny.load_state(folder))
    load_transformers(_language(folder), CPU)
    load_connector(_connector(folder), CPU)


def test_weights_that_drop_tokens_need_a_profile_that_drops_them(tmp_path: Path) -> None:
    dropping = DroppingSpec(layers=(1,), ratios=(1.0, 0.5), kind="uniform")
    fields: dict[str, Any] = {
        "llm_compress_layer_list": [1],
        "llm_image_token_ratio_list": [1.0, 0.5],
        "llm_compress_type": "uniform",
    }
    save_videochat_flash(tmp_path / "drops", mm_llm_compress=True, **fields)
    with pytest.raises(WeightsInvalid, match=r"mm_llm_compress is true: set layers = \[1\], ratios = \[1.0, 0.5\]"):
        load_transformers(_language(tmp_path / "drops"), CPU)
    load_transformers(_language(tmp_path / "drops", dropping=dropping), CPU)
    save_videochat_flash(tmp_path / "keeps")
    load_transformers(_language(tmp_path / "keeps", dropping=dropping), CPU)  # dropping is the profile's choice


@pytest.mark.parametrize(("name", "size"), [("umt-large", 224), ("/weights/umt-hd-large", 448)])
def test_the_encoders_name_tells_its_size(tmp_path: Path, name: str, size: int) -> None:
    save_videochat_flash(tmp_path / "flash", mm_vision_tower=name, model_type="llava_qwen_flash")
    assert FlashConfig.read(tmp_path / "flash").image_size == size


def test_a_field_that_is_not_known_is_named(tmp_path: Path) -> None:
    save_videochat_flash(tmp_path / "flash", mm_new_pooling="max")
    with pytest.raises(WeightsInvalid, match=r"config\.json: mm_new_pooling: not known"):
        load_transformers(_language(tmp_path / "flash"), CPU)


def test_fields_without_an_effect_are_accepted(tmp_path: Path) -> None:
    save_videochat_flash(
        tmp_path / "flash",
        max_num_pixels=14745600000,
        min_slow_num_frames=4,
        mm_pos_num_frames=8,
        image_aspect_ratio="anyres_nopad",
        mm_tunable_parts="mm_vision_tower",
        use_mm_proj=True,
    )
    assert load_transformers(_language(tmp_path / "flash"), CPU).width == tiny.LANGUAGE_WIDTH
