from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.analysis.diagnosis import diagnose
from inferscope.analysis.findings import find
from inferscope.records import QuantileSketch
from inferscope.report import digest as module
from inferscope.report.digest import Digest, digest
from inferscope.report.phase_sums import SketchSum
from inferscope.sinks.jsonl import read_records
from inferscope.specs import DeviceSpec
from inferscope.testing import make_record, make_result

RECORDS = Path(__file__).parents[3] / "examples" / "records"
DEVICE = make_result().diagnosis.device


def _record(index=0, *, batch=1, tokens=32, model=None, tail_ns=0):
    record = make_record(request_id=f"{index:016x}", batch_size=batch, input_tokens=tokens)
    ledger = replace(record.ledger, tail_ns=tail_ns)
    named = record.model if model is None else replace(record.model, name=model)
    return replace(record, ledger=ledger, wall_ns=ledger.total_ns, model=named)


def _digest(records, expected=None):
    records = list(records)
    return digest(records, expected=expected or len(records), device_of=lambda _: DEVICE)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4000), st.integers(0, 10**12)), min_size=1, max_size=80))
def test_whatever_is_merged_every_nanosecond_and_request_stays(shapes):
    found = _digest(_record(i, batch=b, tokens=t * b, tail_ns=tail) for i, (b, t, tail) in enumerate(shapes))
    total = found.total
    assert sum(total.parts.values()) == total.wall_ns == sum(each.wall_ns for each in found.setups.values())
    assert total.requests == found.count == len(shapes)
    assert total.parts["", "tail"] == sum(tail for *_, tail in shapes)
    assert len(found.setups) <= module.SETUPS


def test_sizes_are_rounded_only_when_there_are_too_many_to_show():
    few = _digest(_record(i, tokens=10 + i) for i in range(module.SETUPS))
    assert (few.level, len(few.setups)) == (0, module.SETUPS)
    many = _digest(_record(i, tokens=10 + i) for i in range(module.SETUPS + 1))
    assert many.level == 1
    assert {each.setup.input_len for each in many.setups.values()} == {16, 32, 64}


def test_models_without_end_are_summed_up_as_others():
    found = _digest(_record(i, model=f"model {i}") for i in range(200))
    assert [each.setup.model for each in found.setups.values()] == ["others"]
    assert found.total.requests == 200


def test_opinions_rest_on_every_so_many_records_of_each_setup(monkeypatch):
    monkeypatch.setattr(module, "DIAGNOSED", 10)
    records = [_record(i, tokens=32 if i % 4 else 64) for i in range(40)]
    found = _digest(records)
    assert found.stride == 4
    assert {key.input_len: each.diagnosed for key, each in found.setups.items()} == {64: 3, 32: 8}
    phases = next(iter(found.setups.values())).phases
    assert sum(phases["decode"].bounds.values()) == 3


def test_the_slowest_are_kept_whole_and_the_first_passes_too():
    records = [_record(i, tail_ns=i * 1000) for i in range(100)]
    found = _digest(records)
    kept = [result.record.request_id for result in found.kept]
    assert kept == [f"{i:016x}" for i in range(99, 99 - module.SLOWEST, -1)]
    assert found.rows[0].request_id == kept[0]
    assert all(sum(time_ns for *_, time_ns in row.parts) == row.wall_ns for row in found.rows)
    assert len(found.rows) <= module.ROWS + module.SLOWEST


def test_a_finding_is_counted_per_model_and_speaks_through_its_largest_saving():
    device = msgspec.json.decode((RECORDS / "ceilings.json").read_bytes(), type=DeviceSpec)
    records = read_records(RECORDS / "requests.jsonl")
    other = replace(records[0], model=replace(records[0].model, name="another"), request_id="f" * 16)
    found = digest([*records, other], expected=7, device_of=lambda _: device)
    for each in found.ranked_findings:
        its = [record for record in (*records, other) if record.model.name == each.model]
        made = {
            record.request_id: finding
            for record in its
            for finding in find(record, diagnose(record, device=device))
            if (finding.code, finding.phase) == (each.finding.code, each.finding.phase)
        }
        assert each.requests == len(made)
        assert made[each.request_id] == each.finding
        shares = [finding.saves.request_share for finding in made.values() if finding.saves]
        assert each.finding.saves is None or each.finding.saves.request_share == max(shares)
    assert {each.model for each in found.ranked_findings} == {"another", records[0].model.name}
    saved = [each.saved_ns for each in found.ranked_findings]
    assert saved == sorted(saved, reverse=True)


def test_texts_from_records_are_bounded():
    found = _digest(replace(_record(i), notes=(f"note {i}",)) for i in range(500))
    assert len(found.notes) <= module.TEXTS + 1
    assert sum(found.notes.values()) == 500


def test_nothing_is_something_too():
    found = Digest(expected=0, device_of=lambda _: None)
    assert (found.count, found.diagnosed, found.families, found.kept, found.rows) == (0, 0, (), (), ())


@given(st.lists(st.lists(st.integers(0, 10**12), max_size=30), min_size=1, max_size=6))
def test_sketches_added_up_are_the_sketch_of_all_values(groups):
    halves = SketchSum(), SketchSum()
    for index, values in enumerate(groups):
        halves[index % 2].add(QuantileSketch.of(values))
    halves[0].merge(halves[1])
    assert halves[0].finished() == QuantileSketch.of(value for values in groups for value in values)


@pytest.mark.parametrize("value", [None, 1, 2, 3, 1024, 1025])
def test_sizes_are_rounded_up(value):
    setup = replace(next(iter(_digest([_record()]).setups)), batch_size=value).coarse(1)
    assert setup.batch_size == {None: None, 1: 1, 2: 2, 3: 4, 1024: 1024, 1025: 2048}[value]
