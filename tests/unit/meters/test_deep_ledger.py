"""Every nanosecond of a recorded pass in one place: held against counting them one by one, and against the twin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferscope.meters.deep_ledger import (
    DeviceWork,
    DriverCall,
    is_sync,
    outermost,
    split_device,
    split_host,
    unfinished,
)
from inferscope.meters.operator_groups import OperatorSpan, measure
from inferscope.testing.twin import DeviceTwin, FakeClock

LAUNCH, SYNC = "cudaLaunchKernel", "cudaStreamSynchronize"


def spans(most):
    """Intervals one after another, with gaps."""
    return st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=most).map(_placed)


def _placed(steps):
    placed, at = [], 0
    for gap, length in steps:
        placed.append((at + gap, at + gap + length))
        at += gap + length
    return placed


@given(operators=spans(8), calls=spans(12), kinds=st.lists(st.booleans(), min_size=12, max_size=12))
def test_the_host_s_parts_are_those_of_each_nanosecond(operators, calls, kinds):
    end = max([10, *(ended for _, ended in operators + calls)])
    made = [DriverCall(SYNC if sync else LAUNCH, *call) for call, sync in zip(calls, kinds, strict=False)]
    # What the driver calls inside the runtime counts once.
    inner = [DriverCall("cuLaunchKernel", call.start_ns, call.end_ns) for call in made]
    split = split_host(0, end, operators, outermost(made + inner))
    held = {"python": 0, "dispatch": 0, "driver": 0, "sync": 0}
    for moment in range(end):
        call = next((one for one in made if one.start_ns <= moment < one.end_ns), None)
        if call is not None:
            held["sync" if call.name == SYNC else "driver"] += 1
        else:
            held["dispatch" if any(began <= moment < ended for began, ended in operators) else "python"] += 1
    assert (split.python_ns, split.dispatch_ns, split.driver_ns, split.sync_ns) == tuple(held.values())


@given(
    work=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from("abc")), max_size=12),
    end=st.integers(1, 90),
)
def test_the_device_s_parts_are_its_window(work, end):
    kernels = [DeviceWork(group, start, start + length) for start, length, group in work]
    split = split_device(0, end, kernels, [])
    last = max([end, *(each.end_ns for each in kernels)])
    busy = set().union(*(range(each.start_ns, each.end_ns) for each in kernels))
    assert sum(split.busy_ns.values()) == len(busy)
    assert split.window_ns == last
    assert split.drained_ns == 0


def test_idle_time_has_three_causes():
    calls = [
        DriverCall(LAUNCH, 0, 10, 1),
        DriverCall(LAUNCH, 12, 20, 2),
        DriverCall(SYNC, 20, 60),
        DriverCall(LAUNCH, 70, 80, 3),
        DriverCall(LAUNCH, 200, 210, 4),
    ]
    work = [
        DeviceWork("linear", 15, 30, 1),  # 10 starved until launched, 5 of latency
        DeviceWork("linear", 32, 58, 2),  # it had long been launched: 2 of latency
        DeviceWork("copy", 85, 90, 3),  # the host waited, and launched at 80: 22 drained, 5 of latency
        DeviceWork("copy", 215, 220, 4),  # 120 starved, 5 of latency
    ]
    split = split_device(0, 225, work, calls)
    assert split.busy_ns == {"linear": 41, "copy": 10}
    assert split.drained_ns == 22
    assert split.launch_gap_ns == 5 + 2 + 5 + 5
    assert split.starved_ns == 10 + 120 + 5


def test_calls_that_wait():
    assert all(map(is_sync, ("cudaDeviceSynchronize", "cuCtxSynchronize", "cuMemcpyDtoH_v2", "cudaMemcpy")))
    assert not any(map(is_sync, ("cudaLaunchKernel", "cudaMemcpyAsync", "cuMemcpyDtoHAsync_v2", "cudaEventRecord")))


def test_work_that_had_not_ended_is_noticed_once_per_launch():
    calls = [DriverCall(LAUNCH, 0, 1, 7), DriverCall("cudaEventRecord", 2, 3, 9)]
    assert unfinished(calls, set()) == 1
    assert unfinished(calls, {7}) == 0


steps = st.lists(
    st.tuples(st.sampled_from(["launch", "python", "sync"]), st.integers(100, 40_000), st.integers(100, 9_000)),
    min_size=1,
    max_size=60,
)


@given(course=steps, latency_ns=st.sampled_from([1, 2_000]))
def test_what_the_profiler_of_a_twin_says_is_the_truth(course, latency_ns):
    clock = FakeClock()
    twin = DeviceTwin(clock, latency_ns=latency_ns)
    began = clock.now_ns()
    operators, kernels, calls = [], [], []
    python_ns = sync_ns = 0
    for number, (kind, length_ns, issue_ns) in enumerate(course, 1):
        at = clock.now_ns()
        if kind == "launch":
            twin.launch(length_ns, issue_ns=issue_ns)
            start_ns, end_ns = twin.last_interval
            operators.append(OperatorSpan("aten::linear", at, clock.now_ns(), number))
            calls.append(DriverCall(LAUNCH, at, clock.now_ns(), number))
            kernels.append(OperatorSpan("gemm", start_ns, end_ns, number, number))
        elif kind == "sync":
            twin.synchronize()
            calls.append(DriverCall(SYNC, at, clock.now_ns()))
            sync_ns += clock.now_ns() - at
        else:
            clock.advance(length_ns)
            python_ns += length_ns
    measured = measure(began, clock.now_ns(), operators, kernels, calls)
    assert measured.lost == 0
    if measured.host is None:
        assert not calls
        return
    assert (measured.host.python_ns, measured.host.sync_ns) == (python_ns, sync_ns)
    assert measured.host.dispatch_ns == 0  # the twin's operators are nothing but their launch
    assert measured.host.driver_ns == clock.now_ns() - began - python_ns - sync_ns
    if not kernels:
        assert measured.device is None
        return
    assert measured.device_busy_ns == twin.busy_ns() == measured.device.busy_ns["linear"]
    assert measured.device.window_ns == max(clock.now_ns(), twin.stream.free_ns) - began
    assert measured.device.launch_gap_ns <= latency_ns * len(kernels)
    if not sync_ns:
        assert measured.device.drained_ns == 0
