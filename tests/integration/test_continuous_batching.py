"""Continuous batching: one record per request, though passes are shared; the loop and its tokens are left alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import re
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import inferscope
from conftest import build_llama
from inferscope.capture import continuous, intercept
from inferscope.capture.batcher import Batcher
from inferscope.report.plain import to_text
from inferscope.sinks.jsonl import JsonlSink, read_records
from inferscope.sinks.spans import SpanSink

pytestmark = pytest.mark.capture

batching = pytest.importorskip("transformers.generation.continuous_batching.continuous_api")
if not hasattr(batching, "OutputRouter"):
    pytest.skip("continuous batching of this version is not observed: it has other parts", allow_module_level=True)

PLACE = "transformers.generation.continuous_batching"
NEW = 5


@pytest.fixture(autouse=True)
def _loops_forgotten():
    yield
    assert not continuous.LOOPS.active()
    assert not list(continuous.LOOPS._by_owner.values())
    assert all("inferscope" not in getattr(value, "__module__", "") for value in vars(batching).values())


@pytest.fixture
def prompts():
    """Of 9, 3 and 20 tokens."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 1000, (size,), generator=generator).tolist() for size in (9, 3, 20)]


class Server:
    """A manager with 8 tokens a pass, and what came out of it."""

    def __init__(self, model, transformers, *, generation=None, **config):
        options = {"do_sample": False, "eos_token_id": -1, "max_new_tokens": NEW, **(generation or {})}
        sizes = {"max_batch_tokens": 8, "num_blocks": 64, "page_size": 16, **config}
        known = inspect.signature(transformers.ContinuousBatchingConfig).parameters
        if "page_size" not in known:  # before, it had another name
            sizes["block_size"] = sizes.pop("page_size")
        if sizes.keys() - known.keys():
            pytest.skip(f"this version's configuration has no {', '.join(sorted(sizes.keys() - known.keys()))}")
        self.manager = model.init_continuous_batching(
            generation_config=transformers.GenerationConfig(**options),
            continuous_batching_config=transformers.ContinuousBatchingConfig(**sizes),
        )
        self.outputs = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.manager.is_running():
            self.manager.stop(block=True)

    def wait(self, count):
        """Wait for results until so many requests have come to an end."""
        deadline = time.monotonic() + (10 if "OLDER_TRANSFORMERS" in os.environ else 60)
        while len(self.finished) < count and time.monotonic() < deadline:
            output = self.manager.get_result(timeout=0.2)
            if output is not None:
                self.outputs.append(output)
        assert len(self.finished) == count

    @property
    def finished(self):
        """By id: tokens, or the error. What has failed is not finished to transformers 5.10."""
        ended = [out for out in self.outputs if out.error or out.is_finished()]
        return {out.request_id: out.error or out.generated_tokens for out in ended}


def served(model, transformers, prompts, *, generation=None, each=None, **config):
    """All prompts queued before the loop starts, so that what is scheduled does not hang on the clock."""
    with Server(model, transformers, generation=generation, **config) as server:
        for prompt in prompts:
            server.manager.add_request(prompt, **(each or {}))
        server.manager.start()
        server.wait(len(prompts))
        return server.finished


@contextlib.contextmanager
def true_passes():
    """(id, new tokens, tokens cached before) of each request in each pass, taken before transformers moves on."""
    owner = sys.modules[f"{PLACE}.input_outputs"].ContinuousBatchingIOs
    prepare, seen = owner.prepare_batch_tensors, []

    def recording(self, requests_in_batch, *args, **kwargs):
        seen.append([(f.state.request_id, f.query_length, f.state.position_offset) for f in requests_in_batch])
        return prepare(self, requests_in_batch, *args, **kwargs)

    owner.prepare_batch_tensors = recording
    try:
        yield seen
    finally:
        owner.prepare_batch_tensors = prepare


def closed(record):
    ledger = record.ledger
    assert ledger.total_ns == record.wall_ns
    assert ledger.residual_ns == 0
    assert min(ledger.queue_ns, ledger.setup_ns, ledger.tail_ns, ledger.self_ns) >= 0
    for phase in record.phases:
        assert phase.ledger.total_ns == phase.wall_ns
        assert phase.ledger.shared_ns >= 0
    assert any("by tokens" in note for note in record.notes)
    return record


def by_size(session):
    """The records, by the length of their prompts."""
    return {result.record.input_tokens: closed(result.record) for result in session.results}


def passes_of(record):
    return [(s.name, s.q_len, s.past_len, s.batch_size, s.pass_tokens) for s in record.pass_samples]


def test_every_request_has_its_record_and_every_pass_its_name(llama, transformers, prompts):
    bare = served(llama, transformers, prompts)
    with inferscope.trace(llama, detail="passes", sinks=()) as session:
        assert served(llama, transformers, prompts) == bare
    records = by_size(session)
    assert len(session.results) == 3
    assert passes_of(records[9]) == [
        ("prefill", 8, 0, 1, 8),
        ("prefill/chunk", 1, 8, 3, 8),
        ("decode/mixed", 1, 9, 3, 8),
        ("decode/mixed", 1, 10, 3, 8),
        ("decode/mixed", 1, 11, 3, 6),
        ("decode", 1, 12, 3, 3),
    ]
    assert passes_of(records[3]) == [
        ("prefill", 3, 0, 3, 8),
        ("decode/mixed", 1, 3, 3, 8),
        ("decode/mixed", 1, 4, 3, 8),
        ("decode/mixed", 1, 5, 3, 6),
        ("decode", 1, 6, 3, 3),
    ]
    assert passes_of(records[20]) == [
        ("prefill", 4, 0, 3, 8),
        ("prefill/chunk/mixed", 6, 4, 3, 8),
        ("prefill/chunk/mixed", 6, 10, 3, 8),
        ("prefill/chunk/mixed", 4, 16, 3, 6),
        ("decode", 1, 20, 3, 3),
        ("decode", 1, 21, 1, 1),
        ("decode", 1, 22, 1, 1),
        ("decode", 1, 23, 1, 1),
    ]
    assert [(phase.name, phase.mixed_passes, phase.tokens) for phase in records[20].phases] == [
        ("prefill", 3, 20),
        ("decode", 0, 4),
    ]
    for record in records.values():
        assert (record.status, record.output_tokens, record.finish_reasons) == ("ok", NEW, ("length",))
        assert record.ttft_method == "update"
        assert 0 < record.ttft_ns < record.wall_ns
        assert record.tpot_ns == (record.wall_ns - record.ttft_ns) / (NEW - 1)
        assert record.itl_ns.count == NEW - 1
        assert record.options.max_new_tokens == NEW


def test_passes_are_those_that_truly_ran_and_their_time_is_shared_out(llama, transformers, prompts):
    with inferscope.trace(llama, detail="passes", sinks=()) as session, true_passes() as truth:
        served(llama, transformers, prompts)
    records = by_size(session)
    sizes = {f"req_{index}": len(prompt) for index, prompt in enumerate(prompts)}
    for key, size in sizes.items():
        expected = [(q, past) for batch in truth for name, q, past in batch if name == key]
        assert [(sample.q_len, sample.past_len) for sample in records[size].pass_samples] == expected
    # The same pass is in several records: what they are charged for it adds up to it.
    forwards = {sample.host_ns for record in records.values() for sample in record.pass_samples}
    assert len(forwards) == len(truth)
    assert sum(forwards) == sum(phase.ledger.issue_ns for record in records.values() for phase in record.phases)


def test_generate_batch(llama, transformers, prompts):
    generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=NEW)
    sizes = transformers.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=8)

    def answers():
        out = llama.generate_batch(prompts, generation_config=generation, continuous_batching_config=sizes)
        return {key: output.generated_tokens for key, output in out.items()}

    bare = answers()
    with inferscope.trace(llama, sinks=()) as session:
        assert answers() == bare
    assert sorted(by_size(session)) == [3, 9, 20]
    assert [result.record.pass_samples for result in session.results] == [(), (), ()]


def test_a_request_that_waits_for_its_turn_is_in_the_queue(llama, transformers, prompts):
    with inferscope.trace(llama, detail="passes", sinks=()) as session:
        served(llama, transformers, prompts[:2], max_requests_per_batch=1)
    first, second = (closed(result.record) for result in session.results)
    ran_ns = first.phase("decode").end_ns - first.phase("prefill").start_ns
    assert second.ledger.queue_ns > ran_ns
    assert {sample.batch_size for sample in second.pass_samples} == {1}
    assert second.phase("decode").ledger.shared_ns == 0
    assert second.phase("prefill").start_ns >= second.ledger.queue_ns + second.ledger.setup_ns


def test_a_model_of_eager_attention_and_sampling_have_the_same_tokens(transformers, prompts):
    model = build_llama(transformers, attn_implementation="eager")

    def sampled():
        torch.manual_seed(3)
        return served(model, transformers, prompts, generation={"do_sample": True, "temperature": 1.5, "top_k": 30})

    bare = sampled()
    with inferscope.trace(model, sinks=()) as session:
        assert sampled() == bare
    record = by_size(session)[3]
    assert (record.options.temperature, record.options.top_k) == (1.5, 30)


def test_an_end_token_ends_with_stop(llama, transformers, prompts):
    tokens = served(llama, transformers, prompts[:1])["req_0"]
    with inferscope.trace(llama, sinks=()) as session:
        served(llama, transformers, prompts[:1], each={"eos_token_id": tokens[2]})
    record = closed(session.last.record)
    assert (record.finish_reasons, record.output_tokens) == (("stop",), 3)


def test_streamed_results_and_their_event_loop(llama, transformers, prompts):
    seen = []

    async def stream(manager, prompt):
        done = asyncio.Event()

        def take(output):
            seen.append(list(output.generated_tokens))
            if output.is_finished():
                done.set()

        manager.register_result_handler("streamed", take)
        manager.add_request(prompt, request_id="streamed", streaming=True)
        await asyncio.wait_for(done.wait(), 60)

    bare = served(llama, transformers, prompts[:1])["req_0"]
    with inferscope.trace(llama, sinks=()) as session, Server(llama, transformers) as server:
        server.manager.start()
        asyncio.run(stream(server.manager, prompts[0]))
        assert len(session.results) == 1  # whoever has the last token finds the record
    assert seen == [bare[: count + 1] for count in range(NEW)]
    assert session.last.record.options.streaming


def test_a_result_in_hand_has_its_record(llama, transformers, prompts):
    with inferscope.trace(llama, sinks=()) as session, Server(llama, transformers) as server:
        server.manager.start()
        for count in range(1, 13):
            server.manager.add_request(prompts[1])
            server.wait(count)
            assert len(session.results) == count


def test_several_answers_to_one_prompt_are_several_requests(llama, transformers, prompts):
    with (
        inferscope.trace(llama, detail="passes", sinks=()) as session,
        Server(llama, transformers, generation={"do_sample": True, "num_return_sequences": 3}) as server,
    ):
        server.manager.add_request(prompts[2])
        server.manager.start()
        server.wait(3)
    records = [closed(result.record) for result in session.results]
    assert [record.output_tokens for record in records] == [NEW] * 3
    prefilled = sorted(record.phase("prefill").tokens for record in records)
    assert prefilled == [1, 1, 20]  # the copies start from the cache of the first
    assert sum(any("found in the cache" in note for note in record.notes) for record in records) == 2


def test_a_prefix_in_the_cache_is_not_prefilled_again(llama, transformers):
    prompt = list(range(1, 41))
    with (
        inferscope.trace(llama, detail="passes", sinks=()) as session,
        Server(llama, transformers, max_batch_tokens=64) as server,
    ):
        server.manager.start()
        for count in (1, 2):
            server.manager.add_request([*prompt, 50 + count])
            server.wait(count)
    first, second = (closed(result.record) for result in session.results)
    assert first.phase("prefill").tokens == 41
    assert (second.input_tokens, second.phase("prefill").tokens) == (41, 9)
    assert second.pass_samples[0].name == "prefill"
    assert any(note.startswith("32 prompt tokens") for note in second.notes)


def test_a_cache_that_is_given_up_is_prefilled_again(llama, transformers):
    prompts = [[5] * 40, [6] * 40, [7] * 40]
    options = {"generation": {"max_new_tokens": 30}, "num_blocks": 10, "max_batch_tokens": 64, "page_size": 16}
    bare = served(llama, transformers, prompts, **options)
    with inferscope.trace(llama, detail="passes", sinks=()) as session, true_passes() as truth:
        assert served(llama, transformers, prompts, **options) == bare
    records = [closed(result.record) for result in session.results]
    assert [(record.input_tokens, record.output_tokens) for record in records] == [(40, 30)] * 3
    again = [record for record in records if any("given up" in note for note in record.notes)]
    assert again
    assert all(record.phase("prefill").tokens > 40 for record in again)
    assert sum(len(record.pass_samples) for record in records) == sum(map(len, truth))


def test_a_cancelled_request_leaves_an_aborted_record(llama, transformers, prompts):
    with inferscope.trace(llama, sinks=()) as session, Server(llama, transformers) as server:
        manager = server.manager
        running = manager.add_request(prompts[0], max_new_tokens=400, streaming=True)
        waiting = manager.add_request(prompts[1])
        manager.cancel_request(waiting)
        manager.cancel_request("nobody")
        manager.start()
        while len(server.outputs) < 3:
            server.outputs.append(manager.get_result(timeout=10))
        manager.cancel_request(running)
        manager.add_request(prompts[2])
        server.wait(1)
    records = by_size(session)
    assert (records[9].status, records[9].error_type) == ("aborted", "cancelled")
    assert 3 <= records[9].output_tokens < 400
    assert (records[3].status, records[3].error_type, records[3].phases) == ("aborted", "cancelled", ())
    assert records[3].ledger.queue_ns + records[3].ledger.self_ns == records[3].wall_ns
    assert records[20].status == "ok"


class _BrokenError(RuntimeError):
    pass


def test_an_exception_in_a_pass_is_the_users_and_is_recorded(llama, transformers, prompts):
    def strike(*_args):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise _BrokenError("mine")

    outcomes = []
    session = inferscope.trace(llama, detail="passes", sinks=())
    for around in (contextlib.nullcontext(), session):
        calls = 0
        handle = llama.model.layers[1].register_forward_hook(strike)
        with around, Server(llama, transformers) as server:
            for prompt in prompts:
                server.manager.add_request(prompt)
            server.manager.start()
            server.wait(3)
            server.manager.join(0.0)
        handle.remove()
        outcomes.append(server.finished)
    assert outcomes[0] == outcomes[1] == dict.fromkeys(("req_0", "req_1", "req_2"), "mine")
    records = by_size(session)
    assert {record.error_type for record in records.values()} == {"_BrokenError"}
    assert {record.status for record in records.values()} == {"aborted"}
    # Three passes came to their end, the fourth was tried.
    assert [len(records[size].pass_samples) for size in (9, 3, 20)] == [4, 3, 3]
    assert [records[size].output_tokens for size in (9, 3, 20)] == [2, 2, 0]
    assert records[20].ttft_ns is None


def test_a_request_that_is_refused_leaves_an_aborted_record(llama, transformers, prompts):
    with inferscope.trace(llama, sinks=()) as session, Server(llama, transformers) as server:
        server.manager.start()
        server.manager.add_request(prompts[0], no_such_option=1)
        server.manager.add_request(prompts[1])
        server.wait(2)
    records = by_size(session)
    assert (records[9].status, records[9].phases) == ("aborted", ())
    assert records[3].status == "ok"


def test_a_full_queue_is_the_callers_exception(llama, transformers, prompts, monkeypatch):
    with inferscope.trace(llama, sinks=()) as session, Server(llama, transformers, max_queue_size=1) as server:
        put = server.manager.input_queue.put
        monkeypatch.setattr(server.manager.input_queue, "put", lambda item, **_kwargs: put(item, timeout=0.01))
        server.manager.add_request(prompts[0])
        with pytest.raises(batching.queue.Full):
            server.manager.add_request(prompts[1])
        assert len(session.results) == 1
        refused = closed(session.last.record)
        assert (refused.input_tokens, refused.error_type) == (3, "Full")
        server.manager.start()
        server.wait(1)
    assert by_size(session)[9].status == "ok"


def test_a_manager_that_is_stopped_midway(llama, transformers, prompts):
    with inferscope.trace(llama, sinks=()) as session, Server(llama, transformers) as server:
        server.manager.add_request(prompts[0], max_new_tokens=1000, streaming=True)
        server.manager.start()
        server.outputs.append(server.manager.get_result(timeout=10))
        server.manager.stop(block=True, hard_stop=True)
        assert server.manager.add_request(prompts[1]) is None  # refused: no request, no record
    record = by_size(session).pop(9)
    assert (record.status, record.error_type) == ("aborted", "RuntimeError")
    assert 1 <= record.output_tokens < 1000
    assert len(session.results) == 1


def test_a_manager_whose_loop_cannot_begin(llama, transformers, prompts, monkeypatch):
    def broken(*_args, **_kwargs):
        raise _BrokenError("no cache")

    with inferscope.trace(llama, sinks=()) as session, Server(llama, transformers) as server:
        monkeypatch.setattr(batching, "PagedAttentionCache", broken)
        server.manager.add_request(prompts[0])
        server.manager.start()
        if "OLDER_TRANSFORMERS" not in os.environ:  # before, nobody was told that it will never be served
            server.wait(1)
        server.manager._generation_thread.join(10)
    assert (session.last.record.status, session.last.record.error_type) == ("aborted", "_BrokenError")


def test_the_trace_may_end_before_the_requests(llama, transformers, prompts):
    bare = served(llama, transformers, prompts, each={"max_new_tokens": 200})
    with Server(llama, transformers) as server:
        with inferscope.trace(llama, sinks=()) as session:
            for prompt in prompts:
                server.manager.add_request(prompt, max_new_tokens=200, streaming=True)
            server.manager.start()
            server.outputs.append(server.manager.get_result(timeout=10))
        assert not continuous.LOOPS.active()
        assert "__wrapped__" not in vars(batching.ContinuousBatchProcessor.update_batch)
        server.wait(3)
    assert server.finished == bare
    records = by_size(session)
    assert len(records) == 3
    for record in records.values():
        assert any("the trace ended before" in note for note in record.notes)
        assert (record.status, record.finish_reasons) == ("ok", None)
        assert record.output_tokens < 200


def test_requests_from_before_the_trace_are_only_others(llama, transformers, prompts):
    with Server(llama, transformers) as server:
        server.manager.add_request(prompts[2], max_new_tokens=60, streaming=True)
        server.manager.start()
        server.outputs.append(server.manager.get_result(timeout=10))
        with inferscope.trace(llama, detail="passes", sinks=()) as session:
            server.manager.add_request(prompts[0])
            server.wait(1)
            server.wait(2)
            assert len(session.results) == 1
        record = closed(session.last.record)
    assert record.input_tokens == 9
    assert max(sample.batch_size for sample in record.pass_samples) == 2
    assert record.phase("decode").ledger.shared_ns > 0


def test_unsampled_requests_leave_no_trace_of_themselves(llama, transformers, prompts):
    with inferscope.trace(llama, sinks=(), sample_rate=0.0) as session:
        served(llama, transformers, prompts)
    assert session.results == ()


def test_two_sessions_and_one_that_leaves_early(llama, transformers, prompts):
    with inferscope.trace(llama, sinks=()) as outer, Server(llama, transformers) as server:
        with inferscope.trace(llama, sinks=()) as inner:
            server.manager.add_request(prompts[0])
        server.manager.start()
        server.wait(1)
        server.manager.add_request(prompts[1])
        server.wait(2)
    assert [result.record.input_tokens for result in outer.results] == [9, 3]
    assert inner.last.record == outer.results[0].record


def test_spans_hang_under_whoever_added_the_request(llama, transformers, prompts):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("application")
    parents = {}

    def client(prompt):
        with tracer.start_as_current_span(f"client {len(prompt)}") as span:
            parents[len(prompt)] = span.get_span_context()
            server.manager.add_request(prompt)

    with (
        inferscope.trace(llama, sinks=[SpanSink(tracer_provider=provider)]) as session,
        Server(llama, transformers) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        list(pool.map(client, prompts))
        server.manager.start()
        server.wait(3)
        session.wait()
    spans = exporter.get_finished_spans()
    roots = {span.attributes["gen_ai.usage.input_tokens"]: span for span in spans if "text_completion" in span.name}
    assert sorted(roots) == [3, 9, 20]
    for size, root in roots.items():
        assert root.parent.span_id == parents[size].span_id
        assert root.attributes["gen_ai.latency.time_in_queue"] >= 0
        names = [span.name for span in spans if span.parent and span.parent.span_id == root.context.span_id]
        assert names == ["prefill", "decode"]
    decode = next(span for span in spans if span.name == "decode")
    assert decode.attributes["inferscope.ledger.shared"] > 0
    assert decode.attributes["inferscope.passes.mixed"] > 0


def test_records_are_kept_in_files_and_shown(llama, transformers, prompts, tmp_path):
    path = tmp_path / "requests.jsonl"
    sink = JsonlSink(path)
    with inferscope.trace(llama, detail="passes", sinks=[sink]) as session:
        served(llama, transformers, prompts)
        results = session.results
    sink.close()
    assert read_records(path) == [result.record for result in results]
    text = to_text(results[-1])
    assert "queue" in text
    assert "prefill shared" in text
    assert "continuous batching" in text
    for phase in results[-1].diagnosis.phases:
        assert phase.bound == "unknown"
        assert any("share" in reason for reason in phase.reasons)


def test_many_clients_lose_double_and_cross_nothing(llama, transformers):
    sizes = [3 + index % 11 for index in range(80)]
    answers = 2

    def client(part):
        for size in part:
            server.manager.add_request([size] * size, max_new_tokens=answers + size % 3)

    with (
        inferscope.trace(llama, sinks=()) as session,
        Server(llama, transformers, max_batch_tokens=32, num_blocks=256) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        server.manager.start()
        list(pool.map(client, [sizes[start::8] for start in range(8)]))
        server.wait(len(sizes))
        results = session.results
    seen = sorted((result.record.input_tokens, result.record.output_tokens) for result in results)
    assert seen == sorted((size, answers + size % 3) for size in sizes)
    assert len({result.record.request_id for result in results}) == len(sizes)
    for result in results:
        closed(result.record)


def test_generate_beside_the_loop_has_its_own_record(llama, transformers, prompts, prompt):
    def together():
        with Server(llama, transformers) as server:
            server.manager.add_request(prompts[2], max_new_tokens=50)
            server.manager.start()
            tokens = llama.generate(prompt, max_new_tokens=8)
            server.wait(1)
        return tokens

    alone = llama.generate(prompt, max_new_tokens=8)
    if "OLDER_TRANSFORMERS" in os.environ and not torch.equal(alone, together()):
        pytest.skip(f"transformers {transformers.__version__} cannot do this itself: other tokens beside a loop")
    with inferscope.trace(llama, sinks=()) as session:
        assert torch.equal(alone, together())
    kinds = sorted((result.record.input_tokens, result.record.ttft_method) for result in session.results)
    assert kinds == [(9, "stop_check"), (20, "update")]
    assert all(result.record.ledger.total_ns == result.record.wall_ns for result in session.results)


@pytest.mark.usefixtures("notices_reset")
@pytest.mark.parametrize("name", ["schedule", "begin_pass", "end_pass", "begin_update", "settle", "add"])
def test_a_fault_of_ours_steps_aside_once(llama, transformers, prompts, monkeypatch, capsys, name):
    bare = served(llama, transformers, prompts)
    calls = 0

    def broken(*_args, **_kwargs):
        nonlocal calls
        calls += 1
        raise MemoryError("ours")

    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    monkeypatch.setattr(Batcher, name, broken)
    with inferscope.trace(llama, sinks=()) as session:
        assert served(llama, transformers, prompts) == bare
    assert session.results == ()
    assert calls == (3 if name == "add" else 1)
    assert capsys.readouterr().err.count("stepped aside") == 1


@pytest.mark.usefixtures("notices_reset")
def test_a_version_without_the_seams_is_said_once(llama, transformers, prompts, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, f"{PLACE}.input_outputs")
    with inferscope.trace(llama, sinks=()) as session:
        served(llama, transformers, prompts)
    assert session.results == ()
    said = capsys.readouterr().err
    assert said.count("continuous-batching-unseen") == 1


def test_nothing_keeps_manager_and_model_alive(transformers, prompts):
    model = build_llama(transformers)
    session = inferscope.trace(model, sinks=())
    server = Server(model, transformers)
    with session, server:
        server.manager.add_request(prompts[0])
        server.manager.start()
        server.wait(1)
        session.wait()
    gone = [weakref.ref(model), weakref.ref(server.manager), weakref.ref(server.manager.input_queue)]
    del session, model, server
    gc.collect()
    deadline = time.monotonic() + 10
    while any(ref() is not None for ref in gone) and time.monotonic() < deadline:
        time.sleep(0.05)
        gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_live_requests_count_as_activity(llama, transformers, prompts):
    with inferscope.trace(llama, sinks=()), Server(llama, transformers) as server:
        server.manager.add_request(prompts[0])
        assert intercept.active_requests()
        server.manager.start()
        server.wait(1)
        server.manager.stop(block=True)
        assert not intercept.active_requests()


def test_the_page_s_code_runs(llama, capsys):
    llama.generation_config.do_sample = False
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "continuous-batching.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code, "continuous-batching.md", "exec"), {"model": llama})  # noqa: S102 - our own page
    shown = capsys.readouterr().out
    assert shown.count("prefill") == shown.count("decode") == 2
