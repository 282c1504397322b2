from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferscope.records import QuantileSketch


@given(st.lists(st.integers(1, 10**13), min_size=1, max_size=300), st.floats(0, 1))
def test_a_sketch_is_within_one_percent_of_the_exact_quantile(values, share):
    sketch = QuantileSketch.of(values)
    exact = sorted(values)[int(share * (len(values) - 1))]
    assert abs(sketch.quantile_ns(share) - exact) <= 0.0101 * exact + 1
    assert (sketch.max, sketch.min_ns, sketch.sum_ns, sketch.count) == (
        max(values),
        min(values),
        sum(values),
        len(values),
    )


def test_an_empty_sketch_knows_nothing():
    sketch = QuantileSketch.of([])
    assert (sketch.p50, sketch.max, sketch.count) == (None, None, 0)


def test_a_sketch_is_bounded_over_the_whole_range_of_times():
    assert len(QuantileSketch.of(range(1, 10**6, 7)).buckets) < 700
    assert QuantileSketch.of([10**18]).buckets[-1][0] < 2200
