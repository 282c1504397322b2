"""Which modules are observed, and by whom.

Weak: what is kept here keeps no model alive. Running requests read it without the lock, which is for whoever attaches
or detaches.
"""

from __future__ import annotations

import threading
import weakref
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from inferscope import notices
from inferscope.capture.receivers import gives_way

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from inferscope.capture.companions import Companions
    from inferscope.capture.loops import Loops
    from inferscope.capture.receivers import Receiver

__all__ = ["EVERYWHERE", "LOCK", "LOCK_WAIT_S", "REGISTRY", "Admits", "Draw", "Observed", "admit", "after_fork"]

LOCK = threading.RLock()
"""Held by whoever attaches or detaches. Another one after a fork: it is looked up here each time."""
COMPARED_AT_MOST = 1 / 4
"""Share of the requests left out by chance that are timed beside the observed ones."""
LOCK_WAIT_S = 1.0
"""How long an import waits for others who attach or detach."""
_CHANCE = Random()  # noqa: S311 - a sample, no secret
"""Our own: the application may have seeded Python's, and what it draws there is not to depend on us."""


class Admits(Protocol):
    """Who observes every model."""

    def admit(self, module: torch.nn.Module) -> None:
        """A model begins a request: from now on it is observed."""


class Draw(NamedTuple):
    """What chance has decided for a request.

    Attributes:
        taken: Who observes it.
        odds: The shares that chance decided by, where the request is to be compared with others of the same ones.
    """

    taken: tuple[Receiver, ...]
    odds: tuple[float, ...]


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

    @staticmethod
    def draw(receivers: tuple[Receiver, ...]) -> Draw:
        """Who observes the request that begins now: of those that want a share of them, chance decides."""
        shares = tuple(each.observed_share for each in receivers)
        taken = tuple(
            each for each, share in zip(receivers, shares, strict=True) if share >= 1 or _CHANCE.random() < share
        )
        most = max(shares, default=0.0)
        if not 0 < most < 1:
            return Draw(taken, ())
        # About as many are compared as are observed, and no more than few: being left out is to cost nothing.
        share = min(most / (1 - most), COMPARED_AT_MOST)
        return Draw(taken, shares if taken or _CHANCE.random() < share else ())


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
    """In a forked child: the parent's lock is nobody's, and its loops are not ours to finish, nor its chance ours."""
    global LOCK  # noqa: PLW0603 - a lock is replaced, not shared
    LOCK = threading.RLock()
    _CHANCE.seed()
    for observed in list(REGISTRY.values()):
        observed.loops.forget()
