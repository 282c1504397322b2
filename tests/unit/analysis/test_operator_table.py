"""Recorded groups beside what they cost: rates, roofs, and dashes where the two do not correspond."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferscope.analysis.operators import operator_table
from inferscope.records import DeepTime, OperatorTime
from inferscope.specs import Ceiling, DeviceSpec
from inferscope.testing import make_record, make_result

US = 1_000


def recorded(phase, *entries):
    return replace(
        phase,
        deep=DeepTime(
            passes=2, wall_ns=200 * US, operators_ns=150 * US, python_ns=50 * US, gaps=10, closure_ns=0, cost_ns=1
        ),
        operators=entries,
    )


def entry(group, time_ns):
    return OperatorTime(group=group, time_ns=time_ns, wall_ns=200 * US, calls=4)


def test_nothing_without_recorded_passes():
    record = make_record()
    assert operator_table(record, record.phases[0], None, None) == ()


def test_without_a_cost_there_is_time_and_nothing_else():
    record = make_record()
    (row,) = operator_table(record, recorded(record.phases[1], entry("linear", 100 * US)), None, None)
    assert (row.time_ns, row.calls, row.share) == (50 * US, 2, 0.5)
    assert (row.flops, row.bytes, row.flops_per_s, row.bound, row.roof_share, row.launches) == (None,) * 6


def test_groups_that_correspond_have_rates_and_roofs():
    result = make_result()
    record = result.record
    phase = recorded(record.phase("decode"), entry("linear", 100 * US), entry("copy", 50 * US))
    cost = result.diagnosis.phase("decode").cost
    flops = sum(each.flops for each in cost.groups if each.group.split()[0] == "linear") / phase.passes
    moved = sum(each.bytes for each in cost.groups if each.group.split()[0] == "linear") / phase.passes
    seconds = 50e-6
    for roof_share, bound in ((0.9, "memory"), (0.4, "inefficient")):
        device = DeviceSpec(
            name="x",
            kind="cpu",
            compute_flops_per_s={record.model.dtype: Ceiling(value=flops / seconds * 1e6, source="measured")},
            copy_bytes_per_s=Ceiling(value=moved / seconds / roof_share, source="measured"),
        )
        linear, copy = operator_table(record, phase, cost, device)
        assert linear.flops == pytest.approx(flops)
        assert linear.bytes_per_s == pytest.approx(moved / seconds)
        assert linear.roof_share == pytest.approx(roof_share)
        assert linear.bound == bound
        assert copy.flops is copy.bytes is copy.bound is None
