from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.syncs import separate

counts = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50))


@given(once=counts, each=counts, short=st.integers(1, 5), further=st.integers(1, 40))
def test_what_happens_once_and_what_happens_for_each_token_come_back_exactly(once, each, short, further):
    def request(tokens):
        return {key: once.get(key, 0) + tokens * each.get(key, 0) for key in once.keys() | each.keys()}

    long = short + further
    rates = separate(request(short), request(long), short_tokens=short, long_tokens=long)
    assert rates == {key: (each.get(key, 0), once.get(key, 0)) for key in once.keys() | each.keys()}


@given(few=counts, more=counts, short=st.integers(1, 5), further=st.integers(1, 40))
def test_nothing_is_negative_and_the_longer_request_is_never_underrated(few, more, short, further):
    many = {key: few.get(key, 0) + more.get(key, 0) for key in few.keys() | more.keys()}
    long = short + further
    rates = separate(few, many, short_tokens=short, long_tokens=long)
    assert rates.keys() == many.keys()
    for key, (per_token, per_request) in rates.items():
        assert per_token >= 0
        assert per_request >= 0
        assert per_request + long * per_token >= many[key]
        if few.get(key, 0) >= per_token * short:
            assert per_request + long * per_token == many[key]


def test_every_other_token_is_a_half():
    assert separate({"a": 1}, {"a": 4}, short_tokens=2, long_tokens=8) == {"a": (Fraction(1, 2), 0)}


def test_what_only_decoding_does_costs_nothing_per_request():
    assert separate({"a": 1}, {"a": 7}, short_tokens=2, long_tokens=8) == {"a": (1, 0)}


def test_requests_of_equal_length_tell_nothing():
    with pytest.raises(ValueError, match="not more than"):
        separate({}, {}, short_tokens=2, long_tokens=2)
