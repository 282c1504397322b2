"""Device time on a real GPU, held against the kernels that the profiler saw. Skipped without a CUDA device."""

from __future__ import annotations

import pytest
import torch
from cuda_models import ask, kernels_ns, llama

import inferscope

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here has been confirmed on one"),
]


@pytest.mark.parametrize(("hidden", "layers"), [(256, 4), (2048, 16)], ids=["small", "1B"])
def test_the_interval_of_a_request_holds_its_kernels(hidden, layers):
    model = llama(hidden=hidden, layers=layers)
    expected = ask(model)
    with inferscope.trace(model, sinks=()) as session:
        assert torch.equal(ask(model), expected)
    record = session.last.record
    assert record.ledger.total_ns == record.wall_ns
    for phase in record.phases:
        assert phase.device is not None
        assert phase.device.passes == phase.passes
        assert phase.device.low_ns <= phase.device.high_ns <= phase.wall_ns * 1.05
    truth = kernels_ns(model)
    low = sum(phase.device.low_ns for phase in record.phases)
    high = sum(phase.device.high_ns for phase in record.phases)
    # Kernels of the selection are in the truth and not in the forwards.
    assert low <= 1.05 * truth
    assert truth <= 1.25 * high


def test_a_small_model_starves_the_device_and_a_long_prompt_does_not():
    model = llama(hidden=256, layers=4)
    ask(model)
    with inferscope.trace(model, sinks=()) as session:
        ask(model)
        small = session.last.record.phase("decode").device
    assert small.lag_share < 0.10
    large = llama(hidden=2048, layers=16)
    ask(large, batch=8, prompt=1024)
    with inferscope.trace(large, sinks=()) as session:
        ask(large, tokens=2, batch=8, prompt=1024)
        prefill = session.last.record.phase("prefill").device
    assert prefill.lag_share > 0.10


def test_plugged_passes_come_near_the_kernels():
    model = llama(hidden=1024, layers=8)
    ask(model)
    with inferscope.trace(model, sinks=(), plug_every=4, overhead_budget=1) as session:
        ask(model, tokens=64)
        ask(model, tokens=32)
        device = session.last.record.phase("decode").device
    assert device.provenance == "plug"
    truth = kernels_ns(model, tokens=32) - kernels_ns(model, tokens=1)
    assert device.low_ns <= 1.1 * truth
    assert truth <= 1.25 * device.high_ns


def test_nothing_synchronises():
    """With sync debugging set to raise, whatever of ours waited for the device would raise."""
    model = llama(hidden=256, layers=2)
    ids = torch.randint(1, 1_000, (1, 8), device="cuda")
    with torch.no_grad(), inferscope.trace(model, sinks=()) as session:
        model(ids)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                model(ids, use_cache=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert session.last is not None


def test_a_graph_can_be_captured_while_a_model_is_traced():
    model = llama(hidden=256, layers=2)
    ids = torch.randint(1, 1_000, (1, 8), device="cuda")
    with torch.no_grad(), inferscope.trace(model, sinks=()) as session:
        for _ in range(3):
            model(ids, use_cache=False)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(ids, use_cache=False)
        graph.replay()
        torch.cuda.synchronize()
    assert session.last is not None


def test_every_model_on_cuda_has_a_verdict_or_says_why():
    model = llama(hidden=256, layers=2)
    with inferscope.trace(model, sinks=()) as session:
        ask(model)
        ask(model)
    for phase in session.last.diagnosis.phases:
        assert phase.bound != "unknown" or phase.reasons
