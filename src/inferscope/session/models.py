"""What the models are whose requests become results, and what their operators cost."""

from __future__ import annotations

import time
import weakref
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inferscope import costing
from inferscope.capture import intercept, introspect
from inferscope.errors import CostUnavailableError
from inferscope.specs import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from inferscope.capture.requests import Finished
    from inferscope.specs import CostTerms

__all__ = ["MODELS", "KnownModels"]

IDLE_WAIT_S = 2.0
"""How long counting operators waits for a moment without a running request before it goes on regardless."""


KEPT_AFTER = 8
"""Of so many models the description outlives them."""
FREED = (
    "the model was freed before this result was made: it is described as it was at an earlier request, and what may "
    "have been changed about it since then is not seen"
)


class KnownModels:
    """Descriptions and operator costs of the models seen, kept while they live, and the last of them a little longer.

    A program that makes its model in a function is over, and would drop the model, before the background thread has
    looked at its first request. That one keeps the model until it is described; those that come after it do not, and
    may be worked off when the model is gone: they were of the same one.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._specs: weakref.WeakKeyDictionary[Any, tuple[object, ModelSpec]] = weakref.WeakKeyDictionary()
        self._costs: dict[str, tuple[CostTerms | None, str]] = {}
        self._last: deque[tuple[weakref.ref[Any], ModelSpec]] = deque(maxlen=KEPT_AFTER)
        self._held: dict[int, Any] = {}

    def hold(self, raw: Finished) -> None:
        """Keep a model that is not known yet until its first request is described or let go of.

        Args:
            raw: A request that has just ended. Called on the thread that generated; takes a microsecond.
        """
        module = raw.module()
        if module is None or module in self._specs or any(module is one for one in tuple(self._held.values())):
            return
        self._held[id(raw)] = module

    def let_go(self, raw: Finished) -> None:
        """Keep the model no longer for this request."""
        self._held.pop(id(raw), None)

    def after_fork(self) -> None:
        """In a forked child: what was kept was for the parent's requests."""
        self._held.clear()

    def describe(self, raw: Finished, cache_dir: Path) -> tuple[ModelSpec, str]:
        """What ran, with its costs where they can be made. Background thread only.

        Args:
            raw: The request.
            cache_dir: Where costs are kept.

        Returns:
            The description, and what is uncertain about it; "" for nothing.
        """
        try:
            return self._described(raw, cache_dir)
        finally:
            self.let_go(raw)

    def _described(self, raw: Finished, cache_dir: Path) -> tuple[ModelSpec, str]:
        module = raw.module()
        if module is None:
            return self._of_freed(raw.module)
        stands = introspect.fingerprint(module)
        known = self._specs.get(module)
        if known is not None and known[0] == stands:
            return known[1], ""
        spec = introspect.describe(module)
        terms, note = self.costs(module, spec, cache_dir)
        spec = replace(spec, cost=terms, cost_note=note)
        self._specs[module] = (stands, spec)
        self._last.appendleft((weakref.ref(module), spec))
        return spec, ""

    def _of_freed(self, gone: weakref.ref[Any]) -> tuple[ModelSpec, str]:
        # Python makes one plain weak reference per object: being the same tells the same model, also after its end.
        spec = next((spec for ref, spec in self._last if ref is gone), None)
        if spec is not None:
            return spec, FREED
        nothing = ModelSpec(name="unknown", model_class="unknown", cost_note="the model was freed before its result")
        return nothing, ""

    def costs(self, module: object, spec: ModelSpec, cache_dir: Path) -> tuple[CostTerms | None, str]:
        """Operator costs by configuration: from this process, from disk, or counted now in quiet moments."""
        if spec.digest not in self._costs:
            try:
                terms = costing.kept_terms(module, spec.digest, cache_dir, idle=_wait_for_idle)
                self._costs[spec.digest] = (terms, "")
            except CostUnavailableError as error:
                self._costs[spec.digest] = (None, str(error))
        return self._costs[spec.digest]


MODELS = KnownModels()


def _wait_for_idle() -> None:
    """Counting takes the interpreter: wait for a moment in which no traced request needs it."""
    deadline = time.monotonic() + IDLE_WAIT_S
    while intercept.active_requests() and time.monotonic() < deadline:
        time.sleep(0.002)
