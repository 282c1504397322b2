"""Serve a model with Ray Serve: two replicas behind one proxy, each request one trace from the client on.

python examples/ray_serve.py

Then, from another terminal:

curl http://127.0.0.1:8000/generate -H 'content-type: application/json' \
     -d '{"prompt": "What is the capital of France?", "max_new_tokens": 32}'

With --endpoint http://localhost:4317 spans go to an OpenTelemetry receiver. Serve's proxy hands the client's W3C
`traceparent` header on to whichever replica it chooses; `service.instance.id` on the spans says which that was.
"""

import argparse
import os
import signal
import threading

# Read when ray is imported: nothing is reported to its makers, and its own ports are on 127.0.0.1 alone, as they are on
# macOS and Windows. On a cluster, leave out the second, and in `main` what keeps Ray on this machine.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from fastapi import FastAPI, Request
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagate import extract
from pydantic import BaseModel, Field
from ray import serve

import inferscope
from inferscope.experiments.models import answer_text, inputs_for, load

app = FastAPI()


class Question(BaseModel):
    """What a client asks for; what is larger is refused before it costs anything."""

    prompt: str = Field(min_length=1, max_length=8_000)
    max_new_tokens: int = Field(default=64, ge=1, le=256)


@serve.deployment(
    num_replicas=2,
    ray_actor_options={"num_cpus": 0.5},
    max_ongoing_requests=4,  # per replica; more wait at the proxy,
    max_queued_requests=64,  # which answers 503 beyond these
    graceful_shutdown_timeout_s=10,
)
@serve.ingress(app)
class Generator:
    """One replica: a process with its own copy of the model and its own way to the receiver."""

    def __init__(self, model: str | None, endpoint: str | None) -> None:
        replica = serve.get_replica_context().replica_id.unique_id
        os.environ["OTEL_RESOURCE_ATTRIBUTES"] = f"service.instance.id={replica}"
        self._providers = inferscope.setup(endpoint=endpoint, service_name="ray-serve") if endpoint else None
        self._loaded = load(model)
        self._handle = inferscope.instrument(self._loaded.model, sinks=["otel", "log"])
        self._replica = replica

    @app.post("/generate")
    def generate(self, question: Question, request: Request) -> dict[str, str]:
        """Answer one client. Serve runs it in a thread, as it is no coroutine."""
        spanned = trace.get_current_span().get_span_context().is_valid  # FastAPI makes one from 0.165 on
        token = otel_context.attach(otel_context.get_current() if spanned else extract(request.headers))
        try:
            inputs = inputs_for(self._loaded, question.prompt)
            output = self._loaded.model.generate(**inputs, max_new_tokens=question.max_new_tokens, do_sample=False)
        finally:
            otel_context.detach(token)
        return {"text": answer_text(self._loaded, output, inputs["input_ids"].shape[1]), "replica": self._replica}

    def __del__(self) -> None:
        """Called by Serve when the replica is taken down: what has ended is sent before it goes."""
        self._handle.session.wait()
        self._handle.remove()
        if self._providers:
            self._providers.shutdown()


def main() -> None:
    """Start Ray on this machine alone, serve until Ctrl-C, take everything down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder, .gguf file or hub id; SmolLM2-135M-Instruct where none is named")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--endpoint", help="OpenTelemetry receiver, such as http://localhost:4317")
    args = parser.parse_args()
    stop = threading.Event()
    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1")
    for number in (signal.SIGINT, signal.SIGTERM):  # after ray.init, which sets its own
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": args.port})
        serve.run(Generator.bind(args.model, args.endpoint))
        print(f"Two replicas serve on http://127.0.0.1:{args.port} (Ctrl-C to quit)", flush=True)
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
