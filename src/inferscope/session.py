"""trace(): the only place that joins capture, analysis and sinks.

The generating thread hands a finished request over and goes on; one background thread makes the record, the
diagnosis and the findings of it and calls the sinks. Its queue is bounded: what does not fit is dropped, counted
and said once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar, cast

import opentelemetry.context
import opentelemetry.trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inferscope import costing, losses, notices
from inferscope.analysis import diagnosis
from inferscope.analysis.findings import find
from inferscope.analysis.raising import raised
from inferscope.capture import intercept, introspect
from inferscope.capture.arms import arms_of
from inferscope.capture.frames import CURRENT
from inferscope.capture.requests import Begun
from inferscope.capture.resolve import device_of
from inferscope.errors import CostUnavailableError, InferscopeError, NotAModelError, SettingError
from inferscope.hardware import calibration, probe
from inferscope.meters.budget import Governor
from inferscope.meters.nvtx import find_ranges
from inferscope.opinion import Result
from inferscope.pipeline import Pipeline
from inferscope.records import OwnOverhead
from inferscope.settings import (
    Settings,
    checked_budget,
    checked_counters,
    checked_detail,
    checked_every,
    checked_rate,
    checked_switch,
)
from inferscope.sinks.base import EarlySink, resolve_sinks
from inferscope.specs import DeviceSpec, ModelSpec
from inferscope.surroundings import Around

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from inferscope.capture.requests import Finished
    from inferscope.records import GenerationRecord
    from inferscope.sinks.base import Sink
    from inferscope.specs import CostTerms

__all__ = ["EverySession", "Instrumentation", "Session", "instrument", "observe_every", "trace"]

_F = TypeVar("_F", bound="Callable[..., Any]")

IDLE_WAIT_S = 2.0
"""How long counting operators waits for a moment without a running request before it goes on regardless."""


_PIPELINE = Pipeline()
_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A pre-fork server's worker observes its own requests: threads, queues and locks begin anew."""
    notices.after_fork()
    losses.after_fork()
    intercept.after_fork()
    _PIPELINE.after_fork()
    for session in list(_SESSIONS):
        session.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


class _Inbox:
    """What capture hands finished requests to, on the generating thread."""

    gives_way = False

    def __init__(
        self,
        session: Session,
        settings: Settings,
        sinks: tuple[Sink, ...],
        model_name: str,
        context: object | None = None,
    ) -> None:
        self._session = session
        self._sample_rate = settings.sample_rate
        self._governor = session.governor
        self._sinks = [sink for sink in sinks if isinstance(sink, EarlySink)]
        self._skippable = bool(sinks) and len(self._sinks) == len(sinks)
        self._model_name = model_name
        # A thread starts without a context: what it generates belongs where tracing began.
        self._context = _ambient_context() if context is None else context
        self.keep_samples = settings.detail == "passes"
        self.keep_digest = settings.output_digest
        self.plug_every = settings.plug_every
        self.deep_every = settings.deep_every
        self.ranges = find_ranges() if settings.nvtx else None
        self.counters = settings.counters == "native"

    @property
    def observed_share(self) -> float:
        """Share of requests that are wanted: as asked, and as the budget leaves it."""
        return self._sample_rate * self._governor.observed_share

    def begin(
        self,
        request_id: str,
        started_unix_ns: int,
        context: object | None,
        options: Mapping[str, Any],
        claimed: bool,  # noqa: ARG002, FBT001 - whoever traces a model by name wants its requests, whoever else does
        /,
    ) -> Begun | None:
        context = self._context if context is None else context
        span_ids, said, wanted = None, False, False
        for sink in self._sinks:
            try:
                root = sink.begin(request_id, started_unix_ns, context, self._model_name, options)
            except Exception as error:  # noqa: BLE001 - a provider's fault costs neither the call nor the other sinks
                _say_sink_failed(sink, error)
                continue
            if root is not None:
                said, wanted = True, wanted or root.recording
                span_ids = root.ids if root.recording and span_ids is None else span_ids
        # A sink without a say decides nothing: where none has any, the request of a model that was named is observed.
        if self._skippable and not wanted and (said or self.gives_way):
            self.abandon(request_id)
            return None
        return Begun(context, span_ids)

    def __call__(self, raw: Finished, begun: Begun) -> None:
        self._session._receive(raw, begun)  # noqa: SLF001 - the other half of one mechanism

    def abandon(self, request_id: str) -> None:
        for sink in self._sinks:
            sink.abandon(request_id)


class Session:
    """An open trace of one model: context manager, async context manager and decorator.

    Attributes:
        results: The latest results, oldest first; bounded by INFERSCOPE_KEEP_RESULTS.
    """

    def __init__(
        self,
        model: object,
        *,
        settings: Settings,
        device: DeviceSpec | None,
        sinks: tuple[Sink, ...],
    ) -> None:
        """Prepare; nothing is attached before the session is entered."""
        target = model if settings.disabled else intercept.target_of(model)
        if not settings.disabled and not callable(getattr(target, "generate", None)):
            notices.warn(
                "no-generate",
                f"{type(model).__name__} has no generate(): its forwards are taken as a hand-written loop; name them "
                "with inferscope.phase(), or trace the model that generates",
            )
        # A server that drops its model must not find it kept alive by us.
        self._model: Callable[[], Any] = (lambda: None) if settings.disabled else weakref.ref(target)
        self._settings = settings
        self._device = device
        self._device_known = device is not None
        self._sinks = sinks
        self.governor = Governor(settings.overhead_budget, thins=settings.budget_asked)
        self._around = Around()
        self._attachment: intercept.Attachment | None = None
        self._depth = 0
        self._entering = threading.Lock()  # one decorated function runs in many threads
        self._results: deque[Result] = deque(maxlen=settings.keep_results)
        self._pending = 0
        self._changed = threading.Condition()
        _SESSIONS.add(self)

    def __enter__(self) -> Session:
        """Attach; entering twice is counted."""
        with self._entering:
            self._depth += 1
            if self._depth == 1 and not self._settings.disabled:
                target = self._model()
                if target is None:
                    raise NotAModelError(
                        "the model of this session is gone: it was freed before the session was entered"
                    )
                inbox = _Inbox(self, self._settings, self._sinks, introspect.name_of(target))
                self._attachment = intercept.attach(target, inbox)
                with contextlib.suppress(Exception):  # what it is for is less than the session
                    self._around.open(device_of(target))
                self.governor.open()
                _PIPELINE.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach; results that are still being made arrive later. The user's exception passes through."""
        with self._entering:
            self._depth -= 1
            if self._depth == 0 and self._attachment is not None:
                self._attachment.detach()
                self.governor.close()
                self._attachment = None
                _PIPELINE.close()

    async def __aenter__(self) -> Session:
        """Attach."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.__exit__(kind, error, trace)

    def __call__(self, function: _F) -> _F:
        """Decorate a function or coroutine function: every call of it is traced."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def traced_coroutine(*args: object, **kwargs: object) -> object:
                async with self:
                    return await function(*args, **kwargs)

            return cast("_F", traced_coroutine)

        @functools.wraps(function)
        def traced(*args: object, **kwargs: object) -> object:
            with self:
                return function(*args, **kwargs)

        return cast("_F", traced)

    def after_fork(self) -> None:
        """In a forked child: what the parent's threads held, or had begun, is not ours."""
        self._changed, self._entering, self._pending = threading.Condition(), threading.Lock(), 0
        self._around = Around()
        for sink in self._sinks:
            forget = getattr(sink, "after_fork", None)
            if forget is not None:
                forget()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """The borders of one request around a hand-written loop, or around several calls that belong together.

        Without it the forwards of a thread are one request until a new prompt begins, a result is asked for, or
        tracing ends.
        """
        attachment = self._attachment
        loop = None
        if attachment is not None:
            attachment.finish_loop()
            loop = attachment.new_loop()
        if loop is None:
            yield
            return
        loop.explicit, loop.module = True, self._model()
        loop.begin(time.perf_counter_ns())
        token = CURRENT.set(loop)
        error_type = None
        try:
            yield
        except BaseException as error:
            error_type = type(error).__qualname__
            raise
        finally:
            CURRENT.reset(token)
            loop.module = None
            loop.finish(time.perf_counter_ns(), error_type)

    @property
    def last(self) -> Result | None:
        """The newest result, waiting for those still being made; None where there was no request."""
        self.wait()
        return self._results[-1] if self._results else None

    @property
    def results(self) -> tuple[Result, ...]:
        """The latest results, oldest first, waiting for those still being made."""
        self.wait()
        return tuple(self._results)

    def wait(self, timeout_s: float = 30.0) -> bool:
        """Wait until every finished request has become a result.

        Args:
            timeout_s: How long at most.

        Returns:
            Whether all are there.
        """
        if self._attachment is not None:
            self._attachment.finish_loop()
        with self._changed:
            if self._pending == 0:
                return True
            if _PIPELINE.is_own_thread():  # a sink that asks for results must not wait for itself
                return False
            _PIPELINE.hurry()
            return self._changed.wait_for(lambda: self._pending == 0, timeout_s)

    def _receive(self, raw: Finished, begun: Begun) -> None:
        with self._changed:
            self._pending += 1
        if not _PIPELINE.submit(functools.partial(self._process, raw, begun), raw.held_bytes):
            self._abandon(raw.request_id)
            self._done()

    def _process(self, raw: Finished, begun: Begun) -> None:
        try:
            self._make(raw, begun)
        finally:
            self._abandon(raw.request_id)
            self._done()

    def _abandon(self, request_id: str) -> None:
        """Let early sinks forget a request; those that have had its result have done so already."""
        for sink in self._sinks:
            if isinstance(sink, EarlySink):
                sink.abandon(request_id)

    def _make(self, raw: Finished, begun: Begun) -> None:
        model = _MODELS.describe(raw, self._settings.cache_dir)
        _PIPELINE.breathe()
        record = raw.record(
            model,
            versions=_versions(),
            device_key=_machine_key(model.device or "cpu"),
            rank=_rank(),
            breathe=_PIPELINE.breathe,
        )
        self.governor.saw(record.wall_ns, record.ledger.self_ns - raw.sampled_ns)
        record = replace(record, own_overhead=self._own_overhead(raw))
        result = self._judge(record, begun.context)
        _PIPELINE.breathe()
        self._results.append(result)
        for sink in self._told(begun):
            try:
                sink(result)
            except Exception as error:  # noqa: BLE001 - a sink's fault is said once and costs the others nothing
                _say_sink_failed(sink, error)

    def _told(self, begun: Begun) -> tuple[Sink, ...]:  # noqa: ARG002 - not all sessions tell all
        """The sinks that get the result of a request."""
        return self._sinks

    def _own_overhead(self, raw: Finished) -> OwnOverhead:
        """What observing costs, as far as is known by now; said once where it is more than it may be."""
        governor = self.governor
        if governor.exceeds:
            share, observed = governor.self_share or 0.0, governor.observed_share
            fewer = f"one request in {1 / observed:.1f} is observed"
            kept = fewer if observed < 1 else "set it, and fewer requests are observed"
            notices.warn(
                "overhead-budget",
                f"observing takes {share:.1%} of the time and the budget is {governor.share:.1%}: {kept}",
            )
        estimate = arms_of(raw.module()).estimate()
        return OwnOverhead(
            budget_share=governor.share,
            observed_share=self._settings.sample_rate * governor.observed_share,
            self_share=governor.self_share,
            per_token_ns=None if estimate is None else estimate.value_ns,
            low_ns=None if estimate is None else estimate.low_ns,
            high_ns=None if estimate is None else estimate.high_ns,
            observed=0 if estimate is None else estimate.observed,
            bare=0 if estimate is None else estimate.bare,
            provenance=None if estimate is None else "randomised",
        )

    def _judge(self, record: GenerationRecord, parent_context: object | None) -> Result:
        if not self._device_known:
            kind = (record.model.device or "cpu").partition(":")[0]
            self._device = calibration.current_device_spec(kind)
            self._device_known = True
        self._raise_roofs(record)
        opinion = diagnosis.diagnose(record, device=self._device)
        _PIPELINE.breathe()
        result = Result(record=record, diagnosis=opinion, findings=(), parent_context=parent_context)
        return replace(result, findings=find(record, opinion, surroundings=self._around.of(result)))

    def _raise_roofs(self, record: GenerationRecord) -> None:
        """Judge this request and those that follow by what it proves about the device, and say so once."""
        if self._device is None:
            return
        higher = raised(self._device, record)
        if higher is not self._device:
            self._device = higher
            notices.warn(
                "roof-raised",
                "a request was faster than a known ceiling of its device: its own rate is the ceiling from here on, "
                "in this session; `inferscope calibrate --refresh` on an idle machine measures anew",
                device=higher.name,
                request=record.request_id,
            )

    def _done(self) -> None:
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()


def _say_sink_failed(sink: Sink, error: Exception) -> None:
    notices.warn("sink-failed", f"a sink raised {type(error).__name__}: {error}", sink=repr(sink))


class _EveryInbox(_Inbox):
    """The inbox of a session that observes every model."""

    gives_way = True

    def __init__(
        self,
        session: EverySession,
        settings: Settings,
        outlets: tuple[Sink, ...],
        model_name: str,
        context: object,
        *,
        keeps: bool,
    ) -> None:
        super().__init__(session, settings, outlets, model_name, context)
        self._keeps = keeps
        self._outlets = outlets

    def begin(
        self,
        request_id: str,
        started_unix_ns: int,
        context: object | None,
        options: Mapping[str, Any],
        claimed: bool,  # noqa: FBT001 - as the protocol has it
        /,
    ) -> Begun | None:
        begun = None
        if self._outlets and not claimed:
            begun = super().begin(request_id, started_unix_ns, context, options, claimed)
        if begun is None:
            kept = Begun(self._context if context is None else context, claims=False, tells=False)
            return kept if self._keeps else None
        return begun


class EverySession(Session):
    """A session of every model of transformers in this process, of models to come, too: see `observe_every`."""

    def __init__(
        self, *, settings: Settings, device: DeviceSpec | None, keepers: tuple[Sink, ...], outlets: tuple[Sink, ...]
    ) -> None:
        """Prepare; nothing is attached before the session is entered."""
        super().__init__(None, settings=replace(settings, disabled=True), device=device, sinks=(*keepers, *outlets))
        self._settings = settings
        self._keepers, self._outlets = keepers, outlets
        self._every: intercept.EveryAttachment | None = None
        self._working = False

    def __enter__(self) -> EverySession:
        """Observe models from their next request on; entering twice is counted."""
        with self._entering:
            self._depth += 1
            if self._depth == 1 and not self._settings.disabled:
                # What has no span of its own belongs to who started the process, not to whoever asks first.
                self._process_context = _ambient_context()
                self._every = intercept.attach_every(self._inbox_of)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave all models and classes as they were."""
        with self._entering:
            self._depth -= 1
            if self._depth == 0 and self._every is not None:
                self._every.detach()
                self._every = None
                if self._working:
                    self._working = False
                    _PIPELINE.close()

    def _inbox_of(self, module: object) -> _EveryInbox:
        if not self._working:  # a program that never generates has no thread of ours
            self._working = True
            _PIPELINE.open()
        name = introspect.name_of(module)
        keeps = bool(self._keepers)
        return _EveryInbox(self, self._settings, self._outlets, name, self._process_context, keeps=keeps)

    def _told(self, begun: Begun) -> tuple[Sink, ...]:
        return self._sinks if begun.tells else self._keepers


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


class _Models:
    """Descriptions and operator costs of the models seen, kept while they live."""

    def __init__(self) -> None:
        self._specs: weakref.WeakKeyDictionary[Any, tuple[object, ModelSpec]] = weakref.WeakKeyDictionary()
        self._costs: dict[str, tuple[CostTerms | None, str]] = {}

    def describe(self, raw: Finished, cache_dir: Path) -> ModelSpec:
        """What ran, with its costs where they can be made. Background thread only."""
        module = raw.module()
        if module is None:
            return ModelSpec(name="unknown", model_class="unknown", cost_note="the model was freed before its result")
        stands = introspect.fingerprint(module)
        known = self._specs.get(module)
        if known is not None and known[0] == stands:
            return known[1]
        spec = introspect.describe(module)
        terms, note = self.costs(module, spec, cache_dir)
        spec = replace(spec, cost=terms, cost_note=note)
        self._specs[module] = (stands, spec)
        return spec

    def costs(self, module: object, spec: ModelSpec, cache_dir: Path) -> tuple[CostTerms | None, str]:
        """Operator costs by configuration: from this process, from disk, or counted now in quiet moments."""
        if spec.digest not in self._costs:
            try:
                terms = costing.kept_terms(module, spec.digest, cache_dir, idle=_wait_for_idle)
                self._costs[spec.digest] = (terms, "")
            except CostUnavailableError as error:
                self._costs[spec.digest] = (None, str(error))
        return self._costs[spec.digest]


_MODELS = _Models()


def _wait_for_idle() -> None:
    """Counting takes the interpreter: wait for a moment in which no traced request needs it."""
    deadline = time.monotonic() + IDLE_WAIT_S
    while intercept.active_requests() and time.monotonic() < deadline:
        time.sleep(0.002)


def _ambient_context() -> object:
    """Where requests of threads without a context belong: the current span, or the one that started this process."""
    context = opentelemetry.context.get_current()
    if "TRACEPARENT" not in os.environ or opentelemetry.trace.get_current_span(context).get_span_context().is_valid:
        return context
    carrier = {name.lower(): os.environ[name] for name in ("TRACEPARENT", "TRACESTATE") if name in os.environ}
    return TraceContextTextMapPropagator().extract(carrier, context)


def _rank() -> int | None:
    """Of this process among those that run a model together."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    names = ("inferscope", "torch", "transformers")
    found = []
    for name in names:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


@functools.cache
def _machine_key(device: str) -> str | None:
    """Identity of the device a model runs on; None where it cannot be told (several devices, or none of ours)."""
    try:
        return probe.identify(device).key or None
    except (InferscopeError, RuntimeError):
        return None


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
