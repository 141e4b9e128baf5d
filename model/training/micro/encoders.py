"""The training of the two encoders of `micro`: a CLIP for keyframes and a SigLIP for patches.

Both have the same three losses over the frames of the bank:
- pair: a sigmoid loss over every (frame, text) of a batch. All true pairs are positives, as many frames of a batch fit
  the same text (SigLIP, arXiv 2303.15343, equation 1, with several positives for each text);
- patch: the same loss for the best patch of each frame, which makes patches comparable with texts (R_p in DFM);
- label: the cross-entropy of linear probes that read from each patch what it shows; they are not saved.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import SiglipConfig, SiglipModel

from model.training.micro.clip_bank import GRID, SIZE, ClipBank
from model.training.micro.optimizer import load_checkpoint, make_optimizer, save_checkpoint, set_rate
from model.world.questions import Constraint, describe
from model.world.scenes import COLOURS, COUNTS, EVENTS, KINDS, PLACES
from model.world.vocabulary import build_tokenizer, save_tokenizer, words

TEXT_LENGTH = 24
MEAN = STD = (0.5, 0.5, 0.5)
PATCH = SIZE // GRID
CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": SIZE,
        "layers": 6,
        "width": 160,
        "head_width": 32,
        "mlp_ratio": 3.0,
        "patch_size": PATCH,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": TEXT_LENGTH,
        "vocab_size": 0,
        "hf_tokenizer_name": "tokenizer",
        "width": 128,
        "heads": 4,
        "layers": 2,
        "pool_type": "argmax",
    },
}
SIGLIP_VISION: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "image_size": SIZE,
    "patch_size": PATCH,
}
SIGLIP_TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TEXT_LENGTH,
    "projection_size": 192,
}
_DESCRIBED_EVENTS = tuple(EVENTS.index(name) for name in ("fall", "flash", "burn", "drop"))


class TextSampler:
    """Draws texts for frames and computes of which other frames each text is true."""

    def __init__(self, bank: ClipBank, rng: np.random.Generator) -> None:
        self.bank, self.rng = bank, rng

    def constraint(self, frame: int) -> Constraint | None:
        """What a text about a frame will state; None for a frame without actors."""
        seen = self.bank.seen[frame]
        present = np.flatnonzero(seen[:, 0] >= 0)
        if len(present) == 0:
            return None
        kind, colour, place, event, count = (int(v) for v in seen[self.rng.choice(present)])
        keep = self.rng.random(5) < (0.75, 0.65, 0.55, 0.35, 0.5)
        about = Constraint(
            kind=kind if keep[0] else -1,
            colour=colour if keep[1] else -1,
            place=place if keep[2] else -1,
            event=event if keep[3] and event in _DESCRIBED_EVENTS else -1,
            count=count if keep[4] and count > 1 else -1,
        )
        return about if about != Constraint() else Constraint(kind=kind, colour=colour)

    def batch(self, frames: NDArray[np.int64]) -> tuple[list[str], Tensor]:
        """One text for each of `frames` (rows of the bank), and bool[texts, frames]: which texts are true of which
        frames."""
        abouts = [self.constraint(int(i)) for i in frames]
        texts = [
            describe(a, self.rng)
            if a
            else ("an empty view", "nothing there", "nobody at the scene")[self.rng.integers(3)]
            for a in abouts
        ]
        none = -2  # the text about an empty view matches no participant
        wanted = np.array(
            [(a.kind, a.colour, a.place, a.event, a.count) if a else (none,) * 5 for a in abouts], np.int8
        )
        seen = self.bank.seen[frames]
        fits = ((wanted[:, None, None, :] == -1) | (wanted[:, None, None, :] == seen[None])).all(-1)
        true = (fits & (seen[None, :, :, 0] >= 0)).any(-1)
        empty = (seen[:, :, 0] < 0).all(-1)
        without_actors = np.array([a is None for a in abouts])
        true = np.asarray(true) | (without_actors[:, None] & np.asarray(empty)[None, :])
        return texts, torch.from_numpy(true)


class PatchHeads(nn.Module):
    """Linear probes from patches to what they show: kind, colour, place, event and count. Used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(KINDS) + 1, len(COLOURS) + 1, len(PLACES) + 1, len(EVENTS) + 1, len(COUNTS) + 2)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in self.sizes)
        self.where = nn.Linear(width, len(PLACES))

    def forward(self, tokens: Tensor, seen: Tensor, owner: Tensor, place: Tensor) -> Tensor:
        """Mean cross-entropy of the probes.

        Args:
            tokens: patches, [B, 36, d].
            seen: labels of participants, int64[B, 4, 5] (see `ClipBank`).
            owner: participant that covers each patch, int64[B, 36].
            place: place that each patch shows, int64[B, 36].
        """
        covered = owner >= 0
        index = owner.clamp(min=0).unsqueeze(-1).expand(-1, -1, seen.shape[-1])
        labels = (seen.gather(1, index) + 1) * covered.unsqueeze(-1)  # 0: no actor
        weight = torch.where(covered, 1.0, 0.08)
        total = tokens.new_zeros(())
        for i, head in enumerate(self.heads):
            loss = functional.cross_entropy(head(tokens).flatten(0, 1), labels[..., i].flatten(), reduction="none")
            total = total + (loss * weight.flatten()).sum() / weight.sum()
        known = place >= 0
        return total + functional.cross_entropy(self.where(tokens[known]), place[known])


def _pair_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Sigmoid loss of logits [texts, frames]; for each text, all negatives together weigh three times as much as the
    positives."""
    sign = torch.where(true, 1.0, -1.0)
    loss = -functional.logsigmoid(sign * logits)
    positives = true.float().sum(1, keepdim=True).clamp(min=1)
    negatives = (~true).float().sum(1, keepdim=True).clamp(min=1)
    return (loss * torch.where(true, 1 / positives, 3.0 / negatives)).sum(1).mean()


class ContrastiveModel(nn.Module, ABC):
    """An image and text encoder under training, with its losses; `model` is the library's module."""

    model: Any

    def __init__(self, model: nn.Module, width: int, patch_width: int) -> None:
        super().__init__()
        self.model = model
        self.heads = PatchHeads(patch_width)
        self.align = nn.Identity() if width == patch_width else nn.Linear(patch_width, width)
        self.scale = nn.Parameter(torch.tensor([math.log(10.0), math.log(10.0)]))
        self.bias = nn.Parameter(torch.tensor([-6.0, -6.0]))

    @abstractmethod
    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors [B, e] and patches [B, 36, d] of pixels float32[B, 3, 96, 96]."""

    @abstractmethod
    def texts(self, ids: Tensor) -> Tensor:
        """Vectors [B, e] of token ids int64[B, length]."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (float16), configuration and tokenizer in the library's own layout."""

    def loss(
        self, pixels: Tensor, ids: Tensor, true: Tensor, seen: Tensor, owner: Tensor, place: Tensor
    ) -> dict[str, Tensor]:
        """The losses `pair`, `patch` and `label` of one batch.

        Args:
            pixels: float32[B, 3, 96, 96].
            ids: token ids of one text for each frame, int64[B, length].
            true: which texts are true of which frames, bool[B, B].
            seen, owner, place: see `PatchHeads.forward`.
        """
        pooled, tokens = self.images(pixels)
        text = functional.normalize(self.texts(ids), dim=-1)
        scale = self.scale.exp().clamp(max=60)
        pair = scale[0] * text @ functional.normalize(pooled, dim=-1).T + self.bias[0]
        near = functional.normalize(self.align(tokens), dim=-1)
        best = torch.einsum("td,bmd->tbm", text, near).amax(-1)
        return {
            "pair": _pair_loss(pair, true),
            "patch": _pair_loss(scale[1] * best + self.bias[1], true),
            "label": self.heads(tokens, seen, owner, place),
        }


class ContrastiveClip(ContrastiveModel):
    """The CLIP of `micro`, an open_clip model."""

    def __init__(self) -> None:
        CLIP_CONFIG["text_cfg"]["vocab_size"] = len(words())
        super().__init__(CLIP(**CLIP_CONFIG), CLIP_CONFIG["embed_dim"], CLIP_CONFIG["vision_cfg"]["width"])

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors [B, 128] and patches [B, 36, 160]."""
        pooled, tokens = self.model.visual(pixels)
        return pooled, tokens

    def texts(self, ids: Tensor) -> Tensor:
        """Vectors [B, 128] of token ids."""
        return self.model.encode_text(ids)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Write weights (float16), configuration and tokenizer in open_clip's layout."""
        save_tokenizer(folder, max_length=TEXT_LENGTH, close=True)
        preprocess = {"size": SIZE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
        config = {"model_cfg": {**CLIP_CONFIG, "vision_cfg": {**CLIP_CONFIG["vision_cfg"], "output_tokens": False}}}
        (folder / "open_clip_config.json").write_text(
            json.dumps({**config, "preprocess_cfg": preprocess}, indent=2) + "\n"
        )
        state = {k: v.detach().half().contiguous() for k, v in self.model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")


class ContrastiveSiglip(ContrastiveModel):
    """The SigLIP of `micro`, a transformers model."""

    def __init__(self) -> None:
        pad, last = 0, len(words()) - 1
        text = {
            **SIGLIP_TEXT,
            "vocab_size": len(words()),
            "pad_token_id": pad,
            "bos_token_id": last,
            "eos_token_id": last,
        }
        config = SiglipConfig(text_config=text, vision_config=SIGLIP_VISION)
        super().__init__(SiglipModel(config), SIGLIP_VISION["hidden_size"], SIGLIP_VISION["hidden_size"])

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors [B, 192] and patches [B, 36, 192]."""
        out = self.model.vision_model(pixel_values=pixels)
        return out.pooler_output, out.last_hidden_state

    def texts(self, ids: Tensor) -> Tensor:
        """Vectors [B, 192] of token ids."""
        return self.model.text_model(input_ids=ids).pooler_output  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Write weights (float16), configuration and tokenizer in transformers' layout."""
        save_tokenizer(folder, max_length=TEXT_LENGTH, close=True)
        preprocess = {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "image_mean": MEAN,
            "image_std": STD,
            "resample": 3,
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocess, indent=2) + "\n")
        deepcopy(self.model).half().save_pretrained(folder)


@dataclass(slots=True)
class EncoderRun:
    """Settings of one encoder's training, and its history."""

    steps: int
    """Optimiser steps."""
    batch: int = 128
    """Frames of one step."""
    rate: float = 1.2e-3
    """Largest learning rate; it falls to 0 along a cosine."""
    warm_up: int = 200
    """Steps in which the rate rises from 0."""
    seed: int = 0
    """Seed of weights and batches."""
    threads: int = 1
    """Threads of torch."""
    save_every: int = 250
    """Steps between two checkpoints."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Running means of the losses every 50 steps."""


def train_encoder(
    name: str, bank: ClipBank, work: Path, out: Path, run: EncoderRun, on_step: Callable[[int, dict[str, float]], None]
) -> None:
    """Train `clip` or `siglip` to the end of `run` and save it to `out` in its library's own layout.

    An interrupted training resumes from the checkpoint in `work`. The batches depend on seed and step alone.

    Args:
        name: `clip` or `siglip`.
        bank: the training data.
        work: folder of the checkpoint.
        out: folder for the weights.
        run: settings; its history is filled.
        on_step: called every 50 steps with steps done and running means of the losses.
    """
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    model: ContrastiveModel = ContrastiveClip() if name == "clip" else ContrastiveSiglip()
    optimizer = make_optimizer(model, run.rate)
    checkpoint = work / f"{name}.pt"
    first, run.history = load_checkpoint(checkpoint, model, optimizer)
    tokenizer = build_tokenizer(max_length=TEXT_LENGTH, close=True)
    mean: dict[str, float] = {}
    for step in range(first, run.steps):
        rng = np.random.default_rng([run.seed, step])
        frames = np.sort(rng.choice(len(bank), run.batch, replace=False))
        texts, true = TextSampler(bank, rng).batch(frames)
        ids = tokenizer(
            texts, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        ).input_ids
        pixels = torch.from_numpy(bank.pixels[frames]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (run.batch, 1, 1, 1)).astype(np.float32))
        labels = [torch.from_numpy(a[frames]).long() for a in (bank.seen, bank.patch_seen, bank.patch_place)]
        rate = run.rate * min(1.0, (step + 1) / run.warm_up) * 0.5 * (1 + math.cos(math.pi * step / run.steps))
        set_rate(optimizer, rate)
        # The unfused attention kernel: backward of the fused one takes five times as long at 37 tokens in bfloat16 on a
        # CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            losses = model.loss(((pixels + 1) * gain - 1), ids, true, *labels)
            total = losses["pair"] + losses["patch"] + 0.5 * losses["label"]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for key, value in losses.items():
            mean[key] = 0.98 * mean.get(key, value.item()) + 0.02 * value.item()
        if (step + 1) % 50 == 0:
            run.history.append({"step": step + 1, **mean})
            on_step(step + 1, mean)
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            save_checkpoint(checkpoint, model, optimizer, step + 1, run.history)
    out.mkdir(parents=True, exist_ok=True)
    model.eval()
    model.save(out)
