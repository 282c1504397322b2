"""`inferscope.setup`: the only place that sets a tracer provider, and only because it was called."""

from __future__ import annotations

import atexit
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from inferscope import notices
from inferscope.errors import MissingExtraError, SettingError
from inferscope.sinks.export import EXPORT_TIMEOUT_S, SHUTDOWN_TIMEOUT_S, BoundedProcessor, CountingExporter
from inferscope.sinks.otlp_file import OtlpFileExporter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Providers", "Transport", "setup"]

Transport = Literal["grpc", "http/protobuf"]
_TIMEOUT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")


class Providers:
    """What `setup` has put in place, and how to end it.

    Attributes:
        tracer_provider: The provider that spans go to: inferscope's own, or the application's.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider,
        outlets: tuple[tuple[BoundedProcessor, CountingExporter], ...],
        written: OtlpFileExporter | None,
    ) -> None:
        self.tracer_provider = tracer_provider
        self._outlets = outlets
        self._written = written
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

    def force_flush(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Send what is queued now.

        Args:
            timeout_s: How long to wait for it; sending goes on after that.

        Returns:
            Whether every queued span was delivered within that time.
        """
        flushed: list[bool] = []

        def flush() -> None:
            flushed.extend([processor.force_flush() for processor, _ in self._outlets])

        # The SDK's own flush takes a timeout and ignores it.
        worker = threading.Thread(target=flush, name="inferscope-flush", daemon=True)
        worker.start()
        worker.join(timeout_s)
        return len(flushed) == len(self._outlets) and all(flushed)

    def shutdown(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Send what is queued and stop sending. Runs by itself at the end of the process.

        An application's own provider keeps running; it only loses this outlet.

        Args:
            timeout_s: What it may take; an export that is under way may add its own limit of 2 s.

        Returns:
            Whether every queued span was delivered. True when called again.
        """
        if self._ended:
            return True
        self._ended = True
        atexit.unregister(self.shutdown)
        dropped, deadline_s = self.dropped, time.monotonic() + timeout_s
        for processor, _ in self._outlets:
            processor.shutdown_within(max(deadline_s - time.monotonic(), 0.0))
        return self.dropped == dropped


def setup(
    *,
    endpoint: str | None = None,
    protocol: Transport = "grpc",
    service_name: str | None = None,
    file: Path | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Providers:
    """Send spans to an OpenTelemetry receiver, to a file, or to both.

    Sets the process's tracer provider. Where the application has one already, that one is kept, a warning says so
    once, and the outlets are added to it.

    Args:
        endpoint: Receiver, such as "http://localhost:4317". None: as the `OTEL_EXPORTER_OTLP_*` variables say,
            or no receiver at all where `file` is given.
        protocol: "grpc" or "http/protobuf".
        service_name: Name of the service in the trace viewer. None: OTEL_SERVICE_NAME, else "inferscope".
        file: OTLP/JSON file to write at each flush and at the end, for upload to Jaeger.
        headers: Sent with each export, such as an API key.

    Returns:
        A handle to flush, to end and to ask what was lost.

    Raises:
        SettingError: The protocol is neither, the endpoint is no address, or the variable
            OTEL_EXPORTER_OTLP_TIMEOUT is no number of seconds.
        MissingExtraError: The exporters are not installed.
        CacheUnwritableError: The file cannot be written.
    """
    exporters: list[CountingExporter] = []
    written = None if file is None else OtlpFileExporter(Path(file))
    if written is not None:
        exporters.append(CountingExporter(written, target=str(file)))
    if endpoint is not None or file is None:
        exporters.append(_sender(endpoint, protocol, dict(headers or {})))
    provider = _provider(service_name)
    add = getattr(provider, "add_span_processor", None)
    if add is None:
        return Providers(provider, (), None)
    outlets = tuple((BoundedProcessor(exporter), exporter) for exporter in exporters)
    for processor, _ in outlets:
        add(processor)
    return Providers(provider, outlets, written)


def _provider(service_name: str | None) -> trace.TracerProvider:
    """The application's provider where it has one, else a new one, set for the whole process."""
    present = trace.get_tracer_provider()
    if not isinstance(present, trace.ProxyTracerProvider):
        takes = hasattr(present, "add_span_processor")
        outcome = "inferscope's outlets were added to it" if takes else "it takes no outlets: nothing is sent"
        notices.warn(
            "provider-already-set",
            f"this process has a tracer provider, which is kept; {outcome}",
            provider=type(present).__name__,
        )
        return present
    # Its own hook at the end of the process could wait for half a minute; `Providers` has a bounded one.
    provider = TracerProvider(resource=_resource(service_name), shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    return provider


def _resource(service_name: str | None) -> Resource:
    """Who sends, as the environment says it and completed where it does not."""
    said = Resource.create()
    ours: dict[str, str | int] = {
        "service.instance.id": str(uuid.uuid4()),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    ours = {key: value for key, value in ours.items() if key not in said.attributes}
    if service_name:
        ours["service.name"] = service_name
    elif str(said.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        ours["service.name"] = "inferscope"
    return said.merge(Resource(ours))


def _sender(endpoint: str | None, protocol: str, headers: dict[str, str]) -> CountingExporter:
    if protocol not in {"grpc", "http/protobuf"}:
        raise SettingError(f'protocol={protocol!r}: expected "grpc" or "http/protobuf"')
    address, target = (None, "as OTEL_EXPORTER_OTLP_* say") if endpoint is None else _address(endpoint)
    timeout_s = _timeout_s()
    try:
        build = _grpc if protocol == "grpc" else _http
        return CountingExporter(build(address, headers, timeout_s), target=target)
    except ImportError as error:
        raise MissingExtraError(
            f"sending over {protocol} needs the OTLP exporters: install inferscope with its extra [otlp]"
        ) from error


def _timeout_s() -> float:
    """What one export may take: what the standard variables say, where they do."""
    name = next((name for name in _TIMEOUT_VARIABLES if os.environ.get(name)), None)
    if name is None:
        return EXPORT_TIMEOUT_S
    try:
        timeout_s = float(os.environ[name])
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise SettingError(f"{name}={os.environ[name]!r}: expected seconds")
    return timeout_s


def _address(endpoint: str) -> tuple[str, str]:
    """The full address and what of it may be logged: no user, no password."""
    address = endpoint if "://" in endpoint else f"http://{endpoint}"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingError(f"endpoint={endpoint!r}: expected an address such as http://localhost:4317")
    return address, parts.hostname + (f":{port}" if port else "")


def _grpc(address: str | None, headers: dict[str, str], timeout_s: float) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra

    # gRPC takes names of headers in lower case only.
    lowered = {name.lower(): value for name, value in headers.items()}
    return OTLPSpanExporter(endpoint=address, headers=lowered or None, timeout=timeout_s)


def _http(address: str | None, headers: dict[str, str], timeout_s: float) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra

    if address is not None and urlsplit(address).path in {"", "/"}:
        address = f"{address.rstrip('/')}/v1/traces"
    return OTLPSpanExporter(endpoint=address, headers=headers or None, timeout=timeout_s)
