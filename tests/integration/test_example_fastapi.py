"""examples/fastapi_server.py as a process: real uvicorn, real sockets, spans at a real OTLP receiver."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_receiver import grpc_receiver, values_of
from served import ROOT, ancestors, curl_of, serving, traceparent, wait_until

import inferscope
from inferscope.experiments.models import load
from inferscope.sinks.spans import SpanSink

fastapi = pytest.importorskip("fastapi", reason="the server needs fastapi: install the extra [examples]")
pytest.importorskip("uvicorn", reason="the server needs uvicorn: install the extra [examples]")
httpx = pytest.importorskip("httpx", reason="its clients need httpx: install the extra [examples]")

PAGE = "docs/how-to/serve-with-fastapi.md"
COMMAND = "python examples/fastapi_server.py"
SLOTS = 2
CANARY = "word041 word042 word043 word044"
"""The words are tokens of the tiny model: no span may carry them."""


@pytest.fixture(scope="module")
def inbox():
    with grpc_receiver() as inbox:
        yield inbox


@pytest.fixture(scope="module")
def server(inbox, model_folder):
    options = ["--model", str(model_folder), "--port", "0", "--slots", str(SLOTS), "--endpoint", inbox.endpoint]
    schedule = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    said = r"running on (http://127\.0\.0\.1:\d+)"
    with serving(*COMMAND.split()[1:], *options, said=said, **schedule) as served:
        yield served


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


def ask(client, *, prompt=CANARY, **options):
    """The text of an answer, and its trace and span at the client."""
    trace_id, span_id, headers = traceparent()
    body = {"prompt": prompt, **options}
    if not options.get("stream"):
        answer = client.post("/generate", json=body, headers=headers)
        answer.raise_for_status()
        return answer.json()["text"], trace_id, span_id
    with client.stream("POST", "/generate", json=body, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return text_of(answer.iter_lines()), trace_id, span_id


def text_of(lines):
    """The text of an event stream that came to its end."""
    lines = [line for line in lines if line]
    assert lines[-2:] == ["event: end", "data: {}"]
    return "".join(json.loads(line.removeprefix("data: "))["text"] for line in lines[:-2])


def spans_of(inbox, trace_id, timeout_s=30):
    """The spans of a client's trace, once the request's own is there."""

    def found():
        spans = [span for span, _ in inbox.spans() if span.trace_id == trace_id]
        return spans if any(span.name.startswith("text_completion") for span in spans) else []

    return wait_until(found, timeout_s)


def request_in(spans):
    (root,) = [span for span in spans if span.name.startswith("text_completion")]
    return root, values_of(root.attributes)


def test_eight_clients_each_have_their_answer_and_their_trace(inbox, client):
    def one(number):
        return ask(client, max_new_tokens=4 + number, stream=number % 2 == 0)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    roots = []
    for number, (text, trace_id, span_id) in enumerate(answers):
        assert len(text.split()) == 4 + number
        spans = spans_of(inbox, trace_id)
        root, said = request_in(spans)
        roots.append(root)
        assert said["gen_ai.usage.output_tokens"] == 4 + number
        assert said["gen_ai.usage.input_tokens"] == len(CANARY.split())
        for phase in ("prefill", "decode"):
            (span,) = [span for span in spans if span.name == phase]
            above = ancestors(span, spans)
            assert above[0] == root.span_id
            assert above[-1] == span_id
    # No more of them at a time than there are slots.
    for root in roots:
        others = sum(
            other.start_time_unix_nano < root.start_time_unix_nano < other.end_time_unix_nano for other in roots
        )
        assert others < SLOTS


def test_streamed_and_whole_answers_are_the_same(client):
    assert ask(client, max_new_tokens=12, stream=True)[0] == ask(client, max_new_tokens=12)[0]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(inbox, client, server, stream):
    trace_id, _, headers = traceparent()
    body = {"prompt": CANARY, "max_new_tokens": 1024, "stream": stream}
    if stream:
        with client.stream("POST", "/generate", json=body, headers=headers) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
    else:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/generate", json=body, headers=headers, timeout=0.2)
    _, said = request_in(spans_of(inbox, trace_id))
    assert said["gen_ai.usage.output_tokens"] < 1024
    for _ in range(SLOTS):  # their slots are free again
        assert ask(client, max_new_tokens=2)[0]


@pytest.mark.parametrize("stream", [True, False])
def test_a_generation_that_fails_says_so_and_frees_its_slot(inbox, server, client, stream):
    trace_id, _, headers = traceparent()
    for _ in range(SLOTS):
        # uvicorn closes a connection on which an exception came through: a new one for each.
        answer = httpx.post(f"{server.address}/generate", json={"prompt": "word099", "stream": stream}, headers=headers)
        if stream:
            assert answer.text == "event: error\ndata: {}\n\n"
        else:
            assert answer.status_code == 500
    wait_until(lambda: sum(s.trace_id == trace_id and s.name.startswith("text") for s, _ in inbox.spans()) == SLOTS)
    for span, _ in inbox.spans():
        if span.trace_id == trace_id and span.name.startswith("text_completion"):
            assert values_of(span.attributes)["error.type"] == "IndexError"
    assert ask(client, max_new_tokens=2)[0]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("fastapi_server", ROOT / "examples" / "fastapi_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_span_of_the_server_the_request_hangs_below_the_client_s(example, model_folder):
    """As with FastAPI before 0.165, which makes none."""
    sent, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(sent))
    loaded = load(str(model_folder))
    trace_id, span_id, headers = traceparent()
    asked = fastapi.Request({"type": "http", "headers": [(b"traceparent", headers["traceparent"].encode())]})

    async def answer():
        generator = example.Generator(loaded, slots=1)
        return "".join([text async for text in generator.answer(example.Question(prompt=CANARY), asked)])

    with inferscope.trace(loaded.model, sinks=[SpanSink(tracer_provider=provider)]) as session:
        assert len(asyncio.run(answer()).split()) == 64
        session.wait()
    (root,) = [span for span in sent.get_finished_spans() if span.name.startswith("text_completion")]
    assert root.context.trace_id == int.from_bytes(trace_id, "big")
    assert root.parent.span_id == int.from_bytes(span_id, "big")


@pytest.mark.parametrize("wrong", [{"prompt": ""}, {"max_new_tokens": 0}, {"max_new_tokens": 10**9}, {"prompt": None}])
def test_what_is_out_of_bounds_is_refused(client, wrong):
    assert client.post("/generate", json={"prompt": "word001", **wrong}).status_code == 422


def test_a_model_that_is_not_there_is_said_in_one_line(example, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fastapi_server.py", "--model", "./nowhere"])
    with pytest.raises(SystemExit) as ended:
        example.main()
    assert ended.value.code == 2
    assert "error: nowhere: no such" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_page_s_commands_are_the_ones_that_run(server):
    assert f"    {COMMAND}\n" in (ROOT / PAGE).read_text(encoding="utf-8")
    done = subprocess.run(
        [*curl_of(PAGE, server.address), "--silent"], capture_output=True, text=True, timeout=60, check=True
    )
    assert text_of(done.stdout.splitlines())


def test_no_span_says_what_was_asked_or_answered_and_ctrl_c_ends_it(inbox, server, client):
    """Last: it ends the server."""
    _, trace_id, _ = ask(client, max_new_tokens=4)
    assert spans_of(inbox, trace_id)
    assert server.interrupt() == 0, server.printed
    sent = b"".join(request.SerializeToString() for request in inbox.requests)
    assert b"word0" not in sent  # every word of every prompt and answer begins so
    assert "word0" not in server.printed
