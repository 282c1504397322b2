"""The code of the pages on servers and on loops of one's own does run, and does what the page says of it."""

from __future__ import annotations

from test_pages_run import PREPARED, blocks, run

SERVER = """
import threading
import transformers
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

sent = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(sent))
tracer = trace.get_tracer("application")

class Tokenizer:
    def decode(self, ids, **_):
        return "".join(f"{int(token)} " for token in ids)

tokenizer = Tokenizer()
"""
BETWEEN = """
assert not handle.enabled
assert not sent.get_finished_spans()
handle = inferscope.instrument(model, sinks=["otel"])
"""
SPANS = """
assert len("".join(streamer).split()) == 12  # the prompt's eight tokens and four new ones
for thread in threading.enumerate():
    if thread is not threading.main_thread() and not thread.daemon:
        thread.join()
handle.session.wait()
handle.remove()
spans = {span.name: span for span in sent.get_finished_spans()}
(root,) = [span for name, span in spans.items() if name.startswith("text_completion")]
print(root.parent.span_id == spans["POST /generate"].context.span_id, sorted(spans.keys() - {root.name}))
"""
LOOP = """
import transformers
prompt = inputs["input_ids"]
cache = transformers.DynamicCache()

def prefill(ids, positions):
    return model(ids, past_key_values=cache).logits

def decode_one_token(ids, position):
    return model(ids, past_key_values=cache).logits

fed, position, positions = prompt[:, -1:], 8, range(8)
"""


def test_the_page_on_servers_runs_and_the_streamed_request_hangs_below_its_handler(tmp_path):
    instrument, stream = blocks("docs/how-to/trace-a-server.md")
    done = run(PREPARED + SERVER + instrument + BETWEEN + stream + SPANS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True ['POST /generate', 'decode', 'prefill']\n"


def test_the_page_on_loops_runs_and_its_phases_are_told_apart(tmp_path):
    loop, named = blocks("docs/how-to/trace-a-hand-written-loop.md")
    phases = "print([(phase.name, phase.passes) for phase in session.last.record.phases])\n"
    inside = "with inferscope.trace(model) as session, session.request():\n"
    indented = "".join(f"    {line}\n" for line in named.splitlines())
    done = run(PREPARED + LOOP + loop + phases + inside + indented + phases, tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[-2:] == ["[('prefill', 1), ('decode', 15)]", "[('prefill', 1), ('decode', 1)]"]
