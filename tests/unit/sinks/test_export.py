from __future__ import annotations

import logging
import threading
import time

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from inferscope.sinks.export import BoundedProcessor, CountingExporter
from inferscope.sinks.otlp_file import OtlpFileExporter

LOGGER = logging.getLogger("opentelemetry.test_export")


class Outlet(SpanExporter):
    """An exporter whose fate is set by the test."""

    # Exporters of the SDK log below this name; the module is what the capture goes by.
    __module__ = "opentelemetry.test_export"

    def __init__(self, fate="ok"):
        self.fate = fate
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.calls = 0

    def export(self, spans):
        self.calls += 1
        self.entered.set()
        if self.fate == "stuck":
            self.gate.wait()
        if self.fate == "raises":
            raise ConnectionError("no route")
        if self.fate == "fails":
            LOGGER.error("Failed to export %s spans, code: 413", len(spans))
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


@pytest.fixture
def spans():
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")

    def made(count):
        finished = [tracer.start_span(f"span {number}") for number in range(count)]
        for span in finished:
            span.end()
        return finished

    return made


@pytest.fixture
def said(notices_reset, capsys):
    return lambda: capsys.readouterr().err


def test_delivered_spans_are_counted(spans, said):
    exporter = CountingExporter(Outlet(), target="here")
    assert exporter.export(spans(3)) is SpanExportResult.SUCCESS
    assert (exporter.exported, exporter.dropped, said()) == (3, 0, "")


@pytest.mark.parametrize(("fate", "reason"), [("fails", "code: 413"), ("raises", "ConnectionError: no route")])
def test_failures_are_counted_and_said_once_with_their_reason(spans, said, fate, reason):
    outlet = Outlet(fate)
    exporter = CountingExporter(outlet, target="collector:4317")
    for _ in range(3):
        assert exporter.export(spans(2)) is SpanExportResult.FAILURE
    assert (exporter.exported, exporter.dropped) == (0, 6)
    text = said()
    assert text.count("export-failed") == 1
    assert reason in text
    assert "collector:4317" in text
    outlet.fate = "ok"
    assert exporter.export(spans(2)) is SpanExportResult.SUCCESS
    assert (exporter.exported, exporter.dropped, said()) == (2, 6, "")


def test_the_sdks_own_lines_are_taken_over_only_during_the_call(spans, said, caplog):
    outlet = Outlet("fails")
    exporter = CountingExporter(outlet, target="here")
    with caplog.at_level(logging.DEBUG):
        exporter.export(spans(1))
        assert caplog.messages == []
        LOGGER.error("of the application")
    assert caplog.messages == ["of the application"]
    assert LOGGER.filters == []


def test_lines_of_other_threads_pass_during_the_call(spans, said, caplog):
    outlet = Outlet("stuck")
    exporter = CountingExporter(outlet, target="here")
    worker = threading.Thread(target=exporter.export, args=(spans(1),))
    worker.start()
    assert outlet.entered.wait(30)
    LOGGER.error("of another exporter")
    outlet.gate.set()
    worker.join()
    assert caplog.messages == ["of another exporter"]


def test_after_the_deadline_nothing_is_started_any_more(spans, said):
    outlet = Outlet()
    exporter = CountingExporter(outlet, target="here")
    exporter.stop_by(time.monotonic() - 1)
    exporter.export(spans(4))
    assert (outlet.calls, exporter.dropped) == (0, 4)


def test_a_full_queue_refuses_and_counts_while_the_host_goes_on(spans, said):
    outlet = Outlet("stuck")
    exporter = CountingExporter(outlet, target="here")
    processor = BoundedProcessor(exporter)
    for span in spans(3000):
        processor.on_end(span)  # returns although the outlet is stuck
    assert exporter.dropped == 3000 - 2048
    assert exporter.exported == 0
    outlet.gate.set()
    assert processor.force_flush()
    assert (exporter.exported, exporter.dropped) == (2048, 952)
    for span in spans(2048):
        processor.on_end(span)  # there is room again, for as many as before
    processor.shutdown()
    assert (exporter.exported, exporter.dropped) == (4096, 952)
    assert said().count("the queue is full") == 1


def test_after_the_end_nothing_is_taken_and_nothing_said(spans, said):
    outlet = Outlet()
    exporter = CountingExporter(outlet, target="here")
    processor = BoundedProcessor(exporter)
    first, second = spans(2)
    processor.on_end(first)
    processor.shutdown()
    processor.on_end(second)
    assert (outlet.calls, exporter.exported, exporter.dropped) == (1, 1, 0)
    assert said() == ""


def test_a_flush_says_whether_everything_arrived(spans, said):
    for fate, arrived in (("ok", True), ("fails", False)):
        processor = BoundedProcessor(CountingExporter(Outlet(fate), target="here"))
        processor.on_end(spans(1)[0])
        assert processor.force_flush() is arrived
        processor.shutdown()


def test_a_file_that_vanished_does_not_reach_the_host(spans, said, tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    exporter = CountingExporter(OtlpFileExporter(folder / "trace.json"), target="trace.json")
    processor = BoundedProcessor(exporter)
    processor.on_end(spans(1)[0])
    folder.rmdir()
    assert processor.force_flush() is False
    processor.shutdown()
    assert said().count("failed to flush") == 1
