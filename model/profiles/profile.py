"""Model profiles: which encoders, connector and language model work together, as data.

A profile is a TOML file. Those beside this module come with the package (`micro`, `edge`, `vilamp`); any other is
given by its path. No code branches on the name of a profile.
"""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from index.errors import ProfileInvalid, validation_message
from index.selectors.registry import SelectorName
from index.selectors.selector import Redundancy

__all__ = [
    "ConnectorSpec",
    "DfmSpec",
    "DroppingSpec",
    "EncoderShape",
    "EncoderSpec",
    "FrameEncoderSpec",
    "HicoSpec",
    "LanguageModelSpec",
    "ModelShape",
    "PatchEncoderSpec",
    "Profile",
    "Source",
    "load_profile",
    "profile_names",
]

_PROFILES = Path(__file__).parent
_SELECTION_FIELDS = {"gap_fill", "relevance_floor"}  # of DfmSpec; keyframes are selected in every profile


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Source(_Data):
    """Where weights are: exactly one of a hub repository, a local folder, and a folder inside this package."""

    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository on the hub, `owner/name`."""
    folder: Path | None = None
    """Local folder; relative to the profile's file."""
    package: str | None = None
    """Folder inside the package `model`."""
    revision: str | None = None
    """Commit of a hub repository. A local folder may name it too and is then the same encoder as the hub's: the
    identity that is stored with vectors consists of name, revision and digests, never of a path."""
    allow_pickle: bool = False
    """Whether weights may be PyTorch's `.bin` files, which are pickles. They are read with `weights_only=True`; still,
    set it for authors you trust only. Without it safetensors are required."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(v is not None for v in (self.hub, self.folder, self.package)) != 1:
            raise ValueError("give exactly one of hub, folder and package")
        if self.hub is not None and self.revision is None:
            raise ValueError("a hub source needs a revision (a commit hash, or main)")
        return self

    def __str__(self) -> str:
        return f"{self.hub} (revision {self.revision})" if self.hub else str(self.folder or f"package {self.package}")


class EncoderSpec(_Data):
    """The common fields of both encoders."""

    name: str
    """Name of the encoder, part of its identity."""
    source: Source
    """The checkpoint: configuration, tokenizer and weights."""
    tower: Source | None = None
    """A second checkpoint whose weights replace those of `source`."""
    batch: int = Field(default=32, gt=0)
    """Most frames encoded at once."""


class FrameEncoderSpec(EncoderSpec):
    """A CLIP in open_clip's layout.

    With `tower`, only configuration and tokenizer come from `source`, and all weights from the frame selector
    (`model.frame_selector.*`) of that checkpoint in the `vilamp` layout.
    """

    batch: int = Field(default=64, gt=0)
    """Most frames encoded at once."""
    tokenizer: Literal["open_clip", "transformers"] = "open_clip"
    """The code that turns a text into tokens: the one that the weights were trained with. `open_clip`: the tokenizer of
    the configuration; that of OpenAI's CLIP repairs mojibake and reads HTML entities first. `transformers`:
    CLIPTokenizerFast with the files of `source`, which takes a text as it is."""


class PatchEncoderSpec(EncoderSpec):
    """A SigLIP in transformers' layout, or a UMT-L in the layout of VideoChat-Flash's authors.

    With `tower`, the vision layers of that checkpoint (a LLaVA-style folder with `vision_tower.*` tensors) replace the
    layers of the same name in `source`.
    """

    kind: Literal["siglip", "umt"] = "siglip"
    """`siglip` encodes each frame by itself. `umt` encodes the frames of a clip together and needs a `hico` section;
    with such a section `siglip` merges the patches of a clip's frames, which is the ablation of the paper."""
    layer: int = -1
    """The encoder layer after which patches are taken: -1 for the last, 26 for the 26th."""
    post_layernorm: bool = True
    """Apply the final norm to the patches; possible after the last layer alone."""

    @model_validator(mode="after")
    def _norm_fits_layer(self) -> Self:
        if self.layer == 0 or self.layer < -1:
            raise ValueError("layer is -1 (the last) or counts from 1")
        if self.post_layernorm and self.layer != -1:
            raise ValueError("post_layernorm belongs to the last layer; set it to false or layer to -1")
        if self.kind == "umt" and (self.tower is not None or self.layer != -1 or not self.post_layernorm):
            raise ValueError("tower, layer and post_layernorm belong to kind siglip; leave them out for kind umt")
        return self


class DroppingSpec(_Data):
    """Progressive visual dropping of VideoChat-Flash (arXiv 2501.00574): deep layers of the language model
    read fewer visual tokens than shallow ones. The defaults are the published setting.

    Ratios count from the visual tokens of the prompt, n: behind layer `layers[i]`, `int(n · ratios[i + 1])` remain.
    """

    layers: tuple[int, ...] = (4, 18)
    """Layers after which visual tokens are dropped, ascending and counted from 1; the last layer is invalid."""
    ratios: tuple[float, ...] = (1.0, 0.75, 0.25)
    """Shares of the visual tokens that the groups of layers read: one more than `layers`, the first 1, descending."""
    kind: Literal["uniform", "attention", "uniform0_attention", "uniform1_attention"] = "uniform0_attention"
    """Which tokens remain: evenly spaced ones (`uniform`), those that the last token of the prompt attends to most
    (`attention`), or evenly spaced ones after the first layer or the first two and by attention after the others."""

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        layers, ratios = self.layers, self.ratios
        if not layers or layers[0] < 1 or list(layers) != sorted(set(layers)):
            raise ValueError("dropping.layers must ascend and count from 1")
        if len(ratios) != len(layers) + 1 or ratios[0] != 1:
            raise ValueError("dropping.ratios must have one number more than dropping.layers, and begin with 1")
        if not all(0 < later <= earlier for earlier, later in pairwise(ratios)):
            raise ValueError("dropping.ratios must be above 0 and must not ascend")
        return self

    def kept(self, visual_tokens: int) -> list[int]:
        """Visual tokens that each group of layers reads, one number more than `layers`: `int(n · r)`, in float64."""
        return [int(visual_tokens * ratio) for ratio in self.ratios]

    def lengths(self, layers: int, tokens: int, visual_tokens: int) -> list[int]:
        """Tokens that each of `layers` layers reads of a prompt of `tokens`, of which `visual_tokens` are visual."""
        kept = self.kept(visual_tokens)
        return [tokens - visual_tokens + kept[sum(layer >= end for end in self.layers)] for layer in range(layers)]

    def spaces_evenly(self, stage: int) -> bool:
        """Whether stage `stage`, counted from 0, keeps evenly spaced tokens; if not, it keeps the most attended."""
        return stage < {"uniform": len(self.layers), "uniform0_attention": 1, "uniform1_attention": 2}.get(self.kind, 0)


class LanguageModelSpec(_Data):
    """A Qwen2."""

    source: Source
    """The checkpoint."""
    layout: Literal["causal_lm", "llava_onevision", "vilamp", "videochat_flash"] = "causal_lm"
    """How the checkpoint names its tensors (see `model.language.qwen2`)."""
    max_context: int = Field(gt=0)
    """Most tokens of prompt and answer together."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Most tokens of an answer."""
    cache_bytes: int | None = Field(default=None, gt=0)
    """Most bytes of the key-value cache of one question; None for what the device has free."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Dtype on CUDA; a CPU computes in float32."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """The engine that runs the model; `vllm` is an optional dependency (see `model.language.vllm_engine`)."""
    gpu_share: float = Field(default=0.6, gt=0, lt=1)
    """Share of the GPU's memory that the engine `vllm` takes; encoders and DFM use the rest."""
    dropping: DroppingSpec | None = None
    """Dropping of visual tokens in deep layers; None for none. The engine `transformers` alone does it."""


class ConnectorSpec(_Data):
    """The connector between patches and the language model."""

    source: Source
    """The checkpoint."""
    layout: Literal["two_stream", "llava_onevision", "vilamp", "hico"] = "two_stream"
    """`two_stream`: this project's file with MLP_k and MLP_n. `llava_onevision`: the one projector of such a
    checkpoint, used as both (DFM without training). `vilamp`: projector and learned merger of the authors' weights.
    `hico`: the one projector of VideoChat-Flash's authors."""


class DfmSpec(_Data):
    """How frames become tokens, and the rules of keyframe selection that go with it."""

    mode: Literal["paper", "released"] = "paper"
    """`paper`: equations 5-10. `released`: the merger that the authors' published `_sig` weights were trained with (see
    `model.visual.dfm_learned`); keyframe selection then accepts a cosine equal to τ."""
    alpha: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Softmax temperature α; learned, and part of the weights, in `released` mode."""
    lam: float = Field(default=1.0, allow_inf_nan=False)
    """Weight λ of the similarity to the keyframe."""
    reference_frame: Literal["segment_index", "keyframe"] = "keyframe"
    """`released` mode: what the frames after the i-th keyframe are compared with: that keyframe, or, as the published
    code does, the i-th frame of the video."""
    keyframe_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a keyframe, pooled bilinearly from its M patches; None for the checkpoint's number, or all M."""
    image_newline: bool = False
    """End the visual sequence with the checkpoint's learned vector."""
    gap_fill: bool = False
    """Fill the gaps between keyframes until there are min(K, N)."""
    relevance_floor: float = Field(default=-1.0, ge=-1, le=1)
    """Frames with a relevance below it are not selected."""

    @model_validator(mode="after")
    def _fits_mode(self) -> Self:
        if self.mode == "released" and self.alpha != type(self).model_fields["alpha"].default:
            raise ValueError("alpha is learned in released mode and comes with the weights; leave it out")
        if self.mode == "paper" and self.reference_frame != "keyframe":
            raise ValueError("reference_frame segment_index belongs to released mode")
        return self


class HicoSpec(_Data):
    """Reading footage by clips, HiCo of VideoChat-Flash: the frames of a clip become `clip_tokens` tokens at ingest."""

    clip_frames: int = Field(default=4, gt=0)
    """Most frames of a clip, and seconds of the cells of UTC time that bound clips (see `model.encoders.clips`)."""
    clip_tokens: int = Field(default=64, gt=0)
    """Tokens of a whole clip, a multiple of `clip_frames`; a clip of fewer frames has as many tokens for each frame."""
    head_width: int = Field(default=64, gt=0)
    """Width of the heads over which similarity of tokens is averaged when they are merged; divides the width of the
    patch encoder."""
    min_frames: int = Field(default=64, gt=0)
    """Least frames that are read of a window, T_min, where its footage has them."""
    max_frames: int = Field(default=512, gt=0)
    """Most frames that are read of a window, T_max."""
    duration_sentence: bool = True
    """Whether a sentence before the question says how long the footage is and how many frames of it are read, as the
    published weights were trained."""

    @property
    def frame_tokens(self) -> int:
        """Tokens stored for one frame, `clip_tokens` divided by `clip_frames`."""
        return self.clip_tokens // self.clip_frames

    @model_validator(mode="after")
    def _whole_clips(self) -> Self:
        if self.clip_tokens % self.clip_frames:
            raise ValueError(f"clip_tokens ({self.clip_tokens}) must be a multiple of clip_frames ({self.clip_frames})")
        if not self.clip_frames <= self.min_frames <= self.max_frames:
            raise ValueError("clip_frames, min_frames and max_frames must ascend")
        return self


class ModelShape(_Data):
    """Sizes of a profile's model. `sightline bench model --random-weights` builds it without any checkpoint."""

    patches: int = Field(gt=0)
    """Patches of a frame, M."""
    patch_dim: int = Field(gt=0)
    """Width of a patch, Dp."""
    query_dim: int = Field(gt=0)
    """Width of the frame encoder's vectors, Df."""
    width: int = Field(gt=0)
    """Width of the Qwen2."""
    layers: int = Field(gt=0)
    """Layers of the Qwen2."""
    heads: int = Field(gt=0)
    """Attention heads."""
    kv_heads: int = Field(gt=0)
    """Heads of keys and values."""
    feed_forward: int = Field(gt=0)
    """Width of the feed-forward layers."""
    vocabulary: int = Field(gt=0)
    """Tokens of the vocabulary."""
    tied: bool
    """Whether the head shares its weights with the embedding."""
    positions: int = Field(gt=0)
    """Largest number of positions."""


class EncoderShape(_Data):
    """Sizes of a profile's encoders. `sightline bench encoders --random-weights` builds them without any checkpoint; a
    patch encoder of kind `umt`, whose checkpoints have no sizes, is always built from them."""

    frame: str
    """Architecture of the frame encoder, by open_clip's name."""
    image_size: int = Field(gt=0)
    """Side of the patch encoder's square input, pixels."""
    patch_size: int = Field(gt=0)
    """Side of a patch, pixels."""
    width: int = Field(gt=0)
    """Width of the patch encoder's vision tower."""
    layers: int = Field(gt=0)
    """Layers of it that are run."""
    heads: int = Field(gt=0)
    """Attention heads of it."""
    feed_forward: int = Field(gt=0)
    """Width of its feed-forward layers."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class Profile(_Data):
    """The models and settings that turn frames and a question into an answer."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Name of the profile."""
    notice: str = ""
    """A notice that users see with every answer."""
    k: int = Field(default=32, gt=0)
    """Largest number of keyframes, K of Algorithm 1."""
    tau: float = Field(default=0.85, gt=-1, le=1)
    """Similarity threshold τ of Algorithm 1."""
    selector: SelectorName = "dks"
    """How keyframes are selected; see `index.selectors`."""
    redundancy: Redundancy = "fixed"
    """When two frames are alike: `fixed` is the paper's rule, `background` the one for fixed cameras."""
    max_frames: int = Field(default=10_000, gt=0)
    """Most frames of one question."""
    timestamps: bool = False
    """Write the capture time as text before every keyframe; only a model trained that way understands it."""
    alert_floor: float = Field(default=0.05, gt=0, le=2)
    """Least rise above a camera's usual score, in cosines of the patch encoder, at which a standing question raises an
    alert (see `index.standing_questions.AlertRule`). Measured for `micro` alone."""
    frame_encoder: FrameEncoderSpec
    """The encoder of keyframe selection and search."""
    patch_encoder: PatchEncoderSpec
    """The encoder of DFM and of the prompt."""
    language_model: LanguageModelSpec
    """The language model."""
    connector: ConnectorSpec
    """The connector between the two."""
    dfm: DfmSpec = DfmSpec()
    """How frames become tokens."""
    hico: HicoSpec | None = None
    """Reading by clips in place of DFM; None for DFM."""
    shape: ModelShape | None = None
    """Sizes of the model, for benchmarks with random weights."""
    encoder_shape: EncoderShape | None = None
    """Sizes of the encoders, for benchmarks with random weights."""

    @model_validator(mode="after")
    def _merger_is_in_the_checkpoint(self) -> Self:
        if self.dfm.mode == "released" and self.connector.layout != "vilamp":
            raise ValueError("dfm.mode released needs a connector whose layout is vilamp: the merger is learned")
        return self

    @model_validator(mode="after")
    def _clips_or_dfm(self) -> Self:
        if self.hico is None and self.patch_encoder.kind == "umt":
            raise ValueError("patch_encoder.kind umt encodes clips; add a [hico] section")
        if self.patch_encoder.kind == "umt" and self.encoder_shape is None:
            raise ValueError("patch_encoder.kind umt needs an [encoder_shape] section: its checkpoints have no sizes")
        if self.hico is not None:
            for name in sorted(self.dfm.model_fields_set - _SELECTION_FIELDS):
                raise ValueError(
                    f"dfm.{name} has no effect with a [hico] section, which reads clips and merges no frames; remove it"
                )
        return self


def profile_names() -> list[str]:
    """Names of the profiles that come with the package, sorted."""
    return sorted(path.stem for path in _PROFILES.glob("*.toml"))


def load_profile(name: str | Path) -> Profile:
    """Load a profile by its name, or from the path of a TOML file; its folders are relative to that file.

    Raises:
        ProfileInvalid: the profile does not exist, is not TOML, or has an unknown key or an invalid value.
    """
    path = Path(name) if str(name).endswith(".toml") else _PROFILES / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        known = ", ".join(profile_names())
        raise ProfileInvalid(f"no profile {str(name)!r}: give one of {known}, or a path ending in .toml") from None
    except tomllib.TOMLDecodeError as error:
        raise ProfileInvalid(f"{path}: not a TOML file: {error}") from None
    _make_absolute(data, path.resolve().parent)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileInvalid(f"{path}: {validation_message(error)}") from None


def _make_absolute(data: dict[str, object], base: Path) -> None:
    """Replace every `folder` of the profile by an absolute path; relative ones start at `base`."""
    for key, value in data.items():
        if isinstance(value, dict):
            _make_absolute(value, base)
        elif key == "folder" and isinstance(value, str):
            data[key] = str(base / Path(value).expanduser())
