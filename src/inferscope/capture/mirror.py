"""A copy of a model as it stands, module by module, with empty tensors for its own.

For models that are not what their config builds: quantised, adapted, with layers of their user's making.
"""

# ruff: noqa: ANN401 - modules of any make
from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from inferscope.capture.operators import PACKED_LINEAR, FunctionSeam, Recorder, Seen, parts_of, storage_key
from inferscope.errors import CostUnavailableError

__all__ = ["Stage", "first_line", "gather_tensors", "mirrored"]

_SIZES = (("in_features", "out_features"), ("infeatures", "outfeatures"))


@dataclass(slots=True)
class Stage:
    """Whose operators are being written down now; modules of the twin tell it where they are."""

    recorder: Recorder | None = None


def mirrored(model: torch.nn.Module, stage: Stage) -> tuple[torch.nn.Module, list[str]]:
    """A copy of a model as it stands, with tensors of the same form and no memory; what stands in for what."""
    memo: dict[int, Any] = {}
    blanks = _Blanks()
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):  # noqa: SLF001
            if isinstance(value, torch.Tensor):
                memo[id(value)] = blanks.of(value)
    stood_in: dict[str, int] = {}
    for module in model.modules():
        sizes = _linear_sizes(module)
        if sizes is None or _is_plain(module, sizes):
            continue
        own = _copied_linear(module, sizes, dict(memo))
        if own is None:
            own = _PackedLinear(*sizes, blanks.parts(module), stage)
            stood_in[type(module).__name__] = stood_in.get(type(module).__name__, 0) + 1
        memo[id(module)] = own
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise CostUnavailableError(
            f"{type(model).__name__} is not what its config builds (quantised, adapted?) "
            f"and cannot be copied: {first_line(error)}"
        ) from error
    _strip(twin)
    return twin, [
        f"{count} layers of {name} counted as one product each, reading their weights as stored"
        for name, count in sorted(stood_in.items())
    ]


@dataclass(slots=True)
class _Blanks:
    """Tensors without memory that share storage where the real ones do."""

    _bases: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """One of the same form and kind."""
        with torch.no_grad():
            blank = self._form(tensor)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(blank, requires_grad=tensor.requires_grad)
        return blank

    def parts(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """Blanks of everything a module stores, the attributes of its quantised parameters included."""
        found: dict[int, torch.Tensor] = {}
        for value in (*module.parameters(), *module.buffers(), *vars(module).values()):
            gather_tensors(value, found)
        return [self._form(part) for part in found.values()]

    def _form(self, tensor: torch.Tensor) -> torch.Tensor:
        if hasattr(tensor, "__tensor_flatten__"):
            names, context = tensor.__tensor_flatten__()
            inner = {name: self._form(getattr(tensor, name)) for name in names}
            made: torch.Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())  # type: ignore[attr-defined]
            return made
        if tensor.is_meta or tensor.layout is not torch.strided:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        key = (storage_key(tensor), tensor.dtype)
        if key not in self._bases:
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._bases[key] = torch.empty(elements, dtype=tensor.dtype, device="meta")
        return self._bases[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def gather_tensors(value: Any, found: dict[int, torch.Tensor], depth: int = 0) -> None:
    """Tensors behind a parameter or attribute: quantised parameters keep scales and codes in objects of their own.

    Args:
        value: Where to look.
        found: Takes what is found, by its storage.
        depth: How many objects this one is inside of.
    """
    if isinstance(value, torch.Tensor):
        for part in parts_of(value):
            if part.numel():
                found.setdefault(storage_key(part), part)
        for extra in vars(value).values() if hasattr(value, "__dict__") else ():
            gather_tensors(extra, found, depth + 1)
    elif hasattr(value, "__dict__") and depth and depth < 3 and not isinstance(value, torch.nn.Module | type):  # noqa: PLR2004 - parameter, state, nested state
        for extra in vars(value).values():
            gather_tensors(extra, found, depth + 1)


def _linear_sizes(module: torch.nn.Module) -> tuple[int, int] | None:
    """(in, out) of a module that says so and holds no other modules: a linear layer of whatever make."""
    if next(module.children(), None) is not None:
        return None
    for names in _SIZES:
        ins, outs = (getattr(module, name, None) for name in names)
        if type(ins) is int and type(outs) is int and min(ins, outs) > 0:
            return ins, outs
    return None


def _is_plain(module: torch.nn.Module, sizes: tuple[int, int]) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module) is torch.nn.Linear
        and isinstance(weight, torch.Tensor)
        and weight.is_floating_point()
        and tuple(weight.shape) == sizes[::-1]
        and not hasattr(weight, "__tensor_flatten__")
    )


def _copied_linear(module: torch.nn.Module, sizes: tuple[int, int], memo: dict[int, Any]) -> torch.nn.Module | None:
    """A copy that runs on shapes and multiplies by what it stores, or None where it does something else.

    A layer that makes its weight anew from what it stores, before it multiplies, is none.
    """
    rows = 3
    try:
        twin: torch.nn.Module = copy.deepcopy(module, memo)
        _strip(twin)
        floats = [p.dtype for p in module.parameters() if p.is_floating_point() and p.element_size() > 1]
        x = torch.empty(rows, sizes[0], dtype=floats[0] if floats else torch.get_default_dtype(), device="meta")
        recorder = Recorder()
        with torch.no_grad(), FunctionSeam(recorder), recorder:
            out = twin(x)
    except Exception:  # noqa: BLE001 - kernels of quantised layers fail on shapes in any way they like
        return None
    right = isinstance(out, torch.Tensor) and tuple(out.shape) == (rows, sizes[1])
    flops = sum(seen.flops for seen in recorder.seen)
    unknown = any(seen.kind == "unknown" for seen in recorder.seen)
    whole = right and flops == 2 * rows * sizes[0] * sizes[1] and not unknown
    return twin if whole and _multiplies_stored(twin, recorder.seen) else None


def _multiplies_stored(module: torch.nn.Module, seen: list[Seen]) -> bool:
    """Whether every product is one with a tensor of the module, or with a copy of one in another dtype."""
    stored = {storage_key(part) for tensor in (*module.parameters(), *module.buffers()) for part in parts_of(tensor)}
    for entry in seen:
        if entry.kind == "copy" and storage_key(entry.inputs[0]) in stored:
            stored.add(storage_key(entry.outputs[0]))
    products = [entry for entry in seen if entry.kind == "matmul"]
    return all(any(storage_key(operand) in stored for operand in entry.operands) for entry in products)


class _PackedLinear(torch.nn.Module):
    """Stands in for a linear layer whose kernel does not run on shapes: one product, its weights read as stored."""

    def __init__(self, in_features: int, out_features: int, stored: list[torch.Tensor], stage: Stage) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._stage = stage
        for index, tensor in enumerate(stored):
            self.register_buffer(f"stored_{index}", tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> _PackedLinear:
        return self

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The form of the product; that it was made is written down."""
        recorder = self._stage.recorder
        if recorder is None:
            return x.new_empty(*x.shape[:-1], self.out_features)
        with recorder.mute():
            out = x.new_empty(*x.shape[:-1], self.out_features)
        recorder.seen.append(
            Seen(
                name=PACKED_LINEAR,
                kind="matmul",
                inputs=(x, *self.buffers()),
                outputs=(out,),
                operands=(x,),
                flops=2 * x.numel() * self.out_features,
                scope=recorder.scope,
            )
        )
        return out


def _strip(twin: torch.nn.Module) -> None:
    """Take the host's hooks off a copy: they are for the model, and may move its tensors."""
    for module in twin.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, name, {}).clear()
        if "_old_forward" in vars(module):  # accelerate's hooks replace forward on the instance
            vars(module).pop("forward", None)
            vars(module).pop("_hf_hook", None)
            vars(module).pop("_old_forward")


def first_line(error: BaseException) -> str:
    """An error's class and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
