"""Drafted and accepted tokens, against a decoding that is played through token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture.frames import UNREADABLE, Flag
from inferscope.capture.passes import DECODE, DRAFT, PREFILL, VERIFY
from inferscope.capture.speculation import Speculation

ROUNDS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=20)


@given(prompt=st.integers(1, 50), cached=st.integers(0, 49), rounds=ROUNDS)
def test_what_was_drafted_and_accepted_follows_from_the_passes(prompt, cached, rounds):
    cached = min(cached, prompt - 1)
    counted, written, drafted, accepted = Speculation(), prompt, 0, 0
    for index, (candidates, matches) in enumerate(rounds):
        matching = min(candidates, matches)
        past = cached if index == 0 else written - 1
        counted.add(PREFILL if index == 0 else VERIFY, written + candidates - past, past, Flag.ASSISTED)
        counted.add(DRAFT, 2, past, Flag.ASSISTED | Flag.FOREIGN)
        written += matching + 1
        drafted, accepted = drafted + candidates, accepted + matching
    assert counted.counted(prompt, written - prompt) == (drafted, accepted)
    assert counted.counted(prompt, None) == (drafted, None)
    assert counted.counted(None, written - prompt) == (None, None)


def test_what_is_not_assisted_has_drafted_nothing_that_is_known():
    counted = Speculation()
    counted.add(PREFILL, 9, 0, 0)
    counted.add(DECODE, 1, 9, 0)
    assert counted.counted(9, 2) == (None, None)


def test_one_unreadable_pass_leaves_it_unknown():
    for first, second in (((UNREADABLE, 0), (3, 9)), ((9, UNREADABLE), (3, 9)), ((9, 0), (UNREADABLE, 9))):
        counted = Speculation()
        counted.add(PREFILL, *first, Flag.ASSISTED)
        counted.add(VERIFY, *second, Flag.ASSISTED)
        assert counted.counted(9, 4) == (None, None)


def test_two_sequences_in_one_request_are_not_told_apart():
    counted = Speculation()
    for _ in range(2):
        counted.add(PREFILL, 9, 0, Flag.ASSISTED)
    assert counted.counted(9, 4) == (None, None)


def test_more_accepted_than_drafted_is_not_believed():
    counted = Speculation()
    counted.add(PREFILL, 9, 0, Flag.ASSISTED)
    assert counted.counted(9, 4) == (0, None)
