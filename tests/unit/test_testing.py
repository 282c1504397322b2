from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from inferscope.testing import CapturingSink, make_record, make_result


def test_the_made_ledger_closes_on_both_levels():
    record = make_record()
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.phases_ns == tuple((phase.name, phase.wall_ns) for phase in record.phases)
    assert all(phase.ledger.total_ns == phase.wall_ns for phase in record.phases)


def test_phases_follow_each_other_inside_the_wall():
    record = make_record()
    prefill, decode = record.phases
    assert record.ledger.setup_ns == prefill.start_ns < prefill.end_ns == decode.start_ns < decode.end_ns
    assert decode.end_ns <= record.wall_ns
    inside = sum(phase.end_ns - phase.start_ns - phase.wall_ns for phase in record.phases)
    assert inside == record.ledger.self_ns


def test_the_ledger_follows_overridden_phases():
    record = make_record()
    prefill = record.phases[0]
    longer = replace(prefill, wall_ns=prefill.wall_ns + 5, ledger=replace(prefill.ledger, issue_ns=5 + 88_400_000))
    changed = make_record(phases=(longer,))
    assert changed.ledger.phases_ns == (("prefill", prefill.wall_ns + 5),)
    assert changed.ledger.total_ns == changed.wall_ns


def test_an_overridden_wall_moves_the_residual():
    record = make_record(wall_ns=make_record().wall_ns + 1_000)
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.residual_ns == make_record().ledger.residual_ns + 1_000


def test_the_made_opinion_agrees_with_the_record():
    result = make_result()
    assert [phase.name for phase in result.diagnosis.phases] == [phase.name for phase in result.record.phases]
    for phase in result.diagnosis.phases:
        assert sum(phase.shares.values()) == pytest.approx(1)
        assert phase.bound == max(phase.shares, key=phase.shares.__getitem__)
        assert phase.cost is not None
        assert sum(group.flops for group in phase.cost.groups) == phase.cost.flops
        assert sum(group.bytes for group in phase.cost.groups) == phase.cost.bytes.model
        assert phase.cost.bytes.minimum <= phase.cost.bytes.model <= phase.cost.bytes.executed
    assert len(result.findings) == 2


def test_a_record_without_decode_has_no_opinion_on_decode():
    result = make_result(record=make_record(phases=make_record().phases[:1]))
    assert [phase.name for phase in result.diagnosis.phases] == ["prefill"]
    assert result.findings == ()


@pytest.mark.parametrize("make", [make_record, make_result])
def test_a_field_that_does_not_exist_is_refused(make):
    with pytest.raises(TypeError, match="no field no_such_field"):
        make(no_such_field=1)


def test_the_sink_collects_from_many_threads():
    sink, result = CapturingSink(), make_result()
    threads = [threading.Thread(target=lambda: [sink(result) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sink) == len(sink.results) == 1600
    assert sink.last is result
    sink.clear()
    with pytest.raises(LookupError):
        _ = sink.last


def test_neither_torch_nor_opentelemetry_is_loaded():
    loaded = "import sys, inferscope.testing; sys.exit(any(m in sys.modules for m in ('torch', 'opentelemetry')))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
