"""What a transformers cache holds, and how it grows."""

# ruff: noqa: ANN401 - transformers' caches have no common type across versions
from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from inferscope.errors import CostUnavailableError
from inferscope.specs import CacheTerms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inferscope.capture.tally import ForwardShape
    from inferscope.specs import Structure

__all__ = ["CacheSizes", "cache_of", "cache_tensors", "resized", "state_len_of", "windows_of"]

_GROWING = {"DynamicLayer", "DynamicSlidingWindowLayer"}
_ROWS = 2  # dimensions of something kept per sequence


def cache_of(output: Any) -> Any:
    """The cache in what a forward returns; None where there is none."""
    for name in ("past_key_values", "cache_params", "state"):
        cache = getattr(output, name, None)
        if cache is not None:
            return cache
    return None


def cache_tensors(cache: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that a cache stores, with a name for each; those of the encoder's output begin with "encoder"."""
    for part, prefix in ((cache, ""), *_halves(cache)):
        for index, layer in enumerate(_layers(part)):
            held = vars(layer) if hasattr(layer, "__dict__") else {}
            for name, value in held.items():
                for key, tensor in _tensors(value):
                    if tensor.dim() >= _ROWS and tensor.numel():
                        yield f"{prefix}{index}.{name}{key}", tensor
    if isinstance(cache, list | tuple):
        for index, value in enumerate(cache):
            for key, tensor in _tensors(value):
                if tensor.dim() >= _ROWS and tensor.numel():
                    yield f"{index}{key}", tensor


def _halves(cache: Any) -> list[tuple[Any, str]]:
    """The two caches of an encoder-decoder's."""
    own, cross = getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None)
    return [(own, ""), (cross, "encoder ")] if cross is not None else []


def _layers(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", None)
    return list(layers) if isinstance(layers, list | tuple) else []


def _tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield "", value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, torch.Tensor):
                yield f"[{key}]", inner


def windows_of(cache: Any) -> Iterator[int]:
    """Windows of the layers that keep no more than these."""
    for part in (cache, *(half for half, _ in _halves(cache))):
        for layer in _layers(part):
            window = getattr(layer, "sliding_window", None)
            if type(window) is int and window > 0:
                yield window


def state_len_of(cache: Any) -> int | None:
    """Tokens that the convolutions of recurrent layers keep; None where nothing does."""
    lens = [int(tensor.shape[-1]) for name, tensor in cache_tensors(cache) if ".conv_states" in name]
    return max(lens, default=None)


def resized(template: Any, batch_size: int, past_len: int) -> Any:
    """A cache of that size made from one of another, where all its layers are known to grow: saves a forward."""
    layers = _layers(template)
    known = type(template).__name__ == "DynamicCache" and all(type(layer).__name__ in _GROWING for layer in layers)
    if not layers or not known or any(getattr(layer, "keys", None) is None for layer in layers):
        return None
    cache: Any = copy.deepcopy(template)
    for layer in cache.layers:
        kept = stored = past_len
        if type(layer).__name__ == "DynamicSlidingWindowLayer":
            layer.cumulative_length = past_len
            # What it keeps is the end of what it last concatenated, and holds the memory of all of that.
            kept = min(past_len, layer.sliding_window - 1)
            stored = kept if past_len < layer.sliding_window - 1 else layer.sliding_window
        for name in ("keys", "values"):
            tensor = getattr(layer, name)
            size = list(tensor.shape)
            size[0], size[-2] = batch_size, stored
            setattr(layer, name, tensor.new_empty(size)[..., stored - kept :, :])
    return cache


class CacheSizes:
    """Bytes of each tensor of the cache after the counted forwards: by these its kind is told."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[ForwardShape, int]]] = defaultdict(list)
        self._shapes: list[ForwardShape] = []

    @staticmethod
    def has_states(cache: Any) -> bool:
        """Whether some layer keeps a state instead of tokens."""
        return any("_states" in name for name, _ in cache_tensors(cache)) or isinstance(cache, list)

    def add(self, shape: ForwardShape, cache: Any) -> None:
        """Take the cache after a forward."""
        self._shapes.append(shape)
        for name, tensor in cache_tensors(cache):
            self._seen[name].append((shape, tensor.nbytes))

    def terms(self, structure: Structure) -> tuple[CacheTerms, ...]:
        """What the tensors hold, those of one kind together.

        Raises:
            CostUnavailableError: One of them grows in no known way.
        """
        units: dict[tuple[Any, int | None], int] = defaultdict(int)
        for name, sizes in self._seen.items():
            kind, window, unit = _kind_of(name, sizes, structure)
            if unit:
                units[kind, window] += unit
        return tuple(
            CacheTerms(kind=kind, unit_bytes=unit, window=window)
            for (kind, window), unit in sorted(units.items(), key=lambda item: (item[0][0], item[0][1] or 0))
        )


def _kind_of(name: str, sizes: list[tuple[ForwardShape, int]], structure: Structure) -> tuple[Any, int | None, int]:
    def unit(measure: Any) -> int | None:
        """Bytes per unit of a measure, if all sizes are multiples of it by the same number."""
        ratios = {divmod(size, measure(shape)) if measure(shape) else (None, size) for shape, size in sizes}
        found = ratios.pop() if len(ratios) == 1 else (None, 1)
        return found[0] if found[1] == 0 else None

    candidates: list[tuple[str, int | None, Any]] = [
        ("encoder", None, lambda shape: shape.batch_size * shape.encoder_len),
        ("tokens", None, lambda shape: shape.batch_size * shape.kv_len),
        ("state", None, lambda shape: shape.batch_size),
    ]
    if not name.startswith("encoder"):
        candidates.pop(0)
    candidates += [
        ("window", window, lambda shape, w=window: shape.batch_size * min(shape.kv_len, max(w - 1, 1)))
        for window in structure.windows
    ]
    for kind, window, measure in candidates:
        found = unit(measure)
        if found is not None:
            return kind, window, found
    raise CostUnavailableError(f"what the cache keeps as {name!r} grows in no way that is known")
