"""What a recording tells of the host's calls of CUDA, from events as torch's profiler gives them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from inferscope.capture.census import count_of
from inferscope.meters.deep import _MARK, _read


@dataclass
class Event:
    """Named and typed as `torch._C._autograd._KinetoEvent`."""

    called: str
    start: int
    end: int
    activity: str = "cpu_op"
    link: int = 0
    on: str = "CPU"

    def name(self):
        return self.called

    def start_ns(self):
        return self.start

    def end_ns(self):
        return self.end

    def device_type(self):
        return SimpleNamespace(name=self.on)

    def activity_type(self):
        return self.activity

    def start_thread_id(self):
        return 1

    def correlation_id(self):
        return self.start

    def linked_correlation_id(self):
        return self.link

    def is_async(self):
        return False


def read(*events):
    whole = Event(_MARK, 0, 1000, "user_annotation")
    return count_of(_read(SimpleNamespace(events=lambda: [whole, *events]), lambda: None))


def kernel(start, activity="kernel"):
    return Event("gemm", start, start + 5, activity, on="CUDA")


def call(name, start, activity="cuda_runtime"):
    return Event(name, start, start + 2, activity)


def test_without_graphs_the_kernels_that_ran_are_the_launches():
    operator = Event("aten::mm", 10, 50)
    found = read(
        operator,
        call("cudaLaunchKernel", 20),
        kernel(60),
        call("anEntryPointNobodyListed", 30),
        kernel(70),
        kernel(80, "gpu_memcpy"),
        call("cudaStreamSynchronize", 100),
        call("cudaStreamSynchronize", 2000),  # ours, after the pass
    )
    assert (found.launches, found.graph_launches, found.syncs, found.unit, found.source) == (2, 0, 1, "kernel", "deep")


def test_with_graphs_what_they_hold_is_one_launch():
    kernels = [kernel(200 + 10 * each) for each in range(40)]
    found = read(call("cudaGraphLaunch", 20), call("cuLaunchKernelEx", 30, "cuda_driver"), *kernels)
    assert (found.launches, found.graph_launches, found.syncs) == (1, 1, 0)


def test_on_a_cpu_a_region_with_such_a_name_is_no_call():
    found = read(Event("aten::mm", 10, 50), Event("custom region", 5, 60, "user_annotation"))
    assert (found.launches, found.unit, found.syncs) == (1, "operator", None)
