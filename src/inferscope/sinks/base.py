"""What a sink is, and how the names a user may write become one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from inferscope.errors import SinkError
from inferscope.sinks.jsonl import JsonlSink
from inferscope.sinks.log import LogSink, SpanIndex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inferscope.analysis.verdict import Result

__all__ = ["EarlySink", "Root", "Sink", "resolve_sink", "resolve_sinks"]

_CHOICES = 'a callable that takes one Result, "otel", "otel:traces", "otel:metrics", "jsonl:PATH" or "log"'
_BOTH = ("otel:traces", "otel:metrics")


class Sink(Protocol):
    """Anything that takes a result: a function, a bound method, an object with `__call__`."""

    def __call__(self, result: Result, /) -> object:
        """Take one result; what is returned is ignored."""


class Root(Protocol):
    """What a sink has to say of a request from its beginning.

    Attributes:
        recording: Whether it wants the request observed.
        ids: Trace id and span id of the request's span; None where the sink makes no spans.
    """

    recording: bool
    ids: tuple[int, int] | None


@runtime_checkable
class SpanUser(Protocol):
    """A sink that tells of the spans of requests."""

    def use_spans(self, spans: Any, /) -> None:  # noqa: ANN401 - each asks another thing of it
        """Take a sink that makes spans, where this one has been given none."""


@runtime_checkable
class EarlySink(Protocol):
    """A sink that also takes part when a request begins: on the generating thread, at once, without raising."""

    def __call__(self, result: Result, /) -> object:
        """Take one result."""

    def begin(
        self, request_id: str, started_unix_ns: int, context: object, model_name: str, options: Mapping[str, Any]
    ) -> Root | None:
        """A request begins; None where this sink has no say in whether it is observed."""

    def abandon(self, request_id: str) -> None:
        """There will be no result for this request; nothing happens where there has been one."""


def resolve_sinks(specs: Iterable[object]) -> tuple[Sink, ...]:
    """The sinks that a user's list stands for, joined where they know of each other.

    Where the list holds spans, log events carry their ids and metrics have exemplars that lead to them. Spans
    therefore come first in what is returned; otherwise the order is the list's. "otel" stands for spans and metrics.

    Args:
        specs: Callables and names, as `resolve_sink` takes them.

    Raises:
        SinkError: An entry is neither.
        CacheUnwritableError: A record file cannot be written.
    """
    if isinstance(specs, str) or not isinstance(specs, Iterable):
        raise SinkError(f"sinks={specs!r}: expected a list of {_CHOICES}")
    named = [name for spec in specs for name in (_BOTH if isinstance(spec, str) and spec == "otel" else (spec,))]
    sinks = [resolve_sink(spec) for spec in named]
    spans = next((sink for sink in sinks if isinstance(sink, SpanIndex)), None)
    for sink in sinks:
        if isinstance(sink, SpanUser) and spans is not None:
            sink.use_spans(spans)
    return tuple(sorted(sinks, key=lambda sink: not isinstance(sink, SpanIndex)))


def resolve_sink(spec: object) -> Sink:
    """The sink that a user's word stands for; a callable is its own sink.

    Args:
        spec: A callable, "otel" (spans through the tracer provider that is set when a request ends),
            "otel:traces" (the same), "otel:metrics" (histograms and counters through the meter provider),
            "jsonl:PATH" (records appended to a file) or "log" (structlog events).

    Raises:
        SinkError: It is neither; the message says what is possible.
        CacheUnwritableError: The record file cannot be written.
    """
    if isinstance(spec, str):
        return _named(spec)
    if isinstance(spec, type):
        raise SinkError(f"the class {spec.__name__} was given as a sink: give an instance, {spec.__name__}(...)")
    if callable(spec):
        return spec
    raise SinkError(f"{spec!r} is not a sink: give {_CHOICES}")


def _named(name: str) -> Sink:
    kind, colon, path = name.partition(":")
    if kind == "jsonl":
        if not path:
            raise SinkError(f'{name!r} names no file: write "jsonl:PATH"')
        return JsonlSink(path)
    if name in {"otel", "otel:traces"}:
        from inferscope.sinks.spans import SpanSink  # noqa: PLC0415 - loads opentelemetry, so only where asked for

        return SpanSink()
    if name == "otel:metrics":
        from inferscope.sinks.metrics import MetricSink  # noqa: PLC0415 - the same

        return MetricSink()
    if name == "log":
        return LogSink()
    hint = f' (for a record file: "jsonl:{name}")' if not colon and "." in name else ""
    raise SinkError(f"{name!r} is not a sink{hint}: give {_CHOICES}")
