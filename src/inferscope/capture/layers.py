"""Layers that are alike are run once: the others take the same operators, on weights of their own.

Deep models differ from shallow ones in how often a layer is repeated. On a twin, a layer whose like has run in the
same forward on inputs of the same form is not run again; the operators of the first count once more.
"""

# ruff: noqa: ANN401 - modules of any model, called with anything
from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from inferscope.capture.operators import parts_of, storage_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inferscope.capture.mirror import Stage
    from inferscope.capture.operators import Recorder

__all__ = ["Layers"]

_FEWEST = 3
_PLACES = {"layer_idx", "layer_id", "layer_index", "layer_number", "layer_nb", "block_idx", "layer_num"}
_CACHES = {"DynamicCache", "EncoderDecoderCache"}
_SIMPLE = (int, float, bool, str, type(None), torch.dtype, torch.device)


class Layers:
    """The repeated layers of a twin.

    Attributes:
        skip: Whether layers that are alike are run once; set it before a forward.
    """

    def __init__(self, twin: torch.nn.Module, stage: Stage) -> None:
        """Stand between the twin's layers and their callers."""
        self.skip = False
        self._stage = stage
        self._run: dict[Any, tuple[int, int, Any, int]] = {}
        self._recorder: Recorder | None = None
        shared = _shared_storages(twin)
        for layer in _repeated(twin):
            own = {storage_key(part) for tensor in _stored(layer) for part in parts_of(tensor)}
            if not own & shared:
                layer.forward = self._standing_in(layer, layer.forward, _likeness(layer))

    def _standing_in(self, layer: Any, forward: Callable[..., Any], likeness: Any) -> Callable[..., Any]:
        index = next((value for name, value in vars(layer).items() if name in _PLACES), None)
        if index is None:
            index = next(
                (
                    value
                    for module in layer.modules()
                    for name, value in vars(module).items()
                    if name in _PLACES and type(value) is int
                ),
                None,
            )

        def run(*args: Any, **kwargs: Any) -> Any:
            recorder = self._stage.recorder
            if not self.skip or recorder is None or type(index) is not int:
                return forward(*args, **kwargs)
            if recorder is not self._recorder:
                self._recorder, self._run = recorder, {}
            caches = [value for value in (*args, *kwargs.values()) if _holds_layers(value)]
            if any(type(cache).__name__ not in _CACHES for cache in caches):
                return forward(*args, **kwargs)
            key = (likeness, _form(args, index), _form(kwargs, index))
            known = self._run.get(key)
            if known is None:
                start = len(recorder.seen)
                out = forward(*args, **kwargs)
                self._run[key] = (start, len(recorder.seen), out, index)
                return out
            start, end, out, first = known
            recorder.repeated.append((start, end))
            with recorder.mute():
                for cache in caches:
                    _copy_layer(cache, first, index)
                return pytree.tree_map_only(torch.Tensor, torch.empty_like, out)

        return run


def _repeated(twin: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Members of the outermost lists of layers."""
    inside: list[str] = []
    for name, module in twin.named_modules():
        if not isinstance(module, torch.nn.ModuleList) or any(name.startswith(outer + ".") for outer in inside):
            continue
        classes = Counter(type(layer) for layer in module)
        if max(classes.values(), default=0) >= _FEWEST:
            inside.append(name)
            yield from module


def _stored(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _shared_storages(twin: torch.nn.Module) -> set[int]:
    """Storages that more than one module of the twin holds."""
    holders: Counter[int] = Counter()
    for module in twin.modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        holders.update({storage_key(part) for tensor in tensors for part in parts_of(tensor)})
    return {key for key, count in holders.items() if count > 1}


def _likeness(layer: torch.nn.Module) -> Any:
    """Everything about a layer that decides its operators, but for its place among the others."""
    parts = []
    for name, module in layer.named_modules():
        simple = tuple(
            (key, type(value), value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, _SIMPLE) and key not in _PLACES
        )
        others = tuple(
            (key, id(value))
            for key, value in sorted(vars(module).items())
            if key == "config" or (callable(value) and key != "forward" and not isinstance(value, torch.nn.Module))
        )
        tensors = tuple(
            (key, tuple(value.shape), value.dtype)
            for key, value in (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            )
        )
        parts.append((name, type(module), simple, others if name == "" else (), tensors))
    return tuple(parts)


def _holds_layers(value: Any) -> bool:
    return hasattr(value, "layers") or hasattr(value, "self_attention_cache")


def _form(value: Any, index: int) -> Any:
    """What of a layer's inputs decides its operators, as a dictionary key; of a cache, what it holds for the layer."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_form(item, index) for item in value)
    if isinstance(value, dict):
        return tuple((str(key), _form(item, index)) for key, item in value.items())
    return (type(value), value) if isinstance(value, _SIMPLE) else _held(value, index)


def _held(value: Any, index: int) -> Any:
    halves = (getattr(value, "self_attention_cache", None), getattr(value, "cross_attention_cache", None))
    if halves[1] is not None:
        return tuple(_form(half, index) for half in halves)
    layers = getattr(value, "layers", None)
    if isinstance(layers, list):
        held = vars(layers[index]) if index < len(layers) else {}
        return tuple((name, _form(item, index)) for name, item in sorted(held.items()))
    return id(value)


def _copy_layer(cache: Any, first: int, index: int) -> None:
    """Let a cache hold for one layer what it holds for another."""
    for half in (getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None), cache):
        layers = getattr(half, "layers", None)
        if isinstance(layers, list) and first < len(layers):
            layers[index : index + 1] = [copy.deepcopy(layers[first])]
    updated = getattr(cache, "is_updated", None)
    if isinstance(updated, dict) and first in updated:
        updated[index] = updated[first]
