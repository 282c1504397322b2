"""The memory account and the sums of passes, for models with windows, states and an encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.analysis.cost import QUANTITIES, evaluate, pass_cost
from inferscope.analysis.memory import account, cache_bytes, largest_batch
from inferscope.errors import CostUnavailableError
from inferscope.records import PassRun, Work
from inferscope.specs import (
    BASIS,
    CacheTerms,
    CostTerms,
    DeviceSpec,
    ModelSpec,
    OperatorTerms,
    PeakTerms,
    Structure,
    monomials,
    regime_of,
)

WINDOW = 8
CACHES = (
    CacheTerms(kind="tokens", unit_bytes=10),
    CacheTerms(kind="window", unit_bytes=7, window=WINDOW),
    CacheTerms(kind="state", unit_bytes=100),
)
KINDS = [("prefill", "0"), ("prefill", "1"), ("decode", "0"), ("decode", "2")]
KINDS += [("continuation", digit) for digit in "012"]


def row(**values):
    return tuple(values.get(name.replace("1", "one"), 0) for name in BASIS)


def terms(*, peaks=True, window_bytes=7):
    def operator(index, regime, segment):
        made = {quantity: row(one=index, bk=3 + index, bq=5, b=index) for quantity in QUANTITIES}
        return OperatorTerms(group="linear", regime=regime, segment=segment, **made)

    live = row(b=11, bk=40, bq=60)
    return CostTerms(
        operators=tuple(operator(index, *kind) for index, kind in enumerate(KINDS)),
        kv_bytes_per_token=17,
        logits_bytes=4,
        supports_logits_to_keep=True,
        structure=Structure(windows=(WINDOW,)),
        caches=tuple(replace(cache, unit_bytes=window_bytes) if cache.window else cache for cache in CACHES),
        stored_bytes=1000,
        peaks=tuple(PeakTerms(regime=regime, segment=segment, live_bytes=live) for regime, segment in KINDS)
        if peaks
        else (),
    )


def model(**options):
    return ModelSpec(name="m", model_class="M", cost=terms(**options))


def of_memory(size):
    return DeviceSpec(name="d", kind="cpu", memory_bytes=size)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 20), st.integers(1, 30), st.integers(0, 3))
def test_a_run_of_passes_costs_what_they_cost_one_by_one(b, q, first, passes, step):
    pasts = [first + index * step for index in range(passes)]
    if len({regime_of(q, past) for past in pasts}) > 1:
        return
    single = [pass_cost(terms(), batch_size=b, q_len=q, past_len=past) for past in pasts]
    sums = tuple(map(sum, zip(*(monomials(b, q, past, 1) for past in pasts), strict=True)))
    run = PassRun(batch_size=b, q_len=q, past_len=first, logits=1, passes=passes, step=step)
    work = Work(regime=regime_of(q, first), passes=passes, monomials=sums, runs=(run,))
    together = evaluate(terms(), [work])
    for name in ("flops", "weight_bytes", "kv_read_bytes", "kv_write_bytes", "activation_bytes", "launches"):
        assert getattr(together, name) == sum(getattr(cost, name) for cost in single), name


def test_sums_alone_do_not_cost_a_model_with_a_window():
    work = Work(regime="decode", passes=1, monomials=monomials(1, 1, 9, 1))
    with pytest.raises(CostUnavailableError, match="kept only sums"):
        evaluate(terms(), [work])


def test_the_cache_of_each_kind():
    assert cache_bytes(terms(), batch_size=1, q_len=20, past_len=0) == 20 * 10 + 20 * 7 + 100
    assert cache_bytes(terms(), batch_size=3, q_len=1, past_len=20) == 3 * (21 * 10 + WINDOW * 7 + 100)
    assert cache_bytes(terms(), batch_size=1, q_len=1, past_len=4) == 5 * 10 + 5 * 7 + 100


def test_an_account_adds_up():
    found = account(model(), batch_size=2, input_tokens=20, output_tokens=30, device=of_memory(9000))
    assert (found.kv_len, found.weight_bytes) == (49, 1000)
    assert found.kv_bytes == 2 * (49 * 10 + WINDOW * 7 + 100)
    assert found.kv_bytes_per_token == 2 * 10
    beside = 2 * (11 + 40 * 49 + 60)
    assert (found.peak_phase, found.peak_bytes) == ("decode", 1000 + beside)
    assert found.activation_bytes == beside - found.kv_bytes
    assert found.headroom_bytes == 9000 - found.peak_bytes


def test_the_first_forward_behind_a_prompt_holds_what_windows_have_of_it():
    steady, prompt = 11 + 40 * 501 + 60, 11 + 40 * 500 + 60 * 500
    for window_bytes, phase in ((7, "prefill"), (100, "decode")):
        found = account(model(window_bytes=window_bytes), batch_size=1, input_tokens=500, output_tokens=2)
        held = (500 - WINDOW) * window_bytes
        assert (found.peak_phase, found.peak_bytes) == (phase, 1000 + max(prompt, steady + held))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1001, 200_000))
def test_the_largest_batch_fits_and_one_more_does_not(input_tokens, output_tokens, size):
    lengths = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    most = largest_batch(model(), of_memory(size), **lengths)
    assert most is not None
    if most:
        assert account(model(), batch_size=most, device=of_memory(size), **lengths).headroom_bytes >= 0
    assert account(model(), batch_size=most + 1, device=of_memory(size), **lengths).headroom_bytes < 0


def test_what_was_not_followed_is_unknown():
    found = account(model(peaks=False), batch_size=1, input_tokens=20, device=of_memory(9000))
    assert (found.peak_bytes, found.activation_bytes, found.headroom_bytes, found.largest_batch) == (None,) * 4
    assert (found.weight_bytes, found.kv_bytes) == (1000, 20 * 10 + 20 * 7 + 100)


@pytest.mark.parametrize("odd", [{"batch_size": 0}, {"input_tokens": 0}, {"output_tokens": 0}])
def test_impossible_requests_are_refused(odd):
    with pytest.raises(CostUnavailableError, match="no request has"):
        account(model(), **{"batch_size": 1, "input_tokens": 3, **odd})


def test_a_model_without_a_cost_says_why():
    with pytest.raises(CostUnavailableError, match="reads values"):
        account(ModelSpec(name="m", model_class="M", cost_note="it reads values"), batch_size=1, input_tokens=3)
