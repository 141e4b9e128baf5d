"""UMT-L, the clip encoder of VideoChat-Flash: one vision transformer over the patches of all frames of a clip.

    clip [F, 3, H, W] ─▶ patches 16 × 16 of each frame + fixed positions ─ blocks ─ norm ─▶ F·M' tokens

Attention is joint over space and time: a patch attends to all patches of its clip. Tokens are in order of time, row and
column: 4·196 at 224 pixels, 4·784 at 448. Of the 24 blocks that were trained, 23 are stored and run. Names of tensors
are those of the authors' checkpoints (see `model.checkpoints.videochat_flash`), which have no sizes of the encoder; the
profile's `encoder_shape` gives them. Does not know merging, and has no text tower.

Source: Li et al. 2023, Unmasked Teacher (2303.16058); VideoChat-Flash (2501.00574).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from index.errors import UsageError, WeightsInvalid
from index.records import EncoderIdentity
from model.checkpoints.files import check_tensors, resolve, stream_tensors, tensor_files, tensor_shapes
from model.checkpoints.videochat_flash import ENCODER_PREFIX, FlashConfig
from model.encoders.preprocessing import Preprocessing
from model.encoders.pretrained import identify
from model.profiles.profile import EncoderShape, PatchEncoderSpec

__all__ = ["Umt", "UmtTower", "load_umt", "sincos_positions", "umt_preprocessing"]

_NEEDS, _TAKES = ("config.json", "*.safetensors"), ("*.safetensors.index.json",)
_SIDE = 14
"""Rows and columns of the table of positions, which is resized for any other number of patches."""
_PERIOD = 10_000.0
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Attention(nn.Module):
    """Attention of all tokens to all tokens; queries and values have a bias, keys have none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [c, p, D] after attention."""
        clips, count, width = tokens.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        heads = functional.linear(tokens, self.qkv.weight, bias).view(clips, count, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(clips, count, width))
        return result


class _FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [c, p, D] after both layers."""
        result: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return result


class _Block(nn.Module):
    """Attention and feed-forward layers, each behind a norm and around a residual connection."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = _Attention(width, heads), _FeedForward(width, inner)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [c, p, D] after the block."""
        tokens = tokens + self.attn(self.norm1(tokens))
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class _PatchEmbedding(nn.Module):
    """One token for each patch of each frame."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [c, F, 3, H, W] → tokens [c, F·M', D] in order of time, row and column."""
        tokens: Tensor = self.proj(pixels.transpose(1, 2))
        return tokens.flatten(2).transpose(1, 2)


class Umt(nn.Module):
    """The transformer. Its `state_dict` has the names of the authors' checkpoints, without their prefix.

    Args:
        shape: sizes; `layers` is the number of blocks that are run.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.side, self.width = shape.image_size // shape.patch_size, shape.width
        self.patch_embed = _PatchEmbedding(shape.width, shape.patch_size)
        blocks = [_Block(shape.width, shape.heads, shape.feed_forward) for _ in range(shape.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.vision_layernorm = nn.LayerNorm(shape.width, eps=1e-12)
        self._positions: dict[int, Tensor] = {}

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens [c, F·M', D] of clips, pixels [c, F, 3, H, W]."""
        tokens = self.patch_embed(pixels)
        tokens = tokens + self._position(pixels.shape[1]).to(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        result: Tensor = self.vision_layernorm(tokens)
        return result

    def _position(self, frames: int) -> Tensor:
        """The positions of a clip of `frames` frames, computed once."""
        if frames not in self._positions:
            self._positions[frames] = sincos_positions(frames, self.side, self.width)
        return self._positions[frames]


def sincos_positions(frames: int, side: int, width: int) -> Tensor:
    """Fixed positions of the patches of a clip, float32[frames·side·side, width], in order of time, row and column.

    Patches of 14 × 14 are numbered through all frames. Position p has, in columns 2i and 2i + 1, sine and cosine of
    p / 10000^(2i/width). For another `side` the table of each frame is resized, bicubic.
    """
    places = torch.arange(frames * _SIDE * _SIDE, dtype=torch.float64)[:, None]
    angles = places / _PERIOD ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].float()
    if side != _SIDE:
        grids = table.view(frames, _SIDE, _SIDE, width).permute(0, 3, 1, 2)
        grids = functional.interpolate(grids, (side, side), mode="bicubic", align_corners=False)
        table = grids.permute(0, 2, 3, 1).reshape(-1, width)
    return table


class UmtTower:
    """A `model.encoders.clip_tokens.ClipTower` of a UMT. The pooled feature of a frame is the mean of its tokens."""

    def __init__(self, model: Umt, preprocessing: Preprocessing, identity: EncoderIdentity, batch: int) -> None:
        self.model, self.preprocessing, self.identity, self.batch = model, preprocessing, identity, batch
        self.device: torch.device = next(model.parameters()).device
        self.frame_tokens = model.side * model.side

    @torch.inference_mode()
    def clip_features(self, pixels: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
        """See `model.encoders.clip_tokens.ClipTower.clip_features`."""
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            tokens: Tensor = self.model(pixels[clips])
        tokens = tokens.float()
        means = tokens.unflatten(1, (clips.shape[1], -1)).mean(dim=2)  # type: ignore[no-untyped-call]
        pooled = means.new_empty(len(pixels), means.shape[-1])
        for place in reversed(range(clips.shape[1])):  # of a frame that fills up its clip, the first place counts
            pooled[clips[:, place]] = means[:, place]
        return pooled, tokens

    def encode_text(self, texts: Sequence[str]) -> NoReturn:
        """Raise UsageError: a UMT has no text tower."""
        raise UsageError(
            f"{self.identity.name} is a clip encoder without a text tower, so its vectors cannot be compared with text "
            f"({len(texts)} given); standing questions need a profile whose patch encoder is a SigLIP"
        )


def umt_preprocessing(image_size: int) -> Preprocessing:
    """How the encoder was trained to see frames: squeezed into a square, normalised as ImageNet."""
    return Preprocessing(
        height=image_size,
        width=image_size,
        resize_mode="squash",
        interpolation="bicubic",
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    )


def load_umt(spec: PatchEncoderSpec, shape: EncoderShape, clip_frames: int, device: torch.device) -> UmtTower:
    """Load the clip encoder of a checkpoint of VideoChat-Flash's authors.

    Args:
        spec: the patch encoder of a profile.
        shape: its sizes.
        clip_frames: frames of a clip.
        device: where it runs.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
        WeightsInvalid: config.json has another encoder, width, resolution or clip length than the profile, or a tensor
            is missing, extra or of another shape; the message names it.
    """
    what = f"patch encoder {spec.name}"
    folder = resolve(spec.source, needs=_NEEDS, takes=_TAKES, what=what)
    config = FlashConfig.read(folder)
    pairs = {
        "mm_hidden_size": (config.mm_hidden_size, shape.width, "encoder_shape.width"),
        "mm_vision_tower": (config.image_size, shape.image_size, "encoder_shape.image_size"),
        "mm_local_num_frames": (config.mm_local_num_frames, clip_frames, "hico.clip_frames"),
    }
    for field, (theirs, ours, name) in pairs.items():
        if theirs != ours:
            raise WeightsInvalid(f"{folder / 'config.json'}: {field} says {theirs}, the profile has {name} = {ours}")
    files = {name: path for name, path in tensor_files(folder).items() if name.startswith(ENCODER_PREFIX)}
    model = Umt(shape)
    _copy(model, folder, files)
    preprocessing = umt_preprocessing(shape.image_size)
    identity = identify(
        spec,
        weights=sorted(set(files.values())),
        preprocessing_digest=preprocessing.digest(clip_frames=clip_frames),
        dimension=shape.width,
    )
    model.to(device).eval().requires_grad_(False)
    return UmtTower(model, preprocessing, identity, spec.batch)


@torch.no_grad()
def _copy(model: Umt, folder: Path, files: Mapping[str, Path]) -> None:
    """Copy the encoder's tensors of a checkpoint into `model`.

    Raises:
        WeightsInvalid: a tensor is missing, extra or of another shape.
    """
    own = {f"{ENCODER_PREFIX}{name}": tensor for name, tensor in model.state_dict().items()}
    check_tensors(str(folder), tensor_shapes(files), {name: tuple(tensor.shape) for name, tensor in own.items()})
    for name, tensor in stream_tensors(files, own):
        own[name].copy_(tensor)
