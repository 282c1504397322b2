"""What capture hands finished requests to, on the generating thread; and whether a request is wanted when it begins."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import opentelemetry.context
import opentelemetry.trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inferscope import notices
from inferscope.capture.requests import Begun
from inferscope.meters.nvtx import find_ranges
from inferscope.sinks.base import EarlySink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inferscope.capture.requests import Finished
    from inferscope.meters.budget import Governor
    from inferscope.settings import Settings
    from inferscope.sinks.base import Sink

__all__ = ["EveryInbox", "Inbox", "ambient_context", "say_sink_failed"]


class Inbox:
    """What capture hands the finished requests of a session to."""

    gives_way = False

    def __init__(
        self,
        receive: Callable[[Finished, Begun], None],
        settings: Settings,
        governor: Governor,
        sinks: tuple[Sink, ...],
        model_name: str,
        context: object | None = None,
    ) -> None:
        """Take requests in for a session.

        Args:
            receive: Takes a finished request.
            settings: The session's.
            governor: Of what its own work may cost.
            sinks: Those that have a say when a request begins are asked.
            model_name: Of the model whose requests these are.
            context: Where requests without a span belong; None for where this thread is.
        """
        self._receive = receive
        self._sample_rate = settings.sample_rate
        self._governor = governor
        self._sinks = [sink for sink in sinks if isinstance(sink, EarlySink)]
        self._skippable = bool(sinks) and len(self._sinks) == len(sinks)
        self._model_name = model_name
        # A thread starts without a context: what it generates belongs where tracing began.
        self._context = ambient_context() if context is None else context
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
        """A request begins: what comes back with it; None where no sink wants it."""
        context = self._context if context is None else context
        span_ids, said, wanted = None, False, False
        for sink in self._sinks:
            try:
                root = sink.begin(request_id, started_unix_ns, context, self._model_name, options)
            except Exception as error:  # noqa: BLE001 - a provider's fault costs neither the call nor the other sinks
                say_sink_failed(sink, error)
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
        """It has ended."""
        self._receive(raw, begun)

    def abandon(self, request_id: str) -> None:
        """It will not be finished."""
        for sink in self._sinks:
            sink.abandon(request_id)


class EveryInbox(Inbox):
    """The inbox of a session that observes every model."""

    gives_way = True

    def __init__(
        self,
        receive: Callable[[Finished, Begun], None],
        settings: Settings,
        governor: Governor,
        outlets: tuple[Sink, ...],
        model_name: str,
        context: object,
        *,
        keeps: bool,
    ) -> None:
        """Take requests in; `keeps` where somebody wants those that no outlet tells of. See `Inbox`."""
        super().__init__(receive, settings, governor, outlets, model_name, context)
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
        """A request begins: told of where nobody else tells of it, or kept."""
        begun = None
        if self._outlets and not claimed:
            begun = super().begin(request_id, started_unix_ns, context, options, claimed)
        if begun is None:
            kept = Begun(self._context if context is None else context, claims=False, tells=False)
            return kept if self._keeps else None
        return begun


def ambient_context() -> object:
    """Where requests of threads without a context belong: the current span, or the one that started this process."""
    context = opentelemetry.context.get_current()
    if "TRACEPARENT" not in os.environ or opentelemetry.trace.get_current_span(context).get_span_context().is_valid:
        return context
    carrier = {name.lower(): os.environ[name] for name in ("TRACEPARENT", "TRACESTATE") if name in os.environ}
    return TraceContextTextMapPropagator().extract(carrier, context)


def say_sink_failed(sink: Sink, error: Exception) -> None:
    """A sink's fault is said once, and costs neither the call nor the other sinks."""
    notices.warn("sink-failed", f"a sink raised {type(error).__name__}: {error}", sink=repr(sink))
