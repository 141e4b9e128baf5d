from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from transformers import SiglipModel

from index.errors import ModelError, UsageError, WeightsInvalid, WeightsNotFound
from model.checkpoints.files import weights_digest
from model.encoders.clip import load_clip
from model.encoders.encoder import Encoders, load_encoders, pick_device
from model.encoders.siglip import load_siglip
from model.profiles.profile import FrameEncoderSpec, PatchEncoderSpec, Profile, Source
from tests.support import tiny_checkpoints as tiny

CPU = torch.device("cpu")
TEXTS = ["What colour was the truck at the gate?", "red car"]


def _frames(n: int = 5) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (40 + 8 * (i % 2), 64, 3), np.uint8) for i in range(n)]


def _spec(folder: Path, **values: Any) -> PatchEncoderSpec:
    return PatchEncoderSpec(name="tiny-siglip", source=Source(folder=folder), batch=3, **values)


def test_clip_is_open_clips(encoders: Encoders, checkpoints: Path) -> None:
    name = f"local-dir:{checkpoints / 'clip'}"
    model, _, prepare = open_clip.create_model_and_transforms(name)
    model.eval()
    with torch.inference_mode():
        pixels = torch.stack([prepare(Image.fromarray(f)) for f in _frames()])
        images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
        texts = torch.nn.functional.normalize(model.encode_text(open_clip.get_tokenizer(name)(TEXTS)), dim=-1)
    got = encoders.frame.encode_frames(_frames())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, images.numpy(), atol=5e-3)  # a grey level of rounding in the resize
    np.testing.assert_allclose(encoders.frame.encode_text(TEXTS), texts.numpy(), atol=1e-6)


def test_texts_go_through_the_tokenizer_in_the_folder(encoders: Encoders) -> None:
    for encoder in (encoders.frame, encoders.patch):
        same, known, unknown = encoder.encode_text(["RED  truck", "red truck", "red zebra"])
        np.testing.assert_allclose(same, known, atol=1e-6)
        assert not np.allclose(unknown, known, atol=1e-4)


def test_siglip_is_transformers(encoders: Encoders, checkpoints: Path) -> None:
    model = SiglipModel.from_pretrained(checkpoints / "siglip", dtype=torch.float32).eval()
    pixels = np.stack([np.asarray(Image.fromarray(f).resize((tiny.SIZE, tiny.SIZE), 3)) for f in _frames()])
    with torch.inference_mode():
        out = model.vision_model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    pooled, patches = encoders.patch.encode_frames(_frames())
    assert [pooled.dtype, patches.dtype] == ["float32", "float16"]
    assert patches.shape == (5, tiny.PATCHES, tiny.WIDTH)
    np.testing.assert_allclose(patches, out.last_hidden_state.numpy(), atol=3e-2)
    np.testing.assert_allclose(pooled, torch.nn.functional.normalize(out.pooler_output, dim=-1).numpy(), atol=5e-3)


def test_vectors_have_unit_norm_and_do_not_depend_on_the_batch(encoders: Encoders) -> None:
    pooled, patches = encoders.patch.encode_frames(_frames())
    vectors = encoders.frame.encode_frames(_frames())
    for rows in (pooled, vectors, encoders.frame.encode_text(TEXTS), encoders.patch.encode_text(TEXTS)):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    one_pooled, one_patches = encoders.patch.encode_frames(_frames()[4:])
    np.testing.assert_allclose(one_pooled, pooled[4:], atol=1e-5)
    np.testing.assert_allclose(one_patches, patches[4:], atol=2e-3)
    np.testing.assert_allclose(encoders.frame.encode_frames(_frames()[4:]), vectors[4:], atol=1e-5)


def test_nothing_in_nothing_out(encoders: Encoders) -> None:
    assert encoders.frame.encode_frames([]).shape == (0, tiny.CLIP_WIDTH)
    assert encoders.frame.encode_text([]).shape == (0, tiny.CLIP_WIDTH)
    assert encoders.patch.encode_text([]).shape == (0, tiny.WIDTH)
    pooled, patches = encoders.patch.encode_frames([])
    assert (pooled.shape, patches.shape) == ((0, tiny.WIDTH), (0, tiny.PATCHES, tiny.WIDTH))


def test_a_text_longer_than_the_model_reads_is_cut_at_its_end(encoders: Encoders) -> None:
    long = "what colour was the truck " * 20
    for encoder in (encoders.frame, encoders.patch):
        vectors = encoder.encode_text([long, long + "red"])
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_other_arrays_are_refused(encoders: Encoders) -> None:
    with pytest.raises(UsageError, match="frame 0"):
        encoders.frame.encode_frames([np.zeros((4, 4, 3), np.float32)])


def test_identity_follows_weights_and_settings(profile: Profile, encoders: Encoders, tmp_path: Path) -> None:
    pair = encoders.pair
    assert (pair.frame, pair.patch, pair.patches) == (encoders.frame.identity, encoders.patch.identity, tiny.PATCHES)
    assert (pair.frame.dimension, pair.patch.dimension) == (tiny.CLIP_WIDTH, tiny.WIDTH)
    assert load_encoders(profile, "cpu").pair == pair
    layer = load_siglip(profile.patch_encoder.model_copy(update={"layer": 2, "post_layernorm": False}), CPU).identity
    assert layer.weights_digest == pair.patch.weights_digest
    assert layer.preprocessing_digest != pair.patch.preprocessing_digest
    moved = tmp_path / "elsewhere"
    shutil.copytree(profile.patch_encoder.source.folder or "", moved)
    assert load_siglip(_spec(moved), CPU).identity == pair.patch
    torch.manual_seed(9)
    model = SiglipModel.from_pretrained(moved)
    model.vision_model.post_layernorm.bias.data += 1
    model.save_pretrained(moved)
    assert load_siglip(_spec(moved), CPU).identity.weights_digest != pair.patch.weights_digest


def test_digests_are_remembered_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    first = weights_digest([path])
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert weights_digest([path]) == first
    path.write_bytes(b"other")
    assert weights_digest([path]) != first
    assert weights_digest([path, path]) != weights_digest([path])


def test_patches_may_leave_after_any_layer(checkpoints: Path) -> None:
    model = SiglipModel.from_pretrained(checkpoints / "siglip", dtype=torch.float32).eval()
    frames = [np.full((tiny.SIZE, tiny.SIZE, 3), 90, np.uint8)]
    with torch.inference_mode():
        hidden = model.vision_model(
            torch.full((1, 3, tiny.SIZE, tiny.SIZE), 90 / 127.5 - 1), output_hidden_states=True
        ).hidden_states
    for layer in (1, 2, 3, -1):
        _, patches = load_siglip(_spec(checkpoints / "siglip", layer=layer, post_layernorm=False), CPU).encode_frames(
            frames
        )
        np.testing.assert_allclose(patches, hidden[layer].numpy(), atol=2e-3)


def test_huge_activations_stay_finite(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "siglip", tmp_path / "siglip")
    model = SiglipModel.from_pretrained(tmp_path / "siglip", dtype=torch.float32)
    model.vision_model.post_layernorm.bias.data.fill_(1e6)
    model.save_pretrained(tmp_path / "siglip")
    _, patches = load_siglip(_spec(tmp_path / "siglip"), CPU).encode_frames(_frames(1))
    assert patches.max() == np.float16(65504)


@pytest.mark.parametrize(
    "prefix", ["vision_tower.", "vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."]
)
def test_a_llava_tower_replaces_the_first_layers(prefix: str, checkpoints: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    llava = tiny.save_llava_onevision(tmp_path / "llava", layers=2)
    file = tmp_path / "llava" / "model.safetensors"
    renamed = {k.replace("vision_tower.", prefix, 1): v for k, v in load_file(file).items()}
    renamed[f"{prefix}embeddings.position_ids"] = torch.arange(tiny.PATCHES)  # older checkpoints carry it
    save_file(renamed, file, metadata={"format": "pt"})
    frames = [np.full((tiny.SIZE, tiny.SIZE, 3), 90, np.uint8)]
    spec = _spec(checkpoints / "siglip", tower=Source(folder=tmp_path / "llava"), layer=2, post_layernorm=False)
    encoder = load_siglip(spec, CPU)
    pooled, patches = encoder.encode_frames(frames)
    with torch.inference_mode():
        tower = llava.model.vision_tower
        pixels = torch.full((1, 3, tiny.SIZE, tiny.SIZE), 90 / 127.5 - 1)
        expected = tower(pixels, output_hidden_states=True).hidden_states[-1]
        base = SiglipModel.from_pretrained(checkpoints / "siglip", dtype=torch.float32).eval().vision_model
        last = base.encoder.layers[2](expected, attention_mask=None)
        head = base.head(base.post_layernorm(last[0] if isinstance(last, tuple) else last))
    np.testing.assert_allclose(patches, expected.numpy(), atol=2e-3)
    np.testing.assert_allclose(pooled, torch.nn.functional.normalize(head, dim=-1).numpy(), atol=1e-5)
    assert encoder.identity.weights_digest != load_siglip(_spec(checkpoints / "siglip"), CPU).identity.weights_digest


def test_a_tower_that_is_too_short_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    tiny.save_llava_onevision(tmp_path / "llava", layers=1)
    spec = _spec(checkpoints / "siglip", tower=Source(folder=tmp_path / "llava"), layer=2, post_layernorm=False)
    with pytest.raises(WeightsInvalid, match=r"no encoder\.layers\.1\."):
        load_siglip(spec, CPU)


def test_a_tower_of_another_shape_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.save_llava_onevision(tmp_path / "llava", layers=2)
    file = tmp_path / "llava" / "model.safetensors"
    state = load_file(file)
    state["vision_tower.embeddings.patch_embedding.bias"] = torch.zeros(5)
    save_file(state, file, metadata={"format": "pt"})
    spec = _spec(checkpoints / "siglip", tower=Source(folder=tmp_path / "llava"), layer=2, post_layernorm=False)
    with pytest.raises(WeightsInvalid, match=r"patch_embedding\.bias is \[5\], the base SigLIP has \[24\]"):
        load_siglip(spec, CPU)


def test_the_original_siglip_tokenizer_drops_case_and_punctuation(tmp_path: Path, checkpoints: Path) -> None:
    folder = tiny.save_siglip(tmp_path / "original", tokenizer_class="SiglipTokenizer")
    original = load_siglip(_spec(folder), CPU)
    np.testing.assert_array_equal(original.encode_text(["Red, car?"]), original.encode_text(["red car"]))
    plain = load_siglip(_spec(checkpoints / "siglip"), CPU)
    assert not np.array_equal(plain.encode_text(["red , car ?"]), plain.encode_text(["red car"]))


def test_a_hub_repository_is_read_from_the_cache(
    profile: Profile, encoders: Encoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--someone--siglip" / "snapshots" / revision
    shutil.copytree(profile.patch_encoder.source.folder or "", snapshot)
    source = Source(hub="someone/siglip", revision=revision)
    cached = load_siglip(PatchEncoderSpec(name="tiny-siglip", source=source), CPU)
    assert cached.identity == encoders.pair.patch.model_copy(update={"revision": revision})
    (snapshot / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsNotFound, match="someone/siglip is not in the cache"):
        load_siglip(PatchEncoderSpec(name="tiny-siglip", source=source), CPU)


class _Payload:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


def test_pickles_are_read_on_request_only_and_execute_nothing(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(checkpoints / "clip", folder)
    state = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    pickled = folder / "open_clip_pytorch_model.bin"
    torch.save(state, pickled)
    spec = FrameEncoderSpec(name="tiny-clip", source=Source(folder=folder))
    with pytest.raises(WeightsNotFound, match=r"only \.bin files, which are pickles; .*allow_pickle = true"):
        load_clip(spec, CPU)
    allowed = FrameEncoderSpec(name="tiny-clip", source=Source(folder=folder, allow_pickle=True))
    whole = load_clip(FrameEncoderSpec(name="tiny-clip", source=Source(folder=checkpoints / "clip")), CPU)
    np.testing.assert_array_equal(load_clip(allowed, CPU).encode_text(TEXTS), whole.encode_text(TEXTS))
    torch.save({**state, "payload": _Payload(tmp_path / "executed")}, pickled)
    with pytest.raises(WeightsInvalid):
        load_clip(allowed, CPU)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_not_there(tmp_path: Path, checkpoints: Path) -> None:
    with pytest.raises(WeightsNotFound, match="does not exist"):
        load_siglip(_spec(tmp_path / "nowhere"), CPU)
    shutil.copytree(checkpoints / "siglip", tmp_path / "partial", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(WeightsNotFound, match=r"\*\.safetensors"):
        load_siglip(_spec(tmp_path / "partial"), CPU)


@pytest.mark.parametrize("part", ["clip", "siglip"])
def test_weights_that_are_broken(part: str, profile: Profile, tmp_path: Path) -> None:
    spec = profile.frame_encoder if part == "clip" else profile.patch_encoder
    shutil.copytree(spec.source.folder or "", tmp_path / part)
    next((tmp_path / part).glob("*.safetensors")).write_bytes(b"not weights")
    changed = profile.model_copy(
        update={
            "frame_encoder" if part == "clip" else "patch_encoder": spec.model_copy(
                update={"source": Source(folder=tmp_path / part)}
            )
        }
    )
    with pytest.raises(WeightsInvalid, match=str(tmp_path / part)):
        load_encoders(changed, "cpu")


def test_tensors_that_are_missing_are_named(checkpoints: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoints / "siglip", tmp_path / "siglip")
    file = tmp_path / "siglip" / "model.safetensors"
    state = load_file(file)
    state.pop("vision_model.post_layernorm.bias")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsInvalid, match=r"vision_model\.post_layernorm\.bias"):
        load_siglip(_spec(tmp_path / "siglip"), CPU)


def test_a_layer_that_is_not_there(checkpoints: Path) -> None:
    with pytest.raises(WeightsInvalid, match="layer 9 was asked for"):
        load_siglip(_spec(checkpoints / "siglip", layer=9, post_layernorm=False), CPU)


def test_texts_and_patches_must_have_one_width(checkpoints: Path, tmp_path: Path) -> None:
    from transformers import SiglipConfig

    shutil.copytree(checkpoints / "siglip", tmp_path / "siglip")
    config = json.loads((tmp_path / "siglip" / "config.json").read_text())
    config["text_config"]["projection_size"] = 8
    SiglipModel(SiglipConfig(**config)).save_pretrained(tmp_path / "siglip")
    with pytest.raises(WeightsInvalid, match="patches have 24 dimensions and texts 8"):
        load_siglip(_spec(tmp_path / "siglip"), CPU)


@pytest.mark.parametrize("device", ["cuda:99", "tpu9000"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ModelError, match=device):
        pick_device(device)
