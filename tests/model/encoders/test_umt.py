"""The clip encoder UMT against loops in float64, and its checkpoints under the published names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index.errors import UsageError, WeightsInvalid
from model.encoders.clip_tokens import ClipTokenEncoder, load_patch_encoder
from model.encoders.encoder import load_encoders
from model.encoders.tome import merge_tokens
from model.encoders.umt import Umt, UmtTower, load_umt, sincos_positions
from model.profiles.profile import EncoderShape, PatchEncoderSpec, Profile, Source, load_profile
from tests.support.tiny_checkpoints import load_state, save_state
from tests.support.tiny_flash import TOWER, save_videochat_flash

CPU = torch.device("cpu")
WIDTH, HEADS, BLOCKS = 64, 4, 2


def _shape(image_size: int, **values: Any) -> EncoderShape:
    fields = {"width": WIDTH, "layers": BLOCKS, "heads": HEADS, "feed_forward": 4 * WIDTH, **values}
    return EncoderShape(frame="ViT-B-32", image_size=image_size, patch_size=16, **fields)


def _spec(folder: Path) -> PatchEncoderSpec:
    return PatchEncoderSpec(name="tiny-umt", kind="umt", source=Source(folder=folder), batch=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint at 224 pixels, in two shards."""
    path = tmp_path_factory.mktemp("flash") / "checkpoint"
    save_videochat_flash(path, width=WIDTH, blocks=BLOCKS, shards=2, mm_vision_tower="umt-large")
    return path


@pytest.fixture(scope="module")
def tower(folder: Path) -> UmtTower:
    return load_umt(_spec(folder), _shape(224), 4, CPU)


def _norm(x: NDArray[np.float64], state: dict[str, Any], name: str, eps: float) -> NDArray[np.float64]:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return np.asarray(scaled * state[f"{name}.weight"] + state[f"{name}.bias"])


def _naive(state: dict[str, NDArray[np.float64]], clip: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tokens of one clip [F, 3, 224, 224] as the specification words it."""
    tokens = []
    kernel = state["patch_embed.proj.weight"][:, :, 0]
    for frame in clip:
        for row in range(14):
            for column in range(14):
                patch = frame[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
                tokens.append((kernel * patch).sum(axis=(1, 2, 3)) + state["patch_embed.proj.bias"])
    x = np.stack(tokens)
    for place in range(len(x)):
        for column in range(WIDTH):
            angle = place / 10_000 ** (2 * (column // 2) / WIDTH)
            x[place, column] += math.cos(angle) if column % 2 else math.sin(angle)
    for number in range(BLOCKS):
        name = f"blocks.{number}"
        y = _norm(x, state, f"{name}.norm1", 1e-6)
        q, k, v = np.split(y @ state[f"{name}.attn.qkv.weight"].T, 3, axis=1)
        q, v = q + state[f"{name}.attn.q_bias"], v + state[f"{name}.attn.v_bias"]
        heads = []
        for head in np.split(np.arange(WIDTH), HEADS):
            scores = q[:, head] @ k[:, head].T / math.sqrt(WIDTH // HEADS)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, head])
        mixed = np.concatenate(heads, axis=1)
        x = x + mixed @ state[f"{name}.attn.proj.weight"].T + state[f"{name}.attn.proj.bias"]
        y = _norm(x, state, f"{name}.norm2", 1e-6)
        y = y @ state[f"{name}.mlp.fc1.weight"].T + state[f"{name}.mlp.fc1.bias"]
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + y @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]
    return _norm(x, state, "vision_layernorm", 1e-12)


def test_equals_the_specification(tower: UmtTower, folder: Path) -> None:
    pixels = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    pooled, tokens = tower.clip_features(pixels, torch.tensor([[0, 1, 2, 3], [2, 2, 2, 2]]))
    assert tokens.shape == (2, 784, WIDTH)
    state = {n.removeprefix(TOWER): t.double().numpy() for n, t in load_state(folder).items() if n.startswith(TOWER)}
    for found, rows in zip(tokens, ([0, 1, 2, 3], [2] * 4), strict=True):
        np.testing.assert_allclose(found.numpy(), _naive(state, pixels[rows].double().numpy()), atol=2e-4)
    means = tokens[0].reshape(4, 196, WIDTH).mean(dim=1)
    torch.testing.assert_close(pooled[[0, 1, 3]], means[[0, 1, 3]])


def test_attention_sees_all_frames_of_a_clip_and_no_other(tower: UmtTower) -> None:
    pixels = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    clips = torch.arange(8).view(2, 4)
    _, before = tower.clip_features(pixels, clips)
    pixels[7] += 1
    _, after = tower.clip_features(pixels, clips)
    torch.testing.assert_close(before[0], after[0])
    assert bool(((before[1] - after[1]).abs().amax(dim=-1) > 1e-5).all())


def _cubic(distance: float) -> float:
    """The kernel of bicubic interpolation, with −0.75 as torch has it."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def test_positions_at_448_are_resized_bicubic_for_each_frame() -> None:
    width = 6
    table = sincos_positions(4, 14, width).numpy()
    assert table.shape == (784, width)
    np.testing.assert_allclose(
        table[200], [f(200 / 10_000 ** (i / 6)) for i in (0, 2, 4) for f in (np.sin, np.cos)], 1e-5
    )
    weights = np.zeros((28, 14))
    for place in range(28):
        centre = (place + 0.5) / 2 - 0.5
        for near in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[place, min(max(near, 0), 13)] += _cubic(centre - near)
    frames = table.reshape(4, 14, 14, width)
    expected = np.einsum("ri,cj,fijd->frcd", weights, weights, frames).reshape(-1, width)
    np.testing.assert_allclose(sincos_positions(4, 28, width).numpy(), expected, atol=1e-5)


def test_one_frame_has_a_table_of_its_own() -> None:
    np.testing.assert_array_equal(sincos_positions(1, 14, 8), sincos_positions(4, 14, 8)[:196])


def _profile(folder: Path, image_size: int = 224, **shape: Any) -> Profile:
    path = folder.parent / f"profile-{image_size}-{len(shape)}.toml"
    made = _shape(image_size, **shape)
    sections = "\n".join(f"{name} = {json.dumps(value)}" for name, value in made.model_dump().items())
    path.write_text(
        f"""
name = "tiny-flash"
frame_encoder = {{ name = "clip", source = {{ folder = "clip" }} }}
patch_encoder = {{ name = "umt", kind = "umt", source = {{ folder = "{folder}" }}, batch = 8 }}
language_model = {{ source = {{ folder = "{folder}" }}, max_context = 2000 }}
connector = {{ source = {{ folder = "{folder}" }} }}
[hico]
[encoder_shape]
{sections}
"""
    )
    return load_profile(path)


@pytest.mark.parametrize(("name", "image_size"), [("umt-large", 224), ("umt-hd-large", 448)])
def test_a_clip_has_64_tokens_at_either_resolution(tmp_path: Path, name: str, image_size: int) -> None:
    folder = tmp_path / "checkpoint"
    save_videochat_flash(folder, width=WIDTH, blocks=1, mm_vision_tower=name)
    encoder = load_patch_encoder(_profile(folder, image_size, layers=1), CPU)
    assert isinstance(encoder, ClipTokenEncoder)
    rng = np.random.default_rng(2)
    frames = [rng.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(6)]
    pooled, patches = encoder.encode_frames(frames, np.array([0, 0, 0, 0, 1, 1]))
    assert (pooled.shape, patches.shape, encoder.patches) == ((6, WIDTH), (6, 16, WIDTH), 16)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    pixels = encoder.preprocessing([*frames, frames[5], frames[5]], CPU)
    for clip, rows in ((0, slice(0, 4)), (1, slice(4, 6))):
        _, tokens = encoder.tower.clip_features(pixels, torch.arange(4)[None] + 4 * clip)
        assert tokens.shape[1] == 4 * (image_size // 16) ** 2
        expected = merge_tokens(tokens, 16 * (rows.stop - rows.start))[0]
        np.testing.assert_allclose(patches[rows].reshape(-1, WIDTH), expected.numpy(), atol=5e-3)


def test_it_has_no_text_tower(tower: UmtTower) -> None:
    with pytest.raises(UsageError, match="without a text tower"):
        tower.encode_text(["red truck"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.attn.v_bias": None}, "blocks.1.attn.v_bias .*is missing"),
        ({"blocks.2.norm1.weight": torch.zeros(WIDTH)}, "blocks.2.norm1.weight .*one too many"),
        ({"pos_embed": torch.zeros(1)}, "encoder.pos_embed .*one too many"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(8, WIDTH)}, r"fc1.weight should be \[256, 64\], got \[8, 64\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_tensor(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    state = {name: tensor for name, tensor in load_state(folder).items() if name.startswith(TOWER)}
    for name, tensor in change.items():
        state.pop(f"{TOWER}{name}", None)
        if tensor is not None:
            state[f"{TOWER}{name}"] = tensor
    save_state(tmp_path, state, shards=1)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsInvalid, match=message):
        load_umt(_spec(tmp_path), _shape(224), 4, CPU)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mm_vision_tower", "umt-hd-large", "mm_vision_tower says 448, the profile has encoder_shape.image_size = 224"),
        ("mm_vision_tower", "internvideo2", "mm_vision_tower"),
        ("mm_hidden_size", 1408, "mm_hidden_size says 1408"),
        ("mm_local_num_frames", 8, "mm_local_num_frames says 8, the profile has hico.clip_frames = 4"),
        ("mm_vision_select_layer", -1, "mm_vision_select_layer"),
    ],
)
def test_a_configuration_that_does_not_fit_names_the_field(
    folder: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    for path in folder.glob("*.safetensors*"):
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(WeightsInvalid, match=message):
        load_umt(_spec(tmp_path), _shape(224), 4, CPU)


def test_the_published_encoder_has_300_million_parameters() -> None:
    """The sizes in the profile: 24 layers of UMT-L less one, and the names that the specification lists."""
    profile = load_profile("videochat_flash")
    assert profile.encoder_shape is not None
    with torch.device("meta"):
        model = Umt(profile.encoder_shape)
    names = set(model.state_dict())
    for part in ("norm1.weight", "attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.bias", "mlp.fc2.weight"):
        assert f"blocks.22.{part}" in names
    assert not any(name.startswith("blocks.23.") for name in names)
    assert {"patch_embed.proj.weight", "patch_embed.proj.bias", "vision_layernorm.weight"} < names
    assert model.state_dict()["blocks.0.attn.qkv.weight"].shape == (3072, 1024)
    assert sum(tensor.numel() for tensor in model.parameters()) == pytest.approx(290.4e6, rel=0.01)


def test_a_profile_loads_it(folder: Path, models: Path) -> None:
    (folder.parent / "clip").symlink_to(models / "clip")
    encoders = load_encoders(_profile(folder), "cpu")
    assert (encoders.pair.patches, encoders.pair.clip_frames, encoders.pair.patch.dimension) == (16, 4, WIDTH)
