"""examples/ray_serve.py as a process: Ray Serve's own proxy and two replicas, spans at a real OTLP receiver."""

from __future__ import annotations

import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from otlp_receiver import grpc_receiver, values_of
from served import ROOT, ancestors, curl_of, serving, traceparent, wait_until

pytest.importorskip("ray.serve", reason="the server needs Ray Serve: install the extra [ray], or `make test-ray`")
httpx = pytest.importorskip("httpx", reason="its clients need httpx: install the extra [examples]")

PAGE = "docs/how-to/serve-with-ray.md"
COMMAND = "python examples/ray_serve.py"
CANARY = "word041 word042 word043 word044"


@pytest.fixture(scope="module")
def inbox():
    with grpc_receiver() as inbox:
        yield inbox


@pytest.fixture(scope="module")
def server(inbox, model_folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", str(model_folder), "--port", str(port), "--endpoint", inbox.endpoint]
    schedule = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving(*COMMAND.split()[1:], *options, said=r"replicas serve on (http://\S+)", **schedule) as served:
        yield served


def ask(address, *, max_new_tokens):
    """An answer, and its trace and span at the client."""
    trace_id, span_id, headers = traceparent()
    body = {"prompt": CANARY, "max_new_tokens": max_new_tokens}
    answer = httpx.post(f"{address}/generate", json=body, headers=headers, timeout=60)
    answer.raise_for_status()
    return answer.json(), trace_id, span_id


def spans_of(inbox, trace_id):
    """The spans of a client's trace with their resources, once the request's own is there."""

    def found():
        spans = [(span, resource) for span, resource in inbox.spans() if span.trace_id == trace_id]
        return spans if any(span.name.startswith("text_completion") for span, _ in spans) else []

    return wait_until(found)


def test_eight_clients_reach_two_replicas_each_in_a_trace_of_its_own(inbox, server):
    def one(number):
        return ask(server.address, max_new_tokens=3 + number % 8)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(24)))
    replicas = set()
    for number, (answer, trace_id, span_id) in enumerate(answers):
        assert len(answer["text"].split()) == 3 + number % 8
        found = spans_of(inbox, trace_id)
        spans = [span for span, _ in found]
        (root,) = [span for span in spans if span.name.startswith("text_completion")]
        assert values_of(root.attributes)["gen_ai.usage.output_tokens"] == 3 + number % 8
        for phase in ("prefill", "decode"):
            (span,) = [span for span in spans if span.name == phase]
            above = ancestors(span, spans)
            assert above[0] == root.span_id
            assert above[-1] == span_id
        assert {resource["service.instance.id"] for _, resource in found} == {answer["replica"]}
        replicas.add(answer["replica"])
    assert len(replicas) == 2


def test_what_is_out_of_bounds_is_refused(server):
    for wrong in ({"prompt": ""}, {"prompt": "word001", "max_new_tokens": 10**9}):
        assert httpx.post(f"{server.address}/generate", json=wrong, timeout=60).status_code == 422


def test_only_the_replicas_port_for_each_other_is_open_to_others(server):
    """Ray opens that one on every interface, whatever it is told, and guards it with a token. All else is loopback."""
    assert server.address.startswith("http://127.0.0.1:")
    open_to_others = [
        process.cmdline()[0]
        for process in psutil.Process(server.process.pid).children(recursive=True)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip.removeprefix("::ffff:") not in {"127.0.0.1", "::1"}
    ]
    assert [name for name in open_to_others if not name.startswith("ray::ServeReplica")] == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_page_s_commands_are_the_ones_that_run(server):
    assert f"    {COMMAND}\n" in (ROOT / PAGE).read_text(encoding="utf-8")
    command = [*curl_of(PAGE, server.address), "--silent", "--fail"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert '"replica":' in done.stdout


def test_no_span_says_what_was_asked_or_answered_and_ctrl_c_takes_every_process_down(inbox, server):
    """Last: it ends the server, and what its replicas had not sent comes before they go."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children
    _, trace_id, _ = ask(server.address, max_new_tokens=4)
    assert server.interrupt(60) == 0, server.printed
    assert spans_of(inbox, trace_id)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    sent = b"".join(request.SerializeToString() for request in inbox.requests)
    assert b"word0" not in sent  # every word of every prompt and answer begins so
    assert "word0" not in server.printed
