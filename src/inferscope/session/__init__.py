"""trace(): the only place that joins capture, analysis and sinks.

The generating thread hands a finished request over and goes on; one background thread makes the record, the
diagnosis and the findings of it and calls the sinks. Its queue is bounded: what does not fit is dropped, counted
and said once.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from inferscope.errors import SettingError
from inferscope.session.sessions import EverySession, Session
from inferscope.settings import (
    Settings,
    checked_budget,
    checked_counters,
    checked_detail,
    checked_every,
    checked_rate,
    checked_switch,
)
from inferscope.sinks.base import resolve_sinks
from inferscope.specs import DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["EverySession", "Instrumentation", "Session", "instrument", "observe_every", "trace"]


class Instrumentation:
    """A model observed for a server's life time, until `remove`.

    Attributes:
        session: Its results.
    """

    def __init__(self, session: Session) -> None:
        """Attach; `instrument` does."""
        self.session = session
        self._lock = threading.Lock()
        self._on = False
        self.enabled = True

    @property
    def enabled(self) -> bool:
        """Whether requests are observed. Can be set at any time: those that run already are not touched."""
        return self._on

    @enabled.setter
    def enabled(self, wanted: bool) -> None:
        with self._lock:
            if wanted and not self._on:
                self.session.__enter__()
            elif self._on and not wanted:
                self.session.__exit__(None, None, None)
            self._on = wanted

    def remove(self) -> None:
        """Leave the model and transformers as they were; safe to call twice."""
        self.enabled = False


def trace(  # noqa: PLR0913 - one keyword per setting
    model: object,
    *,
    detail: str | None = None,
    device: DeviceSpec | None = None,
    sinks: Iterable[object] | None = None,
    sample_rate: float | None = None,
    plug_every: int | None = None,
    deep_every: int | None = None,
    counters: str | None = None,
    nvtx: bool | None = None,
    overhead_budget: float | None = None,
) -> Session:
    """Observe every `generate` of a model while the session is open.

    Results are made on a background thread, a little after `generate` has returned. `session.last`,
    `session.results` and `session.wait()` wait for them; leaving the block does not, and sinks may be called
    after it.

    Args:
        model: A `torch.nn.Module`, as a rule one with `generate`; without it the forwards are recorded as a
            hand-written loop.
        detail: "passes" keeps every pass in `record.pass_samples`, up to 4,096; None reads INFERSCOPE_DETAIL.
        device: Ceilings to judge by; None takes the stored calibration, or the catalogue for a known GPU.
        sinks: Callables or names ("otel", "otel:traces", "otel:metrics", "jsonl:PATH", "log"); None is "otel": spans
            and metrics through the tracer provider and the meter provider that the program has set, if it has.
        sample_rate: Share of requests that are observed (0..1), decided when they begin; None reads
            INFERSCOPE_SAMPLE_RATE. Where spans are the only sink, or no meter provider is set beside it, what the
            tracer provider's sampler drops is not observed either.
        plug_every: On CUDA, hold the device up before one pass in so many, until it has been issued, to see how long
            it works on it; such a pass takes about twice as long. 0 for none; None reads INFERSCOPE_PLUG_EVERY.
        deep_every: Record the operators of one pass in so many, as `record.phase(...).operators`, and never so often
            that it costs more than `overhead_budget`; on CUDA, also where the host waits in another such pass. 0 for
            none; None reads INFERSCOPE_DEEP_EVERY.
        counters: "native" counts launches, waits and copies at the CUDA driver in some requests, through libcupti;
            None reads INFERSCOPE_COUNTERS.
        nvtx: Put NVTX ranges around requests and forwards, for NVIDIA's profilers; None reads INFERSCOPE_NVTX.
        overhead_budget: Share of the time (0..1) that our own work may take. What is sampled is put off to keep it;
            where it is set, requests go unobserved, too, once that has to be. None reads INFERSCOPE_OVERHEAD_BUDGET.

    Returns:
        A session: context manager, async context manager and decorator.

    Raises:
        NotAModelError: `model` is not a `torch.nn.Module`.
        SinkError: A sink is neither a callable nor a known name.
        SettingError: `device` is no `DeviceSpec`, or an argument or an INFERSCOPE_* variable has a value it cannot
            have.
    """
    settings = Settings.from_environment()
    if detail is not None:
        settings = replace(settings, detail=checked_detail(detail, where="detail"))
    if sample_rate is not None:
        settings = replace(settings, sample_rate=checked_rate(sample_rate, where="sample_rate"))
    if plug_every is not None:
        settings = replace(settings, plug_every=checked_every(plug_every, where="plug_every"))
    if deep_every is not None:
        settings = replace(settings, deep_every=checked_every(deep_every, where="deep_every"))
    if counters is not None:
        settings = replace(settings, counters=checked_counters(counters, where="counters"))
    if nvtx is not None:
        settings = replace(settings, nvtx=checked_switch(nvtx, where="nvtx"))
    if overhead_budget is not None:
        share = checked_budget(overhead_budget, where="overhead_budget")
        settings = replace(settings, overhead_budget=share, budget_asked=True)
    if device is not None and not isinstance(device, DeviceSpec):
        raise SettingError(f"device={device!r}: expected a DeviceSpec, such as inferscope.calibrate() returns")
    return Session(
        model,
        settings=settings,
        device=device,
        sinks=resolve_sinks(("otel",) if sinks is None else sinks),
    )


def instrument(  # noqa: PLR0913 - one keyword per setting
    model: object,
    *,
    detail: str | None = None,
    device: DeviceSpec | None = None,
    sinks: Iterable[object] | None = None,
    sample_rate: float | None = None,
    plug_every: int | None = None,
    deep_every: int | None = None,
    counters: str | None = None,
    nvtx: bool | None = None,
    overhead_budget: float | None = None,
) -> Instrumentation:
    """Observe every `generate` of a model from now on: `trace` for a server, without a block.

    Args:
        model: As for `trace`, like all that follows.
        detail: See `trace`.
        device: See `trace`.
        sinks: See `trace`.
        sample_rate: See `trace`.
        plug_every: See `trace`.
        deep_every: See `trace`.
        counters: See `trace`.
        nvtx: See `trace`.
        overhead_budget: See `trace`.

    Returns:
        A handle: `handle.remove()` ends it, `handle.enabled = False` switches it off for a while.

    Raises:
        InferscopeError: As `trace`.
    """
    return Instrumentation(
        trace(
            model,
            detail=detail,
            device=device,
            sinks=sinks,
            sample_rate=sample_rate,
            plug_every=plug_every,
            deep_every=deep_every,
            counters=counters,
            nvtx=nvtx,
            overhead_budget=overhead_budget,
        )
    )


def observe_every(*, keepers: Iterable[object] = (), outlets: Iterable[object] = ("otel",)) -> EverySession:
    """A session of every model of transformers in this process, also of those that are made or loaded later.

    A model is attached to in the moment of its first request; forwards outside of `generate` are not requests here.
    Enter the session to begin, and exit it to leave models and classes as they were.

    Args:
        keepers: Sinks that get every result.
        outlets: Sinks that tell of requests, such as "otel". They leave alone those that the program has traced by
            itself: nothing is told twice. Without keepers, what no outlet wants is not observed.

    Returns:
        The session.

    Raises:
        SinkError: A sink is neither a callable nor a known name.
        SettingError: An INFERSCOPE_* variable has a value it cannot have.
        CacheUnwritableError: A record file cannot be written.
    """
    return EverySession(
        settings=Settings.from_environment(),
        device=None,
        keepers=resolve_sinks(keepers),
        outlets=resolve_sinks(outlets),
    )
