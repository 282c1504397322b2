"""Metrics: what each request adds to histograms and counters, through the meter provider that the program has set.

Nothing is recorded while `generate` runs: it only counts the request as active. The instruments stand once per
provider, since the SDK keeps one of each name, and every session's sink shares them.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from opentelemetry import metrics, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_value
from opentelemetry.metrics import NoOpMeterProvider, Observation
from opentelemetry.metrics._internal import _ProxyMeterProvider

from inferscope import losses, notices
from inferscope.sinks import forks
from inferscope.sinks.attributes import plain_text
from inferscope.sinks.metric_semconv import ACTIVE, DROPPED, REQUEST_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import SpanContext

    from inferscope.analysis.verdict import Result
    from inferscope.sinks.metric_semconv import Point, RequestMetric

__all__ = ["MAX_ERRORS", "MAX_MODELS", "MetricSink", "PhaseSpans"]

MAX_MODELS = 32
"""Models of a process that keep their names in attributes; further ones are `other`."""
MAX_ERRORS = 32
"""Classes of exceptions that do; further ones are `_OTHER`."""
_SUPPRESSION_KEYS = (_SUPPRESS_INSTRUMENTATION_KEY, "suppress_language_model_instrumentation")
_DEAF = (_ProxyMeterProvider, NoOpMeterProvider)
_Key = tuple[tuple[str, str], ...]
# By what all points of a request share and by what is a point's own: the first is made once for some forty of them.
_Sums = dict[tuple[_Key, _Key], float]
_SUPPRESSED = "suppressed"
_ELSEWHERE = "counted by the sink of another session"


@runtime_checkable
class PhaseSpans(Protocol):
    """Knows the spans that a request and its phases became."""

    def phase_span_context(self, request_id: str, phase: str | None) -> SpanContext | None:
        """The span of a phase, or of the request where `phase` is None; None where there is none."""


class _Counted(NamedTuple):
    """What the metrics say of a request that has begun: it is to be observed, and has no span of theirs."""

    recording: bool
    ids: None = None


class MetricSink:
    """Adds each result to the metrics of `inferscope.sinks.metric_semconv`.

    Requests are counted whether their trace is sampled or not. Where no meter provider is set, where the SDK is
    switched off (OTEL_SDK_DISABLED), or where the request's context suppresses instrumentation, nothing happens.

    Attributes:
        spans: Where the spans of a request are found, for exemplars; a span sink that ran before this one. None: no
            exemplars.
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        operation: str = "text_completion",
        spans: PhaseSpans | None = None,
    ) -> None:
        """Prepare for a provider.

        Args:
            meter_provider: Where metrics go; None: the global provider, also one that is set later.
            operation: Value of `gen_ai.operation.name`.
            spans: As the attribute.
        """
        self.spans = spans
        self._provider = meter_provider
        self._operation = operation
        self._begun: dict[str, _Instruments | str] = {}
        # What there is now is made now, not in the first request.
        self._instruments()

    def use_spans(self, spans: object) -> None:
        """Take the spans of this sink, where it knows those of phases and no other has been given."""
        if self.spans is None and isinstance(spans, PhaseSpans):
            self.spans = spans

    def begin(
        self, request_id: str, started_unix_ns: int, context: object, model_name: str, options: Mapping[str, Any]
    ) -> _Counted | None:
        """Count a request as active.

        Args:
            request_id: The record's.
            started_unix_ns: Not needed.
            context: Not needed: suppression is asked of the current one.
            model_name: The model's.
            options: Not needed.

        Returns:
            That the request is to be observed, whether it is sampled or not; None where nobody listens.
        """
        del started_unix_ns, context, options
        if any(get_value(key) for key in _SUPPRESSION_KEYS):
            self._begun[request_id] = _SUPPRESSED
            return _Counted(recording=False)
        instruments = self._instruments()
        if instruments is None:
            return None
        self._begun[request_id] = instruments if instruments.enter(request_id, model_name) else _ELSEWHERE
        return _Counted(recording=True)

    def abandon(self, request_id: str) -> None:
        """The request is not active any more; nothing happens where it was not."""
        self._leave(request_id)

    def after_fork(self) -> None:
        """In a forked child: what runs is the parent's."""
        self._begun.clear()

    def __call__(self, result: Result) -> None:
        """Add one request."""
        begun = self._leave(result.record.request_id)
        if isinstance(begun, str) or (begun is None and _suppresses(result.parent_context)):
            return
        instruments = self._instruments()
        if instruments is not None:
            instruments.add(result, self._operation, self.spans)

    def _leave(self, request_id: str) -> _Instruments | str | None:
        begun = self._begun.pop(request_id, None)
        if isinstance(begun, _Instruments):
            begun.leave(request_id)
        return begun

    def _instruments(self) -> _Instruments | None:
        provider = metrics.get_meter_provider() if self._provider is None else self._provider
        if isinstance(provider, _DEAF) or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        return _on(provider)


class _Instruments:
    """One set of instruments on one provider, shared by all sinks that report there."""

    def __init__(self, provider: MeterProvider) -> None:
        own = forks.scope_attributes() if forks.begins_anew(provider) else None
        meter = metrics.get_meter(forks.SCOPE, version("inferscope"), provider, attributes=own)
        self._retired = False
        self._models = _Capped(MAX_MODELS, "other")
        self._errors = _Capped(MAX_ERRORS, "_OTHER")
        self._active: dict[str, str] = {}
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._histograms = tuple((row, _recorder(meter, row)) for row in REQUEST_METRICS if row.kind == "histogram")
        # A request adds to some forty sums: 0.6 us each here, 11.5 us each with the SDK's counters, side by side on a
        # busy machine.
        self._sums: dict[str, _Sums] = {row.name: {} for row in REQUEST_METRICS if row.kind != "histogram"}
        self._counters = tuple(row for row in REQUEST_METRICS if row.kind != "histogram")
        for row in self._counters:
            create = meter.create_observable_counter if row.kind == "counter" else meter.create_observable_gauge
            create(row.name, [self._observe_sums(row.name)], unit=row.unit, description=row.meaning)
        meter.create_observable_up_down_counter(
            ACTIVE.name, [self._observe_active], unit=ACTIVE.unit, description=ACTIVE.meaning
        )
        meter.create_observable_counter(
            DROPPED.name, [self._observe_dropped], unit=DROPPED.unit, description=DROPPED.meaning
        )

    def enter(self, request_id: str, model_name: str) -> bool:
        """A request is active; whether it was not before: two sessions may observe one request."""
        name = self._models.name(model_name)
        with self._lock:
            new = request_id not in self._active
            self._active[request_id] = name
            self._seen.add(name)
        return new

    def leave(self, request_id: str) -> None:
        with self._lock:
            self._active.pop(request_id, None)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._active.clear()
        for sums in self._sums.values():  # what was counted, the parent tells
            sums.clear()
        self._models.after_fork()
        self._errors.after_fork()

    def retire(self) -> None:
        """Tell nothing any more: instruments cannot be taken off a provider, and others take their place."""
        self._retired = True

    def add(self, result: Result, operation: str, spans: PhaseSpans | None) -> None:
        base = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "huggingface",
            "gen_ai.request.model": self._models.name(result.record.model.name),
        }
        places = _Places(result.record.request_id, spans)
        for row, record in self._histograms:
            for point in _points(row, result):
                record(point.value, self._attributes(base, point), places.context(point.span))
        common = tuple(base.items())
        found = [(row, self._told(row, result)) for row in self._counters]
        with self._lock:
            for row, points in found:
                sums = self._sums[row.name]
                for own, value in points:
                    key = (common, own)
                    sums[key] = value + (sums.get(key, 0) if row.kind == "counter" else 0)

    def _told(self, row: RequestMetric, result: Result) -> list[tuple[_Key, float]]:
        # A residual may be below zero, and counters only grow.
        return [
            (tuple(self._capped(point.attributes).items()), point.value)
            for point in _points(row, result)
            if point.value >= 0 or row.kind == "gauge"
        ]

    def _observe_sums(self, name: str) -> Callable[[CallbackOptions], list[Observation]]:
        def observe(_options: CallbackOptions) -> list[Observation]:
            if self._retired:
                return []
            with self._lock:
                sums = list(self._sums[name].items())
            return [Observation(value, dict(common + own)) for (common, own), value in sums]

        return observe

    def _attributes(self, base: dict[str, str], point: Point) -> dict[str, str]:
        return {**base, **self._capped(point.attributes)} if point.attributes else base

    def _capped(self, attributes: dict[str, str]) -> dict[str, str]:
        error = attributes.get("error.type")
        return attributes if error is None else {**attributes, "error.type": self._errors.name(error)}

    def _observe_active(self, _options: CallbackOptions) -> list[Observation]:
        if self._retired:
            return []
        with self._lock:
            running, seen = Counter(self._active.values()), sorted(self._seen)
        # A model that was active and is not any more is told as 0: otherwise the last value would stand.
        return [Observation(running[name], {"gen_ai.request.model": name}) for name in seen]

    def _observe_dropped(self, _options: CallbackOptions) -> list[Observation]:
        if self._retired:
            return []
        return [Observation(number, {"inferscope.kind": kind}) for kind, number in losses.totals().items()]


class _Places:
    """Contexts whose current span is that of the request, or of one of its phases: what makes an exemplar."""

    def __init__(self, request_id: str, spans: PhaseSpans | None) -> None:
        self._request_id = request_id
        self._spans = spans
        self._made: dict[str | None, Context] = {}

    def context(self, phase: str | None) -> Context:
        # An empty context, not none: whatever is current on the background thread is not the request's.
        if phase not in self._made:
            place = None
            if self._spans is not None:
                place = self._spans.phase_span_context(self._request_id, phase)
                place = place or self._spans.phase_span_context(self._request_id, None)
            span = trace.NonRecordingSpan(place) if place is not None else trace.INVALID_SPAN
            self._made[phase] = trace.set_span_in_context(span, Context())
        return self._made[phase]


class _Capped:
    """Texts as values of an attribute: the first so many as they are, the others as one."""

    def __init__(self, limit: int, other: str) -> None:
        self._limit = limit
        self._other = other
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def name(self, text: str) -> str:
        with self._lock:
            known = self._known.get(text)
            if known is None:
                if len(self._known) >= self._limit:
                    return self._other
                known = self._known[text] = plain_text(text) or self._other
            return known

    def after_fork(self) -> None:
        self._lock = threading.Lock()


def _points(row: RequestMetric, result: Result) -> Iterable[Point]:
    return () if row.read is None else row.read(result)


def _recorder(meter: Meter, row: RequestMetric) -> Callable[[float, dict[str, str], Context], None]:
    told: dict[str, Any] = {"unit": row.unit, "description": row.meaning}
    try:
        borders = list(row.borders)
        return meter.create_histogram(row.name, explicit_bucket_boundaries_advisory=borders, **told).record
    except TypeError:  # an older OpenTelemetry: it has its own borders
        return meter.create_histogram(row.name, **told).record


def _suppresses(context: object) -> bool:
    return isinstance(context, Context) and any(get_value(key, context) for key in _SUPPRESSION_KEYS)


_lock = threading.Lock()
_by_provider: weakref.WeakKeyDictionary[MeterProvider, _Instruments | None] = weakref.WeakKeyDictionary()


def _on(provider: MeterProvider) -> _Instruments | None:
    """The instruments on a provider, made once: the SDK keeps one of each name, with the callbacks of the first.

    None where the provider refused them; it is not asked again.
    """
    if provider not in _by_provider:
        with _lock:
            if provider not in _by_provider:
                _by_provider[provider] = _made(provider)
    return _by_provider[provider]


def _made(provider: MeterProvider) -> _Instruments | None:
    try:
        return _Instruments(provider)
    except Exception as error:  # noqa: BLE001 - the application's provider is not ours to mend, nor its call to break
        notices.warn(
            "meter-provider-failed",
            f"the meter provider raised {type(error).__name__}: {error}; there are no metrics of requests",
            provider=type(provider).__name__,
        )
        return None


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - a lock is replaced, not shared
    _lock = threading.Lock()
    for provider, instruments in list(_by_provider.items()):
        if instruments is None:
            continue
        if forks.begins_anew(provider):
            instruments.retire()
            del _by_provider[provider]
        else:
            instruments.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
