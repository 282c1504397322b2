"""Who waits for whom, and what the device is busy with: the verdict on device time given as an interval."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_diagnosis import model

from inferscope.analysis.diagnosis import diagnose
from inferscope.records import DeviceTime
from inferscope.specs import Ceiling, DeviceSpec
from inferscope.testing import make_record

WEIGHTS = 500_000_000


def gpu(*, flops_per_s=1e15, bytes_per_s=3e12, source="measured"):
    return DeviceSpec(
        name="H100",
        kind="cuda",
        key="gpu",
        compute_flops_per_s={"float32": Ceiling(value=flops_per_s, source=source)},
        copy_bytes_per_s=Ceiling(value=bytes_per_s, source=source),
    )


def judged(device_time, *, device=None):
    record = make_record()
    prefill, decode = record.phases
    decode = replace(decode, device=device_time)
    spec = model(flops=2 * WEIGHTS, weight_bytes=WEIGHTS, device="cuda:0")
    record = replace(record, model=spec, phases=(prefill, decode))
    return diagnose(record, device=device or gpu()).phase("decode")


def timed(low_share, high_share, lag_share, *, provenance="bound", passes=None):
    """Device time of the sample record's decode, as shares of its wall."""
    phase = make_record().phases[1]
    wall = phase.wall_ns
    return DeviceTime(
        low_ns=int(low_share * wall),
        high_ns=int(high_share * wall),
        provenance=provenance,
        passes=passes or phase.passes,
        cycles_ns=wall,
        events_ns=int(high_share * wall),
        lag_ns=int(lag_share * high_share * wall),
    )


def test_a_device_that_has_caught_up_waits_for_the_host_whatever_its_kernels_cost():
    for high in (0.3, 0.97):
        verdict = judged(timed(0.0, high, 0.001))
        assert verdict.bound == "overhead"
        assert verdict.shares["overhead"] > 0.95
        assert {row.metric for row in verdict.evidence} >= {"lag_share", "device_share"}


def test_a_device_far_behind_at_its_memory_roof_is_memory_bound():
    decode = make_record().phases[1]
    roof = decode.passes * WEIGHTS / (0.8e-9 * decode.wall_ns)  # the weights take four fifths of the wall
    verdict = judged(timed(0.9, 0.92, 0.8, provenance="saturated"), device=gpu(bytes_per_s=roof))
    assert (verdict.bound, verdict.confidence) == ("memory", "high")
    assert verdict.shares["memory"] == pytest.approx(0.8, abs=0.02)
    assert verdict.shares["overhead"] == pytest.approx(0.08, abs=0.01)


def test_a_device_far_behind_and_far_below_its_roofs_is_inefficient():
    verdict = judged(timed(0.9, 0.92, 0.8, provenance="saturated"))
    assert (verdict.bound, verdict.confidence) == ("inefficient", "high")


def test_a_verdict_that_turns_on_the_interval_is_not_certain():
    verdict = judged(timed(0.2, 0.92, 0.2))
    assert verdict.confidence == "low"
    assert any("plugged or profiled pass would tell" in reason for reason in verdict.reasons)


def test_between_the_thresholds_host_and_device_are_balanced():
    verdict = judged(timed(0.05, 0.95, 0.06))
    assert verdict.confidence == "low"
    assert any(reason.startswith("balanced: host and device") for reason in verdict.reasons)


def test_a_datasheet_is_no_measurement():
    verdict = judged(timed(0.9, 0.92, 0.8, provenance="saturated"), device=gpu(source="datasheet"))
    assert verdict.confidence == "low"


def test_passes_that_could_not_be_timed_are_said():
    verdict = judged(timed(0.4, 0.45, 0.8, provenance="saturated", passes=5))
    assert any("could not be timed" in reason for reason in verdict.reasons)


def test_without_device_time_nothing_is_claimed():
    verdict = judged(None)
    assert verdict.bound == "unknown"
    assert verdict.shares == {}


@given(st.floats(0, 1), st.floats(0.001, 1), st.floats(0, 1), st.floats(1e6, 1e16), st.floats(1e6, 1e16))
def test_shares_sum_to_one_and_are_none_negative(low, high, lag, flops, bandwidth):
    low, high = min(low, high), max(low, high)
    verdict = judged(timed(low, high, lag), device=gpu(flops_per_s=flops, bytes_per_s=bandwidth))
    assert sum(verdict.shares.values()) == pytest.approx(1.0)
    assert min(verdict.shares.values()) >= -1e-12
    assert verdict.bound in verdict.shares


amounts = st.integers(1, 10**12)


@given(
    flops=amounts, more=amounts, low=st.floats(0, 1), lag=st.floats(0, 1), provenance=st.sampled_from(["bound", "deep"])
)
def test_more_flops_never_move_a_device_from_compute_to_memory_and_shares_sum_to_one(flops, more, low, lag, provenance):
    """Whatever the interval of its time and whoever waits for whom."""
    verdicts = []
    for each in (flops, flops + more):
        record = make_record()
        decode = replace(record.phases[1], device=timed(low * 0.9, 0.9, lag, provenance=provenance))
        spec = model(flops=each, weight_bytes=WEIGHTS, device="cuda:0")
        verdicts.append(
            diagnose(replace(record, model=spec, phases=(record.phases[0], decode)), device=gpu()).phases[1]
        )
    for verdict in verdicts:
        assert sum(verdict.shares.values()) == pytest.approx(1.0)
        assert min(verdict.shares.values()) >= -1e-12
    if verdicts[0].bound == "compute":
        assert verdicts[1].bound != "memory"


def test_a_device_time_that_is_no_interval_gives_unknown():
    broken = replace(timed(0.5, 0.9, 0.8), low_ns=-1)
    verdict = judged(broken)
    assert verdict.bound == "unknown"
    assert "no interval" in verdict.reasons[0]
