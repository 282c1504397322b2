from __future__ import annotations

import subprocess
import sys

import pytest

from inferscope.errors import CacheUnwritableError, SinkError
from inferscope.sinks.base import resolve_sink, resolve_sinks
from inferscope.sinks.jsonl import JsonlSink
from inferscope.sinks.log import LogSink
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.spans import SpanSink
from inferscope.testing import CapturingSink


def test_a_callable_is_its_own_sink():
    sink, collected = CapturingSink(), []
    assert resolve_sink(sink) is sink
    assert resolve_sink(collected.append) == collected.append


def test_names_stand_for_sinks(tmp_path):
    assert isinstance(resolve_sink("otel:traces"), SpanSink)
    assert isinstance(resolve_sink("otel:metrics"), MetricSink)
    assert isinstance(resolve_sink("log"), LogSink)
    records = resolve_sink(f"jsonl:{tmp_path}/a:b.jsonl")
    assert isinstance(records, JsonlSink)
    assert records.path == tmp_path / "a:b.jsonl"
    records.close()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("otlp", "'otlp' is not a sink: give"),
        ("", "'' is not a sink: give"),
        ("otel:x", "'otel:x' is not a sink: give"),
        ("jsonl:", "names no file"),
        ("runs.jsonl", '"jsonl:runs.jsonl"'),
        (None, "None is not a sink"),
        (3, "3 is not a sink"),
        (CapturingSink, "give an instance, CapturingSink"),
    ],
)
def test_anything_else_is_refused_and_says_what_to_give(spec, said):
    with pytest.raises(SinkError) as caught:
        resolve_sink(spec)
    assert said in str(caught.value)


def test_a_record_file_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(CacheUnwritableError, match="no-such-folder"):
        resolve_sink(f"jsonl:{tmp_path}/no-such-folder/records.jsonl")


def test_log_events_get_the_spans_of_the_same_list_and_spans_run_first():
    collected = CapturingSink()
    sinks = resolve_sinks(["log", collected, "otel"])
    assert isinstance(sinks[0], SpanSink)
    assert isinstance(sinks[1], LogSink)
    assert sinks[1].spans is sinks[0]
    assert sinks[2] is collected
    assert isinstance(sinks[3], MetricSink)
    assert sinks[3].spans is sinks[0]
    (alone,) = resolve_sinks(["log"])
    assert alone.spans is None


def test_otel_stands_for_spans_and_metrics_and_each_can_be_had_alone():
    assert [type(sink) for sink in resolve_sinks(["otel"])] == [SpanSink, MetricSink]
    (spans,) = resolve_sinks(["otel:traces"])
    (metrics,) = resolve_sinks(["otel:metrics"])
    assert (type(spans), type(metrics), metrics.spans) == (SpanSink, MetricSink, None)


def test_a_sink_that_was_given_its_spans_keeps_them():
    own = SpanSink()
    log, metrics = LogSink(spans=own), MetricSink(spans=own)
    resolve_sinks([log, metrics, "otel:traces"])
    assert log.spans is metrics.spans is own


def test_opentelemetry_loads_only_where_spans_are_asked_for():
    code = (
        "import sys; from inferscope.sinks.base import resolve_sinks; resolve_sinks(['log', print]);"
        "sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
