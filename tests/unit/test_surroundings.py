"""What a session knows beside its records: only what it can know, and of the request at hand."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from inferscope.analysis.utilisation import WindowSample
from inferscope.surroundings import KEPT_REQUESTS, AllocatorCounts, Around, offer, torch_allocator
from inferscope.testing import make_gpu_sample, make_record, make_result

S = 10**9
BEGAN = 1_790_000_000 * S
GPU = make_gpu_sample(uuid="GPU-00c0ffee", unix_ns=BEGAN + 5 * S, window_s=1.0)


def result(number=0, *, device="cuda:0", key="cuda:00c0ffee, driver 1", start_s=0.0, wall_s=0.1):
    record = make_record(
        request_id=f"{number:016x}", started_unix_ns=BEGAN + round(start_s * S), wall_ns=round(wall_s * S)
    )
    return make_result(record=replace(record, model=replace(record.model, device=device), device_key=key))


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return BEGAN + round(self.now_s * S)


def test_the_allocator_s_counts_are_differences_from_result_to_result():
    counts = {"cuda:0": AllocatorCounts(5, 1)}
    around = Around(allocator=counts.get)
    around.open("cuda:0")
    counts["cuda:0"] = AllocatorCounts(7, 1)
    found = around.of(result())
    assert (found.allocator_retries, found.allocator_ooms) == (2, 0)
    found = around.of(result())
    assert (found.allocator_retries, found.allocator_ooms) == (0, 0)
    counts["cuda:0"] = AllocatorCounts(0, 0)  # somebody has reset them
    assert around.of(result()).allocator_retries is None
    counts["cuda:1"] = AllocatorCounts(9, 0)  # what it was before is not known
    assert around.of(result(device="cuda:1")).allocator_retries is None
    assert around.of(result(device="cpu", key="cpu")).allocator_retries is None


def test_without_cuda_there_are_no_counts_and_nothing_is_initialised():
    import torch  # noqa: PLC0415 - what it must not initialise

    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use already")
    assert torch_allocator("cuda:0") is None
    assert torch_allocator("cpu") is None
    assert not torch.cuda.is_initialized()


def run(around, clock, requests, *, every_s, wall_s):
    """Requests one after the other, each at its own time; what is known beside the last."""
    found = None
    for number in range(requests):
        start_s, clock.now_s = number * every_s, number * every_s + wall_s
        found = around.of(result(number, start_s=start_s, wall_s=wall_s))
    return found.workload


def test_the_load_is_told_once_there_is_enough_to_tell_it_from():
    clock = Clock()
    load = run(Around(now_unix_ns=clock), clock, 20, every_s=1.0, wall_s=0.1)
    assert load.requests == 20
    assert load.busy_share == pytest.approx(20 * 0.1 / 19.1)
    assert load.horizon_s == pytest.approx(19.1)
    assert run(Around(now_unix_ns=Clock()), Clock(), 15, every_s=1.0, wall_s=0.1) is None
    assert run(Around(now_unix_ns=(short := Clock())), short, 20, every_s=0.1, wall_s=0.05) is None


def test_requests_beyond_those_kept_shorten_the_horizon_and_a_pause_is_no_request_s():
    clock = Clock()
    around = Around(now_unix_ns=clock)
    load = run(around, clock, 3 * KEPT_REQUESTS, every_s=0.06, wall_s=0.03)
    assert load.requests == KEPT_REQUESTS
    assert load.busy_share == pytest.approx(0.5, abs=0.01)
    clock.now_s += 1_000
    around.open(None)
    assert around.of(result(start_s=clock.now_s)).workload is None


class Windows:
    """A monitor that has taken one window of a machine with two GPUs."""

    running = True
    latest = WindowSample(gpus=(make_gpu_sample(uuid="GPU-0000dead"), GPU))


@pytest.mark.parametrize(
    ("start_s", "wall_s", "key", "known"),
    [
        (4.5, 0.2, "cuda:00c0ffee, driver 1", True),
        (3.0, 10.0, "cuda:00c0ffee, driver 1", True),
        (5.5, 1.0, "cuda:00c0ffee, driver 1", False),
        (1.0, 1.0, "cuda:00c0ffee, driver 1", False),
        (4.5, 0.2, "cuda:another, driver 1", False),
    ],
    ids=["within", "around", "after it", "before it", "another gpu"],
)
def test_a_window_counts_where_it_and_the_request_overlap_on_one_gpu(start_s, wall_s, key, known):
    source = Windows()
    offer(source)
    asked = result(start_s=start_s, wall_s=wall_s, key=key)
    assert Around().of(asked).gpu == (GPU if known else None)
    source.running = False
    assert Around().of(asked).gpu is None
    del source
    gc.collect()
    assert Around().of(asked).gpu is None
