import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.report.units import UNKNOWN, clean, count, duration_ns, metric, percent, ratio, scaled

FACTORS = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, UNKNOWN),
        (math.nan, UNKNOWN),
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 µs"),
        (88.4e6, "88.4 ms"),
        (999.96e6, "1.00 s"),
        (59.99e9, "1 min 00 s"),
        (125e9, "2 min 05 s"),
        (-5e6, "-5.00 ms"),
    ],
)
def test_durations(value, text):
    assert duration_ns(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, UNKNOWN), (0, "0 %"), (1, "100 %"), (0.123, "12.3 %"), (0.00043, "0.04 %"), (1e-9, "< 0.01 %")],
)
def test_percent(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, UNKNOWN), (math.inf, UNKNOWN), (0, "0 B"), (999, "999 B"), (2.5e15, "2.50 PB"), (1e3, "1.00 kB")],
)
def test_scaled(value, text):
    assert scaled(value, "B") == text


def test_the_unknown_is_a_dash():
    assert UNKNOWN == "\u2013"


def test_counts_and_ratios():
    assert (count(None), count(1234567), ratio(None), ratio(3), ratio(0.5012)) == (
        UNKNOWN,
        "1,234,567",
        UNKNOWN,
        "3",
        "0.501",
    )


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("select_share", 0.25, "25.0 %"),
        ("mfu", 0.5, "50.0 %"),
        ("wait_ns", 1200, "1.20 µs"),
        ("ttft_s", 0.2, "200 ms"),
        ("achieved_flops_per_s", 9.74e10, "97.4 GFLOP/s"),
        ("copy_bytes_per_s", 1.8e10, "18.0 GB/s"),
        ("weight_bytes", 538_060_032, "538 MB"),
        ("phase_flops", 6.89e9, "6.89 GFLOP"),
        ("clock_hz", 1.98e9, "1.98 GHz"),
        ("passes", 15, "15"),
        ("wait_ns", None, UNKNOWN),
    ],
)
def test_a_metric_has_the_unit_of_its_name(name, value, text):
    assert metric(name, value) == text


@given(st.floats(min_value=1, max_value=59e9))
def test_a_duration_reads_back_within_its_figures(value):
    number, unit = duration_ns(value).split()
    assert float(number.replace(",", "")) * FACTORS[unit] == pytest.approx(value, rel=0.006, abs=0.51)


@given(st.floats(min_value=-1e18, max_value=1e18))
def test_no_exponent_is_ever_shown(value):
    assert not re.search(r"\de", scaled(value, "X") + ratio(value) + percent(value) + duration_ns(value))


@given(st.text())
def test_clean_text_has_no_control_characters_and_keeps_its_length(text):
    cleaned = clean(text)
    assert cleaned.isprintable()
    assert len(cleaned) == len(text)
