"""What is read from a recording of a device, from events as torch's profiler gives them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from inferscope.capture.census import count_of
from inferscope.meters import deep


@dataclass
class Event:
    """As torch._C._autograd._KinetoEvent, of which there are none for a device here."""

    text: str
    start: int
    end: int
    kind: str = "cpu_op"
    number: int = 0
    link: int = 0
    thread: int = 1

    def name(self):
        return self.text

    def start_ns(self):
        return self.start

    def end_ns(self):
        return self.end

    def activity_type(self):
        return self.kind

    def correlation_id(self):
        return self.number

    def linked_correlation_id(self):
        return self.link

    def start_thread_id(self):
        return self.thread

    def is_async(self):
        return False

    def device_type(self):
        return SimpleNamespace(name="CUDA" if self.kind in {"kernel", "gpu_memcpy", "overhead on device"} else "CPU")


def read(*events):
    return deep._read(SimpleNamespace(events=lambda: list(events)), lambda: None)


PASS = Event("inferscope.pass", 100, 200, "user_annotation")
LINEAR = Event("aten::linear", 110, 130, number=1)
LAUNCH = Event("cudaLaunchKernel", 120, 128, "cuda_runtime", number=50, link=1)
GEMM = Event("ampere_gemm", 135, 150, "kernel", number=50, link=1)
# What the selection of the token does, after the pass and before the recording ends.
ARGMAX = Event("aten::argmax", 210, 220, number=2)
LATER = Event("cudaLaunchKernel", 212, 215, "cuda_runtime", number=51, link=2)
REDUCE = Event("reduce_kernel", 216, 230, "kernel", number=51, link=2)
# Another thread's.
FOREIGN = Event("aten::mul", 110, 140, number=3, thread=2)
FOREIGN_LAUNCH = Event("cudaLaunchKernel", 111, 112, "cuda_runtime", number=52, link=3, thread=2)
FOREIGN_KERNEL = Event("mul_kernel", 151, 160, "kernel", number=52, link=3)


def test_only_what_the_pass_issued_is_of_it():
    one = read(PASS, LINEAR, LAUNCH, GEMM, ARGMAX, LATER, REDUCE, FOREIGN, FOREIGN_LAUNCH, FOREIGN_KERNEL)
    assert list(one.operators) == ["aten::linear"]
    assert (one.operators["aten::linear"].time_ns, one.operators["aten::linear"].launches) == (15, 1)
    assert (one.operators_ns, one.python_ns) == (20, 80)
    host = one.host
    assert (host.python_ns, host.dispatch_ns, host.driver_ns, host.sync_ns) == (80, 12, 8, 0)
    device = one.device
    assert device.busy_ns == {"linear": 15}
    assert (device.starved_ns, device.launch_gap_ns, device.drained_ns) == (28 + 50, 7, 0)
    assert device.window_ns == 100
    assert one.lost == 0


def test_a_kernel_that_has_not_ended_leaves_the_device_unknown():
    one = read(PASS, LINEAR, LAUNCH)
    assert one.lost == 1
    assert one.device is None
    assert one.device_busy_ns is None


def test_a_recording_without_its_pass_is_none():
    assert read(LINEAR, LAUNCH, GEMM) is None


def counted(*events):
    return count_of(read(Event("inferscope.pass", 0, 1000, "user_annotation"), *events))


def kernel(start, number, kind="kernel"):
    return Event("gemm", start, start + 5, kind, number=number)


def call(name, start, kind="cuda_runtime"):
    return Event(name, start, start + 2, kind, number=start)


def test_without_graphs_the_kernels_that_ran_are_the_launches():
    found = counted(
        Event("aten::mm", 10, 50),
        call("cudaLaunchKernel", 20),
        Event("cuLaunchKernel", 20, 21, "cuda_driver", number=21),  # what the runtime asks of the driver
        kernel(60, 20),
        call("anEntryPointNobodyListed", 30),
        kernel(70, 30),
        call("cudaMemcpyAsync", 40),
        kernel(80, 40, "gpu_memcpy"),
        call("cudaStreamSynchronize", 100),
        call("cudaStreamSynchronize", 2000),  # ours, after the pass
    )
    assert (found.launches, found.graph_launches, found.syncs, found.unit, found.source) == (2, 0, 1, "kernel", "deep")


def test_with_graphs_what_they_hold_is_one_launch():
    kernels = [kernel(200 + 10 * each, 20) for each in range(40)]
    found = counted(call("cudaGraphLaunch", 20), call("cuLaunchKernelEx", 30, "cuda_driver"), kernel(700, 30), *kernels)
    assert (found.launches, found.graph_launches, found.syncs) == (1, 1, 0)


def test_on_a_cpu_a_region_with_such_a_name_is_no_call():
    found = counted(Event("aten::mm", 10, 50), Event("custom region", 5, 60, "user_annotation"))
    assert (found.launches, found.unit, found.syncs) == (1, "operator", None)
