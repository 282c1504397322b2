"""Causes inside the forward: arithmetic, bytes, many operators, copies, dtypes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from inferscope.experiments.zoo.models import fixed, llama, prompt
from inferscope.experiments.zoo.exhibit import Live

__all__ = []

_LONG = 4096


def big_prefill(dtype: torch.dtype) -> Live:
    """Matrices large enough to keep the arithmetic busy, and one token."""
    model = llama(dtype=dtype, hidden_size=1024, intermediate_size=4096, num_attention_heads=8)
    return Live(model=model, inputs=prompt(384), options=lambda: fixed(1))


def weight_decode(dtype: torch.dtype) -> Live:
    """Weights far beyond any cache, read for one token at a time."""
    model = llama(dtype=dtype, hidden_size=2048, intermediate_size=8192, num_attention_heads=16, num_hidden_layers=1)
    return Live(model=model, inputs=prompt(4), options=lambda: fixed(16))


def long_context_decode() -> Live:
    """A static cache of many long sequences, filled before, and few weights."""
    model = llama(num_hidden_layers=2, num_attention_heads=4)
    batch, length = 8, _LONG

    def options() -> dict[str, Any]:
        cache = StaticCache(config=model.config, max_cache_len=length + 8)
        _fill(cache, model, batch, length)
        return fixed(6, past_key_values=cache)

    return Live(model=model, inputs=prompt(length + 1, batch), options=options)


def growing_cache() -> Live:
    """The same in a cache that grows by concatenation."""
    model = llama(num_hidden_layers=2, num_attention_heads=4)
    batch, length = 4, _LONG

    def options() -> dict[str, Any]:
        cache = DynamicCache(config=model.config)
        _fill(cache, model, batch, length)
        return fixed(8, past_key_values=cache)

    return Live(model=model, inputs=prompt(length + 1, batch), options=options)


def _fill(cache: Any, model: Any, batch: int, length: int) -> None:
    """Keys and values as if so many tokens had been read, without reading them."""
    config = model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        keys = torch.zeros(batch, heads, length, width, dtype=model.dtype)
        cache.update(keys, keys.clone(), layer)


def eager_attention() -> Live:
    """A long prompt whose scores are written out."""
    model = llama(attention="eager", num_attention_heads=32, num_hidden_layers=1)
    return Live(model=model, inputs=prompt(1024), options=lambda: fixed(1))


def tiny() -> Live:
    """A model too small for its operators' fixed cost."""
    model = llama(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=6)
    return Live(model=model, inputs=prompt(8), options=lambda: fixed(24))


def many_operators() -> Live:
    """A layer that does its arithmetic piece by piece."""
    model = llama(hidden_size=128, intermediate_size=128, num_hidden_layers=1)
    model.model.layers[0].mlp = Scattered(128)
    return Live(model=model, inputs=prompt(8), options=lambda: fixed(12))


class Scattered(torch.nn.Module):
    """One addition for each element of the hidden state."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(size))

    def forward(self, hidden: Any) -> Any:
        """The same as `hidden + shift`."""
        pieces = [hidden[..., index : index + 1] + self.shift[index] for index in range(self.shift.shape[0])]
        return torch.cat(pieces, dim=-1)


def copied_weights() -> Live:
    """Each layer fetches its weights by a copy before it runs, as offloading does."""
    model = llama(hidden_size=1024, intermediate_size=4096, num_attention_heads=8)

    def fetch(module: torch.nn.Module, _args: object) -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()

    for layer in model.model.layers:
        layer.register_forward_pre_hook(fetch)
    return Live(model=model, inputs=prompt(8), options=lambda: fixed(8), deep_every=1)
