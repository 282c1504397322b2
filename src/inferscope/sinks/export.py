"""Sending spans without ever holding up the host, and counting what did not arrive.

The SDK's batch processor says nothing when an exporter fails, and waits up to 30 s for it at the end of the
process. Here every span ends up in one of two counters, the first failure is said once, and the end is bounded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from inferscope import losses, notices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = [
    "EXPORT_TIMEOUT_S",
    "SHUTDOWN_TIMEOUT_S",
    "BoundedProcessor",
    "CapturedLog",
    "CountingExporter",
    "renew_after_fork",
]

EXPORT_TIMEOUT_S = 2.0
"""What one batch may take, retries included."""
SHUTDOWN_TIMEOUT_S = 5.0
"""What the end of the process may wait."""
_QUEUE_SPANS = 2048
# 256 spans of under 64 attributes stay far below the 4 MiB at which gRPC receivers refuse a batch whole.
_BATCH_SPANS = 256
_DELAY_MS = 1000


class _Renewable(Protocol):
    def after_fork(self) -> None:
        """Begin anew in a forked child."""


_RENEWABLE: weakref.WeakSet[_Renewable] = weakref.WeakSet()


def renew_after_fork(what: _Renewable) -> None:
    """Call `after_fork` of this object in each forked child, as long as it lives.

    Args:
        what: The object.
    """
    _RENEWABLE.add(what)


def _after_fork_in_child() -> None:
    for what in list(_RENEWABLE):
        what.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


class CountingExporter(SpanExporter):
    """Passes spans on to another exporter and counts what became of them. Never raises, warns once.

    Attributes:
        exported: Spans that the other exporter delivered.
        dropped: Spans that it did not.
    """

    def __init__(self, inner: SpanExporter, *, target: str, rebuild: Callable[[], SpanExporter] | None = None) -> None:
        """Wrap an exporter.

        Args:
            inner: The one that sends.
            target: Where it sends to, for the warning.
            rebuild: Makes another one in a forked child, where the parent's connection is no good. None: the same one
                goes on.
        """
        self.exported = 0
        self.dropped = 0
        self._inner = inner
        self._rebuild = rebuild
        self._stale = False
        self._target = target
        self._lock = threading.Lock()
        self._deadline_s: float | None = None
        self._said = CapturedLog(inner)
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked child: nothing has been sent or lost yet, and nothing is sent over the parent's connection."""
        self._lock = threading.Lock()
        self.exported, self.dropped, self._stale = 0, 0, self._rebuild is not None
        self._said.after_fork()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch, or drop and count it."""
        if self._deadline_s is not None and time.monotonic() > self._deadline_s:
            self.drop(len(spans), reason="the process ended before it could be sent")
            return SpanExportResult.FAILURE
        reason = ""
        with self._said:
            try:
                if self._stale and self._rebuild is not None:
                    self._inner, self._stale = self._rebuild(), False
                outcome = self._inner.export(spans)
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the host goes on
                outcome, reason = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
            reason = reason or self._said.text
        if outcome is SpanExportResult.SUCCESS:
            with self._lock:
                self.exported += len(spans)
        else:
            self.drop(len(spans), reason=reason)
        return outcome

    def drop(self, count: int, *, reason: str) -> None:
        """Count spans that will not arrive, and say so the first time.

        Args:
            count: How many.
            reason: Why.
        """
        with self._lock:
            self.dropped += count
        losses.count("spans", count)
        notices.warn(
            "export-failed",
            "spans could not be sent; they are dropped and counted, and this is said once",
            target=self._target,
            reason=reason or "unknown",
            spans=count,
        )

    def stop_by(self, deadline_s: float) -> None:
        """Start no export after this moment of the monotonic clock.

        Args:
            deadline_s: The moment, in seconds.
        """
        self._deadline_s = deadline_s

    def shutdown(self) -> None:
        """Shut the other exporter down."""
        with self._said:
            try:
                self._inner.shutdown()
            except Exception as error:  # noqa: BLE001 - the host is ending; there is nothing left to lose
                notices.warn("export-failed", "an exporter failed to shut down", reason=type(error).__name__)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the other exporter."""
        with self._said:
            try:
                # The base class answers None: it has no buffer.
                return self._inner.force_flush(timeout_millis) is not False
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the host goes on
                notices.warn("export-failed", "an exporter failed to flush", reason=type(error).__name__)
                return False


class BoundedProcessor(BatchSpanProcessor):
    """The SDK's batch processor with a queue that counts what it refuses and an end that does not hang."""

    def __init__(self, exporter: CountingExporter) -> None:
        """Start the worker thread.

        Args:
            exporter: Where batches go.
        """
        super().__init__(
            exporter,
            max_queue_size=_QUEUE_SPANS,
            schedule_delay_millis=_DELAY_MS,
            max_export_batch_size=_BATCH_SPANS,
        )
        self._counting = exporter
        self._accepted = 0
        self._accepting = threading.Lock()
        self._stopped = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked child: the queue is empty, whatever the parent had in it. The SDK starts the thread anew."""
        self._accepting = threading.Lock()
        self._accepted = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, or refuse and count it where the queue is full. After the end, take nothing."""
        if self._stopped or not (span.context and span.context.trace_flags.sampled):
            return
        with self._accepting:
            full = self._accepted - self._counting.exported - self._counting.dropped >= _QUEUE_SPANS
            # A refused span counts as accepted and as dropped: the difference stays what is waiting.
            self._accepted += 1
        if full:
            self._counting.drop(1, reason="the queue is full")
        else:
            super().on_end(span)

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        """Send what is queued now.

        Args:
            timeout_millis: For the exporter's own buffer; each batch has its own limit.

        Returns:
            Whether every span arrived. The SDK's own answer is always True.
        """
        dropped = self._counting.dropped
        flushed = super().force_flush(timeout_millis)
        flushed = self._counting.force_flush(timeout_millis or 30_000) and flushed
        return flushed and self._counting.dropped == dropped

    def shutdown(self) -> None:
        """Send what is queued, for as long as the end of a process may take, then drop the rest."""
        self.shutdown_within(SHUTDOWN_TIMEOUT_S)

    def shutdown_within(self, timeout_s: float) -> None:
        """Send what is queued, then stop.

        Args:
            timeout_s: What it may take in all; not less than the time limit of one export that is under way.
        """
        self._stopped = True
        self._counting.stop_by(time.monotonic() + max(timeout_s - EXPORT_TIMEOUT_S, 0.0))
        super().shutdown()  # type: ignore[no-untyped-call]


class CapturedLog(logging.Filter):
    """Takes over what an exporter logs while it works for us: the SDK repeats itself with every batch.

    The first message becomes the reason in inferscope's own warning. The filter sits on that exporter's loggers
    alone, lets everything through that other threads or other exporters log there, and is gone after the call.
    """

    def __init__(self, exporter: SpanExporter | MetricExporter) -> None:
        super().__init__()
        modules = {kind.__module__ for kind in type(exporter).__mro__ if kind.__module__.startswith("opentelemetry.")}
        self._loggers = [logging.getLogger(name) for name in sorted(modules)]
        self._local = threading.local()
        self._users = 0
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child: no call is under way."""
        self._local, self._users, self._lock = threading.local(), 0, threading.Lock()
        for logger in self._loggers:
            logger.removeFilter(self)

    @property
    def text(self) -> str:
        """The latest message of this thread's current call."""
        return getattr(self._local, "text", "")

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record through unless it comes from this thread's current call."""
        if not getattr(self._local, "active", False):
            return True
        self._local.text = record.getMessage()
        return False

    def __enter__(self) -> None:
        self._local.active, self._local.text = True, ""
        with self._lock:
            self._users += 1
            for logger in self._loggers:
                if self not in logger.filters:
                    # First, so that the SDK's own filter of repetitions does not hide the reason.
                    logger.filters.insert(0, self)

    def __exit__(self, *_: object) -> None:
        self._local.active = False
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for logger in self._loggers:
                    logger.removeFilter(self)
