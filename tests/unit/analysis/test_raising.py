"""A request that beats a roof raises it, within bounds; anything less certain leaves it alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.analysis.raising import raised
from inferscope.records import DeviceTime, PassRun, PhaseLedger, QuantileSketch, Work
from inferscope.specs import BASIS, Ceiling, CostTerms, DeviceSpec, OperatorTerms, monomials
from inferscope.testing import make_record


def constant(value):
    return (value, *[0] * (len(BASIS) - 1))


def device(*, flops_per_s=100e9, bytes_per_s=10e9, source="measured"):
    spread = 0.01 if source == "measured" else None
    return DeviceSpec(
        name="made",
        kind="cpu",
        compute_flops_per_s={"float32": Ceiling(value=flops_per_s, source=source, spread=spread)},
        copy_bytes_per_s=Ceiling(value=bytes_per_s, source=source, spread=spread),
        cache_bytes=1_000_000,
    )


def record(*, flops=0, weight_bytes=0, seconds=1.0, **changed):
    """One decode pass of that cost in that time."""
    terms = OperatorTerms(
        group="linear 1x1",
        regime="decode",
        calls=constant(1),
        launches=constant(1),
        flops=constant(int(flops)),
        flops_full=constant(int(flops)),
        weight_bytes=constant(int(weight_bytes)),
        activation_bytes=constant(0),
        executed_bytes=constant(int(weight_bytes)),
    )
    made = make_record()
    cost = CostTerms(operators=(terms,), kv_bytes_per_token=0, logits_bytes=0, supports_logits_to_keep=True)
    ns = round(seconds * 1e9)
    ledger = PhaseLedger(issue_ns=ns, select_ns=0, wait_ns=None, deliver_ns=0, offcpu_ns=None, gc_ns=0)
    phase = replace(
        made.phase("decode"),
        passes=1,
        wall_ns=ns,
        ledger=ledger,
        pass_ns=QuantileSketch.of([ns]),
        device=None,
        work=(
            Work(
                regime="decode",
                passes=1,
                monomials=monomials(1, 1, 10, 1),
                runs=(PassRun(batch_size=1, q_len=1, past_len=10, logits=1),),
            ),
        ),
    )
    model = replace(made.model, cost=cost, **changed.pop("model", {}))
    return make_record(model=model, phases=(replace(phase, **changed.pop("phase", {})),), **changed)


def test_a_faster_request_is_the_roof_from_then_on():
    before = device()
    after = raised(before, record(flops=120e9))
    roof = after.compute_flops_per_s["float32"]
    assert roof.value == 120e9
    assert "decode of request 00c0ffee00c0ffee" in roof.note
    assert "1e+11 (measured)" in roof.note
    assert after.copy_bytes_per_s == before.copy_bytes_per_s
    assert raised(after, record(flops=119e9)) is after


def test_the_memory_roof_too_where_nothing_of_it_came_from_a_cache():
    assert raised(device(), record(weight_bytes=12e9)).copy_bytes_per_s.value == 12e9
    small = record(weight_bytes=3e6, seconds=2e-4)  # 15 GB/s, of three caches' size
    before = device()
    assert raised(before, small) is before


@pytest.mark.parametrize(
    "faster",
    [
        record(flops=151e9),  # this was no roof
        record(flops=100.5e9),
        record(flops=120e9, status="aborted"),
        record(flops=120e9, model={"device": "cuda:0"}),  # host stamps say nothing of a device
        record(flops=120e9, model={"dtype": "bfloat16"}),
        record(flops=120e9, phase={"name": "draft"}),
        record(flops=120e9, phase={"work": ()}),
    ],
)
def test_what_is_not_certain_raises_nothing(faster):
    before = device()
    assert raised(before, faster) is before


def test_a_datasheet_is_beaten_by_a_clock_that_boosts_and_not_by_a_count_that_is_wrong():
    before = device(source="datasheet")
    assert raised(before, record(flops=104e9)).compute_flops_per_s["float32"].source == "measured"
    assert raised(before, record(flops=106e9)) is before


def test_the_longest_time_that_a_device_may_have_worked_counts():
    on_gpu = {"model": {"device": "cuda:0"}}
    worked = DeviceTime(low_ns=500_000_000, high_ns=1_000_000_000, provenance="bound", passes=1)
    assert raised(device(), record(flops=120e9, phase={"device": worked}, **on_gpu)).compute_flops_per_s[
        "float32"
    ].value == pytest.approx(120e9)
    part = replace(worked, passes=7)
    before = device()
    assert raised(before, record(flops=120e9, phase={"device": part}, **on_gpu)) is before


@given(st.floats(1e6, 1e13), st.floats(1e6, 1e12))
def test_a_roof_never_falls_and_never_rises_by_more_than_half(flops, weight_bytes):
    before = device()
    after = raised(before, record(flops=flops, weight_bytes=weight_bytes))
    assert 1 <= after.compute_flops_per_s["float32"].value / 100e9 <= 1.5
    assert 1 <= after.copy_bytes_per_s.value / 10e9 <= 1.5
