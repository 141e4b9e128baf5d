"""Trains the two encoders of `micro`: a CLIP for keyframes and a SigLIP for patches.

Both learn from the same three signals on the bank's frames:
- pairs: a sigmoid loss over every (frame, text) of a batch, with every true pair positive, since many frames of a
  batch fit the same text (SigLIP, arXiv 2303.15343, equation 1, with several positives a text);
- patches: the same loss on the best patch of a frame, so that a patch is comparable to a text (R_p in DFM);
- places: what each patch shows, by linear heads that are thrown away afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.training.micro.clip_bank import GRID, SIZE, Bank
from model.world.questions import Constraint, describe
from model.world.scenes import COLOURS, COUNTS, EVENTS, KINDS, PLACES
from model.world.vocabulary import save_tokenizer, words

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
_TOLD = tuple(EVENTS.index(name) for name in ("fall", "flash", "burn", "drop"))


class TextSampler:
    """Draws a text for a frame and knows which other frames it is true of."""

    def __init__(self, bank: Bank, rng: np.random.Generator) -> None:
        self.bank, self.rng = bank, rng

    def constraint(self, frame: int) -> Constraint | None:
        """What a text about this frame will say; None where the frame shows nobody."""
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
            event=event if keep[3] and event in _TOLD else -1,
            count=count if keep[4] and count > 1 else -1,
        )
        return about if about != Constraint() else Constraint(kind=kind, colour=colour)

    def batch(self, frames: NDArray[np.int64]) -> tuple[list[str], Tensor]:
        """One text a frame, and bool[texts, frames]: which texts are true of which frames."""
        abouts = [self.constraint(int(i)) for i in frames]
        texts = [
            describe(a, self.rng)
            if a
            else ("an empty view", "nothing there", "nobody at the scene")[self.rng.integers(3)]
            for a in abouts
        ]
        none = -2  # a text about an empty view matches no participant
        wanted = np.array(
            [(a.kind, a.colour, a.place, a.event, a.count) if a else (none,) * 5 for a in abouts], np.int8
        )
        seen = self.bank.seen[frames]
        fits = ((wanted[:, None, None, :] == -1) | (wanted[:, None, None, :] == seen[None])).all(-1)
        true = (fits & (seen[None, :, :, 0] >= 0)).any(-1)
        empty = (seen[:, :, 0] < 0).all(-1)
        nobody = np.array([a is None for a in abouts])
        true = np.asarray(true) | (nobody[:, None] & np.asarray(empty)[None, :])
        return texts, torch.from_numpy(true)


class PatchHeads(nn.Module):
    """Linear probes that make patches say what they show; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(KINDS) + 1, len(COLOURS) + 1, len(PLACES) + 1, len(EVENTS) + 1, len(COUNTS) + 2)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in self.sizes)
        self.where = nn.Linear(width, len(PLACES))

    def forward(self, tokens: Tensor, seen: Tensor, owner: Tensor, place: Tensor) -> Tensor:
        """tokens [B, 36, d], seen int[B, 4, 5], owner int[B, 36], place int[B, 36] → mean cross-entropy."""
        covered = owner >= 0
        index = owner.clamp(min=0).unsqueeze(-1).expand(-1, -1, seen.shape[-1])
        labels = (seen.gather(1, index) + 1) * covered.unsqueeze(-1)  # 0: nobody here
        weight = torch.where(covered, 1.0, 0.08)
        total = tokens.new_zeros(())
        for i, head in enumerate(self.heads):
            loss = functional.cross_entropy(head(tokens).flatten(0, 1), labels[..., i].flatten(), reduction="none")
            total = total + (loss * weight.flatten()).sum() / weight.sum()
        known = place >= 0
        return total + functional.cross_entropy(self.where(tokens[known]), place[known])


def _pair_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Sigmoid loss where positives and negatives weigh alike for each text."""
    sign = torch.where(true, 1.0, -1.0)
    loss = -functional.logsigmoid(sign * logits)
    positives = true.float().sum(1, keepdim=True).clamp(min=1)
    negatives = (~true).float().sum(1, keepdim=True).clamp(min=1)
    return (loss * torch.where(true, 1 / positives, 3.0 / negatives)).sum(1).mean()


class Pair(nn.Module):
    """One image–text model under training behind one face, whichever library it comes from."""

    model: Any

    def __init__(self, model: nn.Module, width: int, patch_width: int) -> None:
        super().__init__()
        self.model = model
        self.heads = PatchHeads(patch_width)
        self.align = nn.Identity() if width == patch_width else nn.Linear(patch_width, width)
        self.scale = nn.Parameter(torch.tensor([math.log(10.0), math.log(10.0)]))
        self.bias = nn.Parameter(torch.tensor([-6.0, -6.0]))

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def texts(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(
        self, pixels: Tensor, ids: Tensor, true: Tensor, seen: Tensor, owner: Tensor, place: Tensor
    ) -> dict[str, Tensor]:
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


class ClipPair(Pair):
    def __init__(self) -> None:
        from open_clip.model import CLIP

        CLIP_CONFIG["text_cfg"]["vocab_size"] = len(words())
        super().__init__(CLIP(**CLIP_CONFIG), CLIP_CONFIG["embed_dim"], CLIP_CONFIG["vision_cfg"]["width"])

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled, tokens = self.model.visual(pixels)
        return pooled, tokens

    def texts(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_tokenizer(folder, max_length=TEXT_LENGTH, close=True)
        preprocess = {"size": SIZE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
        config = {"model_cfg": {**CLIP_CONFIG, "vision_cfg": {**CLIP_CONFIG["vision_cfg"], "output_tokens": False}}}
        (folder / "open_clip_config.json").write_text(
            json.dumps({**config, "preprocess_cfg": preprocess}, indent=2) + "\n"
        )
        state = {k: v.detach().half().contiguous() for k, v in self.model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")


class SiglipPair(Pair):
    def __init__(self) -> None:
        from transformers import SiglipConfig, SiglipModel

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
        out = self.model.vision_model(pixel_values=pixels)
        return out.pooler_output, out.last_hidden_state

    def texts(self, ids: Tensor) -> Tensor:
        return self.model.text_model(input_ids=ids).pooler_output  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
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
        from copy import deepcopy

        deepcopy(self.model).half().save_pretrained(folder)


@dataclass(slots=True)
class EncoderRun:
    """How long and how fast one encoder is trained."""

    steps: int
    batch: int = 128
    rate: float = 1.2e-3
    warm_up: int = 200
    seed: int = 0
    threads: int = 1
    save_every: int = 250
    history: list[dict[str, float]] = field(default_factory=list)


def train_encoder(
    name: str, bank: Bank, work: Path, out: Path, run: EncoderRun, on_step: Callable[[int, dict[str, float]], None]
) -> None:
    """Train `clip` or `siglip` to the end of `run` and save it to `out` in its library's own layout.

    A checkpoint in `work` lets a stopped run go on; the order of frames depends on seed and step alone.
    """
    from model.world.vocabulary import build_tokenizer

    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    pair: ClipPair | SiglipPair = ClipPair() if name == "clip" else SiglipPair()
    decay = [p for p in pair.parameters() if p.ndim > 1]
    plain = [p for p in pair.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run.rate, betas=(0.9, 0.98), fused=True)
    checkpoint = work / f"{name}.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        pair.load_state_dict(state["pair"])
        optimizer.load_state_dict(state["optimizer"])
        first, run.history = state["step"], state["history"]
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
        for group in optimizer.param_groups:
            group["lr"] = rate
        # The plain attention kernel: the fused one is five times slower backward at 37 tokens in bfloat16 on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            losses = pair.loss(((pixels + 1) * gain - 1), ids, true, *labels)
            total = losses["pair"] + losses["patch"] + 0.5 * losses["label"]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimizer.step()
        for key, value in losses.items():
            mean[key] = 0.98 * mean.get(key, value.item()) + 0.02 * value.item()
        if (step + 1) % 50 == 0:
            run.history.append({"step": step + 1, **mean})
            on_step(step + 1, mean)
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            work.mkdir(parents=True, exist_ok=True)
            part = checkpoint.with_suffix(".part")
            state = {
                "pair": pair.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "history": run.history,
            }
            torch.save(state, part)
            part.replace(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    pair.eval().save(out)
