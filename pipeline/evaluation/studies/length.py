"""Memory of reading attention over long prompts, `sightline eval study memory`.

A language model of the profile's sizes with random weights reads random embeddings, without and with attention read for
the last tokens but a few. Whole attention matrices would need the bytes of `matrix_bytes`. Linux only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import torch
from pydantic import BaseModel, ConfigDict
from transformers import Qwen2Config

from index.child_processes import process_pool
from index.errors import UsageError
from model.encoders.encoder import pick_device
from model.language.kv_cache import cache_bytes
from model.language.query_attention import read_attention
from model.language.qwen2 import build_qwen2
from model.language.transformers_engine import TransformersLanguage
from model.profiles.profile import load_profile
from pipeline.bench.memory import peak_bytes, reset_peak

__all__ = ["LengthRow", "LengthStudy", "study_memory"]

_AFTER = 4  # tokens behind the question: the start of the assistant's turn


class LengthRow(BaseModel):
    """One length."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    tokens: int
    """Tokens of the prompt."""
    prefill_seconds: float
    """Time of a prefill alone."""
    seconds: float
    """Time of a prefill with attention."""
    prefill_peak_bytes: int
    """Growth of the peak memory in a prefill alone: of the process on a CPU, allocated by torch on CUDA."""
    peak_bytes: int
    """The same with attention."""
    cache_bytes: int
    """Bytes of keys and values, which are part of both."""
    matrix_bytes: int
    """Bytes of the attention matrices of one layer, float32, which are never made."""
    largest_error: float
    """Largest distance of a sum of shares from 1."""


class LengthStudy(BaseModel):
    """Result of the measurement."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    command: str = ""
    """The command that made it."""
    machine: str = ""
    """The machine, and what else it did."""
    profile: str
    """Name of the profile whose sizes the model has."""
    device: str
    """The device."""
    rows_read: int
    """Tokens whose attention is read."""
    rows: list[LengthRow]
    """One row for each length."""


def study_memory(
    profile: str = "micro",
    lengths: Sequence[int] = (4096, 16_384, 65_536),
    *,
    rows: int = 100,
    device: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LengthStudy:
    """Measure prefills of several lengths, each in a process of its own.

    Args:
        profile: name of the profile, or the path of its TOML file; its `shape` gives the sizes.
        lengths: tokens of the prompts.
        rows: tokens whose attention is read.
        device: see `model.encoders.encoder.pick_device`.
        on_progress: called with the lengths done and the lengths in all.

    Raises:
        UsageError: the profile has no `shape`, a length has too few tokens, or the system is not Linux.
    """
    if load_profile(profile).shape is None:
        raise UsageError(f"the profile {profile} has no [shape] section")
    if min(lengths) < rows + _AFTER + 1:
        raise UsageError(f"lengths must be above {rows + _AFTER}, got {min(lengths)}")
    if not Path("/proc/self/clear_refs").exists():
        raise UsageError("study memory reads /proc and runs on Linux only")
    found = []
    for length in lengths:
        with process_pool(1) as pool:
            found.append(pool.submit(_measure, profile, length, rows, device).result())
        on_progress(len(found), len(lengths))
    return LengthStudy(profile=profile, device=str(pick_device(device)), rows_read=rows, rows=found)


def _measure(profile: str, length: int, rows: int, device: str | None) -> LengthRow:
    """One length; runs in a process of its own."""
    shape, place = load_profile(profile).shape, pick_device(device)
    assert shape is not None
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(length + 8, shape.positions),
        tie_word_embeddings=shape.tied,
    )
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    torch.manual_seed(0)
    model = build_qwen2(config, place, dtype).requires_grad_(False)
    language = TransformersLanguage(model, None, max_context=length + 8)
    embeddings = torch.randn(length, shape.width, dtype=dtype, device=place)
    group = list(range(length - _AFTER - rows, length - _AFTER))
    language.prefill(embeddings[: rows + _AFTER], room=1)  # warms up

    def timed(work: Callable[[], object]) -> tuple[float, int, object]:
        """Seconds, growth of the peak, and the result."""
        before = _begin(place)
        since = perf_counter()
        result = work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return perf_counter() - since, _peak(place) - before, result

    plain, plain_peak, _ = timed(lambda: language.prefill(embeddings, room=1) and None)
    seconds, peak, shares = timed(lambda: read_attention(language, embeddings, [group], room=1)[0])
    assert isinstance(shares, torch.Tensor)
    return LengthRow(
        tokens=length,
        prefill_seconds=plain,
        seconds=seconds,
        prefill_peak_bytes=plain_peak,
        peak_bytes=peak,
        cache_bytes=cache_bytes(config, length + 1, dtype),
        matrix_bytes=4 * shape.heads * length * length,
        largest_error=float((shares.sum(dim=-1) - 1).abs().max()),
    )


def _begin(device: torch.device) -> int:
    """Start a measurement; returns the memory in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    reset_peak()
    return peak_bytes()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
