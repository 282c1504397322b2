"""Verdicts on windows: recordings that were made up by hand, and properties that hold for any."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.analysis import advice, thresholds
from inferscope.analysis.utilisation import WindowSample, classify
from inferscope.analysis.workload import PhaseLoad, Workload
from inferscope.samples import GpuSample, HostSample
from inferscope.testing import make_gpu_sample


def judged(gpu=None, **parts):
    return classify(WindowSample(gpus=() if gpu is None else (gpu,), **parts))


def codes(verdict):
    return [finding.code for finding in verdict.warnings]


DECODE = make_gpu_sample()
IDLE = make_gpu_sample(
    time_share=0.0,
    engine_activity=0.0,
    sm_activity=0.0,
    dram_activity=0.001,
    tensor_activity=0.0,
    clock_reasons=("gpu_idle",),
)
PREFILL = make_gpu_sample(sm_activity=0.97, tensor_activity=0.82, dram_activity=0.3)
FLOAT32 = make_gpu_sample(sm_activity=0.97, tensor_activity=0.0, fp32_activity=0.85, dram_activity=0.2)
STARVED = make_gpu_sample(
    time_share=1.0, engine_activity=0.97, sm_activity=0.12, tensor_activity=0.01, dram_activity=0.06
)
LATENCY = make_gpu_sample(sm_activity=0.9, tensor_activity=0.1, fp32_activity=0.2, dram_activity=0.15)
OFFLOADED = make_gpu_sample(
    engine_activity=0.9, sm_activity=0.3, tensor_activity=0.01, dram_activity=0.05, pcie_rx_bytes_per_s=55e9
)
NO_GPM = make_gpu_sample(
    **dict.fromkeys(("window_s", "engine_activity", "sm_activity", "sm_occupancy", "tensor_activity")),
    **dict.fromkeys(("fp64_activity", "fp32_activity", "fp16_activity", "dram_activity")),
    missing={"sm_activity": "needs the counters of Hopper or later (GPM)"},
)
LOST = GpuSample(uuid="GPU-x", index=3, lost=True, missing={"time_share": "GPU is lost"})
PARTITIONED = make_gpu_sample(mig=True, time_share=None, missing={"time_share": "Not Supported"})


@pytest.mark.parametrize(
    ("gpu", "bound", "confidence"),
    [
        (DECODE, "memory", "high"),
        (IDLE, "idle", "high"),
        (PREFILL, "compute", "high"),
        (FLOAT32, "compute", "high"),
        (STARVED, "overhead", "low"),
        (LATENCY, "inefficient", "low"),
        (OFFLOADED, "communication", "high"),
        (NO_GPM, "unknown", "low"),
        (LOST, "unknown", "low"),
        (PARTITIONED, "unknown", "low"),
        (make_gpu_sample(dram_activity=0.52), "memory", "low"),  # near the limit, not at it
        (make_gpu_sample(dram_activity=0.6, tensor_activity=0.7), "memory", "low"),  # 0.75 and 0.7: balanced
    ],
)
def test_a_recorded_window_has_its_bound(gpu, bound, confidence):
    verdict = judged(gpu)
    assert (verdict.bound, verdict.confidence) == (bound, confidence)
    assert verdict.device == gpu.uuid
    assert verdict.reasons or verdict.confidence == "high"


def test_gpu_util_100_percent_is_named_when_it_misleads():
    warning = next(finding for finding in judged(STARVED).warnings if finding.code == "gpu-util-misleads")
    assert warning.severity == "WARN"
    assert warning.claim.startswith('"GPU-Util 100%" misleads')
    assert "12%" in warning.claim
    assert {row.metric for row in warning.evidence} >= {"gpu_util_share", "sm_activity_share", "dram_activity_share"}


@pytest.mark.parametrize(
    "gpu",
    [
        DECODE,  # bandwidth is a use of the device
        PREFILL,
        NO_GPM,  # nothing to hold it against
        PARTITIONED,
        replace(STARVED, time_share=0.6),  # does not read full
        replace(STARVED, time_share=None),
    ],
)
def test_gpu_util_is_not_called_misleading_otherwise(gpu):
    assert "gpu-util-misleads" not in codes(judged(gpu))


def test_why_activity_is_missing_is_the_reason():
    (reason,) = judged(NO_GPM).reasons
    assert "Hopper" in reason


def test_a_device_busy_for_a_small_part_is_judged_on_that_part_and_said_to_be():
    verdict = judged(make_gpu_sample(time_share=0.4, engine_activity=0.3, sm_activity=0.28, dram_activity=0.22))
    assert (verdict.bound, verdict.confidence) == ("memory", "low")
    assert "30%" in verdict.reasons[0]


def test_requests_that_run_while_the_device_does_not_mean_overhead():
    gpu = make_gpu_sample(time_share=0.5, engine_activity=0.3, sm_activity=0.28, dram_activity=0.22)
    load = Workload(horizon_s=60.0, requests=9, busy_share=0.97)
    verdict = judged(gpu, workload=load)
    assert (verdict.bound, verdict.confidence) == ("overhead", "low")
    assert judged(gpu, workload=replace(load, busy_share=0.3)).bound == "memory"
    assert judged(gpu, workload=replace(load, on_host=9)).bound != "overhead"


@pytest.mark.parametrize(
    ("reasons", "expected", "severity"),
    [
        (("sw_thermal_slowdown",), "gpu-throttled-thermal", "WARN"),
        (("hw_thermal_slowdown", "gpu_idle"), "gpu-throttled-thermal", "WARN"),
        (("hw_slowdown",), "gpu-throttled-hardware", "WARN"),
        (("sw_power_cap",), "gpu-throttled-power", "INFO"),  # normal at full load
        (("hw_power_brake_slowdown",), "gpu-throttled-power", "WARN"),
    ],
)
def test_held_down_clocks_are_named(reasons, expected, severity):
    verdict = judged(replace(DECODE, clock_reasons=reasons, sm_clock_hz=0.9e9))
    (warning,) = verdict.warnings
    assert (warning.code, warning.severity) == (expected, severity)
    assert reasons[0] in warning.claim
    assert verdict.bound == "memory"  # how fast it runs does not change what it waits for


def test_clocks_at_rest_or_by_setting_are_no_warning():
    assert codes(judged(IDLE)) == []
    assert codes(judged(replace(DECODE, clock_reasons=("applications_clocks_setting", "sync_boost")))) == []


def test_memory_nearly_full_a_lost_and_a_partitioned_gpu_are_named():
    assert codes(judged(replace(DECODE, memory_used_bytes=78 * 2**30))) == ["gpu-memory-nearly-full"]
    assert codes(judged(LOST)) == ["gpu-lost"]
    assert codes(judged(PARTITIONED)) == ["gpu-partitioned"]


def test_the_busiest_gpu_comes_first_and_the_others_are_kept():
    second = replace(STARVED, uuid="GPU-b", index=1, engine_activity=0.5)
    verdict = classify(WindowSample(gpus=(replace(IDLE, uuid="GPU-a"), second, replace(LOST, uuid="GPU-c"))))
    assert verdict.device == "GPU-b"
    assert {one.device for one in verdict.others} == {"GPU-a", "GPU-c", "host"}
    assert any(codes(one) == ["gpu-lost"] for one in verdict.others)


def load_of(**shares):
    phase = PhaseLoad(name="decode", wall_s=40.0, bound="memory", shares=shares, known_share=1.0)
    return Workload(horizon_s=60.0, requests=3, on_host=3, busy_share=0.8, phases=(phase,))


def test_on_a_cpu_the_requests_say_what_holds_them_back():
    verdict = judged(host=HostSample(cpu_share=0.9), workload=load_of(memory=0.7, overhead=0.2, compute=0.1))
    assert (verdict.device, verdict.bound, verdict.confidence) == ("host", "memory", "high")
    assert verdict.shares == {
        "memory": pytest.approx(0.7),
        "overhead": pytest.approx(0.2),
        "compute": pytest.approx(0.1),
    }


def test_requests_on_the_cpu_outrank_an_idle_gpu_but_not_a_busy_one():
    load = load_of(memory=0.7, overhead=0.3)
    assert judged(IDLE, workload=load).device == "host"
    assert judged(NO_GPM, workload=load).device == "host"
    assert judged(DECODE, workload=load).device == DECODE.uuid


def test_close_shares_and_a_mostly_idle_minute_lower_the_confidence():
    verdict = judged(workload=replace(load_of(memory=0.52, overhead=0.48), busy_share=0.2))
    assert (verdict.bound, verdict.confidence) == ("memory", "low")
    assert len(verdict.reasons) == 2


def test_a_host_without_requests_is_idle_or_unknown():
    assert judged(host=HostSample(cpu_share=0.01)).bound == "idle"
    verdict = judged(host=HostSample(cpu_share=0.8))
    assert verdict.bound == "unknown"
    assert "sinks=[monitor]" in verdict.reasons[0]


def test_other_processes_on_full_processors_are_named():
    shared = HostSample(cpu_share=0.99, process_cpu_share=0.5, cpus=8, usable_cpus=8)
    assert codes(judged(host=shared)) == ["host-shared"]
    assert codes(judged(host=replace(shared, process_cpu_share=0.98))) == []
    # Half of the processors are its own, and it fills them: the other half is somebody else's.
    assert codes(judged(host=replace(shared, process_cpu_share=1.0, usable_cpus=4))) == ["host-shared"]


@pytest.mark.parametrize(
    "gpu", [DECODE, IDLE, PREFILL, FLOAT32, STARVED, LATENCY, OFFLOADED, NO_GPM, LOST, PARTITIONED]
)
def test_there_is_advice_for_every_verdict(gpu):
    verdict = judged(gpu)
    for one in (verdict, *verdict.others):
        found = advice.recommend(one)
        assert found[: len(one.warnings)] == one.warnings
        assert all(finding.code in advice.CODES and finding.action and finding.saves is None for finding in found)
    assert advice.recommend(verdict)[-1].code.removeprefix("window-").startswith(verdict.bound)


def test_arithmetic_without_tensor_cores_is_told_apart():
    assert advice.recommend(judged(FLOAT32))[-1].code == "window-compute-without-tensor-cores"
    assert advice.recommend(judged(PREFILL))[-1].code == "window-compute"


def test_every_bound_of_a_host_has_advice():
    from inferscope.analysis.verdict import BOUNDS  # noqa: PLC0415

    for bound in (*BOUNDS, "idle"):
        verdict = replace(judged(), bound=bound)
        assert advice.recommend(verdict)[-1].code == f"window-{bound}"


SHARE = st.none() | st.floats(0, 1)
AMOUNT = st.none() | st.floats(1e-3, 1e15)
NAMES = ("gpu_idle", "sw_power_cap", "hw_slowdown", "sw_thermal_slowdown", "something_new")


@st.composite
def gpus(draw):
    drawn = {}
    for field in fields(GpuSample):
        if field.name.endswith(("_share", "_activity", "_occupancy")):
            drawn[field.name] = draw(SHARE)
        elif field.name.endswith(("_hz", "_per_s", "_w", "_j", "_bytes")):
            drawn[field.name] = draw(AMOUNT)
    drawn["clock_reasons"] = draw(st.none() | st.lists(st.sampled_from(NAMES), unique=True).map(tuple))
    drawn["mig"], drawn["lost"] = draw(st.sampled_from([None, False, True])), draw(st.booleans())
    return GpuSample(uuid=draw(st.uuids().map(str)), index=0, **drawn)


@st.composite
def hosts(draw):
    return HostSample(
        cpu_share=draw(SHARE),
        process_cpu_share=draw(SHARE),
        cpus=draw(st.none() | st.integers(1, 256)),
        usable_cpus=draw(st.none() | st.integers(1, 256)),
        cpu_frequency_hz=draw(AMOUNT),
        cpu_frequency_max_hz=draw(AMOUNT),
    )


SAMPLES = st.builds(
    lambda found, host: WindowSample(gpus=tuple(found), host=host), st.lists(gpus(), max_size=3), hosts()
)


@given(SAMPLES)
def test_whatever_is_missing_nothing_raises_and_shares_close(sample):
    verdict = classify(sample)
    for one in (verdict, *verdict.others):
        assert all(0 <= share <= 1 for share in one.shares.values())
        if one.shares:
            assert sum(one.shares.values()) == pytest.approx(1)
        assert advice.recommend(one)
        assert one.confidence == "high" or one.reasons


@given(SAMPLES, st.floats(1e-6, 1e6))
def test_units_never_change_the_verdict(sample, factor):
    """Hertz, bytes and watts may be counted in anything: only ratios matter."""

    def scaled(gpu):
        names = [
            name
            for name in (field.name for field in fields(GpuSample))
            if name.endswith(("_hz", "_per_s", "_w", "_bytes"))
        ]
        known = {name: getattr(gpu, name) * factor for name in names if getattr(gpu, name) is not None}
        return replace(gpu, **known)

    # A ratio that lies on a threshold may fall to either side of it by the rounding of the product.
    close = [
        abs(row.value - row.threshold) < 1e-9
        for one in (classify(sample), *classify(sample).others)
        for row in one.evidence
        if row.threshold is not None
    ]
    if any(close):
        return
    before, after = classify(sample), classify(replace(sample, gpus=tuple(map(scaled, sample.gpus))))
    assert (before.device, before.bound, before.confidence) == (after.device, after.bound, after.confidence)
    assert codes(before) == codes(after)


@given(gpus(), st.floats(0, 1), st.floats(0, 1))
def test_more_traffic_never_turns_memory_into_less(gpu, low, high):
    """A window that memory holds back stays so when only its traffic rises."""
    low, high = sorted((low, high))
    before = judged(replace(gpu, dram_activity=low))
    if before.device == gpu.uuid and before.bound == "memory":
        assert judged(replace(gpu, dram_activity=high)).bound == "memory"


def test_every_threshold_is_a_share_with_a_source():
    names = [row.name for row in thresholds.THRESHOLDS]
    assert len(names) == len(set(names))
    for row in thresholds.THRESHOLDS:
        assert 0 < row.value < 1
        assert row.source
        assert row.meaning.endswith(".")
