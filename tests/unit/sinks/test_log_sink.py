from __future__ import annotations

import pytest
import structlog
from structlog.testing import LogCapture

from inferscope.sinks.log import LogSink
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_record, make_result


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


def test_an_aborted_request_is_a_warning(events):
    LogSink()(make_result(record=make_record(status="aborted", error_type="KeyboardInterrupt")))
    (event,) = events
    assert (event["log_level"], event["status"], event["error_type"]) == ("warning", "aborted", "KeyboardInterrupt")


def test_what_is_unknown_is_left_out(events):
    record = make_record(phases=(), ttft_ns=None, tpot_ns=None, input_tokens=None, output_tokens=None)
    LogSink()(make_result(record=record))
    (event,) = events
    assert event.keys() == {"event", "log_level", "model", "status", "wall_s", "request_id"}


def test_the_event_carries_the_ids_of_its_span(events):
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

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
