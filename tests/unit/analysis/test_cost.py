"""The pure half of the cost model: solve exactly, refuse what is no such polynomial, evaluate sums."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscope.analysis.cost import evaluate, fit, monomials, pass_cost, regime_of
from inferscope.errors import CostUnavailableError
from inferscope.records import Work
from inferscope.specs import BASIS, CostTerms, CountTable, GroupCount, OperatorTerms, ShapeCount

QUANTITIES = ("calls", "launches", "flops", "flops_full", "weight_bytes", "activation_bytes", "executed_bytes")
COLUMNS = {
    "prefill": ("1", "q", "b", "bq", "qk", "bqk", "bn"),
    "decode": ("1", "k", "b", "bk"),
    "continuation": BASIS,
}
GRID = [
    *((b, q, 0, n) for b in (1, 2, 3) for q in (4, 7, 9) for n in (1, q)),
    *((b, 1, past, 1) for b in (1, 2, 3) for past in (0, 5, 11)),
    *((b, q, past, n) for b in (1, 2, 3) for q in (2, 5, 8) for past in (3, 6, 13) for n in (1, q)),
    *((7, 5, 0, 5), (7, 1, 6, 1), (7, 5, 6, 1)),
]

coefficients = st.integers(min_value=-(10**12), max_value=10**12)


@st.composite
def operator_terms(draw, group, regime):
    def polynomial():
        values = {name: draw(coefficients) for name in COLUMNS[regime]}
        return tuple(values.get(name, 0) for name in BASIS)

    return OperatorTerms(group=group, regime=regime, **{quantity: polynomial() for quantity in QUANTITIES})


@st.composite
def cost_terms(draw):
    groups = draw(st.lists(st.sampled_from(["linear 4x8", "attention", "kv-cache", "other"]), min_size=1, unique=True))
    operators = [draw(operator_terms(group, regime)) for regime in COLUMNS for group in sorted(groups)]
    return CostTerms(
        operators=tuple(operators),
        kv_bytes_per_token=draw(st.integers(0, 10**6)),
        logits_bytes=draw(st.integers(0, 10**6)),
        supports_logits_to_keep=True,
        uncounted=("strange_op",),
        notes=("a note",),
    )


shapes = st.tuples(st.integers(1, 64), st.integers(1, 4096), st.integers(0, 10**6), st.integers(1, 4096)).map(
    lambda shape: (*shape[:3], min(shape[3], shape[1]))
)


def value(terms, values):
    return sum(coefficient * moment for coefficient, moment in zip(terms, values, strict=True))


def counted(terms, grid=GRID):
    rows = []
    for b, q, past, n in grid:
        regime, values = regime_of(q, past), monomials(b, q, past, n)
        groups = [
            GroupCount(group=entry.group, **{name: value(getattr(entry, name), values) for name in QUANTITIES})
            for entry in terms.operators
            if entry.regime == regime
        ]
        rows.append(ShapeCount(batch_size=b, q_len=q, past_len=past, logits=n, groups=tuple(groups)))
    return CountTable(
        shapes=tuple(rows),
        kv_bytes_per_token=terms.kv_bytes_per_token,
        logits_bytes=terms.logits_bytes,
        supports_logits_to_keep=terms.supports_logits_to_keep,
        uncounted=terms.uncounted,
        notes=terms.notes,
    )


def one_group(**quantities):
    """A table with one group whose quantities are functions of (b, q, past, n); the others are 1."""
    rows = [
        ShapeCount(
            batch_size=b,
            q_len=q,
            past_len=past,
            logits=n,
            groups=(GroupCount(group="odd one", **{name: make(b, q, past, n) for name, make in quantities.items()}),),
        )
        for b, q, past, n in GRID
    ]
    return CountTable(shapes=tuple(rows), kv_bytes_per_token=8, logits_bytes=4, supports_logits_to_keep=True)


def test_monomials_stand_in_the_order_of_the_basis():
    assert dict(zip(BASIS, monomials(2, 3, 4, 1), strict=True)) == {
        "1": 1, "q": 3, "k": 7, "b": 2, "bq": 6, "bk": 14, "qk": 21, "bqk": 42, "bn": 2, "bqq": 18,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("q", "past", "regime"),
    [(5, 0, "prefill"), (1, 0, "decode"), (1, 9, "decode"), (5, 9, "continuation"), (2, 1, "continuation")],
)
def test_regime(q, past, regime):
    assert regime_of(q, past) == regime


@settings(max_examples=40)
@given(cost_terms())
def test_fit_finds_the_polynomials_that_made_the_counts(terms):
    fitted = fit(counted(terms))
    assert sorted(fitted.operators, key=repr) == sorted(terms.operators, key=repr)
    assert dataclasses.replace(fitted, operators=()) == dataclasses.replace(terms, operators=())


@settings(max_examples=40)
@given(cost_terms(), st.lists(shapes, min_size=1, max_size=12))
def test_one_evaluation_of_summed_work_equals_the_sum_over_passes(terms, passes):
    single = [pass_cost(terms, batch_size=b, q_len=q, past_len=p, logits_to_keep=n) for b, q, p, n in passes]
    summed: dict[str, list[int]] = {}
    for b, q, past, n in passes:
        total = summed.setdefault(regime_of(q, past), [0] * len(BASIS))
        total[:] = [left + right for left, right in zip(total, monomials(b, q, past, n), strict=True)]
    together = evaluate(
        terms, [Work(regime=regime, passes=1, monomials=tuple(sums)) for regime, sums in summed.items()]
    )
    for name in ("flops", "flops_full", "weight_bytes", "kv_read_bytes", "kv_write_bytes", "activation_bytes"):
        assert getattr(together, name) == sum(getattr(cost, name) for cost in single), name
    for name in ("minimum", "model", "executed"):
        assert getattr(together.bytes, name) == sum(getattr(cost.bytes, name) for cost in single), name
    assert together.calls == sum(cost.calls for cost in single)
    assert together.launches == sum(cost.launches for cost in single)


@settings(max_examples=40)
@given(cost_terms(), shapes)
def test_groups_add_up_to_the_whole(terms, shape):
    b, q, past, n = shape
    cost = pass_cost(terms, batch_size=b, q_len=q, past_len=past, logits_to_keep=n)
    assert sum(group.flops for group in cost.groups) == cost.flops
    assert sum(group.flops_full for group in cost.groups) == cost.flops_full
    assert sum(group.bytes for group in cost.groups) == cost.bytes.model
    assert sum(group.executed_bytes for group in cost.groups) == cost.bytes.executed
    assert sum(group.launches for group in cost.groups) == cost.launches


@settings(max_examples=40)
@given(cost_terms(), shapes)
def test_bytes_are_what_the_docs_say(terms, shape):
    b, q, past, n = shape
    cost = pass_cost(terms, batch_size=b, q_len=q, past_len=past, logits_to_keep=n)
    assert cost.kv_read_bytes == terms.kv_bytes_per_token * b * (past + q)
    assert cost.kv_write_bytes == terms.kv_bytes_per_token * b * q
    carried = cost.weight_bytes + cost.kv_read_bytes + cost.kv_write_bytes
    assert cost.bytes.model == carried + cost.activation_bytes
    assert cost.bytes.minimum == carried + 8 * b * q + terms.logits_bytes * b * n
    if cost.bytes.model:
        assert cost.arithmetic_intensity == cost.flops / cost.bytes.model


def test_causal_pairs_behind_a_cache_are_in_the_basis():
    table = one_group(flops=lambda b, q, past, n: 6 * b * (q * past + q * (q + 1) // 2))
    cost = pass_cost(fit(table), batch_size=5, q_len=17, past_len=23)
    assert cost.flops == 6 * 5 * (17 * 23 + 17 * 18 // 2)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ("window", lambda b, q, past, n: b * min(past + q, 10)),
        ("chunks", lambda b, q, past, n: b * -(-q // 4)),
        ("square", lambda b, q, past, n: b * b),
        ("half", lambda b, q, past, n: b * q // 2),
    ],
)
def test_what_is_no_polynomial_is_refused_by_name(quantity, shape, make):
    with pytest.raises(CostUnavailableError, match=rf"{quantity} of 'odd one' in (prefill|decode|continuation)"):
        fit(one_group(**{quantity: make}))


@pytest.mark.parametrize("quantity", ["flops", "flops_full", "weight_bytes", "activation_bytes"])
def test_work_that_differs_for_a_single_sequence_is_refused(quantity):
    with pytest.raises(CostUnavailableError, match=quantity):
        fit(one_group(**{quantity: lambda b, q, past, n: b * q if b > 1 else q - 1}))


def test_copies_that_a_single_sequence_is_spared_are_noted():
    terms = fit(one_group(launches=lambda b, q, past, n: 30 if b > 1 else 28))
    assert pass_cost(terms, batch_size=2, q_len=1, past_len=4).launches == 30
    assert "a single sequence takes 2 launches fewer than counted (decode, 1 tokens behind 5)" in terms.notes


def test_a_group_absent_at_some_shapes_counts_nothing_there():
    table = one_group(flops=lambda b, q, past, n: b * (n - 1))
    spare = tuple(
        dataclasses.replace(row, groups=()) if row.logits == 1 and row.q_len > 1 else row for row in table.shapes
    )
    terms = fit(dataclasses.replace(table, shapes=spare))
    assert pass_cost(terms, batch_size=3, q_len=9, past_len=0, logits_to_keep=5).flops == 3 * 4


def test_too_few_shapes_are_refused():
    table = one_group(flops=lambda b, q, past, n: q)
    single = tuple(row for row in table.shapes if row.batch_size == 1)
    with pytest.raises(CostUnavailableError, match="undetermined"):
        fit(dataclasses.replace(table, shapes=single))


def test_a_model_that_keeps_all_logits_is_costed_at_all_of_them():
    table = one_group(flops=lambda b, q, past, n: b * q)
    full = tuple(row for row in table.shapes if row.logits == row.q_len)
    terms = fit(dataclasses.replace(table, shapes=full, supports_logits_to_keep=False))
    costs = [pass_cost(terms, batch_size=2, q_len=9, past_len=0, logits_to_keep=kept) for kept in (0, 1, 9)]
    assert costs[0] == costs[1] == costs[2]
    assert costs[0].bytes.minimum - costs[0].kv_read_bytes - costs[0].kv_write_bytes == 2 * 9 * (8 + 4)


def test_no_logits_to_keep_means_all_as_in_transformers():
    terms = fit(one_group(flops=lambda b, q, past, n: b * n))
    assert pass_cost(terms, batch_size=2, q_len=9, past_len=0, logits_to_keep=0).flops == 18
    assert pass_cost(terms, batch_size=2, q_len=9, past_len=0, logits_to_keep=99).flops == 18


@pytest.mark.parametrize(
    "shape", [{"batch_size": 0}, {"q_len": 0}, {"past_len": -1}, {"logits_to_keep": -1}, {"batch_size": -3}]
)
def test_impossible_shapes_are_refused(shape):
    terms = fit(one_group(flops=lambda b, q, past, n: q))
    with pytest.raises(CostUnavailableError, match="no forward has"):
        pass_cost(terms, **{"batch_size": 1, "q_len": 2, "past_len": 0, **shape})


def test_work_of_another_basis_is_refused():
    terms = fit(one_group(flops=lambda b, q, past, n: q))
    with pytest.raises(CostUnavailableError, match="9 monomials"):
        evaluate(terms, [Work(regime="decode", passes=1, monomials=(1,) * 9)])


def test_a_regime_without_counts_is_refused():
    table = one_group(flops=lambda b, q, past, n: q)
    prefill = tuple(row for row in table.shapes if row.past_len == 0 and row.q_len > 1)
    terms = fit(dataclasses.replace(table, shapes=prefill))
    with pytest.raises(CostUnavailableError, match="no decode forward"):
        pass_cost(terms, batch_size=1, q_len=1, past_len=5)


def test_no_work_costs_nothing_and_has_no_intensity():
    cost = evaluate(fit(one_group(flops=lambda b, q, past, n: q)), [])
    assert (cost.flops, cost.bytes.minimum, cost.bytes.executed, cost.groups) == (0, 0, 0, ())
    assert cost.arithmetic_intensity is None
