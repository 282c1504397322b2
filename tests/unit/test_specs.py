"""Pairs under windows and blocks, and expected experts, against counting them one by one."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.specs import Structure, block_pairs, distinct_experts, segment_of, window_pairs

lengths = st.integers(0, 40)


@given(st.one_of(st.none(), st.integers(1, 30)), lengths, lengths)
def test_pairs_under_a_window(window, q, past):
    pairs = sum(min(row + 1, window or row + 1) for row in range(past, past + q))
    assert window_pairs(window, q, past) == pairs


@given(st.integers(1, 30), lengths, lengths)
def test_pairs_within_blocks(block, q, past):
    assert block_pairs(block, q, past) == sum(row % block + 1 for row in range(past, past + q))


@pytest.mark.parametrize(("experts", "chosen", "tokens"), [(4, 2, 1), (4, 2, 2), (4, 1, 3), (5, 3, 2), (3, 3, 2)])
def test_expected_experts_are_the_mean_over_all_choices(experts, chosen, tokens):
    choices = list(product(combinations(range(experts), chosen), repeat=tokens))
    mean = sum(len({each for choice in choice_of_all for each in choice}) for choice_of_all in choices) / len(choices)
    assert distinct_experts(experts, chosen, tokens) == pytest.approx(mean, rel=1e-12)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 10**7))
def test_expected_experts_lie_between_one_tokens_and_all(experts, chosen, tokens):
    found = distinct_experts(experts, chosen, tokens)
    assert min(chosen, experts) * (1 - 1e-9) <= found <= experts


@pytest.mark.parametrize(
    ("q", "past", "segment"),
    [(1, 0, "0"), (1, 6, "0"), (1, 7, "2"), (5, 5, "1"), (8, 0, "1"), (3, 7, "2"), (7, 0, "0")],
)
def test_segments_of_a_window(q, past, segment):
    assert segment_of(Structure(windows=(8,)), "continuation", q, past) == segment
