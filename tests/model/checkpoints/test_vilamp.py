"""The authors' checkpoint layout, on random weights written in exactly that layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from index.errors import SightlineError, WeightsInvalid, WeightsNotFound
from index.store import Store
from ingest.decoding.frame import FrameBatch
from ingest.embedding import encode_records
from model.answerer import Answerer, AnswerRequest, load_answerer
from model.checkpoints.vilamp import VilampConfig
from model.encoders.clip import ClipEncoder, load_clip
from model.encoders.encoder import Encoders, load_encoders
from model.encoders.siglip import load_siglip
from model.language.loader import load_language
from model.profiles.profile import (
    ConnectorSpec,
    FrameEncoderSpec,
    LanguageModelSpec,
    PatchEncoderSpec,
    Profile,
    Source,
    load_profile,
)
from model.stage_clock import StageClock
from model.visual.connector import ReleasedConnector, load_connector
from model.visual.dfm import merge_mean
from model.visual.dfm_learned import Composer
from model.visual.prompt import build_prompt
from tests.support import tiny_checkpoints as tiny
from tests.support.records import make_segment

CPU = torch.device("cpu")
PROMPT = [5, 9, 7, 20, 11, 30, 6, 12, 40, 8]
OPTIONS = ("red", "blue car", "green")


def _language(folder: Path) -> Any:
    return load_language(LanguageModelSpec(source=Source(folder=folder), layout="vilamp", max_context=300), CPU)


def _connector(folder: Path) -> ReleasedConnector:
    connector = load_connector(ConnectorSpec(source=Source(folder=folder), layout="vilamp"), CPU)
    assert isinstance(connector, ReleasedConnector)
    return connector


def _clip(folder: Path, checkpoints: Path) -> ClipEncoder:
    source = Source(folder=checkpoints / "clip")
    return load_clip(FrameEncoderSpec(name="clip", source=source, tower=Source(folder=folder)), CPU)


def _siglip(folder: Path, checkpoints: Path) -> Any:
    source, tower = Source(folder=checkpoints / "siglip"), Source(folder=folder)
    return load_siglip(PatchEncoderSpec(name="siglip", source=source, tower=tower, layer=2, post_layernorm=False), CPU)


def _profile(folder: Path, checkpoints: Path, **dfm: Any) -> Profile:
    """The shipped profile with its hub sources swapped for folders, and a tower of 2 layers."""
    shipped, ours = load_profile("vilamp"), Source(folder=folder)
    clip, siglip = Source(folder=checkpoints / "clip"), Source(folder=checkpoints / "siglip")
    return shipped.model_copy(
        update={
            "frame_encoder": shipped.frame_encoder.model_copy(
                update={"source": clip, "tower": ours, "tokenizer": "open_clip"}
            ),
            "patch_encoder": shipped.patch_encoder.model_copy(update={"source": siglip, "tower": ours, "layer": 2}),
            "language_model": shipped.language_model.model_copy(update={"source": ours, "max_new_tokens": 4}),
            "connector": shipped.connector.model_copy(update={"source": ours}),
            "dfm": shipped.dfm.model_copy(update=dfm),
        }
    )


@pytest.fixture(scope="module", params=[1, 3], ids=["one file", "three shards"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("vilamp") / "sig"
    return folder, tiny.save_vilamp(folder, shards=request.param)


def test_the_language_model(saved: tuple[Path, Any]) -> None:
    folder, (model, _, _) = saved
    language = _language(folder)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
    torch.testing.assert_close(language.prefill(language.embed(PROMPT)).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in language.model.parameters())


def test_projector_newline_and_merger(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    connector, state = _connector(folder), tiny.load_state(folder)
    assert (connector.patch_dim, connector.query_dim, connector.width) == (24, 16, 32)
    for name, tensor in connector.state_dict().items():
        torch.testing.assert_close(tensor, state[f"model.{name}"])
    assert isinstance(connector.composer_projector, Composer)
    assert float(connector.composer_projector.tau.detach()) == pytest.approx(0.05)
    both = connector.two_stream()
    patches = torch.randn(3, tiny.WIDTH)
    torch.testing.assert_close(both.keyframe(patches), connector.mm_projector(patches))
    torch.testing.assert_close(both.frame(patches), connector.mm_projector(patches))


def test_the_single_token_variant(tmp_path: Path) -> None:
    tiny.save_vilamp(tmp_path / "single", composer="single_token", composer_type=None)  # the class default
    connector, state = _connector(tmp_path / "single"), tiny.load_state(tmp_path / "single")
    assert set(connector.state_dict()) == {
        k.removeprefix("model.") for k in state if k.startswith(("model.mm_", "model.image", "model.composer"))
    }
    torch.testing.assert_close(
        connector.state_dict()["composer_projector.0.weight"], state["model.composer_projector.0.weight"]
    )


def test_clip_is_the_one_in_the_checkpoint(saved: tuple[Path, Any], checkpoints: Path) -> None:
    folder, (_, _, clip) = saved
    encoder = _clip(folder, checkpoints)
    ids = encoder.tokenize(["red truck"])
    with torch.inference_mode():
        text = clip.get_text_features(input_ids=ids)
        grey = torch.full((1, 3, tiny.SIZE, tiny.SIZE), 90 / 127.5 - 1)
        image = clip.get_image_features(pixel_values=grey)
    text, image = (t if isinstance(t, Tensor) else t.pooler_output for t in (text, image))
    np.testing.assert_allclose(encoder.text_features(["red truck"]), text.numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(["red truck"]), (text / text.norm()).numpy(), atol=1e-5)
    got = encoder.encode_frames([np.full((tiny.SIZE, tiny.SIZE, 3), 90, np.uint8)])
    np.testing.assert_allclose(got, (image / image.norm()).numpy(), atol=1e-5)
    assert abs(float(text.norm()) - 1) > 1e-3  # else the test would not see a norm


def test_clips_identity_is_that_of_the_checkpoint(saved: tuple[Path, Any], checkpoints: Path) -> None:
    source = Source(folder=checkpoints / "clip")
    base = load_clip(FrameEncoderSpec(name="clip", source=source), CPU)
    assert _clip(saved[0], checkpoints).identity.weights_digest != base.identity.weights_digest


def test_patches_leave_the_checkpoints_own_tower_without_the_final_norm(
    saved: tuple[Path, Any], checkpoints: Path
) -> None:
    folder, (_, vision, _) = saved
    _, patches = _siglip(folder, checkpoints).encode_frames([np.full((tiny.SIZE, tiny.SIZE, 3), 90, np.uint8)])
    with torch.inference_mode():
        pixels = torch.full((1, 3, tiny.SIZE, tiny.SIZE), 90 / 127.5 - 1)
        expected = vision(pixels, output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(patches, expected.numpy(), atol=2e-3)


LOADERS: dict[str, Callable[[Path, Path], object]] = {
    "language": lambda folder, _: _language(folder),
    "connector": lambda folder, _: _connector(folder),
    "clip": _clip,
    "siglip": _siglip,
}
_TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("part", "name", "change"),
    [
        ("language", "model.layers.1.mlp.up_proj.weight", None),
        ("language", "lm_head.weight", None),
        ("language", "model.layers.1.mlp.up_proj.weight", torch.zeros(3, 5)),
        ("language", "model.layers.7.mlp.up_proj.weight", torch.zeros(3, 5)),
        ("language", "model.unheard_of", torch.zeros(2)),
        ("connector", "model.mm_projector.2.bias", None),
        ("connector", "model.image_newline", None),
        ("connector", "model.image_newline", torch.zeros(5)),
        ("connector", "model.composer_projector.linear_q.weight", None),
        ("connector", "model.composer_projector.linear_ik.weight", torch.zeros(4, 4)),
        ("connector", "model.composer_projector.tau", None),
        ("connector", "model.composer_projector.linear_z.bias", torch.zeros(4)),
        ("clip", "model.frame_selector.model.logit_scale", None),
        ("clip", "model.frame_selector.model.text_model.encoder.layers.0.self_attn.k_proj.bias", torch.zeros(4)),
        ("clip", "model.frame_selector.model.visual_projection.weight", torch.zeros(16, 17)),
        ("clip", "model.frame_selector.model.another.weight", torch.zeros(1)),
        ("siglip", f"{_TOWER}encoder.layers.1.mlp.fc1.weight", None),
        ("siglip", f"{_TOWER}encoder.layers.1.mlp.fc1.weight", torch.zeros(3)),
        ("siglip", f"{_TOWER}encoder.layers.9.mlp.fc1.weight", torch.zeros(3)),
    ],
)
def test_a_tensor_that_does_not_fit_names_itself(
    part: str, name: str, change: Tensor | None, shards: int, tmp_path: Path, checkpoints: Path
) -> None:
    folder = tmp_path / "sig"
    tiny.save_vilamp(folder)
    state = tiny.load_state(folder)
    (folder / "model.safetensors").unlink()
    if change is None:
        del state[name]
    else:
        state[name] = change
    tiny.save_state(folder, state, shards=shards)
    told = name.removeprefix(_TOWER)
    if part == "clip" and name.endswith("logit_scale"):
        told = "logit_scale"
    with pytest.raises(WeightsInvalid) as caught:
        LOADERS[part](folder, checkpoints)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_temperature_that_cannot_be_is_refused(tau: float, tmp_path: Path) -> None:
    tiny.save_vilamp(tmp_path / "sig")
    state = tiny.load_state(tmp_path / "sig")
    tiny.save_state(tmp_path / "sig", {**state, "model.composer_projector.tau": torch.tensor(tau)}, shards=1)
    with pytest.raises(WeightsInvalid, match="tau"):
        _connector(tmp_path / "sig")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mm_hidden_size": None}, "mm_hidden_size"),
        ({"num_key_value_heads": None}, "num_key_value_heads"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings"),
        ({"rope_theta": None}, "rope_theta"),
        ({"model_type": "qwen2"}, "model_type"),
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"composer_type": "mean"}, "composer_type"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type"),
        ({"add_time_instruction": True}, "add_time_instruction"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"mm_new_pooling": "max"}, r"mm_new_pooling: not known"),
    ],
)
def test_a_field_of_the_configuration_that_is_missing_or_foreign_is_named(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny.save_vilamp(tmp_path / "sig", **config)
    with pytest.raises(WeightsInvalid, match=message):
        _language(tmp_path / "sig")


def test_fields_of_the_layout_without_an_effect_are_accepted(tmp_path: Path) -> None:
    onevision: dict[str, Any] = {
        **{"image_aspect_ratio": "anyres_max_9", "mm_newline_position": "grid", "mm_patch_merge_type": "spatial_unpad"},
        **{"mm_vision_select_layer": -2, "mm_use_im_start_end": False, "add_faster_video": False, "use_mm_proj": True},
        **{"mm_tunable_parts": "mm_vision_tower", "tokenizer_model_max_length": 32768, "torch_dtype": "bfloat16"},
        **{"transformers_version": "4.40.0.dev0", "use_cache": True, "use_sliding_window": False, "hidden_act": "silu"},
        **{"delay_load": False, "a_field_of_next_year": None, "another_one": []},
    }
    tiny.save_vilamp(tmp_path / "sig", **onevision)
    assert _language(tmp_path / "sig").width == tiny.LANGUAGE_WIDTH


def test_another_composer_than_the_configuration_says(tmp_path: Path) -> None:
    tiny.save_vilamp(tmp_path / "sig", composer_type="single_token")
    with pytest.raises(WeightsInvalid, match=r"composer_projector\.0\.weight"):
        _connector(tmp_path / "sig")


@pytest.mark.parametrize(
    ("stride", "mode", "patches", "tokens"),
    [
        (None, "bilinear", 729, 196),
        (2, "bilinear", 729, 196),
        (4, "bilinear", 729, 196),
        (1, "bilinear", 729, 196),
        (None, "bilinear", 16, 4),
        (None, "none", 729, 729),
        (2, "none", 729, 729),
    ],
)
def test_the_tokens_of_a_keyframe_are_read(
    stride: int | None, mode: str | None, patches: int, tokens: int, tmp_path: Path
) -> None:
    tiny.save_vilamp(tmp_path / "sig", mm_spatial_pool_stride=stride, mm_spatial_pool_mode=mode)
    assert VilampConfig.read(tmp_path / "sig").keyframe_tokens(patches) == tokens


@pytest.mark.parametrize("mode", ["max", "average", None])
def test_another_pooling_is_refused(mode: str | None, tmp_path: Path) -> None:
    tiny.save_vilamp(tmp_path / "sig", mm_spatial_pool_mode=mode)
    with pytest.raises(WeightsInvalid, match="mm_spatial_pool_mode"):
        VilampConfig.read(tmp_path / "sig").keyframe_tokens(729)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    tiny.save_vilamp(tmp_path / "sig", shards=3)
    (tmp_path / "sig" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsNotFound, match=r"model-00002-of-00003.*is missing"):
        _language(tmp_path / "sig")


def test_an_index_that_does_not_agree_with_its_shards(tmp_path: Path) -> None:
    tiny.save_vilamp(tmp_path / "sig", shards=2)
    path = tmp_path / "sig" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = sorted(
        set(index["weight_map"].values()) - {index["weight_map"]["model.norm.weight"]}
    )[0]
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsInvalid, match=r"model\.norm\.weight"):
        _language(tmp_path / "sig")


def _request(answerer: Answerer, encoders: Encoders, n: int = 7) -> AnswerRequest:
    frames = [np.full((40, 50, 3), i * 30, np.uint8) for i in range(n)]
    features = encoders.frame.frame_features(frames)
    _, patches = encoders.patch.encode_frames(frames)
    return AnswerRequest(
        question="What colour was the truck?",
        options=OPTIONS,
        stream_index=np.zeros(n, np.int32),
        captured_at=np.arange(n, dtype=np.int64),
        keyframe=np.arange(n) % 4 == 2,
        read_patches=lambda rows, out: np.copyto(out, patches[rows]),
        read_features=lambda rows: features[rows],
    )


@pytest.mark.parametrize(
    ("composer", "dfm", "tokens"),
    [
        ("sig_pooling", {}, 2 * 4 + 5 + 1),
        ("sig_pooling", {"keyframe_tokens": 16, "image_newline": False}, 2 * 16 + 5),
        ("sig_pooling", {"reference_frame": "keyframe", "keyframe_tokens": 9}, 2 * 9 + 5 + 1),
        ("sig_pooling", {"mode": "paper", "reference_frame": "keyframe"}, 2 * 16 + 5 + 1),
        ("single_token", {}, 2 * 4 + 5 + 1),
    ],
)
def test_the_shipped_profile_answers_from_such_a_checkpoint(
    composer: str, dfm: dict[str, Any], tokens: int, tmp_path: Path, checkpoints: Path
) -> None:
    tiny.save_vilamp(tmp_path / "vilamp", composer=composer)
    profile = _profile(tmp_path / "vilamp", checkpoints, **dfm)
    encoders = load_encoders(profile, "cpu")
    answerer = load_answerer(profile, encoders, "cpu")
    request = _request(answerer, encoders)
    *_, last = answerer.answer(request)
    assert last.answer is not None
    assert last.answer.text in OPTIONS
    assert last.answer.visual_tokens == tokens
    assert answerer.check_budget(keyframes=2, frames=7, question="What?", options=OPTIONS) > tokens
    assert answerer.notice == ""


def test_the_sequence_is_the_mergers_tokens_and_the_newline(tmp_path: Path, checkpoints: Path) -> None:
    folder = tmp_path / "vilamp"
    tiny.save_vilamp(folder)
    profile = _profile(folder, checkpoints)
    encoders = load_encoders(profile, "cpu")
    answerer = load_answerer(profile, encoders, "cpu")
    request = _request(answerer, encoders)
    seen: list[Tensor] = []
    original = answerer.language.prefill

    def prefill(embeddings: Tensor, *, room: int = 256, visual: Tensor | None = None) -> Any:
        seen.append(embeddings)
        return original(embeddings, room=room, visual=visual)

    answerer.language.prefill = prefill  # type: ignore[method-assign]
    list(answerer.answer(request))
    connector = _connector(folder)
    composer = connector.composer_projector
    assert isinstance(composer, Composer)
    with torch.inference_mode():
        held = np.empty((7, encoders.patch.patches, encoders.patch.identity.dimension), np.float16)
        request.read_patches(slice(0, 7), held)
        patches = torch.from_numpy(held).float()
        x = connector.mm_projector(patches)
        asked = composer.linear_q(torch.from_numpy(encoders.frame.text_features([request.question])[0]))
        relevance = torch.cosine_similarity(composer.linear_iq(x), asked, dim=-1)
        rows = []
        for row, reference in enumerate([0, 1, None, 0, 0, 0, None]):  # after keyframe 0: frame 0 of the video
            if reference is None:
                grid = x[row].T.reshape(1, -1, 4, 4)
                rows.append(torch.nn.functional.interpolate(grid, (2, 2), mode="bilinear").reshape(-1, 4).T)
                continue
            similarity = torch.cosine_similarity(composer.linear_k(x[reference]), composer.linear_ik(x[row]), dim=-1)
            weights = torch.softmax((relevance[row] - similarity) / composer.tau, dim=-1)
            rows.append((weights[:, None] * x[row]).sum(0, keepdim=True))
        expected = torch.cat([*rows, connector.image_newline[None]])
    start = next(i for i in range(len(seen[0])) if torch.allclose(seen[0][i], expected[0], atol=1e-3))
    torch.testing.assert_close(seen[0][start : start + len(expected)], expected, rtol=1e-3, atol=1e-3)


def test_single_token_weights_get_the_features_before_they_were_scaled(tmp_path: Path, checkpoints: Path) -> None:
    folder = tmp_path / "vilamp"
    _, _, clip = tiny.save_vilamp(folder, composer="single_token")
    profile = _profile(folder, checkpoints)
    encoders = load_encoders(profile, "cpu")
    answerer = load_answerer(profile, encoders, "cpu")
    shades = [40, 70, 100, 130, 160, 190, 220]
    frames = [np.full((tiny.SIZE, tiny.SIZE, 3), shade, np.uint8) for shade in shades]
    times = [i * 1_000_000 for i in range(7)]
    batch = FrameBatch(times, [float(i) for i in range(7)], list(frames))
    (records,) = encode_records(encoders, [("gate", "given", batch)], batch_frames=4)
    store = Store.create(tmp_path / "store", encoders.pair)
    assert store.append(make_segment(records), records)
    window = store.window()
    keyframe = np.arange(7) == 2
    request = AnswerRequest(
        question="What colour was the truck?",
        stream_index=window.stream_index,
        captured_at=window.captured_at,
        keyframe=keyframe,
        read_patches=lambda rows, out: store.patches(window.take(rows), out),
        read_features=lambda rows: store.frame_features(window.take(rows)),
    )
    embeddings, _ = answerer.embed_prompt(request, StageClock(CPU))
    with torch.inference_mode():
        pixels = torch.stack([torch.full((3, tiny.SIZE, tiny.SIZE), shade / 127.5 - 1) for shade in shades])
        features = clip.get_image_features(pixel_values=pixels)  # as the authors' code passes them on
        features = features if isinstance(features, Tensor) else features.pooler_output
        expected = _connector(folder).composer_projector(features)[~torch.from_numpy(keyframe)]
        unit = torch.nn.functional.normalize(features, dim=-1)
        scaled = _connector(folder).composer_projector(unit)[~torch.from_numpy(keyframe)]
        assert (scaled - expected).abs().max() > 0.1  # else the test would not see a norm
    prefix, _ = build_prompt(answerer.language.tokenizer, request.question)
    got = embeddings[len(prefix) :]
    torch.testing.assert_close(got[:2], expected[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[2 + 4 : 2 + 4 + 4], expected[2:], rtol=1e-4, atol=1e-4)


def test_mean_pooling_can_take_the_place_of_the_merger(tmp_path: Path, checkpoints: Path) -> None:
    tiny.save_vilamp(tmp_path / "vilamp")
    profile = _profile(tmp_path / "vilamp", checkpoints)
    encoders = load_encoders(profile, "cpu")
    results = []
    for merge in (None, merge_mean):
        answerer = load_answerer(profile, encoders, "cpu", **({} if merge is None else {"merge": merge}))
        *_, last = answerer.answer(_request(answerer, encoders))
        assert last.answer is not None
        results.append(last.answer.probabilities)
    assert results[0] != results[1]


def test_selection_settings_that_differ_from_the_training_are_told(tmp_path: Path, checkpoints: Path) -> None:
    tiny.save_vilamp(tmp_path / "vilamp", f2t_thrd=0.3, max_frame_num=16)
    profile = _profile(tmp_path / "vilamp", checkpoints)
    notice = load_answerer(profile, load_encoders(profile, "cpu"), "cpu").notice
    assert notice == (
        "K is 32, the weights were trained with 16; the relevance floor is 0.2, the weights were trained with 0.3"
    )


def test_a_merger_for_another_clip_is_refused(tmp_path: Path, checkpoints: Path) -> None:
    tiny.save_vilamp(tmp_path / "vilamp")
    profile = _profile(tmp_path / "vilamp", checkpoints)
    encoders = load_encoders(profile, "cpu")
    state = tiny.load_state(tmp_path / "vilamp")
    state["model.composer_projector.linear_q.weight"] = torch.zeros(tiny.LANGUAGE_WIDTH, 7)
    tiny.save_state(tmp_path / "vilamp", state, shards=1)
    with pytest.raises(SightlineError, match="CLIP embeddings of 7 dimensions"):
        load_answerer(profile, encoders, "cpu")
