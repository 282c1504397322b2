"""Conditions: what they mean, what is refused and where, and what becomes of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_comparison import record, several

from inferscope.analysis.comparison import compare
from inferscope.analysis.gates import hold, parse_gate
from inferscope.errors import SettingError
from inferscope.testing import make_record


@pytest.mark.parametrize(
    ("text", "metric", "operator", "limit", "scale"),
    [
        ("tpot>1.05", "tpot", ">", 1.05, "ratio"),
        ("  ttft >= 200 ms ", "ttft", ">=", 2e8, "own"),
        ("ttft>1.5s", "ttft", ">", 1.5e9, "own"),
        ("wall>5%", "wall", ">", 1.05, "ratio"),
        ("wall > -5 %", "wall", ">", 0.95, "ratio"),
        ("decode.select>1.1x", "decode.select", ">", 1.1, "ratio"),
        ("syncs_per_token>1", "syncs_per_token", ">", 1, "own"),
        ("launches_per_token>1.1x", "launches_per_token", ">", 1.1, "ratio"),
        ("bytes_per_token > 1e9", "bytes_per_token", ">", 1e9, "own"),
        ("decode.operators.norm/elementwise>2", "decode.operators.norm/elementwise", ">", 2, "ratio"),
        ("token_agreement<1", "token_agreement", "<", 1, "own"),
    ],
)
def test_a_condition_means(text, metric, operator, limit, scale):
    gate = parse_gate(text)
    assert (gate.metric, gate.operator, gate.scale, gate.text) == (metric, operator, scale, text)
    assert gate.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a metric such as tpot at position 1, found the end"),
        (">1", "position 1, found '>'"),
        ("tpot", "expected one of >= <= > < at position 5, found the end"),
        ("tpot==1", "at position 5, found '='"),
        ("tpot>", "expected a number at position 6, found the end"),
        ("tpot>>1", "expected a number at position 6, found '>'"),
        ("tpot>1.05 and", "expected ns, us, ms, s, x or % at position 11"),
        ("tpot>1ms;", "expected the end at position 9, found ';'"),
        ("tpot>nan", "expected a number at position 6"),
        ("tpot>1e999", "position 10"),
        ("syncs_per_token>1ms", "expected x or % at position 18"),
        ("verdict_flips>1%", "no unit for verdict_flips"),
        ("tpott>1", "no metric is called tpott (position 1); did you mean tpot"),
        ("decode.selekt>1", "did you mean decode.select"),
        ("__import__('os')>1", "no metric is called __import__"),
        ("tpot>" + "1" * 300, "a condition of 305 characters"),
    ],
)
def test_a_mistake_names_its_position(text, said):
    with pytest.raises(SettingError) as error:
        parse_gate(text)
    assert said in str(error.value)


@given(st.text(alphabet="tpowalfysnc_.>=<%x 0123456789e-+µms\x00(", max_size=30))
def test_any_text_is_a_condition_or_a_setting_error(text):
    try:
        gate = parse_gate(text)
    except SettingError:
        return
    assert gate.metric
    assert gate.limit == gate.limit


def outcome(found, text, **options):
    (result,) = hold(found, [parse_gate(text)], **options)
    assert result.said
    return result.outcome


def test_ratios_are_judged_by_their_interval():
    found = compare(several(20, seed=1), several(20, 1.25, seed=2))
    assert outcome(found, "tpot>1.05") == "failed"
    assert outcome(found, "tpot>1.5") == "held"
    assert outcome(found, "tpot>1.25") == "cannot tell"
    assert outcome(found, "tpot<1.05") == "held"
    assert outcome(found, "verify.wall>1") == "cannot tell"
    assert outcome(compare(several(2), several(2)), "tpot>1.05") == "cannot tell"


def test_absolute_times_are_the_candidates_median():
    found = compare(several(20, seed=1), several(20, seed=2))
    assert outcome(found, "ttft>10ms") == "failed"
    assert outcome(found, "ttft>1s") == "held"
    assert outcome(compare(several(5), several(5)), "ttft>10ms") == "cannot tell"


def test_counts_fail_where_one_request_is_above():
    found = compare(several(1), several(1))
    assert outcome(found, "syncs_per_token>1") == "held"
    assert outcome(found, "syncs_per_token>=1") == "failed"
    assert outcome(found, "syncs_per_token>1x") == "held"
    assert outcome(found, "launches_per_token>1") == "cannot tell"
    prefill, decode = make_record().phases
    one_above = [*several(3), make_record(phases=(prefill, replace(decode, syncs=2 * decode.syncs)))]
    assert outcome(compare(several(4), one_above), "syncs_per_token>1") == "failed"
    assert outcome(compare(several(4), one_above), "syncs_per_token>2") == "held"
    assert outcome(found, "verdict_flips>1") == "cannot tell"
    assert outcome(found, "verdict_flips>2") == "held"
    assert outcome(found, "token_agreement<1") == "cannot tell"


def test_another_device_is_no_regression_unless_accepted():
    found = compare(several(20, seed=1, device_key="one"), several(20, 1.25, seed=2, device_key="two"))
    assert outcome(found, "tpot>1.05") == "cannot tell"
    assert outcome(found, "tpot>1.05", accept=["device"]) == "failed"
    assert outcome(found, "syncs_per_token>=1") == "failed"  # a count is the same on any
    with pytest.raises(SettingError, match="accept='dtype'"):
        hold(found, [], accept=["dtype"])


def test_what_has_no_counterpart_takes_no_part_in_a_ratio():
    base = [*several(20, seed=1), record(50.0, input_tokens=9)]
    found = compare(base, several(20, seed=2, spread=0.05))
    assert [difference.what for difference in found.differences] == ["lengths"]
    assert outcome(found, "tpot>1.2") == "held"
