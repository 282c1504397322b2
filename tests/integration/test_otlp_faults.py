"""What can go wrong between this process and a receiver: the tokens are the same, and what is lost is counted."""

from __future__ import annotations

import time

import pytest
from opentelemetry import metrics, trace
from otlp_receiver import RECEIVERS, closed_port, running

import inferscope
from inferscope import losses
from inferscope.sinks.metrics import MetricSink
from inferscope.sinks.setup import setup
from inferscope.sinks.spans import SpanSink
from inferscope.testing import make_result

pytestmark = pytest.mark.usefixtures("notices_reset", "no_global_provider")


@pytest.fixture(params=list(RECEIVERS))
def protocol(request):
    return request.param


@pytest.fixture
def briefly(monkeypatch):
    """Exports give up soon."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.4")


def port_of(inbox):
    return int(inbox.endpoint.rpartition(":")[2])


class Life:
    """Requests through one `setup`, and what must have become of them."""

    def __init__(self, llama, prompt, providers):
        self.llama, self.prompt, self.providers = llama, prompt, providers
        self.expected = llama.generate(prompt, max_new_tokens=3).tolist()
        self.handle = inferscope.instrument(llama)
        self.requests = 0

    def generate(self):
        self.requests += 1
        assert self.llama.generate(self.prompt, max_new_tokens=3).tolist() == self.expected
        assert self.handle.session.wait()
        return self.providers.force_flush(10)

    def recover(self, inbox):
        """Goes on until everything arrives: a client may wait for seconds before it connects anew."""
        deadline_s = time.monotonic() + 60
        while not self.generate():
            assert time.monotonic() < deadline_s
        assert len(inbox.spans()) >= 3
        ((_, point),) = inbox.points("inferscope.requests")
        assert point.as_int == self.requests  # the sums hold what the receiver has missed


def test_a_receiver_that_dies_and_comes_back_needs_no_restart(protocol, briefly, capsys, llama, prompt):
    before = losses.totals()
    with closed_port() as nowhere:
        port = port_of(nowhere)
        life = Life(llama, prompt, setup(endpoint=nowhere.endpoint, protocol=protocol))
        assert life.generate() is False  # down from the start
    with RECEIVERS[protocol](port=port) as inbox:
        life.recover(inbox)
        arrived = len(inbox.spans())
    assert life.generate() is False  # dead in the midst
    with RECEIVERS[protocol](port=port) as inbox:
        life.recover(inbox)
        arrived += len(inbox.spans())
        life.handle.remove()
        assert life.providers.shutdown(30)
        dropped = {keys["inferscope.kind"]: one.as_int for keys, one in inbox.points("inferscope.dropped")}
    providers = life.providers
    assert providers.exported == arrived
    assert providers.exported + providers.dropped == 3 * life.requests
    assert providers.metric_exports_failed >= 2
    assert dropped["spans"] - before["spans"] == providers.dropped >= 6
    assert dropped["metrics"] - before["metrics"] == providers.metric_exports_failed
    said = capsys.readouterr().err
    assert said.count("slug='export-failed'") == said.count("slug='metrics-export-failed'") == 1


@pytest.mark.parametrize("how", ["refusing", "stalling", "tls"])
def test_metrics_are_counted_as_failed_and_said_once(protocol, how, briefly, capsys):
    with RECEIVERS[protocol]("accepting" if how == "tls" else how) as inbox:
        # A receiver without TLS that is spoken to as if it had it.
        address = inbox.endpoint.replace("http://", "https://") if how == "tls" else inbox.endpoint
        providers = setup(endpoint=address, protocol=protocol)
        spans, sink = SpanSink(), MetricSink()
        for _ in range(2):
            spans(make_result())
            sink(make_result())
            assert providers.force_flush(20) is False
        providers.shutdown()
        assert (inbox.requests, inbox.metric_requests) == ([], [])
        assert providers.metric_exports == 0
        assert providers.metric_exports_failed >= 2
        assert (providers.exported, providers.dropped) == (0, 6)
    said = capsys.readouterr().err.strip().splitlines()
    assert sorted(line.partition("slug='")[2].partition("'")[0] for line in said) == [
        "export-failed",
        "metrics-export-failed",
    ]
    assert all("reason='unknown'" not in line for line in said)


def test_an_exporter_that_raises_costs_nothing_but_its_metrics(capsys):
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import MetricExporter  # noqa: PLC0415

    from inferscope.sinks.export_metrics import BoundedReader, CountingMetricExporter  # noqa: PLC0415

    class Raising(MetricExporter):
        def export(self, *_args, **_kwargs):
            raise ConnectionError("no route")

        def force_flush(self, *_args, **_kwargs):
            return True

        def shutdown(self, *_args, **_kwargs):
            raise ConnectionError("no route")

    exporter = CountingMetricExporter(Raising, target="there")
    reader = BoundedReader(exporter)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    MetricSink(meter_provider=provider)(make_result())
    assert [reader.force_flush() for _ in range(3)] == [False] * 3
    reader.leave(provider, 10)
    reader.leave(provider, 10)
    assert reader.force_flush() is False
    assert exporter.failed == 4
    said = capsys.readouterr().err
    assert said.count("slug=") == 1
    assert "ConnectionError: no route" in said


def test_without_providers_and_with_the_sdk_disabled_there_are_results_all_the_same(llama, prompt, monkeypatch, capsys):
    expected = llama.generate(prompt, max_new_tokens=3).tolist()
    with inferscope.trace(llama) as session:
        assert llama.generate(prompt, max_new_tokens=3).tolist() == expected
        assert len(session.results) == 1
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with RECEIVERS["grpc"]() as inbox, running(endpoint=inbox.endpoint) as providers:
        with inferscope.trace(llama) as session:
            assert llama.generate(prompt, max_new_tokens=3).tolist() == expected
            session.wait()
        assert providers.force_flush(20)
        assert (inbox.requests, inbox.metric_requests) == ([], [])
    assert capsys.readouterr().err == ""


def test_providers_of_another_make_are_kept_and_said_once(capsys, llama, prompt):
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    metrics.set_meter_provider(metrics.NoOpMeterProvider())
    with running(endpoint="http://127.0.0.1:4317") as providers:
        with inferscope.trace(llama) as session:
            llama.generate(prompt, max_new_tokens=2)
            session.wait()
        assert providers.force_flush(20)
    said = capsys.readouterr().err
    assert said.count("slug='provider-already-set'") == said.count("slug='meter-provider-already-set'") == 1
    assert said.count("nothing is sent") == 2


def test_no_key_of_the_headers_is_ever_logged(protocol, briefly, capsys, caplog):
    with RECEIVERS[protocol]("refusing") as inbox, caplog.at_level(0):
        providers = setup(endpoint=inbox.endpoint, protocol=protocol, headers={"x-api-key": "s3cret"})
        SpanSink()(make_result())
        MetricSink()(make_result())
        assert providers.force_flush(20) is False
        providers.shutdown()
    captured = capsys.readouterr()
    assert "s3cret" not in captured.err + captured.out + caplog.text + repr(vars(providers))
    with pytest.raises(inferscope.InferscopeError) as caught:
        setup(endpoint="user:s3cret@host", protocol=protocol)
    assert "s3cret" not in str(caught.value)
