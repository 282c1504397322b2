"""Counts, sync points, recorded passes and ranges on a real GPU, each held against another way of knowing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_models import ask, llama

import inferscope
from inferscope.meters import counters
from inferscope.meters.nvtx import DomainRanges, TorchRanges, find_ranges

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here has been confirmed on one"),
]
BUDGET = 1
"""Whatever is asked for is done: the budget is not what is tested here."""


@pytest.fixture(scope="module")
def model():
    made = llama(hidden=256, layers=4)
    ask(made)
    return made


def decode_of(model, **settings):
    with inferscope.trace(model, sinks=(), overhead_budget=BUDGET, **settings) as session:
        ask(model)
        ask(model)
        return session.last.record.phase("decode")


def counted(work):
    """What a piece of work asks of the driver, by the native counter."""
    counter = counters.native()
    if counter is None or not counter.open():
        pytest.skip(f"nothing counts here: {counters.missing() if counter is None else counter.reason}")
    try:
        before = counter.counts()
        work()
        return counter.counts().since(before)
    finally:
        counter.close()


def test_the_native_counter_knows_single_calls():
    x = torch.ones(1, device="cuda")
    torch.neg(x)
    torch.cuda.synchronize()
    assert counted(lambda: torch.neg(x)).launches == 1
    read = counted(x.item)
    assert (read.launches, read.to_host) == (0, 1)
    assert read.syncs >= 1


def test_the_native_counter_and_recorded_passes_count_the_same_launches(model):
    native = decode_of(model, counters="native")
    if native.launches_source != "native":
        pytest.skip("nothing counted at the driver: another tool holds CUPTI")
    (recorded,) = {step.launches for step in decode_of(llama(hidden=256, layers=4), deep_every=1).steps}
    assert {step.launches for step in native.steps} == {recorded}
    assert recorded > 4 * 10


def test_a_planted_read_is_found_at_its_line(model):
    def read(_module, args):
        args[0].sum().item()  # the planted read

    hook = model.model.layers[1].register_forward_pre_hook(read)
    try:
        phase = decode_of(model, deep_every=2)
    finally:
        hook.remove()
    assert phase.sync_passes
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.endswith("# the planted" + " read"))
    (point,) = [point for point in phase.sync_points if Path(point.file).name == Path(__file__).name]
    assert point.line == line
    assert point.count == phase.sync_passes


def test_host_and_device_of_recorded_passes_close(model):
    deep = decode_of(model, deep_every=1).deep
    assert deep.host is not None
    assert deep.device is not None
    host, device = deep.host, deep.device
    parts = host.python_ns + host.dispatch_ns + host.driver_ns + host.sync_ns
    assert parts == pytest.approx(deep.operators_ns + deep.python_ns, rel=0.01)
    idle = device.starved_ns + device.launch_gap_ns + device.drained_ns
    assert sum(busy for _, busy in device.busy_ns) + idle == pytest.approx(device.window_ns, rel=0.01)
    assert device.window_ns >= 0.99 * deep.wall_ns
    assert sum(busy for _, busy in device.busy_ns) == pytest.approx(deep.device_busy_ns, rel=0.01)


def test_ranges_can_be_put_and_cost_the_request_nothing(model):
    ranges = find_ranges()
    assert isinstance(ranges, (DomainRanges, TorchRanges))
    ranges.push("a range", 1)
    ranges.pop()
    expected = ask(model)
    with inferscope.trace(model, sinks=(), nvtx=True) as session:
        assert torch.equal(ask(model), expected)
    assert session.last.record.phase("decode").passes == 23


def test_counting_goes_on_after_a_profiler_of_the_user_s(model):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
        ask(model)
    with inferscope.trace(model, sinks=(), counters="native", overhead_budget=BUDGET) as session:
        ask(model)
    record = session.last.record
    assert record.status == "ok"
    assert record.phase("decode").launches_source in {None, "native", "deep"}
