"""Before and after in a report: what `inferscope.compare` says, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

import inferscope
from inferscope.report.changes import change_chart, change_grid, compared
from inferscope.testing import make_record


def requests(factor, *, syncs=1, count=12):
    """Requests whose decode is so many times as long, each a little different."""
    made = []
    for number in range(count):
        prefill, decode = make_record().phases
        more_ns = round(decode.ledger.issue_ns * (factor - 1)) + 50_000 * number
        ledger = replace(decode.ledger, issue_ns=decode.ledger.issue_ns + more_ns)
        decode = replace(
            decode,
            ledger=ledger,
            wall_ns=ledger.total_ns,
            end_ns=decode.end_ns + more_ns,
            syncs=syncs * decode.passes,
        )
        made.append(make_record(phases=(prefill, decode), request_id=f"{number:016x}"))
    return made


def test_the_page_has_the_comparison_s_numbers_and_words():
    result = inferscope.compare(requests(1), requests(0.5, syncs=2))
    changes = compared(result)
    rows = {row.what: row for row in changes.rows}
    tpot = result.change("tpot")
    row = rows["tpot"]
    assert (row.before_ns, row.after_ns, row.ratio) == (tpot.baseline, tpot.candidate, tpot.ratio.value)
    assert (row.low, row.high) == (tpot.ratio.low, tpot.ratio.high)
    assert row.verdict == "less"
    assert row.ratio == pytest.approx(0.5, abs=0.02)
    assert "syncs_per_token: 1 before, 2 after" in changes.notes
    assert any(note.startswith("output tokens: ") for note in changes.notes)
    assert changes.method.startswith("Requests matched by batch and lengths, several of each")
    assert not any(each.kind == "count" and each.metric in rows for each in result.changes)
    assert len(change_grid(changes).rows) == len(changes.rows) == len(change_chart(changes).drawings[0].data[0]["x"])


def test_what_differs_and_what_cannot_be_told_is_said():
    few, other = requests(1, count=1), requests(1, count=1)
    other = [replace(one, model=replace(one.model, dtype="bfloat16")) for one in other]
    changes = compared(inferscope.compare(few, other))
    assert any(note.startswith("not the same work: dtype was float32, is bfloat16") for note in changes.notes)
    assert all(row.low is None for row in changes.rows)
    assert all(row.verdict.startswith("cannot tell: ") for row in changes.rows if row.what == "tpot")
