"""A real OTLP receiver in this process, for tests: gRPC or HTTP, on a free port of the loopback interface."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from inferscope.sinks.setup import setup

Mood = Literal["accepting", "refusing", "stalling"]


@dataclass
class Inbox:
    """What a receiver got, and how it behaves."""

    mood: Mood = "accepting"
    endpoint: str = ""
    takes_metrics: bool = True
    requests: list[Any] = field(default_factory=list)
    metric_requests: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def spans(self) -> list[tuple[Any, dict[str, Any]]]:
        """Every span received with its resource's attributes."""
        return [
            (span, values_of(resource.resource.attributes))
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, Any]:
        """The newest state of every metric received, by name."""
        return {
            metric.name: metric
            for request in list(self.metric_requests)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The points of a metric, each with its attributes."""
        metric = self.metrics()[name]
        points = getattr(metric, metric.WhichOneof("data")).data_points
        return [(values_of(point.attributes), point) for point in points]

    def take(self, request: Any, headers: dict[str, str]) -> None:
        """Keep what was sent."""
        self.headers.append(headers)
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            self.metric_requests.append(request)
        else:
            self.requests.append(request)

    def wait_for_spans(self, count: int, timeout_s: float = 30) -> list[tuple[Any, dict[str, Any]]]:
        """The spans, once that many have come."""
        deadline_s = time.monotonic() + timeout_s
        while len(self.spans()) < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{len(self.spans())} of {count} spans arrived")
            time.sleep(0.005)
        return self.spans()


def value_of(value: Any) -> Any:
    """A protocol value as a Python one, its type kept."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(value_of(item) for item in value.array_value.values)
    return getattr(value, kind)


def values_of(attributes: Any) -> dict[str, Any]:
    return {item.key: value_of(item.value) for item in attributes}


@contextmanager
def grpc_receiver(mood: Mood = "accepting", port: int = 0):
    inbox = Inbox(mood)

    def answer(request, context, response):
        inbox.asked.set()
        if inbox.mood == "stalling":
            inbox.released.wait()
        if inbox.mood == "refusing":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the receiver is full")
        inbox.take(request, dict(context.invocation_metadata()))
        return response

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802 - the protocol's name
            return answer(request, context, trace_service_pb2.ExportTraceServiceResponse())

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802 - the protocol's name
            if not inbox.takes_metrics:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown service")
            return answer(request, context, metrics_service_pb2.ExportMetricsServiceResponse())

    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    inbox.endpoint = f"http://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield inbox
    finally:
        inbox.released.set()
        server.stop(None).wait()


@contextmanager
def http_receiver(mood: Mood = "accepting", port: int = 0):
    inbox = Inbox(mood)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            inbox.asked.set()
            if inbox.mood == "stalling":
                inbox.released.wait()
            paths = {"/v1/traces": trace_service_pb2.ExportTraceServiceRequest}
            if inbox.takes_metrics:
                paths["/v1/metrics"] = metrics_service_pb2.ExportMetricsServiceRequest
            kind = paths.get(self.path)
            # Before the answer: who has it may look at once.
            if inbox.mood == "accepting" and kind:
                headers = {name.lower(): value for name, value in self.headers.items()}
                inbox.take(kind.FromString(body), headers)
            self.send_response(413 if inbox.mood == "refusing" else 200 if kind else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Nothing is printed."""

        def handle_one_request(self):
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True  # the exporter had given up waiting

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    inbox.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield inbox
    finally:
        inbox.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def closed_port():
    """An address on which nothing listens, and nothing else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield Inbox(endpoint=f"http://127.0.0.1:{held.getsockname()[1]}")


RECEIVERS = {"grpc": grpc_receiver, "http/protobuf": http_receiver}


@contextmanager
def running(**options):
    """`setup`, and its end."""
    providers = setup(**options)
    try:
        yield providers
    finally:
        providers.shutdown()
