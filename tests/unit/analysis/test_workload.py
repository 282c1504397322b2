from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.analysis.workload import RequestDigest, digest, summarise
from inferscope.testing import make_record, make_result

S = 1_000_000_000
T0 = 1_790_000_000 * S


def request(begin_s, end_s, tokens=100, **overrides):
    made = RequestDigest(
        start_unix_ns=T0 + round(begin_s * S),
        end_unix_ns=T0 + round(end_s * S),
        device="cuda",
        device_key="cuda:aaaa, driver 580",
        output_tokens=tokens,
        aborted=False,
        phases=(),
    )
    return replace(made, **overrides)


def summed(*requests, now_s=60.0, since_s=0.0, **energy):
    return summarise(
        requests,
        now_unix_ns=T0 + round(now_s * S),
        since_unix_ns=T0 + round(since_s * S),
        energy={uuid.replace("_", "-"): readings for uuid, readings in energy.items()},
    )


def counter(*readings):
    return tuple((T0 + round(at_s * S), joules) for at_s, joules in readings)


def test_a_result_is_kept_in_few_numbers():
    result = make_result()
    kept = digest(result)
    assert kept.end_unix_ns - kept.start_unix_ns == result.record.wall_ns
    assert (kept.device, kept.output_tokens, kept.aborted) == ("cpu", 16, False)
    assert [(name, shares) for name, _, shares in kept.phases] == [
        (phase.name, phase.shares) for phase in result.diagnosis.phases
    ]
    assert digest(make_result(record=make_record(status="aborted"))).aborted


def test_throughput_is_of_the_last_minute():
    load = summed(request(10, 20), request(50, 60, tokens=200))
    assert (load.requests, load.tokens_per_s, load.horizon_s) == (2, pytest.approx(300 / 60), 60.0)
    assert load.busy_share == pytest.approx(20 / 60)


def test_a_request_that_began_before_the_horizon_counts_in_part():
    load = summed(request(-10, 10, tokens=200))
    assert load.tokens_per_s == pytest.approx(100 / 60)


def test_what_ended_before_the_horizon_or_has_not_ended_does_not_count():
    load = summed(request(-20, -1), request(50, 61))
    assert (load.requests, load.tokens_per_s) == (0, None)
    assert "tokens_per_s" in load.missing


def test_unknown_tokens_are_counted_as_unknown_and_not_as_none():
    load = summed(request(0, 10, tokens=None), request(0, 10))
    assert (load.uncounted, load.tokens_per_s) == (1, pytest.approx(100 / 60))
    assert summed(request(0, 10, tokens=None)).tokens_per_s is None


def test_phases_are_weighted_by_their_time():
    first = request(0, 1, phases=(("decode", 3 * S, {"memory": 0.8, "overhead": 0.2}), ("prefill", S, {})))
    second = request(2, 3, phases=(("decode", S, {"memory": 0.0, "overhead": 1.0}),))
    decode, prefill = summed(first, second).phases
    assert (decode.name, decode.bound, decode.wall_s, decode.known_share) == ("decode", "memory", 4.0, 1.0)
    assert decode.shares["memory"] == pytest.approx(0.6)
    assert sum(decode.shares.values()) == pytest.approx(1)
    assert (prefill.bound, prefill.shares, prefill.known_share) == ("unknown", {}, 0.0)


def test_energy_lies_between_the_readings_round_the_request():
    # 100 W for the whole time, read each second; the request ran from 10.5 s to 19.5 s.
    readings = counter(*((second, 100.0 * second) for second in range(30)))
    (energy,) = summed(request(10.5, 19.5, tokens=90), GPU_aaaa=readings).energy
    assert (energy.low_j, energy.high_j) == (800.0, 1000.0)  # 900 J in truth
    low, high = energy.per_token_j
    assert (low, high) == (pytest.approx(800 / 90), pytest.approx(1000 / 90))
    assert energy.per_request_j == (800.0, 1000.0)


def test_energy_of_overlapping_requests_is_counted_once():
    readings = counter(*((second, 100.0 * second) for second in range(30)))
    (energy,) = summed(request(5, 15), request(10, 20), GPU_aaaa=readings).energy
    assert (energy.low_j, energy.high_j, energy.requests, energy.tokens) == (1500.0, 1500.0, 2, 200)


@pytest.mark.parametrize(
    ("one", "readings"),
    [
        (request(5, 15), counter((6, 0.0), (20, 9.0))),  # began before the first reading
        (request(5, 15), counter((0, 0.0), (14, 9.0))),  # ended after the last
        (request(5, 15), counter((0, 900.0), (10, 5.0), (20, 9.0))),  # the driver was loaded anew
        (request(5, 15, device="cpu"), counter((0, 0.0), (20, 9.0))),
        (request(5, 15, tokens=None), counter((0, 0.0), (20, 9.0))),
        (request(5, 15, device_key="cuda:bbbb, driver 580"), counter((0, 0.0), (20, 9.0))),
    ],
)
def test_energy_that_is_not_known_is_not_told(one, readings):
    load = summed(one, GPU_aaaa=readings)
    assert load.energy == ()
    assert load.missing["energy"]


def test_a_request_without_identity_belongs_to_the_only_gpu():
    readings = counter((0, 0.0), (20, 9.0))
    anonymous = request(5, 15, device_key=None)
    assert len(summed(anonymous, GPU_aaaa=readings).energy) == 1
    assert summed(anonymous, GPU_aaaa=readings, GPU_bbbb=readings).energy == ()


def test_before_any_time_has_passed_nothing_is_known():
    load = summed(request(0, 1), now_s=0.0)
    assert (load.requests, load.tokens_per_s) == (0, None)


MOMENTS = st.lists(st.integers(-60_000, 120_000), min_size=2, max_size=40, unique=True).map(sorted)


@given(MOMENTS, st.lists(st.integers(0, 700), min_size=40, max_size=40), st.integers(1, 59_000), st.integers(1, 90_000))
def test_the_interval_holds_the_energy_that_was_drawn(moments_ms, power_w, end_ms, length_ms):
    """Power is constant between two readings' moments and changes at each; the request lies anywhere."""

    def drawn_j(until_ms):
        pairs = zip(moments_ms, [*moments_ms[1:], 10**9], power_w, strict=False)
        return sum(max(0, min(until_ms, second) - first) * power / 1e3 for first, second, power in pairs)

    readings = counter(*((at / 1e3, drawn_j(at)) for at in moments_ms))
    begin_ms = end_ms - length_ms
    load = summed(request(begin_ms / 1e3, end_ms / 1e3), GPU_aaaa=readings)
    enclosed = moments_ms[0] <= begin_ms and end_ms <= moments_ms[-1]
    assert bool(load.energy) == enclosed
    for energy in load.energy:
        assert energy.low_j - 1e-6 <= drawn_j(end_ms) - drawn_j(begin_ms) <= energy.high_j + 1e-6


@st.composite
def requests(draw):
    begin = draw(st.floats(-30, 58))
    return request(begin, begin + draw(st.floats(0.001, 40)), tokens=draw(st.none() | st.integers(0, 5000)))


@given(st.lists(requests(), max_size=12), st.floats(0, 59))
def test_shares_stay_shares(found, since_s):
    load = summed(*found, since_s=since_s)
    assert 0 <= load.busy_share <= 1
    assert load.tokens_per_s is None or load.tokens_per_s >= 0
    assert load.uncounted <= load.requests <= len(found)
