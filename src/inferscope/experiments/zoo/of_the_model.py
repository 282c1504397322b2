"""Causes inside the forward: arithmetic, bytes, many operators, copies, dtypes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, StaticCache

from inferscope.experiments.zoo.exhibit import Live
from inferscope.experiments.zoo.models import fastest, fixed, llama, prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.specs import DeviceSpec

__all__ = [
    "attention_bytes_per_s",
    "big_prefill",
    "copied_weights",
    "eager_attention",
    "growing_cache",
    "long_context_decode",
    "many_operators",
    "offloaded",
    "product_flops_per_s",
    "tiny",
    "weight_decode",
    "wide_dtype",
]

_HIDDEN, _WIDE, _PROMPT = 2048, 8192, 512
_CONTEXT = 4096
_SEQUENCES = 8
_HEADS = 4
_HEAD_SIZE = 64
_TRIES = 7


def big_prefill(device: DeviceSpec) -> Live:
    """Matrices large enough to keep the arithmetic busy, in the fastest dtype, and one token."""
    return _prefill(fastest(device))


def wide_dtype(_device: DeviceSpec) -> Live:
    """The same in float32."""
    return _prefill(torch.float32)


def _prefill(dtype: torch.dtype) -> Live:
    model = llama(
        dtype=dtype, hidden_size=_HIDDEN, intermediate_size=_WIDE, num_attention_heads=16, num_hidden_layers=1
    )
    return Live(model=model, inputs=prompt(_PROMPT), options=lambda: fixed(1))


def product_flops_per_s(dtype: torch.dtype) -> float:
    """How fast torch does the largest products of `big_prefill` on this machine: the best of a few."""
    tokens, weight = torch.randn(_PROMPT, _HIDDEN).to(dtype), torch.randn(_WIDE, _HIDDEN).to(dtype)
    best_s = _best_s(lambda: torch.nn.functional.linear(tokens, weight))
    return 2 * _PROMPT * _HIDDEN * _WIDE / best_s


def weight_decode(device: DeviceSpec) -> Live:
    """Weights far beyond any cache, read for one token at a time."""
    model = llama(
        dtype=fastest(device), hidden_size=2048, intermediate_size=8192, num_attention_heads=16, num_hidden_layers=1
    )
    return Live(model=model, inputs=prompt(4), options=lambda: fixed(12))


def long_context_decode(_device: DeviceSpec) -> Live:
    """A cache of fixed size with many long sequences, filled before, and few weights."""
    model = llama(num_attention_heads=_HEADS)

    def options() -> dict[str, Any]:
        cache = StaticCache(config=model.config, max_cache_len=_CONTEXT + 8)
        _fill(cache, model, _SEQUENCES)
        return fixed(6, past_key_values=cache)

    return Live(model=model, inputs=prompt(_CONTEXT + 1, _SEQUENCES), options=options)


def growing_cache(_device: DeviceSpec) -> Live:
    """The same in a cache that grows by concatenation."""
    model = llama(num_attention_heads=_HEADS)

    def options() -> dict[str, Any]:
        cache = DynamicCache(config=model.config)
        _fill(cache, model, _SEQUENCES)
        return fixed(8, past_key_values=cache)

    return Live(model=model, inputs=prompt(_CONTEXT + 1, _SEQUENCES), options=options, deep_every=1)


def _fill(cache: Any, model: Any, batch: int) -> None:  # noqa: ANN401 - transformers' own
    """Keys and values as if the context had been read, without reading it."""
    for layer in range(model.config.num_hidden_layers):
        keys = torch.zeros(batch, _HEADS, _CONTEXT, _HEAD_SIZE, dtype=model.dtype)
        cache.update(keys, keys.clone(), layer)


def attention_bytes_per_s() -> float:
    """How fast torch's attention reads the cache of `long_context_decode` on this machine: the best of a few."""
    keys = torch.zeros(_SEQUENCES, _HEADS, _CONTEXT, _HEAD_SIZE)
    values, query = keys.clone(), torch.ones(_SEQUENCES, _HEADS, 1, _HEAD_SIZE)
    best_s = _best_s(lambda: torch.nn.functional.scaled_dot_product_attention(query, keys, values))
    return 2 * keys.numel() * keys.element_size() / best_s


def _best_s(work: Callable[[], object]) -> float:
    best_s = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - started)
    return best_s


def eager_attention(device: DeviceSpec) -> Live:
    """A long prompt whose scores are written out, for many heads."""
    model = llama(dtype=fastest(device), attention="eager", num_attention_heads=32, num_hidden_layers=1)
    return Live(model=model, inputs=prompt(768), options=lambda: fixed(1))


def tiny(_device: DeviceSpec) -> Live:
    """A model too small for its operators' fixed cost."""
    model = llama(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=6)
    return Live(model=model, inputs=prompt(8), options=lambda: fixed(24))


class Scattered(torch.nn.Module):
    """One addition for each element of the hidden state."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same as `hidden + shift`."""
        pieces = [hidden[..., index : index + 1] + self.shift[index] for index in range(self.shift.shape[0])]
        return torch.cat(pieces, dim=-1)


def many_operators(_device: DeviceSpec) -> Live:
    """A layer that does its arithmetic piece by piece."""
    size = 384
    model = llama(hidden_size=size, intermediate_size=size, num_hidden_layers=1)
    model.model.layers[0].mlp = Scattered(size)
    return Live(model=model, inputs=prompt(8), options=lambda: fixed(12))


def copied_weights(device: DeviceSpec) -> Live:
    """Each layer fetches its weights by a copy before it runs, as offloading does."""
    model = llama(dtype=fastest(device), hidden_size=1024, intermediate_size=4096, num_attention_heads=8)

    def fetch(module: torch.nn.Module, _args: object) -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()

    for layer in model.model.layers:
        layer.register_forward_pre_hook(fetch)
    return Live(model=model, inputs=prompt(8), options=lambda: fixed(8), deep_every=1)


def offloaded(device: DeviceSpec) -> Live:
    """Weights that accelerate keeps elsewhere and brings in for each layer."""
    from accelerate import cpu_offload  # type: ignore[import-untyped]  # noqa: PLC0415 - only here

    model = llama(dtype=fastest(device), hidden_size=1024, intermediate_size=4096, num_attention_heads=8)
    cpu_offload(model, execution_device=torch.device("cpu"))
    return Live(model=model, inputs=prompt(8), options=lambda: fixed(8))
