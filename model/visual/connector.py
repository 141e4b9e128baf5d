"""The connectors: vision tokens into the language model's space (ViLAMP, section 3.3).

    h_k^m = MLP_k(p_k^m)    a keyframe keeps all of its M patches
    h_n   = MLP_n(t_n)      any other frame is one merged token (see `model.visual.dfm`)

Both are Linear, GELU, Linear, and share no weights. A connector may also have `relevance`, two directions of the
language model's space, one for each of the two: h + 10 · R_p · direction, where R_p is the cosine of token and question
(equation 6). The paper uses R_p for merging alone; a language model of two million parameters needs it to find the
patch that the question is about. Checkpoints without it load as well. `newline` is an optional learned vector that ends
the visual sequence.

The authors' weights have one projector and a learned merger after it: `ReleasedConnector`. Does not know frames,
prompts or language models.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from index.errors import WeightsInvalid, WeightsNotFound
from model.checkpoints.files import check_tensors, read_tensors, resolve, stream_tensors, tensor_files, tensor_shapes
from model.checkpoints.videochat_flash import FlashConfig, projector_names
from model.checkpoints.vilamp import VilampConfig, connector_names
from model.profiles.profile import ConnectorSpec
from model.visual.dfm_learned import Composer, projector_mlp

__all__ = ["AnyConnector", "Connector", "ReleasedConnector", "load_connector"]


class Connector(nn.Module):
    """The two-stream connector: MLP_k is `keyframe` and MLP_n is `frame`, from `patch_dim` to the language model's
    `width`."""

    relevance: nn.Parameter | None
    """[2, width], for keyframes and for other frames."""
    newline: nn.Parameter | None
    """[width]."""

    def __init__(self, patch_dim: int, width: int, *, relevance: bool = False, newline: bool = False) -> None:
        super().__init__()
        self.patch_dim, self.width = patch_dim, width
        self.relevance = nn.Parameter(torch.zeros(2, width)) if relevance else None
        self.newline = nn.Parameter(torch.zeros(width)) if newline else None
        self.keyframe = projector_mlp(patch_dim, width)
        self.frame = projector_mlp(patch_dim, width)

    def forward(self, keyframe_patches: Tensor, merged: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Map the tokens of K keyframes and N − K other frames.

        Args:
            keyframe_patches: [K, M, patch_dim].
            merged: [N − K, patch_dim].
            query: the question in the same space, [patch_dim].

        Returns:
            [K, M, width] and [N − K, width].
        """
        return self.tokens(keyframe_patches, query, keyframe=True), self.tokens(merged, query, keyframe=False)

    def tokens(self, features: Tensor, query: Tensor, *, keyframe: bool) -> Tensor:
        """Map features [..., patch_dim] of keyframes or of other frames to [..., width]; `query` is the question,
        [patch_dim]."""
        result: Tensor = (self.keyframe if keyframe else self.frame)(features)
        if self.relevance is None:
            return result
        cosine = nn.functional.cosine_similarity(features.float(), query.float(), dim=-1).to(result.dtype)
        return result + 10.0 * cosine.unsqueeze(-1) * self.relevance[0 if keyframe else 1].to(result.dtype)

    def save(self, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write `keyframe.{0,2}.{weight,bias}` and `frame.{0,2}.{weight,bias}` as safetensors."""
        save_file({k: v.detach().to("cpu", dtype).contiguous() for k, v in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu") -> Connector:
        """Load a file that `save` wrote, as float32; the two widths come from the tensors.

        Raises:
            WeightsNotFound: the file does not exist.
            WeightsInvalid: the file is not safetensors, or a tensor is missing, extra or of another shape.
        """
        if not path.is_file():
            raise WeightsNotFound(f"{path}: no connector weights there; put the connector.safetensors of the profile")
        state = _read(path)
        first = state.get("keyframe.0.weight")
        if first is None or first.ndim != 2:
            raise WeightsInvalid(f"{path}: keyframe.0.weight [width, patch width] is missing")
        return cls.from_state(state, patch_dim=first.shape[1], width=first.shape[0], source=str(path), device=device)

    @classmethod
    def from_state(
        cls, state: dict[str, Tensor], *, patch_dim: int, width: int, source: str, device: torch.device | str = "cpu"
    ) -> Connector:
        """A float32 connector of the given widths from tensors by name; `source` names them in errors.

        Raises:
            WeightsInvalid: a tensor is missing, extra or of another shape; the message names it.
        """
        connector = cls(patch_dim, width, relevance="relevance" in state, newline="newline" in state)
        expected = {k: tuple(v.shape) for k, v in connector.state_dict().items()}
        for name in sorted(expected.keys() | state.keys()):
            got = tuple(state[name].shape) if name in state else None
            if got != expected.get(name):
                raise WeightsInvalid(f"{source}: tensor {name} should be {expected.get(name)}, got {got}")
        connector.load_state_dict({k: v.float() for k, v in state.items()})
        return connector.to(device).eval()


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsInvalid(f"{path}: not a safetensors file ({error}); download it again") from error
    return state


class ReleasedConnector(nn.Module):
    """Projector, newline and merger of an authors' checkpoint, under their names in it.

    `composer_projector` is a `Composer` (`sig_pooling`) or, for `single_token`, two linear layers that map a frame's
    CLIP embedding [query_dim] to its token.

    Args:
        config: the checkpoint's configuration.
        query_dim: width of CLIP's embeddings.
    """

    def __init__(self, config: VilampConfig, query_dim: int) -> None:
        super().__init__()
        self.config, self.query_dim = config, query_dim
        self.patch_dim, self.width = config.mm_hidden_size, config.hidden_size
        self.mm_projector = projector_mlp(self.patch_dim, self.width)
        self.image_newline = nn.Parameter(torch.zeros(self.width))
        self.composer_projector: nn.Sequential | Composer
        if config.composer_type == "single_token":
            self.composer_projector = projector_mlp(query_dim, self.width)
        else:
            self.composer_projector = Composer(query_dim, self.width)

    def two_stream(self) -> Connector:
        """A two-stream connector with the projector as MLP_k and as MLP_n, for the paper's form without training."""
        connector = Connector(self.patch_dim, self.width, newline=True)
        connector.keyframe.load_state_dict(self.mm_projector.state_dict())
        connector.frame.load_state_dict(self.mm_projector.state_dict())
        assert connector.newline is not None
        connector.newline.data.copy_(self.image_newline.data)
        weight = self.image_newline
        return connector.to(weight.device, weight.dtype).requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str = "cpu") -> ReleasedConnector:
        """Load the connector of a checkpoint folder, as float32.

        Raises:
            WeightsNotFound: a file is missing.
            WeightsInvalid: a field of config.json is invalid, a tensor is missing, extra or of another shape, or tau is
                not a number above 0.
        """
        config = VilampConfig.read(folder)
        files = tensor_files(folder)
        chosen = connector_names(files)
        shapes = tensor_shapes({name: files[name] for name in chosen})
        # config.json does not contain the width of CLIP's embeddings.
        probe = "0.weight" if config.composer_type == "single_token" else "linear_q.weight"
        probed = shapes.get(f"model.composer_projector.{probe}", ())
        if len(probed) != 2:
            raise WeightsInvalid(
                f"{folder}: tensor model.composer_projector.{probe} [width, CLIP width] is missing, which "
                f"composer_type {config.composer_type} has; is it the right checkpoint?"
            )
        connector = cls(config, probed[1])
        own = {f"model.{name}": tensor for name, tensor in connector.state_dict().items()}
        check_tensors(str(folder), shapes, {name: tuple(tensor.shape) for name, tensor in own.items()})
        with torch.no_grad():
            for name, tensor in stream_tensors(files, chosen):
                own[name].copy_(tensor)
        composer = connector.composer_projector
        tau = float(composer.tau.detach()) if isinstance(composer, Composer) else 1.0
        if not (math.isfinite(tau) and tau > 0):
            raise WeightsInvalid(f"{folder}: model.composer_projector.tau is {tau}, not above 0")
        return connector.to(device).eval()


AnyConnector = Connector | ReleasedConnector

# One trained projector as both MLPs: its names in both layouts that transformers has written of LLaVA-OneVision.
_LLAVA = {
    r"(model\.)?multi_modal_projector\.linear_1\.": "0.",
    r"(model\.)?multi_modal_projector\.linear_2\.": "2.",
    r"(model\.)?multi_modal_projector\.": "extra.",
    r"(model\.)?image_newline$": "newline",
}


def load_connector(spec: ConnectorSpec, device: torch.device) -> AnyConnector:
    """Load the connector of a profile, float32 on `device`.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
        WeightsInvalid: the tensors do not fit.
    """
    if spec.layout == "two_stream":
        return Connector.load(resolve(spec.source, needs=(), what="connector"), device=device)
    needs = ("config.json", "*.safetensors")
    folder = resolve(spec.source, needs=needs, takes=("*.safetensors.index.json",), what="connector")
    if spec.layout == "vilamp":
        return ReleasedConnector.load(folder, device=device)
    if spec.layout == "hico":
        return _load_clip_projector(folder, device)
    projector = read_tensors(folder, _LLAVA)
    newline = projector.pop("newline", None)
    first = projector.get("0.weight")
    if first is None or first.ndim != 2:
        raise WeightsInvalid(f"{folder}: multi_modal_projector.linear_1.weight is missing")
    both = {f"{name}.{key}": tensor for name in ("keyframe", "frame") for key, tensor in projector.items()}
    if newline is not None:
        both["newline"] = newline
    width, patch_dim = first.shape
    return Connector.from_state(both, patch_dim=patch_dim, width=width, source=str(folder), device=device)


def _load_clip_projector(folder: Path, device: torch.device) -> Connector:
    """The projector of VideoChat-Flash's checkpoints, `model.mm_projector.mlp.{0,2}`, as both MLPs."""
    config = FlashConfig.read(folder)
    files = tensor_files(folder)
    chosen = projector_names(files)
    width, patch_dim = config.hidden_size, config.mm_hidden_size
    expected = {
        f"model.mm_projector.mlp.{layer}.{kind}": shape
        for layer, wide in ((0, patch_dim), (2, width))
        for kind, shape in (("weight", (width, wide)), ("bias", (width,)))
    }
    check_tensors(str(folder), tensor_shapes({name: files[name] for name in chosen}), expected)
    both = {
        name.replace("model.mm_projector.mlp", stream): tensor
        for name, tensor in stream_tensors(files, chosen)
        for stream in ("keyframe", "frame")
    }
    return Connector.from_state(both, patch_dim=patch_dim, width=width, source=str(folder), device=device)
