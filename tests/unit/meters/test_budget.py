"""What our own work may cost, on a simulated clock; and what it does cost, by chance."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.meters import budget as place
from inferscope.meters.budget import DEFAULT_SHARE, Budget, Governor
from inferscope.meters.overhead import STRATA_KEPT, Arms
from inferscope.testing import FakeClock

MS = 1_000_000
S = 1_000_000_000


@given(
    costs_ns=st.lists(st.integers(1, 50 * MS), min_size=1, max_size=50),
    share=st.sampled_from([0.001, 0.01, 0.05, 1.0]),
    step_ns=st.integers(MS, 100 * MS),
)
def test_what_is_sampled_stays_under_the_share(costs_ns, share, step_ns):
    clock = FakeClock()
    budget = Budget(clock.now_ns, share)
    began_ns, spent_ns, left = clock.now_ns(), 0, list(costs_ns)
    for _ in range(400):
        if left and budget.allows():
            assert spent_ns <= share * (clock.now_ns() - began_ns) + len(costs_ns)
            cost_ns = left.pop()
            clock.advance(cost_ns)
            budget.charge(cost_ns)
            spent_ns += cost_ns
        clock.advance(step_ns)
    assert spent_ns > 0


def test_the_smallest_limit_holds_as_long_as_its_owner():
    budget = Budget(FakeClock().now_ns)
    budget.limit("a", 0.05)
    budget.limit("b", 0.002)
    assert budget.share == 0.002
    budget.limit("b", 0.03)
    assert budget.share == 0.03
    budget.lift("b")
    assert budget.share == 0.05
    budget.lift("a")
    budget.lift("a")
    assert budget.share == DEFAULT_SHARE


def governed(share, *, thins, self_share, requests=400, wall_ns=S):
    budget = Budget(FakeClock().now_ns)
    governor = Governor(share, thins=thins, budget=budget)
    governor.open()
    for _ in range(requests):
        governor.saw(wall_ns, int(wall_ns * self_share))
    return governor, budget


@given(share=st.floats(0.001, 0.2), self_share=st.floats(0.0001, 0.5))
def test_the_budget_is_kept_where_requests_may_go_unobserved(share, self_share):
    governor, budget = governed(share, thins=True, self_share=self_share)
    assert governor.self_share == pytest.approx(self_share, rel=0.01, abs=1e-6)
    spent = governor.observed_share * governor.self_share
    assert spent <= share * 1.000001
    if self_share <= share / 1.02:
        assert governor.observed_share == 1
    else:
        assert spent >= share * 0.8  # and not much more is given up than that takes
    # What is sampled has what that leaves, and never less than a tenth.
    assert budget.share == pytest.approx(max(share - spent, share * place.LEAST_FOR_SAMPLING), rel=1e-6)
    assert governor.exceeds == (governor.self_share > share)


def test_unless_asked_every_request_stays_observed():
    governor, budget = governed(0.01, thins=False, self_share=0.1)
    assert governor.exceeds
    assert governor.observed_share == 1
    assert budget.share == pytest.approx(0.001)
    governor.close()
    assert budget.share == DEFAULT_SHARE


def test_the_first_requests_prove_nothing():
    few, _ = governed(0.01, thins=True, self_share=0.5, requests=place.SETTLED_REQUESTS - 1)
    short, _ = governed(0.01, thins=True, self_share=0.5, requests=1000, wall_ns=MS)
    assert few.self_share is short.self_share is None
    assert few.observed_share == short.observed_share == 1


def test_it_observes_more_again_when_that_costs_less():
    governor, _ = governed(0.01, thins=True, self_share=0.1)
    assert governor.observed_share < 0.11
    for _ in range(3000):
        governor.saw(S, S // 1000)
    assert governor.observed_share == 1


def simulated(seed, *, overhead_ns, share=0.5, requests=400):
    """Requests of several shapes, of which chance leaves some out; those observed take longer by so much a token."""
    rng = random.Random(seed)
    arms = Arms()
    for _ in range(requests):
        tokens = rng.choice([16, 32, 64])
        prompt = rng.choice([8, 512])
        wall_ns = prompt * 20_000 + sum(rng.gammavariate(50, 20_000) for _ in range(4)) / 4 * tokens
        observed = rng.random() < share
        arms.add((prompt, tokens), int(wall_ns + observed * overhead_ns * tokens), tokens, observed=observed)
    return arms.estimate()


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_estimate_is_unbiased_and_its_interval_holds_the_truth_as_often_as_it_says(share):
    overhead_ns = 30_000
    estimates = [simulated(seed, overhead_ns=overhead_ns, share=share, requests=300) for seed in range(120)]
    held = sum(one.low_ns <= overhead_ns <= one.high_ns for one in estimates)
    assert held >= 0.88 * len(estimates)  # of 95 %, four standard deviations below
    assert held < len(estimates)  # an interval that always holds it says too little
    values = [one.value_ns for one in estimates]
    error = statistics.stdev(values) / len(values) ** 0.5
    assert abs(statistics.mean(values) - overhead_ns) < 4 * error


def test_no_overhead_is_not_found_where_there_is_none():
    estimates = [simulated(seed, overhead_ns=0) for seed in range(60)]
    assert sum(one.low_ns > 0 for one in estimates) <= 6
    assert any(one.value_ns < 0 for one in estimates)


def test_without_both_arms_of_one_shape_there_is_no_estimate():
    arms = Arms()
    for number in range(50):
        arms.add("a", 1000 + number, 10, observed=True)
        arms.add("b", 1000 + number, 10, observed=False)
    assert arms.estimate() is None
    for number in range(4):
        arms.add("a", 900 + number, 10, observed=False)
    found = arms.estimate()
    assert (found.observed, found.bare) == (50, 4)


def test_shapes_weigh_by_their_requests_and_not_by_their_spread():
    """Weights that looked at the spread would lean to shapes whose slow requests have not come yet."""
    arms = Arms()
    for number in range(8):
        arms.add("calm", 1000, 10, observed=True)
        arms.add("calm", 900, 10, observed=False)
        arms.add("wild", 5000 * (number % 2) + 2000, 10, observed=True)
        arms.add("wild", 5000 * (number % 2) + 1000, 10, observed=False)
    for _ in range(16):
        arms.add("calm", 1000, 10, observed=True)
    calm, wild = 24 * 8 / 32, 8 * 8 / 16
    assert arms.estimate().value_ns == pytest.approx((calm * 10 + wild * 100) / (calm + wild))


def test_requests_that_are_all_alike_leave_no_doubt():
    arms = Arms()
    for _ in range(5):
        arms.add("a", 1000, 10, observed=True)
        arms.add("a", 800, 10, observed=False)
    found = arms.estimate()
    assert found.value_ns == found.low_ns == found.high_ns == 20


def test_shapes_are_bounded_and_the_oldest_goes():
    arms = Arms()
    for shape in range(STRATA_KEPT + 10):
        for observed in (True, False):
            for _ in range(4):
                arms.add(shape, 1000, 10, observed=observed)
    assert arms.estimate().observed == 4 * STRATA_KEPT
