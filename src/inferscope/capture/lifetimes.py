"""What is alive at once during a forward: bytes of tensors by the time they are made and freed."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from inferscope.capture.operators import storage_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

__all__ = ["Lifetimes", "highest_steps"]


class Lifetimes:
    """Bytes alive after each operator of one forward, weights not among them.

    Attributes:
        history_bytes: One number per operator, in order.
    """

    def __init__(self, held: Iterable[torch.Tensor], weights: Iterable[int]) -> None:
        """Begin with what is there before the forward.

        Args:
            held: The cache.
            weights: Storage keys of what does not count.
        """
        self.history_bytes: list[int] = []
        self._alive_bytes = 0
        self._weights = frozenset(weights)
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in held:
            self._meet(tensor)

    def step(self, outputs: Iterable[torch.Tensor]) -> None:
        """An operator has run: what it returned is alive from now on, unless it is in storage that already was."""
        for tensor in outputs:
            self._meet(tensor)
        self.history_bytes.append(self._alive_bytes)

    def _meet(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage_key(tensor), storage.nbytes()
        if key in self._known or key in self._weights or not size:
            return

        def freed(_: object) -> None:
            self._alive_bytes -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self._alive_bytes += size


def highest_steps(histories: list[list[int]]) -> list[int] | None:
    """Steps at which a forward of some shape may use most; None where forwards of these shapes differ in steps.

    A step at which no shape has more alive than at another step cannot be the peak of any shape between them.
    """
    if len({len(history) for history in histories}) != 1:
        return None
    columns: dict[tuple[int, ...], int] = {}
    for index, column in enumerate(zip(*histories, strict=True)):
        columns.setdefault(column, index)
    highest: list[tuple[tuple[int, ...], int]] = []
    for column, index in sorted(columns.items(), reverse=True):
        if not any(all(b >= a for a, b in zip(column, other, strict=True)) for other, _ in highest):
            highest.append((column, index))
    return sorted(index for _, index in highest)
