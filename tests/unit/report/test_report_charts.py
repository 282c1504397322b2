import json
import math
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from inferscope.hardware.catalog import catalog
from inferscope.records import DeviceTime, PassSample
from inferscope.report import charts
from inferscope.report.changes import change_chart, compared, medians
from inferscope.report.digest import digest
from inferscope.report.shapes import shapes
from inferscope.report.timeline import PASSES_DRAWN, lanes_missing, timeline
from inferscope.sinks.jsonl import read_records
from inferscope.specs import DeviceSpec
from inferscope.testing import make_record

RECORDS = Path(__file__).parents[3] / "examples" / "records"


@pytest.fixture(scope="module")
def device():
    return msgspec.json.decode((RECORDS / "ceilings.json").read_bytes(), type=DeviceSpec)


@pytest.fixture(scope="module")
def found(device):
    records = [*read_records(RECORDS / "requests.jsonl"), *read_records(RECORDS / "sweep.jsonl")]
    return digest(records, expected=len(records), device_of=lambda _: device)


@pytest.fixture(scope="module")
def drawn(found, device):
    eager = read_records(RECORDS / "eager.jsonl")
    before = digest(eager, expected=len(eager), device_of=lambda _: device)
    sheet = catalog()["L40S"]
    made = (
        charts.roofline(found, device, sheet),
        charts.ledger(found),
        charts.ledgers(found),
        charts.gaps(found),
        timeline(found.kept),
        change_chart(medians(before, found)),
        *shapes(found),
    )
    return {one.key: one for one in made}


def test_every_chart_is_what_plotly_understands(drawn):
    figures = pytest.importorskip("plotly.graph_objects", reason="plotly is in the extra `report`")
    for one in drawn.values():
        for drawing in one.drawings:
            layout = {name: value for name, value in drawing.layout.items() if name != "meta"}
            figures.Figure(data=drawing.data, layout=layout)  # raises at the first name or value it does not know


def test_every_chart_has_a_name_and_finite_numbers(drawn):
    for one in drawn.values():
        assert len(one.summary) > 10
        json.dumps([[drawing.data, drawing.layout] for drawing in one.drawings], allow_nan=False)


def test_the_ledger_s_bars_stand_end_to_end_and_end_at_the_wall(drawn):
    for drawing in drawn["ledger"].drawings:
        *parts, wall = drawing.data
        reached = 0.0
        for part in parts:
            assert part["base"][0] == pytest.approx(reached)
            reached += part["x"][0]
        assert wall["x"][0] == pytest.approx(reached)


def test_roofs_say_what_they_are(drawn):
    data = drawn["roofline-0"].drawings[0].data
    roofs = [trace for trace in data if trace["meta"] == "roof"]
    assert all("dense" in trace["name"] for trace in roofs)
    assert {trace["line"]["dash"] for trace in roofs if "datasheet" in trace["name"]} == {"dash"}
    assert {trace["line"]["dash"] for trace in roofs if "measured" in trace["name"]} <= {"solid", "dot"}
    for trace in roofs:
        low, ridge, high = trace["y"]
        assert low < ridge == high


def test_every_phase_of_every_setup_is_on_the_roofline(drawn, found):
    data = drawn["roofline-0"].drawings[0].data
    marks = sum(len(trace["x"]) for trace in data if trace["meta"] == "phase")
    assert marks == sum(len(each.phases) for each in found.setups.values())
    assert any(trace["meta"] == "operator" for trace in data)


def test_gaps_are_all_counted(drawn, found):
    for drawing, family in zip(drawn["gaps"].drawings, found.families, strict=True):
        assert sum(drawing.data[0]["y"]) == family.itl.finished().count


def test_the_timeline_draws_what_is_there_and_says_what_is_not():
    bare = make_record()
    assert "single passes" in lanes_missing(bare)
    assert "device" in lanes_missing(bare)
    on_device = DeviceTime(low_ns=10, high_ns=20, provenance="bound", start_ns=5, end_ns=40)
    samples = tuple(
        PassSample(name="decode", start_ns=i * 1000, host_ns=900, q_len=1, past_len=i, batch_size=1, device=on_device)
        for i in range(PASSES_DRAWN)
    )
    whole = replace(bare, pass_samples=samples)
    assert lanes_missing(whole) == ""
    assert "2 to a bar" in lanes_missing(replace(bare, pass_samples=(*samples, samples[0])))
    result = digest([whole], expected=1, device_of=lambda _: None).kept
    bars = timeline(result).drawings[0].data
    lanes = [lane for trace in bars for lane in trace["y"]]
    assert lanes.count("host passes") == PASSES_DRAWN
    assert lanes.count("device") == PASSES_DRAWN


def swept(knee, device, repeats=4):
    """Records of a machine whose time per token bends at a batch."""
    noise = random.Random(5)
    records = [
        make_record(
            batch_size=batch,
            input_tokens=batch * tokens,
            output_tokens=batch * 32,
            output_len=32,
            tpot_ns=round(1e6 * (1 + max(4, 4 * batch / knee) + 2e-4 * batch * tokens) * noise.uniform(0.99, 1.01)),
        )
        for _ in range(repeats)
        for batch in (1, 2, 4, 8, 16, 32)
        for tokens in (64, 256)
    ]
    return digest(records, expected=len(records), device_of=lambda _: device)


def test_the_knee_of_a_report_is_that_of_a_sweep(device):
    tpot = next(one for one in shapes(swept(6.0, device)) if one.key == "shape-tpot")
    mark = next(trace for trace in tpot.drawings[0].data if trace["meta"] == "knee")
    assert mark["x"][0] == pytest.approx(6, rel=0.2)
    assert mark["y"][0] == pytest.approx(5 + 2e-4 * mark["x"][0] * (64 + 16), rel=0.05)
    assert "weight knee: batch " in tpot.summary
    assert "90 %" in tpot.summary


def test_no_knee_is_claimed_where_there_is_none(found, device):
    beyond = next(one for one in shapes(swept(1000.0, device)) if one.key == "shape-tpot")
    assert "knee" not in {trace["meta"] for trace in beyond.drawings[0].data}
    assert "weight knee: cannot tell: " in beyond.summary


def test_curves_are_drawn_of_a_sweep_and_not_of_two_shapes(found, device):
    ttft, tpot, throughput = shapes(found)
    assert {trace["name"] for trace in ttft.drawings[0].data} == {"64 tokens in", "512 tokens in"}
    assert [len(trace["x"]) for trace in throughput.drawings[0].data] == [5, 5]
    assert [trace["x"] for trace in tpot.drawings[0].data if trace["meta"] == "curve"] == [[1, 2, 4, 8, 16]] * 2
    few = [make_record(), make_record(batch_size=2)]
    assert shapes(digest(few, expected=2, device_of=lambda _: device)) == ()


def test_different_work_is_not_compared(found, device):
    other = digest([make_record()], expected=1, device_of=lambda _: device)
    changes = medians(other, found)
    assert changes.rows == ()
    assert "not the same work" in changes.notes[0]
    same = medians(found, found)
    assert {each.ratio for each in same.rows} == {1.0}
    assert {each.verdict for each in same.rows} == {"no interval"}


def test_a_comparison_brings_its_intervals_and_answers(device):
    comparison = pytest.importorskip("inferscope.analysis.comparison", reason="compare is not part of this version")
    before, after = read_records(RECORDS / "eager.jsonl"), read_records(RECORDS / "requests.jsonl")
    result = comparison.compare(before, after, ceilings=lambda _: device)
    changes = compared(result)
    tpot = next(each for each in changes.rows if each.what == "tpot")
    told = result.change("tpot")
    assert (tpot.ratio, tpot.low, tpot.high) == (told.ratio.value, told.ratio.low, told.ratio.high)
    assert tpot.verdict.startswith(told.answer)
    assert any("attention" in note for note in changes.notes)
    marks = change_chart(changes).drawings[0].data[0]
    assert len(marks["x"]) == len(changes.rows)


def test_labels_hold_no_markup_of_plotly_s():
    record = make_record()
    phases = tuple(replace(phase, name="<a href=x>\u2028") for phase in record.phases)
    hostile = make_record(phases=phases, request_id="0123<b>")
    one = digest([hostile], expected=1, device_of=lambda _: None)
    drawn = (charts.ledger(one), charts.ledgers(one), timeline(one.kept))
    data = json.dumps([drawing.data for each in drawn for drawing in each.drawings], ensure_ascii=False)
    assert "&lt;a href=x&gt;" in data
    assert "<a" not in data
    assert "<b>" not in data
    assert "\u2028" not in data


def test_times_stay_within_the_histogram_s_ends(drawn, found):
    for drawing, family in zip(drawn["gaps"].drawings, found.families, strict=True):
        low, high = drawing.layout["xaxis"]["range"]
        sketch = family.itl.finished()
        assert low <= math.log10(sketch.min_ns / 1e6)
        assert math.log10(sketch.max_ns / 1e6) <= high
