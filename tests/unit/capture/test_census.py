"""What passes launch, by kind: what is known of a phase from few counted passes, and when a change is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture import census as place
from inferscope.capture.census import Census, PassCount, Signature, count_of, step_of
from inferscope.meters.operator_groups import MeasuredPass, OperatorSum


def signed(name="decode", batch=1, context=100, **other):
    said = {"dtype": "bfloat16", "attention": "sdpa", "cache": "DynamicCache", "compiled": False, **other}
    return Signature(step_of(name, batch, context), **said)


def counted(launches, source="native", unit="kernel", **other):
    return PassCount(launches, other.get("graphs", 0), other.get("syncs", 1), unit, source)


@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr(place.notices, "warn", lambda slug, message, **facts: found.append((slug, facts)))
    return found


def feed(census, counts, signature=None):
    return [census.add(signature or signed(), counted(count), model="tiny") for count in counts]


def test_contexts_are_told_apart_by_powers_of_two():
    assert step_of("decode", 1, 64) == step_of("decode", 1, 127) != step_of("decode", 1, 128)


@given(st.integers(0, 10**6))
def test_a_context_lies_in_the_range_that_its_kind_names(context):
    census = Census()
    census.add(signed(context=context), counted(5))
    (step,) = census.steps({signed(context=context): 3})
    assert step.context_from <= context <= step.context_to
    assert step.passes == 3


def test_a_change_that_stays_is_said_once_with_both_counts(said):
    census = Census()
    assert feed(census, [300, 300, 300, 340, 340, 340]) == [False, False, False, False, True, False]
    (step,) = census.steps({signed(): 7})
    assert (step.launches, step.launches_before, step.samples, step.varies) == (340, 300, 6, False)
    ((slug, facts),) = said
    assert slug == "launches-changed"
    assert (facts["launches_before"], facts["launches"]) == (300, 340)
    assert feed(census, [300, 300]) == [False, True]
    assert len(said) == 1


def test_what_comes_once_is_no_change(said):
    census = Census()
    assert not any(feed(census, [500, 300, 300, 412, 300, 300, 300]))
    (step,) = census.steps({signed(): 1})
    assert (step.launches, step.launches_before) == (300, None)
    assert said == []


@given(st.lists(st.integers(100, 10**6), min_size=20, unique=True))
def test_where_every_pass_differs_nothing_is_said_and_nothing_claimed(counts):
    census = Census()
    assert not any(feed(census, counts))
    (step,) = census.steps({signed(): 1})
    assert step.varies
    assert step.launches == counts[-1]


def test_nor_where_a_restless_kind_happens_to_repeat_itself(said):
    census = Census()
    assert not any(feed(census, [300, 300, *range(401, 408), 500, 500]))
    assert said == []


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "float16"},
        {"attention": "eager"},
        {"cache": "StaticCache"},
        {"compiled": True},
        {"batch": 2},
        {"context": 1000},
        {"name": "prefill"},
    ],
)
def test_another_kind_is_no_change(said, other):
    census = Census()
    feed(census, [300, 300])
    assert not any(feed(census, [340, 340], signed(**other)))
    assert said == []
    assert census.steps({signed(): 1})[0].launches == 300


def test_two_ways_of_counting_are_not_compared_and_the_exact_one_is_told(said):
    census = Census()
    for count in (counted(310, "deep"), counted(310, "deep"), counted(300), counted(300)):
        assert not census.add(signed(), count)
    (step,) = census.steps({signed(): 1})
    assert (step.source, step.launches, step.samples) == ("native", 300, 2)


def test_memory_and_notices_are_bounded(said):
    census = Census()
    for context in range(40):
        for name in map(str, range(40)):
            feed(census, [1, 1, 2, 2], signed(name=name, context=1 << context))
    assert len(census._entries) == place.SIGNATURES_KEPT
    assert len(said) == place.ALARMS_KEPT


def test_on_a_cpu_operators_play_the_launches_part():
    measured = MeasuredPass(
        operators={"aten::mm": OperatorSum("linear", calls=7), "aten::add": OperatorSum("x", calls=2)}
    )
    assert count_of(measured) == PassCount(9, None, None, "operator", "deep")
    measured.launches, measured.graph_launches, measured.syncs = 5, 0, 1
    assert count_of(measured) == PassCount(5, 0, 1, "kernel", "deep")
