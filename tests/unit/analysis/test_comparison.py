"""What is said of two sets of records, and what is not."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscope.analysis import measures
from inferscope.analysis.claims import Judged, scored, verdict_changes
from inferscope.analysis.comparison import compare
from inferscope.analysis.gates import hold, parse_gate
from inferscope.analysis.verdict import Diagnosis
from inferscope.errors import NothingToCompareError
from inferscope.testing import make_record, make_result


def record(factor=1.0, **overrides):
    """One request, all of whose phases take `factor` times as long."""
    phases = []
    for phase in make_record().phases:
        ledger = replace(phase.ledger, issue_ns=round(phase.ledger.issue_ns * factor))
        changed = {"ledger": ledger, "wall_ns": ledger.total_ns, "end_ns": phase.start_ns + ledger.total_ns}
        phases.append(replace(phase, **changed, device=None))
    return make_record(**{"phases": tuple(phases), **overrides})


def several(number, factor=1.0, seed=0, spread=0.05, **overrides):
    rng = random.Random(seed)
    return [record(factor * rng.lognormvariate(0, spread), **overrides) for _ in range(number)]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0.2, 5), st.integers(1, 3), st.integers(2, 4)), min_size=1, max_size=12))
def test_a_set_compared_with_itself_is_never_faster_or_slower(made):
    records = [record(factor, input_tokens=length, output_len=new) for factor, length, new in made]
    found = compare(records, records)
    assert found.same_work
    assert {change.answer for change in found.changes} <= {"same", "cannot tell"}
    assert all(change.ratio is None or math.isclose(change.ratio.value, 1) for change in found.changes)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0.2, 5), st.integers(1, 2)), min_size=1, max_size=8),
    st.lists(st.tuples(st.floats(0.2, 5), st.integers(1, 2)), min_size=1, max_size=8),
)
def test_swapping_the_sets_inverts_the_ratios(before, after):
    first, second = ([record(f, input_tokens=n) for f, n in made] for made in (before, after))
    there, back = compare(first, second), compare(second, first)
    opposite = {"less": "more", "more": "less"}
    for change in there.changes:
        turned = back.change(change.metric)
        assert turned.answer == opposite.get(change.answer, change.answer)
        if change.ratio is None:
            assert turned.ratio is None
            continue
        assert turned.ratio.value == pytest.approx(1 / change.ratio.value)
        if change.ratio.low is not None:
            assert turned.ratio.low == pytest.approx(1 / change.ratio.high)
            assert turned.ratio.high == pytest.approx(1 / change.ratio.low)


def test_faster_slower_and_the_same_are_told_apart():
    base = several(20, seed=1)
    assert compare(base, several(20, 0.8, seed=2)).change("tpot").answer == "less"
    slower = compare(base, several(20, 1.25, seed=3)).change("tpot")
    assert slower.answer == "more"
    assert slower.ratio.low < 1.25 < slower.ratio.high
    assert compare(several(300, seed=4, spread=0.01), several(300, seed=5, spread=0.01)).change("wall").answer == "same"


def in_turns(turns, requests, factor, *, offset_ns, seed):
    """Requests of one side, whose turns have luck of their own: all of a turn are faster or slower together."""
    rng = random.Random(seed)
    made = []
    for turn in range(turns):
        luck = rng.lognormvariate(0, 0.1)
        for one in several(requests, factor * luck, seed=rng.random(), spread=0.01):
            made.append(replace(one, started_unix_ns=(2 * turn) * 10**12 + offset_ns + len(made)))
    return made


def test_what_differs_from_turn_to_turn_is_no_change():
    """Taken one by one, requests of the same speed often differ for certain; turns do as rarely as claimed."""
    wrong = {"requests": 0, "turns": 0}
    for seed in range(12):
        first = in_turns(6, 8, 1, offset_ns=0, seed=seed)
        second = in_turns(6, 8, 1, offset_ns=10**12, seed=seed + 1000)
        found = compare(first, second)
        assert found.turns == 6
        assert found.change("wall").unit == "turns"
        assert found.change("wall").baseline_observations == 6
        assert found.baseline.matched == 48
        wrong["turns"] += found.change("wall").answer in {"less", "more"}
        later = [replace(one, started_unix_ns=one.started_unix_ns + 10**16) for one in second]
        alone = compare(first, later)
        assert alone.turns is None
        assert any("not recorded in turns" in note for note in alone.notes)
        wrong["requests"] += alone.change("wall").answer in {"less", "more"}
    assert wrong["turns"] <= 2
    assert wrong["requests"] >= 5


def test_a_change_is_found_in_turns():
    first = in_turns(8, 4, 1, offset_ns=0, seed=1)
    found = compare(first, in_turns(8, 4, 1.5, offset_ns=10**12, seed=2))
    assert found.change("wall").answer == "more"
    assert found.change("syncs_per_token").answer == "same"


def test_too_few_requests_say_how_many_more_are_needed():
    change = compare(several(2), several(2, 0.5)).change("tpot")
    assert change.answer == "cannot tell"
    assert change.ratio.value == pytest.approx(0.5, rel=0.2)
    assert change.ratio.low is None
    assert "2 more requests of each length" in change.why
    wide = compare(several(8, seed=1, spread=0.3), several(8, 0.9, seed=2, spread=0.3)).change("tpot")
    assert wide.answer == "cannot tell"
    assert "more requests on each side" in wide.why or "small beside the spread" in wide.why


def test_one_request_each_tells_counts_that_differ_and_no_times():
    def with_syncs(syncs):
        prefill, decode = make_record().phases
        return make_record(phases=(prefill, replace(decode, syncs=syncs)))

    found = compare([with_syncs(15)], [with_syncs(30)])
    assert found.change("syncs_per_token").answer == "more"
    assert (found.change("syncs_per_token").baseline, found.change("syncs_per_token").candidate) == (1, 2)
    assert found.change("launches_per_token") is None  # they were not counted: not 0
    assert found.change("wall").answer == "cannot tell"


def test_requests_pair_up_by_lengths():
    shapes = [(10 + i, 5 + i) for i in range(12)]
    first = [record(1.0 + i / 3, input_tokens=a, output_len=b) for i, (a, b) in enumerate(shapes)]
    second = [record(0.9 * (1.0 + i / 3), input_tokens=a, output_len=b) for i, (a, b) in enumerate(shapes)]
    found = compare(first, reversed(second))
    assert found.matching == "paired"
    # Without pairs, lengths of 1 to 5 times would drown 10 %.
    assert found.change("decode.wall").ratio.high < 0.95
    assert found.change("decode.wall").answer == "less"


def test_one_against_several_is_no_pair():
    assert compare(several(1), several(1)).matching == "paired"
    assert compare(several(1), several(2)).matching == "stratified"
    assert compare(several(2), several(1)).matching == "stratified"


def test_other_work_is_named():
    base = several(6)
    model = base[0].model
    other = several(6, model=replace(model, dtype="bfloat16", device="cuda:0", name="other"), batch_size=2)
    found = compare(base, other)
    assert {difference.what for difference in found.differences} == {"model", "dtype", "device", "batch", "lengths"}
    assert found.matching == "none"
    assert found.change("tpot").ratio is None
    assert "same work" in found.change("tpot").why
    (result,) = hold(found, [parse_gate("tpot>1.05")])
    assert result.outcome == "cannot tell"
    assert "not the same work" in result.said


def test_similar_lengths_compare_what_is_per_token_only():
    found = compare(several(6, input_tokens=100), several(6, input_tokens=101, seed=1))
    assert found.matching == "similar"
    assert found.change("tpot").ratio is not None
    assert found.change("wall") is None
    assert found.change("decode.wall") is None
    assert found.change("decode.pass") is not None
    assert [difference.what for difference in found.differences] == ["lengths"]


def test_unknown_lengths_are_left_out_and_said():
    base = [*several(4), *several(3, output_len=None)]
    found = compare(base, several(4, seed=1))
    assert found.baseline.matched == 4
    assert found.change("wall").baseline_observations == 4
    assert any("3 requests of the baseline are left out" in note for note in found.notes)


def test_aborted_requests_take_no_part():
    found = compare([*several(5), record(9.0, status="aborted")], several(5, seed=1))
    assert (found.baseline.requests, found.baseline.aborted) == (5, 1)
    assert found.baseline.spreads["wall"].high < 2e9


def test_nothing_to_compare_is_an_error():
    with pytest.raises(NothingToCompareError, match="the candidate has no request"):
        compare(several(1), [])
    with pytest.raises(NothingToCompareError, match="all 1 were aborted"):
        compare(several(1), [record(status="aborted")])
    encode = replace(make_record().phases[0], name="encode")
    with pytest.raises(NothingToCompareError, match="baseline has prefill, decode, the candidate encode"):
        compare(several(1), [make_record(phases=(encode,))])


def test_a_large_set_is_reduced_alike_on_both_sides(monkeypatch):
    monkeypatch.setattr(measures, "KEPT", 50)
    one = record()
    shapes = [replace(one, input_tokens=10 + i) for i in range(400)]
    first, second = measures.collect(shapes), measures.collect(reversed(shapes))
    assert first.requests == 400
    assert len(first.measured) == 50
    assert {each.shape for each in first.measured} == {each.shape for each in second.measured}
    assert len(first.judged) == measures.JUDGED
    assert {each.input_tokens for each in first.judged} == {each.input_tokens for each in second.judged}


def test_output_tokens():
    base = several(3)
    assert "not recorded" in compare(base, base).tokens.why
    first = [replace(each, output_digest=digest) for each, digest in zip(base, "abc", strict=True)]
    second = [replace(each, output_digest=digest) for each, digest in zip(base, "abd", strict=True)]
    found = compare(first, second)
    assert (found.tokens.compared, found.tokens.equal) == (3, 2)
    assert hold(found, [parse_gate("token_agreement<1")])[0].outcome == "failed"
    assert hold(compare(first, first), [parse_gate("token_agreement<1")])[0].outcome == "held"


def judged(bound, *findings, confidence="high", times=3):
    result = make_result()
    phases = tuple(replace(phase, bound=bound, confidence=confidence) for phase in result.diagnosis.phases)
    return Judged(diagnoses=(Diagnosis(device=None, phases=phases),) * times, findings=(findings,) * times)


def test_a_verdict_flips_only_where_both_are_certain():
    flip = verdict_changes(judged("memory"), judged("overhead"))
    assert [(one.phase, one.flipped) for one in flip] == [("prefill", True), ("decode", True)]
    assert verdict_changes(judged("memory"), judged("memory"))[0].flipped is False
    assert verdict_changes(judged("memory"), judged("overhead", confidence="low"))[0].flipped is None
    assert verdict_changes(judged("memory"), judged("unknown"))[0].flipped is None
    mixed = Judged(diagnoses=judged("memory").diagnoses + judged("compute").diagnoses, findings=())
    assert "disagree" in verdict_changes(mixed, judged("memory"))[0].why


# The finding promises 0.3 to 0.42 of the request's wall, 0.34 to 0.477 of decode's.
@pytest.mark.parametrize(
    ("factor", "number", "score"),
    [(0.6, 40, "hit"), (0.95, 40, "miss"), (0.66, 40, "cannot tell"), (0.6, 2, "cannot tell")],
)
def test_a_prediction_is_scored_when_its_finding_is_gone(factor, number, score):
    weights = make_result().findings[0]
    found = compare(several(number, seed=1), several(number, factor, seed=2))
    changes = {change.metric: change for change in found.changes}
    (one,) = scored(judged("memory", weights), judged("memory"), changes)
    assert (one.code, one.phase, one.score) == ("decode-reads-weights", "decode", score)
    assert one.predicted_low == pytest.approx(0.3 * 0.42 / 0.37)
    assert scored(judged("memory", weights), judged("memory", weights), changes) == ()
    assert bool(one.why) == (score == "cannot tell")


def test_the_real_rules_judge_both_sides():
    device = make_result().diagnosis.device
    found = compare(several(3), several(3), ceilings=lambda _: device)
    assert [one.phase for one in found.verdicts] == ["prefill", "decode"]
    assert all(one.flipped is None and one.why for one in found.verdicts)  # a made record has no operator costs
