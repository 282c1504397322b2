"""Sending metrics without ever holding up the host or its end, and counting the exports that failed.

Sums and histograms are cumulative: what a receiver misses while it is away arrives with the next export, so nothing is
queued and nothing is lost with it.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from inferscope import losses, notices
from inferscope.sinks import forks
from inferscope.sinks.export import EXPORT_TIMEOUT_S, CapturedLog, renew_after_fork
from inferscope.sinks.metric_semconv import ACTIVE, DROPPED, REQUEST_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import Metric, ResourceMetrics, ScopeMetrics

__all__ = ["BoundedReader", "CountingMetricExporter"]

# What the exporters say of a receiver, such as Jaeger, that has no place for metrics: over gRPC and over HTTP.
_NOT_TAKEN = ("UNIMPLEMENTED", "code: 404")
_OF_REQUESTS = frozenset(row.name for row in (*REQUEST_METRICS, ACTIVE, DROPPED))


class CountingMetricExporter(MetricExporter):
    """Passes metrics on to another exporter and counts what became of them. Never raises, warns once.

    Attributes:
        exported: Exports that the other exporter delivered.
        failed: Exports that it did not; not where the receiver has no place for metrics at all.
        own_only: Whether a forked child leaves away what it has inherited of the metrics of requests: where children
            begin these anew.
    """

    def __init__(self, build: Callable[[], MetricExporter], *, target: str) -> None:
        """Wrap an exporter.

        Args:
            build: Makes the one that sends; called again in a forked child, where the parent's connection is no good.
            target: Where it sends to, for the warning.
        """
        inner = build()
        # What the reader asks an exporter for has no public name.
        super().__init__(inner._preferred_temporality, inner._preferred_aggregation)  # noqa: SLF001
        self._build: Callable[[], MetricExporter] = build
        self._stale = False
        self.exported = 0
        self.failed = 0
        self.own_only = False
        self._inner = inner
        self._target = target
        self._said = CapturedLog(inner)
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked child: nothing has been sent, and not over the parent's connection."""
        self.exported, self.failed, self._stale = 0, 0, True
        self._said.after_fork()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: object) -> MetricExportResult:
        """Send all metrics, or count that they could not be sent."""
        reason = ""
        if self.own_only and forks.forked():
            metrics_data = _own(metrics_data)
            if not metrics_data.resource_metrics:
                return MetricExportResult.SUCCESS
        with self._said:
            try:
                if self._stale:
                    self._inner, self._stale = self._build(), False
                outcome = self._inner.export(metrics_data, timeout_millis=timeout_millis)
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the host goes on
                outcome, reason = MetricExportResult.FAILURE, f"{type(error).__name__}: {error}"
            reason = reason or self._said.text
        if outcome is MetricExportResult.SUCCESS:
            self.exported += 1
            return outcome
        if any(words in reason for words in _NOT_TAKEN):
            notices.warn(
                "metrics-not-taken",
                "the receiver takes no metrics; setup(metrics_every_s=0) sends it none",
                target=self._target,
            )
            return outcome
        self.failed += 1
        losses.count("metrics")
        notices.warn(
            "metrics-export-failed",
            "metrics could not be sent; the next export carries their sums, and this is said once",
            target=self._target,
            reason=reason or "unknown",
        )
        return outcome

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is buffered here."""
        del timeout_millis
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None:
        """Shut the other exporter down."""
        with self._said:
            try:
                self._inner.shutdown(timeout_millis=timeout_millis)
            except Exception as error:  # noqa: BLE001 - the host is ending; there is nothing left to lose
                notices.warn("metrics-export-failed", "an exporter failed to shut down", reason=type(error).__name__)


class BoundedReader(PeriodicExportingMetricReader):
    """The SDK's periodic reader with a flush that tells the truth and an end that does not hang and may come twice."""

    def __init__(self, exporter: CountingMetricExporter, *, every_s: float | None = None) -> None:
        """Start the thread that sends.

        Args:
            exporter: Where metrics go.
            every_s: Seconds between two exports; None: OTEL_METRIC_EXPORT_INTERVAL, else 60.
        """
        self._ended = False
        self._counting = exporter
        super().__init__(
            exporter,
            export_interval_millis=None if every_s is None else every_s * 1e3,
            export_timeout_millis=EXPORT_TIMEOUT_S * 1e3,
        )
        renew_after_fork(self)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Send everything now.

        Args:
            timeout_millis: For reading; the export has its own limit.

        Returns:
            Whether it arrived. The SDK's own answer is always True.
        """
        if self._ended:
            return False
        failed = self._counting.failed
        self.collect(timeout_millis)
        return self._counting.failed == failed

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None:
        """Send everything once more, for as long as the end of a process may take, then stop. Again: nothing."""
        if self._ended:
            return
        # The last export runs on the reader's thread: an exporter that hangs is waited for no longer than this.
        self._shutdown_event.set()
        if self._daemon_thread is not None:
            self._daemon_thread.join(timeout_millis / 1e3)
        self._ended = True
        self._counting.shutdown(timeout_millis=0)

    def leave(self, provider: MeterProvider, timeout_s: float) -> None:
        """Stop, and let the provider forget this reader where it can.

        Args:
            provider: That it was added to.
            timeout_s: What it may take.
        """
        self.shutdown(timeout_millis=timeout_s * 1e3)
        remove: Any = getattr(provider, "remove_metric_reader", None)
        if remove is not None:
            remove(self)

    def after_fork(self) -> None:
        """In a forked child: an export that the parent was in is nobody's. The SDK starts the thread anew."""
        self._export_lock = threading.Lock()


def _own(data: MetricsData) -> MetricsData:
    """The metrics without those that a forked child has of its parent."""
    resources = [_own_of(resource) for resource in data.resource_metrics]
    return MetricsData([resource for resource in resources if resource.scope_metrics])


def _own_of(resource: ResourceMetrics) -> ResourceMetrics:
    scopes: list[ScopeMetrics] = []
    ours: list[Metric] = []
    place: ScopeMetrics | None = None
    for scope in resource.scope_metrics:
        if scope.scope.name == forks.SCOPE:
            place, own = scope, forks.is_own(scope.scope.attributes)
            ours += [metric for metric in scope.metrics if own or metric.name not in _OF_REQUESTS]
        else:
            scopes.append(scope)
    if place is not None and ours:
        # What tells a child's scope from its parent's is of no use to a receiver: the resource says which process.
        plain = InstrumentationScope(place.scope.name, place.scope.version, place.scope.schema_url)
        scopes.append(replace(place, scope=plain, metrics=ours))
    return replace(resource, scope_metrics=scopes)
