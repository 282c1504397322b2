"""Many requests in one view: sums are exact, what is unknown is said, memory is bounded."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from inferscope.report.requests import RequestTally
from inferscope.testing import make_record, make_result

MAYBE_NS = st.none() | st.integers(1, 10**12)


@given(st.lists(st.tuples(MAYBE_NS, st.none() | st.integers(0, 10**6), st.sampled_from(["ok", "aborted"])), min_size=1))
def test_sums_are_those_of_the_requests(rows):
    tally = RequestTally()
    for ttft_ns, tokens, status in rows:
        tally(make_result(record=make_record(ttft_ns=ttft_ns, output_tokens=tokens, status=status)))
    seen = json.loads(json.dumps(tally.as_json(), allow_nan=False))
    known = [tokens for _, tokens, _ in rows if tokens is not None]
    times = [ttft_ns for ttft_ns, _, _ in rows if ttft_ns is not None]
    assert seen["requests"] == len(rows)
    assert seen["aborted"] == sum(status == "aborted" for *_, status in rows)
    assert seen["tokens"]["output"] == {
        "sum": sum(known) if known else None,
        "requests_without": len(rows) - len(known),
    }
    assert seen["ttft_s"]["max"] == (max(times) / 1e9 if times else None)
    if times:
        middle = sorted(times)[(len(times) - 1) // 2]
        upper = sorted(times)[len(times) // 2]
        assert middle / 1e9 * 0.98 <= seen["ttft_s"]["p50"] <= upper / 1e9 * 1.02
    else:
        assert set(seen["ttft_s"].values()) == {None}
    assert tally.to_text()


def test_the_time_of_phases_is_kept_by_verdict():
    tally = RequestTally()
    result = make_result()
    expected = Counter()
    for _ in range(3):
        tally(result)
        for phase in result.record.phases:
            expected[phase.name, result.diagnosis.phase(phase.name).bound] += phase.wall_ns
    seen = {(row["phase"], row["bound"]): row["time_s"] for row in tally.as_json()["phases"]}
    assert seen == {key: time_ns / 1e9 for key, time_ns in expected.items()}
    text = tally.to_text()
    assert "3 requests of" in text
    assert "The slowest request, " in text


def test_the_slowest_and_the_last_are_kept_and_names_of_models_are_not_without_end():
    tally = RequestTally()
    for number, model in enumerate(["a"] * 2 + [f"model {index}" for index in range(50)]):
        result = make_result()
        record = replace(result.record, request_id=f"{number:016x}")
        record = replace(record, model=replace(record.model, name=model))
        if number == 1:
            slow = replace(record.ledger, residual_ns=record.ledger.residual_ns + 10**9)
            record = replace(record, wall_ns=record.wall_ns + 10**9, ledger=slow)
        tally(replace(result, record=record))
    seen = tally.as_json()
    assert seen["slowest"]["request_id"] == f"{1:016x}"
    assert seen["last"]["request_id"] == f"{51:016x}"
    assert len(seen["models"]) <= 9
    assert sum(seen["models"].values()) == 52


def test_findings_come_by_what_they_would_save():
    tally = RequestTally()
    made = make_result()
    finding = next(one for one in made.findings if one.saves is not None)
    small, large, unknown = (
        replace(finding, code=code, saves=saves)
        for code, saves in (
            ("small", replace(finding.saves, request_share=0.1)),
            ("large", replace(finding.saves, request_share=0.3)),
            ("unknown", None),
        )
    )
    for findings in ((unknown, small), (unknown, small), (unknown, large, large)):
        tally(replace(made, findings=findings))
    assert list(tally.as_json()["findings"].items()) == [("large", 1), ("small", 2), ("unknown", 3)]
    lines = [line.split() for line in tally.to_text().splitlines() if line.startswith("  finding ")]
    assert [line[1] for line in lines] == ["large", "small", "unknown"]


def test_without_requests_it_says_so():
    tally = RequestTally()
    assert "no generate()" in tally.to_text()
    seen = tally.as_json()
    assert (seen["requests"], seen["slowest"], seen["last"]) == (0, None, None)
    assert seen["wall_s"] == dict.fromkeys(("p50", "p90", "p99", "max"))
