"""Serve a model over HTTP with FastAPI: answers streamed as server-sent events, every request traced.

python examples/fastapi_server.py

Then, from another terminal:

curl -N http://127.0.0.1:8000/generate -H 'content-type: application/json' \
     -d '{"prompt": "What is the capital of France?", "max_new_tokens": 32, "stream": true}'

With --endpoint http://localhost:4317 spans go to an OpenTelemetry receiver. A client that sends a W3C `traceparent`
header finds the request, its prefill and its decode below its own span.
"""

import argparse
import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import iterate_in_threadpool
from fastapi.responses import StreamingResponse
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from pydantic import BaseModel, Field
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

import inferscope
from inferscope.experiments.models import LoadedModel, inputs_for, load

log = logging.getLogger("uvicorn.error")


class Question(BaseModel):
    """What a client asks for; what is larger is refused before it costs anything."""

    prompt: str = Field(min_length=1, max_length=8_000)
    max_new_tokens: int = Field(default=64, ge=1, le=1_024)
    stream: bool = False


class Stop(StoppingCriteria):
    """Ends a generation at its next token, once `event` is set: nobody reads on."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, _scores: object, **_kwargs: object) -> torch.Tensor:
        """Whether each sequence is to end."""
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class Generator:
    """A model that answers a bounded number of clients at a time; the others wait for their turn."""

    def __init__(self, loaded: LoadedModel, *, slots: int) -> None:
        self._loaded = loaded
        self._slots = asyncio.Semaphore(slots)

    async def answer(self, question: Question, request: Request) -> AsyncIterator[str]:
        """The answer's text as it grows. Closed early, it stops the generation at its next token."""
        await self._slots.acquire()
        stop = Stop()
        streamer = TextIteratorStreamer(self._loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
        working = asyncio.create_task(asyncio.to_thread(self._generate, question, request, streamer, stop))
        working.add_done_callback(lambda _: self._slots.release())  # its slot is free when its thread is
        try:
            async for text in iterate_in_threadpool(streamer):
                if text:  # a streamer hands on nothing, too: for the prompt, and while a word is not finished
                    yield text
            await working  # raises what `generate` raised
        finally:
            stop.event.set()

    def _generate(self, question: Question, request: Request, streamer: TextIteratorStreamer, stop: Stop) -> None:
        # What is current in the thread that generates is the parent of inferscope's span.
        token = otel_context.attach(parent_of(request))
        try:
            self._loaded.model.generate(
                **inputs_for(self._loaded, question.prompt),
                max_new_tokens=question.max_new_tokens,
                do_sample=False,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        finally:
            otel_context.detach(token)
            streamer.end()  # also where `generate` raised: nobody waits for text that will not come


def parent_of(request: Request) -> Context:
    """Where a request's spans belong: below the server's own span where something makes one, else the client's.

    FastAPI 0.165 and opentelemetry-instrumentation-fastapi make one, and `asyncio.to_thread` brings it along.
    """
    if trace.get_current_span().get_span_context().is_valid:
        return otel_context.get_current()
    return extract(request.headers)


def create_app(loaded: LoadedModel, *, slots: int = 4) -> FastAPI:
    """The application.

    Args:
        loaded: The model that answers.
        slots: How many requests generate at a time.
    """
    generator = Generator(loaded, slots=slots)

    @asynccontextmanager
    async def traced(_app: FastAPI) -> AsyncIterator[None]:
        # asyncio's own pool has four threads more than cores, however many slots there are.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(slots))
        handle = inferscope.instrument(loaded.model, sinks=["otel", "log"])
        try:
            yield
        finally:
            handle.session.wait()  # spans of requests that have just ended
            handle.remove()

    app = FastAPI(title=loaded.name, lifespan=traced)

    @app.post("/generate", response_model=None)
    async def generate(question: Question, request: Request) -> StreamingResponse | dict[str, str]:
        answer = generator.answer(question, request)
        if question.stream:
            return StreamingResponse(
                events(answer), media_type="text/event-stream", headers={"cache-control": "no-cache"}
            )
        async with aclosing(answer):
            parts = []
            async for text in answer:
                parts.append(text)
                if await request.is_disconnected():
                    break
        return {"text": "".join(parts)}

    return app


async def events(answer: AsyncIterator[str]) -> AsyncIterator[str]:
    """An answer as server-sent events: pieces of text, then `end` or `error`."""
    try:
        async with aclosing(answer):
            async for text in answer:
                yield f"data: {json.dumps({'text': text})}\n\n"
    except Exception:  # the status has been sent: only an event can still say so
        log.exception("a generation failed")
        yield "event: error\ndata: {}\n\n"
    else:
        yield "event: end\ndata: {}\n\n"


def main() -> None:
    """Load, instrument, serve until Ctrl-C."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder, .gguf file or hub id; SmolLM2-135M-Instruct where none is named")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--slots", type=int, default=4, help="requests that generate at a time")
    parser.add_argument("--endpoint", help="OpenTelemetry receiver, such as http://localhost:4317")
    args = parser.parse_args()
    if args.endpoint:
        inferscope.setup(endpoint=args.endpoint, service_name="fastapi-server")
    try:
        loaded = load(args.model)
    except inferscope.InferscopeError as error:  # a model that is not there is no defect of this program
        parser.error(str(error))
    app = create_app(loaded, slots=args.slots)
    # Beyond limit_concurrency connections uvicorn answers 503: the queue for a slot is bounded too.
    uvicorn.run(app, host="127.0.0.1", port=args.port, limit_concurrency=64, timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
