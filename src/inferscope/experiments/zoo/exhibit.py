"""What an exhibit of the bottleneck zoo is: one planted cause, and what inferscope has to say first about it."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from inferscope import session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from inferscope.analysis.verdict import Result
    from inferscope.specs import DeviceSpec

__all__ = ["Exhibit", "Expected", "Live", "Proof", "Scene", "Truth"]

_SHORT_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A row of evidence that shows that a finding was made for the right reason.

    Attributes:
        metric: Of the row.
        least: What its value must reach.
        most: What it must not exceed; None for no limit.
    """

    metric: str
    least: float
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A finding that is right about an exhibit, for the right reason.

    Attributes:
        code: Of the finding.
        phase: That it speaks of; None for the whole request.
        proofs: Rows of evidence it must have.
        says: Words that its claim must hold, such as the class of what was planted.
    """

    code: str
    phase: str | None = None
    proofs: tuple[Proof, ...] = ()
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is true of an exhibit on one device.

    Attributes:
        expected: The finding that must come first; several where the device lies too close to the border between them
            for either to be false.
        beside: Codes above INFO that are true as well, and why.
    """

    expected: tuple[Expected, ...]
    beside: Mapping[str, str] = field(default_factory=dict)


class Scene(Protocol):
    """What an exhibit builds: ready to be observed."""

    def observe(self, device: DeviceSpec) -> Result:
        """One observed request, judged by a device's ceilings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One workload with one planted cause.

    Attributes:
        name: As `--only` takes it.
        planted: The cause, in a sentence.
        build: Makes the scene for a device's ceilings.
        truth: What has to be said first on a device.
        twin: Whether the device is a simulated GPU: then this machine's ceilings play no part.
    """

    name: str
    planted: str
    build: Callable[[DeviceSpec], Scene]
    truth: Callable[[DeviceSpec], Truth]
    twin: bool = False

    def run(self, device: DeviceSpec) -> Result:
        """Build the scene and observe it.

        Args:
            device: Ceilings to judge by; a twin brings its own.
        """
        return self.build(device).observe(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A real `generate` on this machine.

    Attributes:
        model: What is traced.
        inputs: Tensors for `generate`.
        options: Further arguments of it, made anew for each call: streamers and caches are used up.
        around: What runs beside it.
        deep_every: As `inferscope.trace` takes it; None for its default.
        warm: Whether a short request goes before, unobserved: first calls allocate and plan.
    """

    model: Any
    inputs: Mapping[str, Any]
    options: Callable[[], dict[str, Any]]
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    deep_every: int | None = None
    warm: bool = True

    def observe(self, device: DeviceSpec) -> Result:
        """Warm up, then trace one request.

        Raises:
            RuntimeError: The request left no result.
        """
        if self.warm:
            short = {"max_new_tokens": _SHORT_TOKENS, "min_new_tokens": _SHORT_TOKENS}
            self.model.generate(**self.inputs, **{**self.options(), **short})
        options = self.options()
        gc.collect()  # what was built before is not to be collected in the request
        with (
            self.around(),
            session.trace(self.model, device=device, sinks=(), deep_every=self.deep_every) as opened,
        ):
            self.model.generate(**self.inputs, **options)
        if opened.last is None:
            raise RuntimeError("the request left no result; a warning above says why")
        return opened.last
