from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from structlog.testing import LogCapture

from inferscope.sinks.log import EVENT, REQUEST_EVENT, LogSink
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "telemetry.md"


@pytest.fixture
def events():
    """What the user's own structlog configuration receives."""
    before = structlog.get_config(), structlog.is_configured()
    capture = LogCapture()
    structlog.configure(processors=[capture])
    yield capture.entries
    structlog.reset_defaults()
    if before[1]:
        structlog.configure(**before[0])


def test_one_event_says_what_matters(events):
    LogSink()(make_result())
    assert events == [
        {
            "event": "inferscope.request",
            "log_level": "info",
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "status": "ok",
            "wall_s": 0.722896,
            "ttft_s": 0.0909252,
            "tpot_s": pytest.approx(0.042131387),
            "input_tokens": 32,
            "output_tokens": 16,
            "prefill_bound": "compute",
            "decode_bound": "memory",
            "finding": "decode-reads-weights",
            "request_id": "00c0ffee00c0ffee",
        }
    ]


def test_the_fields_are_those_of_the_table_and_the_page_has_each(events):
    provider = TracerProvider(shutdown_on_exit=False)
    spans = SpanSink(tracer_provider=provider)
    result = make_result(record=make_record(status="aborted", error_type="ValueError"))
    spans(result)
    LogSink(spans=spans)(result)
    (event,) = events
    kinds = {"string": str, "int": int, "double": float}
    types = {row.name: kinds[row.type] for row in REQUEST_EVENT}
    sent = {name: type(value) for name, value in event.items() if name not in {"event", "log_level"}}
    assert sent == {name: types[name] for name in sent}
    assert all(name.endswith("_bound") for name in types.keys() - sent.keys())  # of phases that there were not
    section = PAGE.read_text(encoding="utf-8").partition(f"## The log event `{EVENT}`")[2].partition("\n## ")[0]
    assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == list(types)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "CancelledError", "GeneratorExit", "cancelled"])
def test_a_cancelled_request_is_a_warning(events, error):
    LogSink()(make_result(record=make_record(status="aborted", error_type=error)))
    (event,) = events
    assert (event["log_level"], event["status"], event["error_type"]) == ("warning", "aborted", error)


@pytest.mark.parametrize("error", ["OutOfMemoryError", "ValueError", None])
def test_a_failed_request_is_an_error(events, error):
    LogSink()(make_result(record=make_record(status="aborted", error_type=error)))
    assert [event["log_level"] for event in events] == ["error"]


def test_a_finding_that_warns_makes_a_warning(events):
    result = make_result()
    warning = replace(result.findings[0], severity="WARN")
    LogSink()(replace(result, findings=(*result.findings, warning)))
    assert [event["log_level"] for event in events] == ["warning"]


@pytest.mark.parametrize("renderer", [structlog.processors.JSONRenderer(), structlog.dev.ConsoleRenderer(colors=False)])
def test_a_request_is_one_line_for_people_or_machines_as_configured(renderer, capsys):
    spans = SpanSink(tracer_provider=TracerProvider(shutdown_on_exit=False))
    spans(make_result())
    before = structlog.get_config(), structlog.is_configured()
    structlog.configure(processors=[structlog.processors.add_log_level, renderer])
    try:
        LogSink(spans=spans)(make_result())
    finally:
        structlog.reset_defaults()
        if before[1]:
            structlog.configure(**before[0])
    (line,) = capsys.readouterr().out.splitlines()
    trace_id, span_id = spans.span_ids("00c0ffee00c0ffee")
    assert trace_id in line
    assert span_id in line
    if isinstance(renderer, structlog.processors.JSONRenderer):
        assert json.loads(line)["decode_bound"] == "memory"


def test_the_standard_librarys_logging_is_left_alone(caplog, capsys):
    def state():
        loggers = [logging.getLogger(), *(logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict))]
        return [(one.name, one.level, tuple(one.handlers), tuple(one.filters), one.propagate) for one in loggers]

    before = state()
    with caplog.at_level(logging.DEBUG):
        inside = state()
        LogSink()(make_result())
        LogSink()(make_result(record=make_record(status="aborted", error_type="ValueError")))
        assert state() == inside
    assert state() == before
    assert caplog.records == []


def test_what_is_unknown_is_left_out(events):
    record = make_record(phases=(), ttft_ns=None, tpot_ns=None, input_tokens=None, output_tokens=None)
    LogSink()(make_result(record=record))
    (event,) = events
    assert event.keys() == {"event", "log_level", "model", "status", "wall_s", "request_id"}


def test_the_event_carries_the_ids_of_its_span(events):
    spans = SpanSink(tracer_provider=TracerProvider())
    spans(make_result())
    log = LogSink(spans=spans)
    log(make_result())
    log(make_result(record=make_record(request_id="f" * 16)))
    traced, untraced = events
    assert (traced["trace_id"], traced["span_id"]) == spans.span_ids("00c0ffee00c0ffee")
    assert "trace_id" not in untraced


def test_without_a_configuration_standard_output_stays_the_hosts(capsys):
    LogSink()(make_result())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "inferscope.request" in captured.err
