"""Chance decides who observes a request, and which of those that are left out are timed beside the observed ones."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from inferscope.capture import registry
from inferscope.capture.registry import COMPARED_AT_MOST, Observed

DRAWS = 40_000


def drawn(*shares):
    """Share of draws that are taken, and of the others the share that is compared."""
    receivers = tuple(SimpleNamespace(observed_share=share) for share in shares)
    draws = [Observed.draw(receivers) for _ in range(DRAWS)]
    left_out = [draw for draw in draws if not draw.taken]
    assert {draw.odds for draw in draws} <= {(), shares}
    assert all(draw.odds == shares for draw in draws if draw.taken)
    compared = sum(draw.odds == shares for draw in left_out) / max(len(left_out), 1)
    return 1 - len(left_out) / DRAWS, compared


@pytest.fixture(autouse=True)
def _same_chance_each_time(monkeypatch):
    monkeypatch.setattr(registry, "_CHANCE", random.Random(7))


@pytest.mark.parametrize(
    ("share", "compared"),
    [(0.02, 0.02 / 0.98), (0.1, 0.1 / 0.9), (0.5, COMPARED_AT_MOST), (0.95, COMPARED_AT_MOST)],
)
def test_about_as_many_are_compared_as_observed_and_never_more_than_few(share, compared):
    assert drawn(share) == (pytest.approx(share, abs=0.01), pytest.approx(compared, abs=0.02))


@pytest.mark.parametrize(("shares", "taken"), [((0.0,), 0), ((1.0,), 1), ((0.3, 1.0), 1), ((), 0)])
def test_where_nothing_is_left_to_chance_nothing_is_compared(shares, taken):
    receivers = tuple(SimpleNamespace(observed_share=share) for share in shares)
    draws = [Observed.draw(receivers) for _ in range(100)]
    assert all(draw.odds == () for draw in draws)
    assert all(bool(draw.taken) == bool(taken) for draw in draws)


def test_each_receiver_has_its_own_chance():
    rare, often = SimpleNamespace(observed_share=0.1), SimpleNamespace(observed_share=0.9)
    draws = [Observed.draw((rare, often)) for _ in range(DRAWS)]
    assert sum(rare in draw.taken for draw in draws) / DRAWS == pytest.approx(0.1, abs=0.01)
    assert sum(often in draw.taken for draw in draws) / DRAWS == pytest.approx(0.9, abs=0.01)


def test_the_applications_own_random_numbers_are_left_alone():
    random.seed(5)
    before = random.getstate()
    drawn(0.5)
    assert random.getstate() == before


def test_a_forked_worker_has_a_chance_of_its_own():
    before = registry._CHANCE.getstate()
    registry.after_fork()
    assert registry._CHANCE.getstate() != before
