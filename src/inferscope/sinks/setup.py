"""`inferscope.setup`: the only place that sets OpenTelemetry's providers, and only because it was called."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from inferscope import notices
from inferscope.errors import SettingError
from inferscope.sinks import forks
from inferscope.sinks.export import SHUTDOWN_TIMEOUT_S, BoundedProcessor, CountingExporter
from inferscope.sinks.export_metrics import BoundedReader, CountingMetricExporter
from inferscope.sinks.otlp_file import OtlpFileExporter
from inferscope.sinks.senders import Transport, metric_sender, span_sender

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Providers", "setup"]

_OURS: weakref.WeakSet[object] = weakref.WeakSet()
"""Providers that `setup` has made: another call adds to them without a word."""


class _Ids(RandomIdGenerator):
    """Random ids, for which no number is drawn that the application, having seeded Python's, counts on."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1  # zero is no id

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or 1


class Providers:
    """What `setup` has put in place, and how to end it.

    Attributes:
        tracer_provider: The provider that spans go to: inferscope's own, or the application's.
        meter_provider: The provider that metrics go to; None where `setup` sends none.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider,
        outlets: tuple[tuple[BoundedProcessor, CountingExporter], ...],
        written: OtlpFileExporter | None,
        meters: tuple[metrics.MeterProvider, BoundedReader | None, CountingMetricExporter] | None = None,
    ) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meters[0] if meters else None
        self._outlets = outlets
        self._written = written
        self._reader = meters[1] if meters else None
        self._metrics = meters[2] if meters else None
        self._ended = False
        atexit.register(self.shutdown)

    @property
    def exported(self) -> int:
        """Spans delivered, counted once per outlet."""
        return sum(exporter.exported for _, exporter in self._outlets)

    @property
    def dropped(self) -> int:
        """Spans lost, counted once per outlet."""
        made_room = self._written.dropped if self._written else 0
        return made_room + sum(exporter.dropped for _, exporter in self._outlets)

    @property
    def metric_exports(self) -> int:
        """Exports of metrics that were delivered; each carries everything since the process began."""
        return self._metrics.exported if self._metrics else 0

    @property
    def metric_exports_failed(self) -> int:
        """Exports of metrics that were not."""
        return self._metrics.failed if self._metrics else 0

    def force_flush(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Send what is queued now, and the metrics as they stand.

        Args:
            timeout_s: How long to wait for it; sending goes on after that.

        Returns:
            Whether every queued span, and the metrics, were delivered within that time.
        """
        flushed: list[bool] = []
        senders: list[BoundedProcessor | BoundedReader] = [processor for processor, _ in self._outlets]
        if self._reader is not None and not self._ended:
            senders.append(self._reader)
        # The SDK's own flush takes a timeout and ignores it; and what hangs in one is not to hold up the other.
        workers = [
            threading.Thread(target=lambda one=sender: flushed.append(one.force_flush()), name="inferscope-flush")
            for sender in senders
        ]
        deadline_s = time.monotonic() + timeout_s
        for worker in workers:
            worker.daemon = True
            worker.start()
        for worker in workers:
            worker.join(max(deadline_s - time.monotonic(), 0.0))
        return len(flushed) == len(senders) and all(flushed)

    def shutdown(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Send what is queued and stop sending. Runs by itself at the end of the process.

        An application's own provider keeps running; it only loses this outlet.

        Args:
            timeout_s: What it may take; an export that is under way may add its own limit of 2 s.

        Returns:
            Whether every queued span, and the metrics, were delivered. True when called again.
        """
        if self._ended:
            return True
        self._ended = True
        atexit.unregister(self.shutdown)
        lost, deadline_s = self.dropped + self.metric_exports_failed, time.monotonic() + timeout_s
        for processor, _ in self._outlets:
            processor.shutdown_within(max(deadline_s - time.monotonic(), 0.0))
        if self._reader is not None and isinstance(self.meter_provider, MeterProvider):
            self._reader.leave(self.meter_provider, max(deadline_s - time.monotonic(), 0.0))
        return self.dropped + self.metric_exports_failed == lost


def setup(
    *,
    endpoint: str | None = None,
    protocol: Transport = "grpc",
    service_name: str | None = None,
    file: Path | str | None = None,
    headers: Mapping[str, str] | None = None,
    resource_attributes: Mapping[str, str | bool | int | float] | None = None,
    metrics_every_s: float | None = None,
) -> Providers:
    """Send spans and metrics to an OpenTelemetry receiver, spans to a file, or both.

    Sets the process's tracer provider and meter provider. Where the application has them already, they are kept, a
    warning says so once, and the outlets are added to them. A further call adds a further outlet.

    Args:
        endpoint: Receiver, such as "http://localhost:4317". None: as the `OTEL_EXPORTER_OTLP_*` variables say,
            or no receiver at all where `file` is given.
        protocol: "grpc" or "http/protobuf".
        service_name: Name of the service in the trace viewer. None: OTEL_SERVICE_NAME, else "inferscope".
        file: OTLP/JSON file to write spans to at each flush and at the end, for upload to Jaeger.
        headers: Sent with each export, such as an API key.
        resource_attributes: What else the resource says of the sender, such as {"deployment.environment.name": "test"};
            stronger than the OTEL_RESOURCE_ATTRIBUTES variable.
        metrics_every_s: Seconds between two exports of metrics. None: OTEL_METRIC_EXPORT_INTERVAL, else 60; 0: no
            metrics are sent.

    Returns:
        A handle to flush, to end and to ask what was lost.

    Raises:
        SettingError: The protocol is neither, the endpoint is no address, an attribute of the resource is of another
            type, or a number of seconds is none.
        MissingExtraError: The exporters are not installed.
        CacheUnwritableError: The file cannot be written.
    """
    every_s = _checked_every(metrics_every_s)
    said = _checked_attributes(resource_attributes or {})
    exporters: list[CountingExporter] = []
    meter: CountingMetricExporter | None = None
    written = None if file is None else OtlpFileExporter(Path(file))
    if written is not None:
        exporters.append(CountingExporter(written, target=str(file)))
    if endpoint is not None or file is None:
        exporters.append(span_sender(endpoint, protocol, dict(headers or {})))
        if every_s != 0:
            meter = metric_sender(endpoint, protocol, dict(headers or {}))
    resource = _resource(service_name, said)
    provider = _tracer_provider(resource)
    meters = None if meter is None else _meters(resource, meter, every_s)
    add = getattr(provider, "add_span_processor", None)
    outlets = () if add is None else tuple((BoundedProcessor(exporter), exporter) for exporter in exporters)
    for processor, _ in outlets:
        if add is not None:
            add(processor)
    return Providers(provider, outlets, written if outlets else None, meters)


def _tracer_provider(resource: Resource) -> trace.TracerProvider:
    """The application's provider where it has one, else a new one, set for the whole process."""
    present = trace.get_tracer_provider()
    if not isinstance(present, trace.ProxyTracerProvider):
        _say_kept(present, "tracer", "provider-already-set", takes=hasattr(present, "add_span_processor"))
        return present
    # Its own hook at the end of the process could wait for half a minute; `Providers` has a bounded one.
    provider = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
    _own(provider)
    trace.set_tracer_provider(provider)
    return provider


def _meters(
    resource: Resource, exporter: CountingMetricExporter, every_s: float | None
) -> tuple[metrics.MeterProvider, BoundedReader | None, CountingMetricExporter]:
    """The provider of metrics, and what sends them from it; None where it takes nothing."""
    present = metrics.get_meter_provider()
    if isinstance(present, _ProxyMeterProvider):
        reader = BoundedReader(exporter, every_s=every_s)
        provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
        _own(provider)
        forks.begin_anew(provider)
        exporter.own_only = True
        metrics.set_meter_provider(provider)
        return provider, reader, exporter
    add = getattr(present, "add_metric_reader", None)  # OpenTelemetry's SDK has it since 2026
    _say_kept(present, "meter", "meter-provider-already-set", takes=add is not None)
    if add is None:
        return present, None, exporter
    exporter.own_only = forks.begins_anew(present)
    reader = BoundedReader(exporter, every_s=every_s)
    add(reader)
    return present, reader, exporter


def _own(provider: TracerProvider | MeterProvider) -> None:
    """Remember a provider, and have it say in a forked child that it is another process."""
    _OURS.add(provider)
    own = weakref.ref(provider)

    def after_fork() -> None:
        # The SDK has this for its own attributes of the process, since 2026, and no public way to it.
        update = getattr(own(), "_update_resource", None)
        if update is not None:
            update(Resource({"service.instance.id": str(uuid.uuid4()), "process.pid": os.getpid()}))

    if hasattr(os, "register_at_fork"):  # not on Windows
        # After the provider has been made: its own hook, which renews its locks, runs before this one.
        os.register_at_fork(after_in_child=after_fork)


def _say_kept(provider: object, kind: str, slug: str, *, takes: bool) -> None:
    if provider in _OURS and takes:
        return
    outcome = "inferscope's outlets were added to it" if takes else "it takes no outlets: nothing is sent"
    notices.warn(
        slug, f"this process has a {kind} provider, which is kept; {outcome}", provider=type(provider).__name__
    )


def _resource(service_name: str | None, attributes: Mapping[str, str | bool | int | float]) -> Resource:
    """Who sends, as the call and the environment say it and completed where they do not."""
    said = Resource.create()
    ours: dict[str, str | bool | int | float] = {
        "service.instance.id": str(uuid.uuid4()),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    ours = {key: value for key, value in ours.items() if key not in said.attributes}
    if str(said.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        ours["service.name"] = "inferscope"
    ours |= attributes
    if service_name:
        ours["service.name"] = service_name
    return said.merge(Resource(ours))


def _checked_attributes(
    attributes: Mapping[str, str | bool | int | float],
) -> dict[str, str | bool | int | float]:
    for name, value in attributes.items():
        if not isinstance(name, str) or not name or not isinstance(value, str | bool | int | float):
            raise SettingError(
                f"resource_attributes={{{name!r}: {value!r}}}: expected names and text, numbers or true and false"
            )
    return dict(attributes)


def _checked_every(every_s: float | None) -> float | None:
    if every_s is None or (isinstance(every_s, int | float) and 0 <= every_s < float("inf")):
        return every_s
    raise SettingError(f"metrics_every_s={every_s!r}: expected seconds, or 0 for no metrics")
