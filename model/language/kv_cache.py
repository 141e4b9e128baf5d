"""The key-value cache of one prompt: allocated as a whole before prefill, written in place, never grown.

Implements the cache interface of transformers. Does not know models or prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from index.errors import BudgetExceeded

__all__ = ["PreallocatedCache", "cache_bytes"]


def cache_bytes(config: Any, tokens: int | Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of keys and values under a Qwen2 `config`; `tokens` is one number for all layers, or one for each."""
    width = int(config.num_key_value_heads) * _head_dim(config)
    return 2 * width * sum(_of_layers(config, tokens)) * dtype.itemsize


def _of_layers(config: Any, tokens: int | Sequence[int]) -> list[int]:
    """A number of tokens for each layer."""
    return [tokens] * int(config.num_hidden_layers) if isinstance(tokens, int) else list(tokens)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class _PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, [1, heads, capacity, head_dim] each, filled from the front."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.buffers = keys, values
        self._length = 0
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys[:, :, :0], values[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [1, heads, n, head_dim]; returns all so far.

        Raises:
            BudgetExceeded: there is no room for n more tokens.
        """
        end = self._length + key_states.shape[-2]
        capacity = self.buffers[0].shape[-2]
        if end > capacity:
            raise BudgetExceeded(f"the key-value cache was sized for {capacity} tokens and {end} are needed")
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = states
        self._length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def get_max_length(self) -> int:
        """Tokens that the layer has room for."""
        return int(self.buffers[0].shape[-2])


class PreallocatedCache(Cache):  # type: ignore[misc]
    """Room for `capacity` tokens of one sequence in every layer of a Qwen2 `config`, or for another number in each.

    An update beyond the capacity raises `BudgetExceeded`.
    """

    def __init__(self, config: Any, capacity: int | Sequence[int], *, dtype: torch.dtype, device: torch.device) -> None:
        def empty(tokens: int) -> Tensor:
            shape = (1, config.num_key_value_heads, tokens, _head_dim(config))
            return torch.empty(shape, dtype=dtype, device=device)

        layers = [_PreallocatedLayer(empty(tokens), empty(tokens)) for tokens in _of_layers(config, capacity)]
        super().__init__(layers=layers)

    @property
    def buffers(self) -> list[Tensor]:
        """All tensors that hold keys and values, [1, heads, capacity, head_dim] each."""
        return [buffer for layer in self.layers for buffer in layer.buffers]
