"""What spans and metrics cost per record, and whether a thousand records a second leave anything behind.

python benchmarks/telemetry.py                      20 s at 1,000 records per second, as a table
python benchmarks/telemetry.py --seconds 60 --json results.json

Nothing is sent anywhere: spans end in a processor that counts them, metrics are read in memory every second. What is
measured is what inferscope and the SDK do on the background thread, after `generate` has returned.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from inferscope.sinks.base import resolve_sinks
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result
from machine import facts

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


def growth(
    sinks: tuple[Any, ...],
    reader: InMemoryMetricReader | None,
    result: Result,
    seconds: float,
    rate: int,
) -> dict[str, float]:
    """Memory over a while at a steady rate: Python's own after the first quarter, and how much it grew after."""
    process, number, behind = psutil.Process(), 0, 0
    began_s = time.perf_counter()
    tracemalloc.start()
    first_bytes = first_rss_bytes = 0
    for second in range(max(int(seconds), 4)):
        for _ in range(rate):
            one(sinks, result, number)
            number += 1
        if reader is not None:
            reader.get_metrics_data()
        late_s = time.perf_counter() - began_s - (second + 1)
        behind += late_s > 0
        time.sleep(max(-late_s, 0))
        if second == max(int(seconds), 4) // 4:
            gc.collect()
            first_bytes, first_rss_bytes = tracemalloc.get_traced_memory()[0], process.memory_info().rss
    gc.collect()
    last_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "records": number,
        "seconds_behind": behind,
        "held_bytes": first_bytes,
        "grown_bytes": last_bytes - first_bytes,
        "grown_rss_bytes": process.memory_info().rss - first_rss_bytes,
    }


def main() -> None:
    """Measure, print, and write where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5_000, help="records per arm for the cost")
    parser.add_argument("--seconds", type=float, default=20, help="length of the steady run")
    parser.add_argument("--rate", type=int, default=1_000, help="records per second of the steady run")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    result = make_result(record=make_record())
    results: dict[str, Any] = {"cost": {}}
    for name, (sinks, _) in arms().items():
        results["cost"][name] = cost(sinks, result, options.records)
        print(f"{name:34} {results['cost'][name]['median_us']:8.1f} us per record")
    sinks, reader = list(arms().values())[-1]
    results["steady"] = growth(sinks, reader, result, options.seconds, options.rate)
    print(" ".join(f"{key}={value:g}" for key, value in results["steady"].items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": facts(), "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
