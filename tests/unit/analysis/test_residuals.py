"""Counters beside the cost model: agreement, more, less, and when nothing can be said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferscope.analysis.counters import CounterReport, CounterSums, PhaseCounters
from inferscope.analysis.residuals import residuals
from inferscope.records import PassRun
from inferscope.specs import BASIS, CostTerms, ModelSpec, OperatorTerms
from inferscope.testing import make_record

BYTES, FLOPS = 1_000_000, 2_000_000


def constant(value):
    return (value, *[0] * (len(BASIS) - 1))


def terms():
    """Every pass moves as many bytes and does as many operations."""
    one = OperatorTerms(
        group="linear 1x1",
        regime="decode",
        calls=constant(1),
        launches=constant(1),
        flops=constant(FLOPS),
        flops_full=constant(FLOPS),
        weight_bytes=constant(BYTES),
        activation_bytes=constant(0),
        executed_bytes=constant(BYTES),
    )
    every = tuple(replace(one, regime=regime) for regime in ("prefill", "decode", "continuation"))
    return CostTerms(operators=every, kv_bytes_per_token=0, logits_bytes=0, supports_logits_to_keep=True)


def record(*, cost=True, runs=True):
    made = make_record()
    phases = []
    for phase in made.phases:
        shape = PassRun(batch_size=1, q_len=1, past_len=32, logits=1, passes=phase.passes, step=1)
        work = tuple(replace(one, runs=(shape,) if runs else None) for one in phase.work)
        phases.append(replace(phase, work=work))
    spec = ModelSpec(
        name="made", model_class="Made", cost=terms() if cost else None, cost_note="" if cost else "too odd"
    )
    return replace(made, phases=tuple(phases), model=spec)


def report(*, passes=None, dram_bytes=None, flops=None, phase="decode"):
    kinds = () if flops is None else (("fp16", 0.0), ("fp32", 0.0), ("fp64", 0.0), ("tensor bf16", float(flops)))
    sums = CounterSums(launches=1, dram_bytes=dram_bytes, flops=kinds)
    part = PhaseCounters(phase=phase, sums=sums, passes=passes)
    return CounterReport(
        source="x", page="raw", number_style="1,234.5", style_seen=True, total=sums, phases=(part,), kernels=()
    )


def verdicts(counters, records, passes=None):
    return {one.quantity: one for one in residuals(counters, records, passes)}


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "agrees"), (1.3, "more"), (0.5, "less")])
def test_per_pass_the_counters_agree_or_do_not(factor, verdict):
    found = verdicts(report(passes=3, dram_bytes=3 * BYTES * factor, flops=3 * FLOPS * factor), [record()])
    for quantity, expected in (("dram_bytes", BYTES), ("flops", FLOPS)):
        one = found[quantity]
        assert (one.verdict, one.passes, one.passes_from) == (verdict, 3, "ranges")
        assert one.measured == pytest.approx(expected * factor)
        assert one.ratio == pytest.approx(factor, rel=1e-3)  # the token ids themselves are bytes, too
        assert one.expected_low <= one.expected_high


def test_what_was_told_counts_before_what_the_ranges_say():
    found = verdicts(report(passes=9, dram_bytes=2 * BYTES), [record()], {"decode": 2})
    assert (found["dram_bytes"].verdict, found["dram_bytes"].passes_from) == ("agrees", "told")
    assert found["flops"].verdict == "cannot tell"
    assert "were not collected" in found["flops"].meaning


@pytest.mark.parametrize(
    ("counters", "made", "words"),
    [
        (report(dram_bytes=1), record(), "give --passes decode=N"),
        (report(passes=99, dram_bytes=1), record(), "the profile covers 99 passes, the records hold 15"),
        (report(passes=1, dram_bytes=1), record(cost=False), "no cost is known for made: too odd"),
        (report(passes=1, dram_bytes=1), record(runs=False), "does not hold the shapes"),
    ],
    ids=["passes unknown", "other passes", "no cost", "no shapes"],
)
def test_where_it_cannot_be_told_nothing_is_said(counters, made, words):
    found = verdicts(counters, [made])
    assert {one.verdict for one in found.values()} == {"cannot tell"}
    assert {one.ratio for one in found.values()} == {None}
    assert all(words in one.meaning for one in found.values())


def test_a_phase_that_no_record_has_is_left_out():
    assert residuals(report(passes=1, dram_bytes=1, phase="verify"), [record()]) == ()
