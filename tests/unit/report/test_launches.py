"""Launches, waits and what inferscope costs: shown wherever a record holds them, with how they are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferscope.analysis.operators import why_unbound
from inferscope.records import (
    DeepTime,
    DeviceLedger,
    HostLedger,
    OperatorTime,
    OwnOverhead,
    StepCount,
    SyncSeen,
)
from inferscope.report.digest import digest
from inferscope.report.document import document
from inferscope.report.html import page
from inferscope.report.launches import launch_lines, overhead_lines, wait_lines
from inferscope.report.markdown import markdown
from inferscope.report.plain import to_text
from inferscope.report.story import Report, Source
from inferscope.report.terminal import render
from inferscope.testing import make_record, make_result

US = 1_000
STEP = StepCount(
    name="decode", passes=15, batch_size=1, context_from=32, context_to=63, launches=310, graph_launches=2, syncs=0,
    unit="kernel", source="native", samples=7, launches_before=301,
)  # fmt: skip
OWN = OwnOverhead(
    budget_share=0.01, observed_share=0.5, self_share=0.004, per_token_ns=3_100.0, low_ns=-200.0, high_ns=5_200.0,
    observed=40, bare=38, provenance="randomised",
)  # fmt: skip
POINT = SyncSeen(file="<b>transformers/utils.py", line=395, count=4, caller_file="serve.py", caller_line=12)
DEEP = DeepTime(
    passes=2, wall_ns=200 * US, operators_ns=150 * US, python_ns=50 * US, gaps=10, closure_ns=0, cost_ns=1,
    device_busy_ns=80 * US,
    host=HostLedger(python_ns=50 * US, dispatch_ns=70 * US, driver_ns=60 * US, sync_ns=20 * US),
    device=DeviceLedger(
        window_ns=200 * US, busy_ns=(("linear", 80 * US),), starved_ns=90 * US, launch_gap_ns=10 * US,
        drained_ns=20 * US,
    ),
)  # fmt: skip


def counted(**fields):
    """A record whose decode was counted, looked at and recorded; fields are of its decode."""
    prefill, decode = make_record().phases
    told = {"launches": 15 * 310, "launches_source": "native", "steps": (STEP,), "sync_passes": 2}
    operators = tuple(
        OperatorTime(group=group, time_ns=40 * US, wall_ns=200 * US, calls=4, launches=4)
        for group in ("linear", "copy")
    )
    decode = replace(decode, **{**told, "sync_points": (POINT,), "deep": DEEP, "operators": operators, **fields})
    return make_record(phases=(prefill, decode), own_overhead=OWN)


def report_of(*records):
    found = digest(records, expected=len(records), device_of=lambda _: None)
    return Report(
        found=found, sources=(Source(path="r.jsonl", records=found.count),), devices=(), datasheets={}, unjudged=(),
        baseline=None, baseline_sources=(), changes=None, version="0.0",
    )  # fmt: skip


SAID = (
    "310 kernels launched per pass, which is a token of each sequence [native]",
    "host reads seen: 1 per pass [bound: at least]",
    "310 kernels each [native, 7 counted] · 2 graphs · 0 waits within · 15 of batch 1, context 32 to 63",
    "CHANGED from 301",
    "decode, 2 passes looked at: 2 per pass at <b>transformers/utils.py:395, called from serve.py:12",
    "0.40 % of the latest observed requests' time [measured]",
    "the budget is 1.00 %, 50.0 % of requests are observed",
    "3.10 µs per new token, between -200 ns and 5.20 µs [randomised: 40 requests observed against 38 left out",
    "host: python 25.0 % · dispatch 35.0 % · driver 30.0 % · sync 10.0 %",
    "device: linear 40.0 % · starved 45.0 % · launch gap 5.00 % · drained 10.0 %",
)


@pytest.mark.parametrize("words", SAID)
def test_text_and_terminal_say_what_the_record_holds(words):
    result = make_result(record=counted())
    assert words in " ".join(to_text(result, width=400).split())
    assert words in " ".join(render(result, width=400).split())


def test_what_a_record_does_not_hold_is_not_said():
    record = make_record()
    assert launch_lines(record)[0].startswith("prefill: launches not counted · host reads seen: 1")
    assert wait_lines(record) == ()
    assert overhead_lines(record.own_overhead) == ()
    unsure = OwnOverhead(budget_share=0.01, observed_share=1.0)
    share, compared = overhead_lines(unsure)
    assert "not told before" in share
    assert "is not known" in compared
    assert "0 ns" not in share + compared


def test_a_pass_that_was_looked_at_and_did_not_wait_says_so():
    assert wait_lines(counted(sync_points=())) == ("decode, 2 passes looked at: no wait seen",)


def test_counts_that_do_not_settle_are_not_told_as_a_change():
    lines = launch_lines(counted(steps=(replace(STEP, varies=True),), launches=None, launches_source=None))
    assert any("of 15 passes 15 are of a kind that was counted" in line for line in lines)
    assert any("not the same in each" in line for line in lines)
    assert not any("CHANGED" in line for line in lines)


def test_a_group_without_a_bound_has_its_reason():
    result = make_result(record=counted())
    phase, verdict = result.record.phase("decode"), result.diagnosis.phase("decode")
    (reason,) = why_unbound(result.record, phase, verdict.cost, result.diagnosis.device)
    assert reason.endswith("no work of copy")
    assert f"bound –: {reason}" in to_text(result, width=200)  # noqa: RUF001 - the dash of tables
    assert "calibrate" in why_unbound(result.record, phase, verdict.cost, None)[0]
    assert "not counted" in why_unbound(result.record, phase, None, result.diagnosis.device)[0]
    assert why_unbound(result.record, result.record.phase("prefill"), None, None) == ()


def test_reports_of_many_sum_them_up():
    older = replace(counted(), request_id="01", started_unix_ns=1, own_overhead=replace(OWN, observed=3))
    quiet = replace(STEP, launches_before=None)
    report = report_of(counted(), older, replace(counted(steps=(quiet,)), request_id="02"))
    made = document(report)
    (launches,) = made["launches"]
    assert (launches["launches"], launches["passes"], launches["source"]) == (310, 45, "native")
    assert launches["change"].startswith("CHANGED from 301")
    (wait,) = made["waits"]
    assert (wait["count"], wait["passes_looked_at"]) == (12, 6)
    assert made["own_overhead"]["observed"] == 40
    shown = page(report)
    assert "<b>transformers" not in shown
    for words in ("310 kernels", "CHANGED from 301", "utils.py:395, called from serve.py:12", "starved 45.0 %"):
        assert words in shown
    assert "3.10 µs per new token" in shown
    text = "".join(markdown(report))
    assert "310 kernels" in text
    assert "utils.py:395" in text


def test_kinds_and_places_without_end_are_bounded():
    points = tuple(SyncSeen(file=f"f{number}.py", line=1, count=1) for number in range(500))
    steps = tuple(replace(STEP, context_from=number) for number in range(500))
    made = document(report_of(counted(steps=steps, sync_points=points)))
    assert len(made["launches"]) == len(made["waits"]) == 200
