"""Where would this tensor live if the model ran on a GPU? Told on a machine that has none.

A model that runs on the CPU keeps everything there, whatever a GPU would hold. What a GPU would hold follows from the
data: weights, buffers and inputs do, and so does what is computed from them or made on their device. Tensors on the
CPU stay on the host: those made without a device, or on one that is written "cpu" in the code.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

import torch
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ActualPlacement", "Placement", "Side", "TrackedPlacement", "leaves", "tensors_in"]

_FIRST_PRUNE = 4096
_DEPTH = 6


class Side(enum.Enum):
    """Where a tensor lives in a GPU deployment."""

    DEVICE = "device"
    HOST = "host"
    UNKNOWN = "unknown"

    @classmethod
    def joint(cls, sides: Iterable[Side]) -> Side:
        """Where an operator with such inputs runs: on the device, if any of them is there."""
        found = set(sides)
        if cls.DEVICE in found:
            return cls.DEVICE
        return cls.UNKNOWN if cls.UNKNOWN in found else cls.HOST


class Placement(Protocol):
    """Tells where tensors live."""

    tracked: bool
    """Whether sides are bookkeeping of ours (all tensors are on the CPU) rather than the tensors' own devices."""

    def of(self, tensor: torch.Tensor) -> Side:
        """Where the tensor lives."""

    def mark(self, tensor: torch.Tensor, side: Side) -> None:
        """Note where the tensor lives."""


class ActualPlacement:
    """For models that are not on the CPU: a tensor lives where it says it does."""

    tracked = False

    def of(self, tensor: torch.Tensor) -> Side:
        """Where the tensor lives: everything but the CPU counts as the device, the meta device too."""
        return Side.HOST if tensor.device.type == "cpu" else Side.DEVICE

    def mark(self, tensor: torch.Tensor, side: Side) -> None:
        """Nothing to note."""


class TrackedPlacement:
    """For models on the CPU: sides are kept by storage, so that views share them, and nothing is kept alive."""

    tracked = True

    def __init__(self) -> None:
        self._sides: dict[int, tuple[StorageWeakRef, Side]] = {}
        self._prune_at = _FIRST_PRUNE

    def of(self, tensor: torch.Tensor) -> Side:
        """Where the tensor lives; UNKNOWN where its storage was never seen."""
        sides = []
        for leaf in leaves([tensor]):
            kept = self._sides.get(_key(leaf))
            sides.append(Side.UNKNOWN if kept is None else kept[1])
        return Side.joint(sides) if sides else Side.UNKNOWN

    def mark(self, tensor: torch.Tensor, side: Side) -> None:
        """Note where the tensor's storage lives."""
        if len(self._sides) >= self._prune_at:
            self._sides = {key: kept for key, kept in self._sides.items() if not kept[0].expired()}  # type: ignore[no-untyped-call]
            self._prune_at = max(_FIRST_PRUNE, 2 * len(self._sides))
        for leaf in leaves([tensor]):
            storage = leaf.untyped_storage()
            # The weak reference keeps the address from being given to another storage.
            self._sides[_key(leaf)] = (StorageWeakRef(storage), side)  # type: ignore[no-untyped-call]


def leaves(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Tensors with a storage: the local part of a sharded one, the parts of a quantised one; none of a sparse one."""
    for tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            yield from leaves(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        elif tensor.layout is torch.strided:
            yield tensor


def tensors_in(value: object, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    """All tensors in nested containers and, as a cache has them, in the attributes of objects."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and not isinstance(value, str | bytes | type):
        inner: Iterable[object] = ()
        if isinstance(value, dict):
            inner = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            inner = value
        elif not isinstance(value, torch.nn.Module):
            inner = getattr(value, "__dict__", {}).values()
        for item in inner:
            yield from tensors_in(item, depth - 1)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the only public identity is a data pointer, 0 on meta
