"""Model profiles: which encoders, connector and language model work together, as data.

A profile is a TOML file. Three come with the package (`micro`, `edge`, `vilamp`); any other is a path to one's own
file. No code branches on a profile's name.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from index.errors import ProfileInvalid

__all__ = [
    "ConnectorSpec",
    "DfmSpec",
    "EncoderShape",
    "FrameEncoderSpec",
    "LanguageModelSpec",
    "ModelShape",
    "PatchEncoderSpec",
    "Profile",
    "Source",
    "load_profile",
    "profile_names",
]

_PROFILES = Path(__file__).parent


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Data):
    """Where weights lie: exactly one of a hub repository, a local folder, or a folder inside this package.

    `revision` is the commit of a hub repository; a local folder may state it too, and is then the same encoder as
    the hub's (the identity stored with vectors is made of name, revision and digests, never of a path).
    """

    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    folder: Path | None = None
    package: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(v is not None for v in (self.hub, self.folder, self.package)) != 1:
            raise ValueError("give exactly one of hub, folder and package")
        if self.hub is not None and self.revision is None:
            raise ValueError("a hub source needs a revision (a commit hash, or main)")
        return self

    def __str__(self) -> str:
        return f"{self.hub} (revision {self.revision})" if self.hub else str(self.folder or f"package {self.package}")


class FrameEncoderSpec(_Data):
    """A CLIP in open_clip's layout. `batch` is the most frames encoded at once.

    With `tower` only configuration and tokenizer come from `source`, and the weights from the frame selector
    (`model.frame_selector.*`) of that checkpoint in the authors' layout.
    """

    name: str
    source: Source
    tower: Source | None = None
    batch: int = Field(default=64, gt=0)


class PatchEncoderSpec(_Data):
    """A SigLIP in the transformers layout.

    `layer` says after which encoder layer patches are taken (−1: the last, 26: after the 26th), and `post_layernorm`
    whether the final norm is applied to them (only possible after the last). With `tower`, the vision layers of that
    checkpoint (a LLaVA-style folder with `vision_tower.*` tensors) replace the ones of the same name in `source`.
    """

    name: str
    source: Source
    tower: Source | None = None
    layer: int = -1
    post_layernorm: bool = True
    batch: int = Field(default=32, gt=0)

    @model_validator(mode="after")
    def _norm_fits_layer(self) -> Self:
        if self.layer == 0 or self.layer < -1:
            raise ValueError("layer is -1 (the last) or counts from 1")
        if self.post_layernorm and self.layer != -1:
            raise ValueError("post_layernorm belongs to the last layer; set it to false or layer to -1")
        return self


class LanguageModelSpec(_Data):
    """A Qwen2. `max_context` is the token budget of prompt and answer together; `dtype` is used on CUDA (a CPU runs
    in float32). `layout` is how its tensors are named on disk. `cache_bytes` is the most that one question's key-value
    cache may take; None for what the device has free. `engine` runs it; `vllm` is an extra (see `model.language.vllm_engine`)
    that takes `gpu_share` of the GPU's memory, where the rest is for the encoders and DFM."""

    source: Source
    layout: Literal["causal_lm", "llava_onevision", "vilamp"] = "causal_lm"
    max_context: int = Field(gt=0)
    max_new_tokens: int = Field(default=256, gt=0)
    cache_bytes: int | None = Field(default=None, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    engine: Literal["transformers", "vllm"] = "transformers"
    gpu_share: float = Field(default=0.6, gt=0, lt=1)


class ConnectorSpec(_Data):
    """`two_stream` is our own file with MLP_k and MLP_n; `llava_onevision` is the one projector of such a checkpoint,
    used as both (DFM without training)."""

    source: Source
    layout: Literal["two_stream", "llava_onevision", "vilamp"] = "two_stream"


class DfmSpec(_Data):
    """How frames become tokens.

    `paper` is equations 5–10: softmax temperature `alpha` and the weight `lam` of the keyframe's similarity. `released`
    is the merger that the authors' published `_sig` weights were trained with (see `model.visual.dfm_learned`); its
    temperature is learned and comes with the weights. There `reference_frame` says what the frames after the i-th
    keyframe are compared with: that keyframe, or, as the released code does, the i-th frame of the video.

    `keyframe_tokens` keyframe tokens are pooled bilinearly out of the M patches (None: what the checkpoint says, or all
    M), and with `image_newline` the checkpoint's learned vector ends the visual sequence. Keyframe selection follows
    the same mode: frames below `relevance_floor` are not selected, and `gap_fill` brings the set to min(K, N).
    """

    mode: Literal["paper", "released"] = "paper"
    alpha: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    lam: float = Field(default=1.0, allow_inf_nan=False)
    reference_frame: Literal["segment_index", "keyframe"] = "keyframe"
    keyframe_tokens: int | None = Field(default=None, gt=0)
    image_newline: bool = False
    gap_fill: bool = False
    relevance_floor: float = Field(default=-1.0, ge=-1, le=1)

    @model_validator(mode="after")
    def _fits_mode(self) -> Self:
        if self.mode == "released" and self.alpha != type(self).model_fields["alpha"].default:
            raise ValueError("alpha is learned in released mode and comes with the weights; leave it out")
        if self.mode == "paper" and self.reference_frame != "keyframe":
            raise ValueError("reference_frame segment_index belongs to released mode")
        return self


class ModelShape(_Data):
    """The sizes of a profile's model, from which random weights are made to measure speed without any file.

    `patches` × `patch_dim` is what the patch encoder gives of a frame, `query_dim` the width of the frame encoder's
    vectors; the rest is the Qwen2: `width`, `layers`, attention `heads` over `kv_heads`, `feed_forward`, `vocabulary`
    (the head shares its weights with the embedding where `tied`) and the most `positions`.
    """

    patches: int = Field(gt=0)
    patch_dim: int = Field(gt=0)
    query_dim: int = Field(gt=0)
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    feed_forward: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    tied: bool
    positions: int = Field(gt=0)


class EncoderShape(_Data):
    """The sizes of a profile's encoders, for the same purpose.

    `frame` is the name of an architecture of open_clip's; the rest is SigLIP's vision tower: square images of `image_size`
    pixels in patches of `patch_size`, `width`, `layers`, attention `heads` and `feed_forward`.
    """

    frame: str
    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    feed_forward: int = Field(gt=0)


class Profile(_Data):
    """Everything that makes an answer out of frames.

    `k` and `tau` are DKS's defaults, `max_frames` the most frames of one question. With `timestamps` the capture time
    stands as text before every keyframe, which only a model trained so understands. `notice` is shown to users.
    `alert_floor` is the least rise over a camera's usual score, in cosines of the patch encoder, that a standing question
    takes for an alert (see `index.standing_questions.AlertRule`); it is measured for `micro` alone.
    `shape` and `encoder_shape` are needed by `sightline bench model|encoders --random-weights` only.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    notice: str = ""
    k: int = Field(default=32, gt=0)
    tau: float = Field(default=0.85, gt=-1, le=1)
    max_frames: int = Field(default=10_000, gt=0)
    timestamps: bool = False
    alert_floor: float = Field(default=0.05, gt=0, le=2)
    frame_encoder: FrameEncoderSpec
    patch_encoder: PatchEncoderSpec
    language_model: LanguageModelSpec
    connector: ConnectorSpec
    dfm: DfmSpec = DfmSpec()
    shape: ModelShape | None = None
    encoder_shape: EncoderShape | None = None

    @model_validator(mode="after")
    def _merger_is_in_the_checkpoint(self) -> Self:
        if self.dfm.mode == "released" and self.connector.layout != "vilamp":
            raise ValueError("dfm.mode released needs a connector whose layout is vilamp: the merger is learned")
        return self


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in _PROFILES.glob("*.toml"))


def load_profile(name: str | Path) -> Profile:
    """A profile by its name, or from a TOML file; folders in a file are relative to it.

    Raises:
        ProfileInvalid: no such profile, not TOML, or a key that is unknown or does not fit.
    """
    path = Path(name) if str(name).endswith(".toml") else _PROFILES / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        known = ", ".join(profile_names())
        raise ProfileInvalid(f"no profile {str(name)!r}: give one of {known}, or a path ending in .toml") from None
    except tomllib.TOMLDecodeError as error:
        raise ProfileInvalid(f"{path}: not a TOML file: {error}") from None
    _anchor(data, path.resolve().parent)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "profile"
        raise ProfileInvalid(f"{path}: {where}: {first['msg']}") from None


def _anchor(data: dict[str, object], base: Path) -> None:
    """Make every `folder` of the profile absolute, against the place of its file."""
    for key, value in data.items():
        if isinstance(value, dict):
            _anchor(value, base)
        elif key == "folder" and isinstance(value, str):
            data[key] = str(base / Path(value).expanduser())
