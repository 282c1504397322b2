from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.analysis.objective import Limit, parse_objective
from inferscope.analysis.scatter import Timing
from inferscope.errors import SettingError


def test_limits_are_read_as_people_write_them():
    found = parse_objective("TTFT <= 0.2 s, tpot<50ms")
    assert found.limits == (Limit(what="ttft", most_ns=2e8), Limit(what="tpot", most_ns=5e7))


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft>=5ms", "ttft<=5", "itl<=5ms", "ttft<=0ms", "ttft<=1.2.3ms", "tpot<=5ms,tpot<=6ms"]
)
def test_anything_else_is_a_mistake_that_shows_the_form(text):
    with pytest.raises(SettingError, match="such as ttft<=200ms,tpot<=50ms"):
        parse_objective(text)


@given(st.text(max_size=40))
def test_no_text_does_anything_else(text):
    with contextlib.suppress(SettingError):
        parse_objective(text)


def test_a_limit_is_kept_only_where_the_whole_interval_keeps_it():
    limit = Limit(what="tpot", most_ns=10.0)
    cases = {(8.0, 9.0): "yes", (8.0, 10.0): "yes", (9.0, 11.0): "cannot tell", (11.0, 12.0): "no"}
    for (low, high), answer in cases.items():
        assert limit.held_by(Timing(value=(low + high) / 2, low=low, high=high, count=5)) == answer
    assert limit.held_by(None) == "cannot tell"
    assert limit.held_by(Timing(value=1.0, low=None, high=None, count=1)) == "cannot tell"
