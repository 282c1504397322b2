"""When a forward is recorded: by count, by budget, after a slow one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture.deep import Schedule
from inferscope.meters.budget import DEFAULT_SHARE, Budget
from inferscope.testing import FakeClock

MS = 1_000_000


def scheduled(clock):
    return Schedule(Budget(clock.now_ns))


def run(schedule, clock, passes, *, every, pass_ns=10 * MS, cost_ns=MS):
    """Which of a request's passes were recorded."""
    taken = []
    for index in range(passes):
        wanted = schedule.wants(index, every)
        clock.advance(pass_ns)
        if wanted:
            taken.append(index)
            clock.advance(cost_ns)
            schedule.recorded(index, cost_ns, pass_ns)
        elif index:
            schedule.saw(pass_ns)
    return taken


def test_the_first_of_each_phase_comes_soon_and_the_rest_is_paid_for():
    clock = FakeClock()
    taken = run(scheduled(clock), clock, 100, every=1)
    assert taken[:2] == [0, 2]
    # Of 1 ms each: 200 ms have to pass after the first two, of which a pass takes 10, and then 100 after each.
    assert 20 <= taken[2] <= 25
    assert all(10 <= later - sooner <= 15 for sooner, later in itertools.pairwise(taken[2:]))


def test_one_in_so_many_where_it_is_cheap():
    clock = FakeClock()
    schedule = scheduled(clock)
    run(schedule, clock, 3, every=50, cost_ns=0)
    assert run(schedule, clock, 150, every=50, cost_ns=0) == [49, 99, 149]


@given(
    passes=st.lists(st.integers(MS, 100 * MS), min_size=20, max_size=200),
    cost_ns=st.integers(1, 30 * MS),
    every=st.integers(1, 20),
)
def test_it_never_costs_more_than_its_share(passes, cost_ns, every):
    """After the first two, whatever the passes take."""
    clock = FakeClock()
    budget = Budget(clock.now_ns)
    schedule = Schedule(budget)
    began_ns, spent_ns, taken = clock.now_ns(), 0, 0
    for index, pass_ns in enumerate(passes):
        if schedule.wants(index, every):
            taken += 1
            if taken > 2:
                assert spent_ns <= DEFAULT_SHARE * (clock.now_ns() - began_ns) + 1
            spent_ns += cost_ns
            clock.advance(pass_ns + cost_ns)
            schedule.recorded(index, cost_ns, pass_ns)
        else:
            clock.advance(pass_ns)
            if index:
                schedule.saw(pass_ns)


def test_a_slow_pass_brings_one_early():
    clock = FakeClock()
    schedule = scheduled(clock)
    assert run(schedule, clock, 60, every=1000) == [0, 2]
    schedule.saw(29 * MS)
    assert not schedule.wants(61, 1000)
    schedule.saw(40 * MS)
    assert schedule.wants(62, 1000)
    schedule.recorded(62, MS, 10 * MS)
    assert not schedule.wants(63, 1000)


def test_but_not_before_it_is_paid_for():
    clock = FakeClock()
    schedule = scheduled(clock)
    run(schedule, clock, 30, every=1000, cost_ns=100 * MS)
    schedule.saw(1000 * MS)
    assert not schedule.wants(31, 1000)


def test_what_recording_slows_down_is_part_of_its_cost():
    clock = FakeClock()
    budget = Budget(clock.now_ns)
    schedule = Schedule(budget)
    schedule.saw(10 * MS)
    schedule.recorded(5, MS, 14 * MS)
    assert budget.free_at_ns - clock.now_ns() == 500 * MS
