"""Counters against the cost model: whether the bytes and operations that were counted on paper were there in fact.

The two speak of the same work only where the profile covers as many passes as the paper counts. Where that cannot be
told, nothing is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inferscope.analysis.cost import encoder_cost, pass_cost
from inferscope.errors import CostUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.counters import CounterReport, PhaseCounters
    from inferscope.records import GenerationRecord, PassRun, PhaseRecord
    from inferscope.specs import CostTerms

__all__ = ["AGREES", "Residual", "residuals"]

AGREES = 0.1
"""How far the counters may lie outside what was counted on paper, as a share of it, and still agree with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """One phase's counters beside what the cost model says, per pass.

    Attributes:
        phase: Which.
        quantity: "dram_bytes" or "flops".
        verdict: "agrees", "more" or "less" than counted on paper, or "cannot tell".
        meaning: What that may mean, or why it cannot be told.
        measured: By the counters, of one pass on average; None where unknown.
        expected_low: By the cost model: of the least pass that the profile may hold, at the least the work can take.
        expected_high: Of the largest, as its operators run.
        ratio: Measured over the middle of the two; None where either is unknown.
        passes: Passes that the counters cover.
        passes_from: Where that number is from: "ranges" or "told".
    """

    phase: str
    quantity: Literal["dram_bytes", "flops"]
    verdict: Literal["agrees", "more", "less", "cannot tell"]
    meaning: str
    measured: float | None = None
    expected_low: float | None = None
    expected_high: float | None = None
    ratio: float | None = None
    passes: int | None = None
    passes_from: Literal["ranges", "told"] | None = None


@dataclass(frozen=True, slots=True)
class _Expected:
    """Of one pass: least and most."""

    bytes: tuple[float, float]
    flops: tuple[float, float]
    passes: int
    """That the records hold of this phase."""


def residuals(
    report: CounterReport, records: Iterable[GenerationRecord], passes: Mapping[str, int] | None = None
) -> tuple[Residual, ...]:
    """What the counters of each phase say of the cost model.

    Args:
        report: The counters.
        records: Of the requests that were profiled, or of requests of the same shapes.
        passes: Forwards of each phase that were profiled, where the file does not say.

    Returns:
        Two for each phase that the counters and the records share.
    """
    kept = list(records)
    found: list[Residual] = []
    for counters in report.phases:
        phases = [(record, phase) for record in kept for phase in record.phases if phase.name == counters.phase]
        if not phases:
            continue
        told = (passes or {}).get(counters.phase)
        expected = _expected(phases)
        if isinstance(expected, str):
            found += [_unknown(counters, quantity, expected) for quantity in ("dram_bytes", "flops")]
            continue
        covered = told if told is not None else counters.passes
        if covered is None:
            why = f"how many passes the profile covers is not in the file: give --passes {counters.phase}=N"
            found += [_unknown(counters, quantity, why) for quantity in ("dram_bytes", "flops")]
            continue
        source: Literal["ranges", "told"] = "ranges" if told is None else "told"
        if covered > expected.passes:
            why = f"the profile covers {covered} passes, the records hold {expected.passes}: they are of other requests"
            found += [_unknown(counters, quantity, why) for quantity in ("dram_bytes", "flops")]
            continue
        found.append(_held(counters, "dram_bytes", counters.sums.dram_bytes, expected.bytes, covered, source))
        found.append(_held(counters, "flops", counters.sums.total_flops, expected.flops, covered, source))
    return tuple(found)


def _unknown(counters: PhaseCounters, quantity: str, why: str) -> Residual:
    return Residual(
        phase=counters.phase,
        quantity="flops" if quantity == "flops" else "dram_bytes",
        verdict="cannot tell",
        meaning=why,
    )


_MISSING = {
    "dram_bytes": "no DRAM bytes were collected for every kernel",
    "flops": "the operations of both the plain and the tensor pipes were not collected for every kernel",
}
_MEANINGS = {
    ("dram_bytes", "agrees"): "the traffic is what the cost model counts",
    ("dram_bytes", "more"): "more traffic than the operators as they run explain: data read again, workspaces, spills",
    ("dram_bytes", "less"): "part of what is counted was served by the L2 cache, or fewer passes were profiled",
    ("flops", "agrees"): "the operations are what the cost model counts",
    ("flops", "more"): "more than is counted: tiles padded to their size, or arithmetic outside the matrix products",
    ("flops", "less"): "fewer than is counted: an operator that runs cheaper than its formula, fewer passes, or "
    "arithmetic that these counters do not see",
}


def _held(
    counters: PhaseCounters,
    quantity: Literal["dram_bytes", "flops"],
    measured: float | None,
    expected: tuple[float, float],
    covered: int,
    source: Literal["ranges", "told"],
) -> Residual:
    if measured is None:
        return _unknown(counters, quantity, _MISSING[quantity])
    low, high = expected
    each, middle = measured / covered, (low + high) / 2
    verdict: Literal["agrees", "more", "less"] = "agrees"
    if each > high * (1 + AGREES):
        verdict = "more"
    elif each < low * (1 - AGREES):
        verdict = "less"
    return Residual(
        phase=counters.phase,
        quantity=quantity,
        verdict=verdict,
        meaning=_MEANINGS[quantity, verdict],
        measured=each,
        expected_low=low,
        expected_high=high,
        ratio=each / middle if middle else None,
        passes=covered,
        passes_from=source,
    )


def _expected(phases: list[tuple[GenerationRecord, PhaseRecord]]) -> _Expected | str:
    """What one pass of a phase costs, over all passes that the records hold; in words why that is unknown."""
    costs: list[PassCost] = []
    total = 0
    for record, phase in phases:
        terms = record.model.cost
        if terms is None:
            return f"no cost is known for {record.model.name}: {record.model.cost_note or 'its record holds none'}"
        runs = [(run, work.encoder_len) for work in phase.work for run in work.runs or ()]
        if not runs or any(work.runs is None for work in phase.work):
            return "the record does not hold the shapes of its passes"
        try:
            costs += [cost for run, encoder_len in runs for cost in _ends(terms, phase.name, run, encoder_len)]
        except CostUnavailableError as error:
            return str(error)
        total += phase.passes
    return _Expected(
        bytes=(min(min(_totals(cost)) for cost in costs), max(max(_totals(cost)) for cost in costs)),
        flops=(min(cost.flops for cost in costs), max(cost.flops_full for cost in costs)),
        passes=total,
    )


def _totals(cost: PassCost) -> tuple[int, int, int]:
    """In no fixed order: `ByteTriple` says when what runs is less than the least."""
    return cost.bytes.minimum, cost.bytes.model, cost.bytes.executed


def _ends(terms: CostTerms, phase: str, run: PassRun, encoder_len: int | None) -> list[PassCost]:
    """The first and the last pass of a run: what lies between costs between."""
    if phase == "encode":
        return [
            encoder_cost(terms, batch_size=run.batch_size, q_len=None if terms.structure.encoder_len else run.q_len)
        ]
    last = run.past_len + run.step * (run.passes - 1)
    return [
        pass_cost(
            terms,
            batch_size=run.batch_size,
            q_len=run.q_len,
            past_len=past_len,
            logits_to_keep=run.logits,
            encoder_len=encoder_len,
        )
        for past_len in {run.past_len, max(last, 0)}
    ]
