"""Models behind other things: torch.compile, accelerate, DDP, tensor parallel, FSDP2, copies, pickles, conversions."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import inferscope
from conftest import build_llama

EXPECTED = [("prefill", 9, 0, 1), *(("decode", 1, past, 1) for past in range(9, 13))]


def seen(session):
    return [(entry.name, entry.q_len, entry.past_len, entry.batch_size) for entry in session.last.record.pass_samples]


def compiled(model, how, *, fullgraph):
    options = {"backend": "eager", "fullgraph": fullgraph}
    if how == "torch.compile(model)":
        return torch.compile(model, **options)
    if how == "model.compile()":
        model.compile(**options)
    else:
        model.forward = torch.compile(model.forward, **options)
    return model


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.parametrize("first", ["trace", "compile"])
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()", "forward = torch.compile(forward)"])
def test_compiled_models_are_seen_without_breaks_or_recompiles(
    transformers, prompt, fresh_dynamo, how, fullgraph, first
):
    reference = build_llama(transformers)
    with torch.no_grad():
        tokens, logits = reference.generate(prompt, max_new_tokens=5), reference(prompt, use_cache=False).logits
    bare = build_llama(transformers)
    compiled(bare, how, fullgraph=fullgraph).generate(prompt, max_new_tokens=5)
    with torch.no_grad():
        compiled(bare, how, fullgraph=fullgraph)(prompt, use_cache=False)
    graphs = fresh_dynamo["stats"]["unique_graphs"]
    torch._dynamo.reset()
    fresh_dynamo.clear()

    model = build_llama(transformers)
    target = compiled(model, how, fullgraph=fullgraph) if first == "compile" else None
    with inferscope.trace(model if target is None else target, sinks=(), detail="passes") as session:
        if target is None:
            target = compiled(model, how, fullgraph=fullgraph)
        assert torch.equal(target.generate(prompt, max_new_tokens=5), tokens)
        assert seen(session) == EXPECTED
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(target(prompt, use_cache=False).logits, logits)
        assert len(session.results) == 3
        assert seen(session) == [("prefill", 9, 0, 1)]
    assert sum(fresh_dynamo["graph_break"].values()) == 0
    assert fresh_dynamo["stats"]["unique_graphs"] <= graphs


def test_a_model_compiled_before_the_trace_of_what_it_wraps(llama, prompt, fresh_dynamo):
    wrapped = torch.compile(llama, backend="eager")
    with torch.no_grad():
        wrapped(prompt, use_cache=False)
        with inferscope.trace(llama, sinks=(), detail="passes") as session:
            wrapped(prompt, use_cache=False)
            assert seen(session) == [("prefill", 9, 0, 1)]


def test_a_compiled_function_round_the_model_is_a_block(llama, prompt, fresh_dynamo):
    step = torch.compile(lambda ids: llama(ids, use_cache=False).logits, backend="eager", fullgraph=True)
    with torch.no_grad(), inferscope.trace(llama, sinks=(), detail="passes") as session:
        with inferscope.phase("prefill", batch_size=1, tokens=9):
            step(prompt)
        assert seen(session) == [("prefill", 9, None, 1)]


def test_data_parallel_over_gloo_on_one_rank(llama, prompt, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(llama)
        with inferscope.trace(wrapped, sinks=(), detail="passes") as session, torch.no_grad():
            wrapped.module.generate(prompt, max_new_tokens=5)
            assert seen(session) == EXPECTED
            wrapped(prompt, use_cache=False)
            assert seen(session) == [("prefill", 9, 0, 1)]
    finally:
        torch.distributed.destroy_process_group()


def test_fully_sharded_on_one_rank(llama, prompt, tmp_path):
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - heavy

    expected = llama.generate(prompt, max_new_tokens=5)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for order in ("before", "after"):
            model = copy.deepcopy(llama)
            session = inferscope.trace(model, sinks=(), detail="passes")
            if order == "before":
                session.__enter__()
            fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
            if order == "after":
                session.__enter__()
            try:
                assert torch.equal(model.generate(prompt, max_new_tokens=5), expected)
                assert seen(session) == EXPECTED
            finally:
                session.__exit__(None, None, None)
    finally:
        torch.distributed.destroy_process_group()


def test_tensor_parallel_on_two_ranks_is_one_trace(tmp_path):
    script = Path(__file__).with_name("tensor_parallel.py")
    environment = {**os.environ, "OUT": str(tmp_path), "TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [(tmp_path / f"rank{rank}.txt").read_text().splitlines() for rank in range(2)]
    for rank, (names, trace_id, attribute) in enumerate(ranks):
        assert names == repr([("prefill", 9, 0, 1), ("decode", 1, 9, 1), ("decode", 1, 10, 1)])
        assert trace_id == "a" * 32
        assert attribute == str(rank)


def test_accelerate_offload_and_dispatch(llama, prompt):
    accelerate = pytest.importorskip("accelerate")
    expected = llama.generate(prompt, max_new_tokens=5)
    model = copy.deepcopy(llama)
    with inferscope.trace(model, sinks=(), detail="passes") as session:
        accelerate.cpu_offload(model, execution_device="cpu")
        assert torch.equal(model.generate(prompt, max_new_tokens=5), expected)
        assert seen(session) == EXPECTED
    model = accelerate.dispatch_model(copy.deepcopy(llama), {"": "cpu"}, force_hooks=True)
    with inferscope.trace(model, sinks=(), detail="passes") as session:
        assert torch.equal(model.generate(prompt, max_new_tokens=5), expected)
    assert seen(session) == EXPECTED


def test_copies_and_pickles_are_plain_models(llama, prompt):
    expected = llama.generate(prompt, max_new_tokens=5)
    with inferscope.trace(llama, sinks=()) as session:
        others = [copy.deepcopy(llama), pickle.loads(pickle.dumps(llama)), copy.copy(llama)]  # noqa: S301 - our own
        for other in others:
            assert torch.equal(other.generate(prompt, max_new_tokens=5), expected)
        assert session.results == ()
        others[0].lm_head.weight.data.zero_()
        assert torch.equal(llama.generate(prompt, max_new_tokens=5), expected)
        assert len(session.results) == 1


def test_conversions_while_traced(llama, prompt):
    with inferscope.trace(llama, sinks=(), detail="passes") as session:
        for convert in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.eval, torch.nn.Module.float):
            convert(llama)
            llama.generate(prompt, max_new_tokens=5)
            assert seen(session) == EXPECTED
        dtypes = [result.record.model.dtype for result in session.results]
    assert dtypes == ["float16", "bfloat16", "bfloat16", "float32"]


def test_state_and_signature_are_those_of_the_bare_model(llama):
    import inspect  # noqa: PLC0415

    before = (list(llama.state_dict()), vars(llama).keys(), inspect.signature(llama.forward))
    with inferscope.trace(llama, sinks=()):
        assert (list(llama.state_dict()), vars(llama).keys(), inspect.signature(llama.forward)) == before
        assert not llama._forward_hooks
        assert not llama._forward_pre_hooks
