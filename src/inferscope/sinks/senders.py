"""OTLP exporters for an address: over gRPC or HTTP, with a bounded time for each export."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from inferscope.errors import MissingExtraError, SettingError
from inferscope.sinks.export import EXPORT_TIMEOUT_S, CountingExporter
from inferscope.sinks.export_metrics import CountingMetricExporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Transport", "metric_exporter", "metric_sender", "span_exporter", "span_sender"]

Transport = Literal["grpc", "http/protobuf"]
_Sender = TypeVar("_Sender")
_Signal = Literal["traces", "metrics"]
# gRPC receivers refuse more than 4 MiB at once; a point of ours is below 500 bytes, with its exemplars below 2 KiB.
_POINTS_PER_EXPORT = 1000


def span_sender(endpoint: str | None, protocol: str, headers: dict[str, str]) -> CountingExporter:
    """What sends spans to a receiver.

    Args:
        endpoint: Its address; None: as the `OTEL_EXPORTER_OTLP_*` variables say.
        protocol: "grpc" or "http/protobuf".
        headers: Sent with each export.

    Raises:
        SettingError: The protocol is neither, the endpoint is no address, or a time limit is none.
        MissingExtraError: The exporters are not installed.
    """
    address, target = _checked(endpoint, protocol)
    timeout_s = _timeout_s("TRACES")

    def build() -> SpanExporter:
        return span_exporter(address, protocol, headers, timeout_s)

    return CountingExporter(_built(build, protocol), target=target, rebuild=build)


def metric_sender(endpoint: str | None, protocol: str, headers: dict[str, str]) -> CountingMetricExporter:
    """What sends metrics to a receiver.

    Args:
        endpoint: As for `span_sender`, like all that follows.
        protocol: See there.
        headers: See there.

    Raises:
        SettingError: As there.
        MissingExtraError: As there.
    """
    address, target = _checked(endpoint, protocol)
    timeout_s = _timeout_s("METRICS")

    def build() -> MetricExporter:
        return metric_exporter(address, protocol, headers, timeout_s)

    return _built(lambda: CountingMetricExporter(build, target=target), protocol)


def span_exporter(address: str | None, protocol: str, headers: dict[str, str], timeout_s: float) -> SpanExporter:
    """The bare exporter of spans.

    Args:
        address: With its scheme; None: as the environment says.
        protocol: "grpc" or "http/protobuf".
        headers: Sent with each export.
        timeout_s: What one export may take, repetitions included.

    Raises:
        ImportError: It is not installed.
    """
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra

        return OTLPSpanExporter(endpoint=address, headers=_lowered(headers), timeout=timeout_s)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415 - an extra

    return trace_exporter.OTLPSpanExporter(
        endpoint=_over_http(address, "traces"), headers=headers or None, timeout=timeout_s
    )


def metric_exporter(address: str | None, protocol: str, headers: dict[str, str], timeout_s: float) -> MetricExporter:
    """The bare exporter of metrics.

    Args:
        address: As for `span_exporter`, like all that follows.
        protocol: See there.
        headers: See there.
        timeout_s: See there.

    Raises:
        ImportError: It is not installed.
    """
    more: dict[str, Any] = {"timeout": timeout_s}
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics  # noqa: PLC0415 - an extra

        more["max_export_batch_size"] = _POINTS_PER_EXPORT
        return grpc_metrics.OTLPMetricExporter(endpoint=address, headers=_lowered(headers), **more)
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics  # noqa: PLC0415 - an extra

    return http_metrics.OTLPMetricExporter(endpoint=_over_http(address, "metrics"), headers=headers or None, **more)


def _built(build: Callable[[], _Sender], protocol: str) -> _Sender:
    try:
        return build()
    except ImportError as error:
        raise MissingExtraError(
            f"sending over {protocol} needs the OTLP exporters: install inferscope with its extra [otlp]"
        ) from error


def _checked(endpoint: str | None, protocol: str) -> tuple[str | None, str]:
    if protocol not in {"grpc", "http/protobuf"}:
        raise SettingError(f'protocol={protocol!r}: expected "grpc" or "http/protobuf"')
    return (None, "as OTEL_EXPORTER_OTLP_* say") if endpoint is None else _address(endpoint)


def _timeout_s(signal: str) -> float:
    """What one export may take: what the standard variables say, where they do."""
    variables = (f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
    name = next((name for name in variables if os.environ.get(name)), None)
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
    # A bare word could be a host, and could as well be a mistake: one of scheme and port has to be there.
    bare = "://" not in endpoint and port is None
    if parts.scheme not in {"http", "https"} or not parts.hostname or bare or endpoint != endpoint.strip():
        raise SettingError(f"endpoint={_safe(endpoint)!r}: expected an address such as http://localhost:4317")
    return address, parts.hostname + (f":{port}" if port else "")


def _safe(endpoint: str) -> str:
    """An address that is none, without what may be a password."""
    return f"...@{endpoint.rpartition('@')[2]}" if "@" in endpoint else endpoint


def _lowered(headers: dict[str, str]) -> dict[str, str] | None:
    # gRPC takes names of headers in lower case only.
    return {name.lower(): value for name, value in headers.items()} or None


def _over_http(address: str | None, signal: _Signal) -> str | None:
    """Where a receiver takes a signal: below its address, or beside the path of spans where that was given."""
    if address is None:
        return None
    parts = urlsplit(address)
    base = parts.path.rstrip("/").removesuffix("/v1/traces")
    return urlunsplit(parts._replace(path=f"{base}/v1/{signal}"))
