"""Which modules are observed, and by whom.

Weak: what is kept here keeps no model alive. Running requests read it without the lock, which is for whoever attaches
or detaches.
"""

from __future__ import annotations

import threading
import weakref
from random import random
from typing import TYPE_CHECKING, Any, Protocol

from inferscope import notices
from inferscope.capture.receivers import gives_way

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from inferscope.capture.companions import Companions
    from inferscope.capture.loops import Loops
    from inferscope.capture.receivers import Receiver

__all__ = ["EVERYWHERE", "LOCK", "LOCK_WAIT_S", "REGISTRY", "Admits", "Observed", "admit", "after_fork"]

LOCK = threading.RLock()
"""Held by whoever attaches or detaches. Another one after a fork: it is looked up here each time."""
LOCK_WAIT_S = 1.0
"""How long an import waits for others who attach or detach."""


class Admits(Protocol):
    """Who observes every model."""

    def admit(self, module: torch.nn.Module) -> None:
        """A model begins a request: from now on it is observed."""


class Observed:
    """A module in the registry, and all who trace it.

    Attributes:
        receivers: Who is asked when a request begins, in this order.
        loop_receivers: Who is told of its hand-written loops.
        companions: Modules whose forwards belong to its requests.
        loops: Its hand-written loops.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        companions: Companions,
        loops_of: Callable[[Observed, torch.nn.Module], Loops],
    ) -> None:
        """Begin with nobody.

        Args:
            module: The module.
            companions: Its companions.
            loops_of: Makes its loops, which open requests that its receivers are asked about.
        """
        self.receivers: tuple[Receiver, ...] = ()
        self.loop_receivers: tuple[Receiver, ...] = ()
        self.companions = companions
        self.loops = loops_of(self, module)

    def add(self, receiver: Receiver) -> None:
        """Somebody traces it."""
        self._set((*self.receivers, receiver))

    def remove(self, receiver: Receiver) -> None:
        """Somebody traces it no more."""
        self._set(tuple(kept for kept in self.receivers if kept is not receiver))

    def _set(self, receivers: tuple[Receiver, ...]) -> None:
        self.receivers = tuple(sorted(receivers, key=gives_way))
        self.loop_receivers = tuple(receiver for receiver in receivers if not gives_way(receiver))

    @property
    def odds(self) -> tuple[float, ...]:
        """The shares that chance decides by; none where somebody observes every request, or nobody any."""
        shares = tuple(each.observed_share for each in self.receivers)
        return shares if any(shares) and max(shares) < 1 else ()

    @staticmethod
    def drawn(receivers: tuple[Receiver, ...]) -> tuple[Receiver, ...]:
        """Who observes the request that begins now: of those that want a share of them, chance decides."""
        wanted = [(each, each.observed_share) for each in receivers]
        return tuple(each for each, share in wanted if share >= 1 or random() < share)  # noqa: S311 - a sample, no secret


REGISTRY: weakref.WeakKeyDictionary[object, Observed] = weakref.WeakKeyDictionary()
"""The modules that are observed."""
EVERYWHERE: list[Admits] = []
"""Who observes every model; changed under the lock."""


def admit(instance: Any) -> None:  # noqa: ANN401 - a model
    """Where every model is observed, this one is from now on."""
    try:
        for every in tuple(EVERYWHERE):
            every.admit(instance)
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)


def after_fork() -> None:
    """In a forked child: the parent's lock is nobody's, and its loops are not ours to finish."""
    global LOCK  # noqa: PLW0603 - a lock is replaced, not shared
    LOCK = threading.RLock()
    for observed in list(REGISTRY.values()):
        observed.loops.forget()
