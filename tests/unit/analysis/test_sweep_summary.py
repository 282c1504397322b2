"""Records of a sweep in, answers out: on records that are made, so that every status comes up."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from io import StringIO

import pytest
from rich.console import Console

from inferscope.analysis.objective import parse_objective
from inferscope.analysis.sweep_answers import points_that_say_more
from inferscope.analysis.sweep_points import OUT_OF_MEMORY, OUTCOME, Job, Point, Setting, labels_of, point_of, rounds_of
from inferscope.analysis.sweep_summary import needed_bytes, summarise
from inferscope.report.sweep import SweepView
from inferscope.specs import BASIS, CostTerms, ModelSpec, OperatorTerms, PeakTerms
from inferscope.testing import make_record

SETTING = Setting(dtype="float32", attention="sdpa", cache="dynamic")
ROUNDS = 5


def at(batch, length=16):
    return Point(setting=SETTING, input_tokens=length, batch_size=batch, output_tokens=8)


def measured(point, *, tpot_ns=20e6, ttft_ns=50_000_000, number=0):
    record = make_record(labels=labels_of(Job(point=point, round_number=number)), batch_size=point.batch_size)
    return replace(record, tpot_ns=tpot_ns * (1 + 0.002 * number), ttft_ns=ttft_ns + 10_000 * number)


def ended(point, said=OUT_OF_MEMORY):
    labels = (*labels_of(Job(point=point, round_number=0)), (OUTCOME, said))
    return make_record(labels=labels, status="aborted", error_type="RuntimeError")


def several(points, **times):
    return [measured(point, number=number, **times) for point in points for number in range(ROUNDS)]


def only(sweep):
    (series,) = sweep.series
    return {one.point.batch_size: one for one in series.points}, series


def test_a_record_says_which_job_it_was_made_for_and_others_are_left_out():
    job = Job(point=at(4, 64), round_number=3)
    assert point_of(measured(job.point, number=3)) == job
    assert point_of(make_record()) is None
    assert point_of(make_record(labels=(("sweep.dtype", "float32"), ("sweep.round", "x")))) is None
    for wrong in ("-1", "0", "1e3", str(10**40), "9" * 5_000):
        labels = dict(labels_of(job)) | {"sweep.batch_size": wrong}
        assert point_of(make_record(labels=tuple(labels.items()))) is None
    assert summarise([make_record()], [at(1)], specs={}).requests == 0


def test_an_order_of_rounds_has_each_point_once_a_round_and_depends_on_the_seed_alone():
    points = [at(batch, length) for batch in (1, 2, 4) for length in (8, 16)]
    points += [replace(point, setting=replace(SETTING, dtype="bfloat16")) for point in points]
    jobs = rounds_of(points, range(2, 5), seed=7)
    for number in (2, 3, 4):
        assert sorted(job.point for job in jobs if job.round_number == number) == sorted(points)
    assert jobs == rounds_of(list(reversed(points)), range(2, 5), seed=7)
    assert jobs != rounds_of(points, range(2, 5), seed=8)
    assert [job.point for job in jobs[:12]] != [job.point for job in jobs[12:24]]


def test_out_of_memory_is_a_result_and_so_is_a_failure():
    records = [*several([at(1)]), measured(at(4), number=1), ended(at(4)), ended(at(2, 64), "ValueError: no")]
    points = [*map(at, (1, 2, 4, 8)), at(2, 64), at(4, 64)]
    found, series = only(summarise(records, points, specs={}))
    by_point = {one.point: (one.status, one.note) for one in series.points}
    assert by_point[at(1)] == ("measured", "")
    assert by_point[at(2)] == ("not measured", "")
    assert by_point[at(4)] == ("out of memory", "measured")
    assert by_point[at(8)] == ("out of memory", "a smaller batch was")
    assert by_point[at(2, 64)] == ("failed", "ValueError: no")
    assert by_point[at(4, 64)] == ("not measured", "")
    edge = series.memory[0]
    assert (edge.largest_run, edge.smallest_out, edge.source) == (1, 4, "measured")
    assert found[8].tpot_ns is None
    assert found[8].tokens_per_s is None


def counted(peak_per_sequence_bytes):
    """A model of which only the memory of a sequence is counted."""
    width = len(BASIS)
    per_batch = tuple(peak_per_sequence_bytes if name == "b" else 0 for name in BASIS)
    nothing = (0,) * width
    operators = tuple(
        OperatorTerms(
            group="linear",
            regime=regime,
            calls=nothing,
            launches=nothing,
            flops=nothing,
            flops_full=nothing,
            weight_bytes=nothing,
            activation_bytes=nothing,
            executed_bytes=nothing,
        )
        for regime in ("prefill", "decode")
    )
    terms = CostTerms(
        operators=operators,
        kv_bytes_per_token=0,
        logits_bytes=4,
        supports_logits_to_keep=True,
        peaks=tuple(PeakTerms(regime=regime, segment="", live_bytes=per_batch) for regime in ("prefill", "decode")),
        stored_bytes=1_000,
    )
    return ModelSpec(name="counted", model_class="M", weight_bytes=1_000, cost=terms)


def test_what_is_counted_not_to_fit_is_out_of_memory_before_it_runs():
    spec = counted(100)
    assert needed_bytes(spec, at(4)) == 1_400
    assert needed_bytes(replace(spec, cost=None), at(4)) is None
    sweep = summarise(several([at(1)]), [at(1), at(4), at(8)], specs={SETTING: spec}, memory_limit_bytes=1_500)
    found, series = only(sweep)
    assert (found[8].status, found[8].note, found[8].needed_bytes) == ("out of memory", "predicted", 1_800)
    assert found[4].status == "not measured"
    assert series.memory[0].counted == 6
    assert series.memory[0].source == "predicted"


def test_the_batch_that_meets_an_objective_with_most_tokens_is_named_and_doubt_is_said():
    records = [*several([at(1), at(2)], tpot_ns=20e6), *several([at(4)], tpot_ns=30e6), *several([at(8)], tpot_ns=60e6)]
    points = list(map(at, (1, 2, 4, 8, 16)))
    objective = parse_objective("tpot<=40ms,ttft<=1s")
    sweep = summarise(records, points[:4], specs={}, objective=objective)
    (answer,) = only(sweep)[1].goodput
    assert (answer.batch_size, answer.low, answer.high) == (4, 4, 8)
    assert answer.said == "batch 4 is best; batch 8 does not meet it"
    assert at(6) in points_that_say_more(sweep)
    (answer,) = only(summarise(records, points, specs={}, objective=objective))[1].goodput
    assert answer.said.endswith("; cannot tell for batch 16")
    (answer,) = only(summarise(records[:15], points[:3], specs={}, objective=objective))[1].goodput
    assert "larger ones may be better" in answer.said
    (answer,) = only(summarise(records, points[:4], specs={}, objective=parse_objective("ttft<=1ms")))[1].goodput
    assert (answer.batch_size, answer.said) == (None, "no batch from 1 to 8 meets it")
    once = [measured(at(1))]
    (answer,) = only(summarise(once, [at(1)], specs={}, objective=objective))[1].goodput
    assert answer.said.startswith("cannot tell: no batch certainly meets it")


def test_points_are_added_where_the_knee_may_lie():
    records = []
    for batch in (1, 2, 4, 16, 32):
        for length in (16, 128):
            time_ns = 1e6 * (10 + max(30.0, 5.0 * batch)) + 1e3 * batch * length
            records += several([at(batch, length)], tpot_ns=time_ns)
    points = [at(batch, length) for batch in (1, 2, 4, 16, 32) for length in (16, 128)]
    sweep = summarise(records, points, specs={})
    (added,) = points_that_say_more(sweep)
    assert (added.batch_size, added.input_tokens) == (8, 16)  # between 4 and 16, where 6 lies


@pytest.mark.parametrize("width", [60, 160])
def test_a_sweep_is_shown_at_any_width_without_steering_the_terminal(width):
    hostile = replace(make_record().model, name="evil\x1b[2J[red]")
    made = [*several(list(map(at, (1, 2, 4)))), ended(at(8))]
    records = [replace(one, model=hostile) for one in made]
    sweep = summarise(records, [at(8)], specs={}, objective=parse_objective("tpot<=1s"))
    out = StringIO()
    Console(file=out, width=width).print(SweepView(sweep))
    text = " ".join(out.getvalue().split())
    assert "\x1b" not in text
    assert "[red]" in text
    assert "batch 8 is out of memory (measured)" in text
    assert "batch 4 is best" in text
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert json.loads(json.dumps(asdict(sweep), allow_nan=False))["series"][0]["points"][3]["status"] == "out of memory"


def test_what_the_numbers_do_not_rest_on_is_said():
    records = [replace(one, device_key=f"gpu {number % 2}") for number, one in enumerate(several([at(1), at(2)]))]
    sweep = summarise(records, [at(1)], specs={}, memory_limit_bytes=10**9)
    assert sweep.notes[0].startswith("measured on 2 devices")
    assert sweep.notes[1].startswith("memory cannot be counted, every point is tried: float32, sdpa attention")
    assert summarise(records[::2], [at(1)], specs={}).notes == ()
