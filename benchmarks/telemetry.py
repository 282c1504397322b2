"""What spans and metrics cost per record, and whether a thousand records a second leave anything behind.

    python benchmarks/telemetry.py

What a record costs and what is left behind is measured without sending: spans end in a processor that counts them,
metrics are read in memory every second. It is what inferscope and the SDK do on the background thread, after `generate`
has returned. How long requests take is measured with spans that are sent to a receiver that takes them, to one that
never answers and to nobody.
"""

from __future__ import annotations

import argparse
import gc
import logging
import socket
import statistics
import threading
import time
import tracemalloc
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import psutil
import torch
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import inferscope
from inferscope.sinks.base import resolve_sinks
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result
from machine import spread, write
from overhead import prompt, tiny_llama

if TYPE_CHECKING:
    from inferscope.analysis.verdict import Result

MODEL = "benchmark/tiny"


class Counting(SpanProcessor):
    """Takes spans and counts them."""

    def __init__(self) -> None:
        self.spans = 0

    def on_end(self, span: object) -> None:
        """Count one."""
        del span
        self.spans += 1


def arms() -> dict[str, tuple[tuple[Any, ...], InMemoryMetricReader | None]]:
    """What is compared: nothing, spans, metrics, both, and spans that a sampler drops."""

    def spans(**options: Any) -> SpanSink:  # noqa: ANN401 - of the provider
        provider = TracerProvider(shutdown_on_exit=False, **options)
        provider.add_span_processor(Counting())
        return SpanSink(tracer_provider=provider)

    def meters() -> tuple[MetricSink, InMemoryMetricReader]:
        reader = InMemoryMetricReader()
        return MetricSink(meter_provider=MeterProvider(metric_readers=[reader], shutdown_on_exit=False)), reader

    alone, alone_reader = meters()
    both, both_reader = meters()
    return {
        "no sink": ((), None),
        "spans": ((spans(),), None),
        "spans, sampled out": ((spans(sampler=ALWAYS_OFF),), None),
        "metrics": ((alone,), alone_reader),
        "spans and metrics with exemplars": (resolve_sinks([spans(), both]), both_reader),
    }


def one(sinks: tuple[Any, ...], result: Result, number: int) -> int:
    """A request from its beginning to its sinks; the nanoseconds that took."""
    record = replace(result.record, request_id=f"{number:016x}")
    made = replace(result, record=record)
    context = Context()
    before_ns = time.perf_counter_ns()
    for sink in sinks:
        sink.begin(record.request_id, record.started_unix_ns, context, MODEL, {"max_new_tokens": 16})
    for sink in sinks:
        sink(made)
    return time.perf_counter_ns() - before_ns


def cost(sinks: tuple[Any, ...], result: Result, records: int) -> dict[str, float]:
    """Microseconds per record: median and quartiles over chunks of fifty."""
    for number in range(200):
        one(sinks, result, number)
    chunks = [
        sum(one(sinks, result, number) for number in range(start, start + 50)) / 50 / 1e3
        for start in range(200, records, 50)
    ]
    low, middle, high = statistics.quantiles(chunks, n=4)
    return {"p25_us": low, "median_us": middle, "p75_us": high}


def steady(
    sinks: tuple[Any, ...], reader: InMemoryMetricReader | None, result: Result, seconds: int, rate: int
) -> dict[str, float]:
    """A while at a steady rate: in how many seconds it was not kept, and how far the process grew after the first."""
    process, number, behind, first_rss_bytes = psutil.Process(), 0, 0, 0
    began_s = time.perf_counter()
    for second in range(seconds):
        for _ in range(rate):
            one(sinks, result, number)
            number += 1
        if reader is not None:
            reader.get_metrics_data()
        late_s = time.perf_counter() - began_s - (second + 1)
        behind += late_s > 0
        time.sleep(max(-late_s, 0))
        if second == seconds // 4:
            gc.collect()
            first_rss_bytes = process.memory_info().rss
    gc.collect()
    return {
        "records": number,
        "seconds": seconds,
        "seconds_behind": behind,
        "grown_rss_bytes": process.memory_info().rss - first_rss_bytes,
    }


def growth(sinks: tuple[Any, ...], reader: InMemoryMetricReader | None, result: Result, records: int) -> dict[str, int]:
    """Python's own memory after a quarter of the records, and how much it grew with the rest."""
    tracemalloc.start()
    held_bytes = 0
    for number in range(records):
        one(sinks, result, number)
        if reader is not None and number % 1000 == 0:
            reader.get_metrics_data()
        if number == records // 4:
            gc.collect()
            held_bytes = tracemalloc.get_traced_memory()[0]
    gc.collect()
    grown_bytes = tracemalloc.get_traced_memory()[0] - held_bytes
    tracemalloc.stop()
    return {"records": records, "held_bytes": held_bytes, "grown_bytes": grown_bytes}


class Receivers:
    """What stands at the other end: one that takes everything, one that answers nothing, and nobody."""

    def __enter__(self) -> dict[str, str | None]:
        """Start them, each on a port of its own."""
        self._taking = ThreadingHTTPServer(("127.0.0.1", 0), _Takes)
        threading.Thread(target=self._taking.serve_forever, daemon=True).start()
        self._silent = socket.create_server(("127.0.0.1", 0))
        with socket.create_server(("127.0.0.1", 0)) as gone:
            nobody = gone.getsockname()[1]
        ports = {"taking": self._taking.server_port, "silent": self._silent.getsockname()[1], "nobody there": nobody}
        return {"no receiver set": None, "no receiver set, again": None} | {
            name: f"http://127.0.0.1:{port}/v1/traces" for name, port in ports.items()
        }

    def __exit__(self, *_: object) -> None:
        """Stop them."""
        self._taking.shutdown()
        self._taking.server_close()
        self._silent.close()


class _Takes(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # the library's name
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def latencies(requests: int) -> dict[str, Any]:
    """Milliseconds of a generate by what becomes of its spans; the kinds take turns, request by request."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what nobody takes is not what is looked at
    model, ids = tiny_llama(), prompt(1000)
    with Receivers() as endpoints, torch.inference_mode():
        sinks = {name: _exporting(url) for name, url in endpoints.items()}
        walls: dict[str, list[float]] = {name: [] for name in endpoints}
        names = list(endpoints)
        for number in range(requests + 10):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                with inferscope.trace(model, sinks=sinks[name]):
                    began_s = time.perf_counter()
                    model.generate(ids, max_new_tokens=32, min_new_tokens=32, do_sample=False)
                    if number >= 10:
                        walls[name].append(1e3 * (time.perf_counter() - began_s))
    return {name: spread(values) for name, values in walls.items()}


def _exporting(url: str | None) -> tuple[SpanSink, ...]:
    provider = TracerProvider(shutdown_on_exit=False)
    if url is not None:
        exporter = OTLPSpanExporter(endpoint=url, timeout=30)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=200))
    return (SpanSink(tracer_provider=provider),)


def main() -> None:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5_000, help="records per arm for the cost")
    parser.add_argument("--seconds", type=int, default=20, help="length of the steady run")
    parser.add_argument("--rate", type=int, default=1_000, help="records per second of the steady run")
    parser.add_argument("--requests", type=int, default=300, help="requests for each receiver")
    parser.add_argument("--out", default="telemetry-cpu")
    options = parser.parse_args()
    result = make_result(record=make_record())
    results: dict[str, Any] = {"cost": {}}
    for name, (sinks, _) in arms().items():
        results["cost"][name] = cost(sinks, result, options.records)
        print(f"{name:34} {results['cost'][name]['median_us']:8.1f} us per record")
    sinks, reader = list(arms().values())[-1]
    results["steady"] = steady(sinks, reader, result, max(options.seconds, 4), options.rate)
    results["growth"] = growth(sinks, reader, result, 10 * options.rate)
    for name in ("steady", "growth"):
        print(" ".join(f"{key}={value:g}" for key, value in results[name].items()))
    results["latency_ms"] = latencies(options.requests)  # last: exporters go on trying
    for name, found in results["latency_ms"].items():
        print(f"{name:34} {found['median']:8.2f} ms a request ({found['p25']:.2f} to {found['p75']:.2f})")
    write(options.out, results)


if __name__ == "__main__":
    main()
