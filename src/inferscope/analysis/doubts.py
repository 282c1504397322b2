"""Why a verdict is not certain, or cannot be given at all: what both kinds of verdict ask in the same way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.roofline import Demand, Roofs
    from inferscope.records import PhaseRecord
    from inferscope.specs import Ceiling

__all__ = ["AWAY", "CLOSE_SHARES", "balanced", "defect", "shifted_demands"]

CLOSE_SHARES = 0.10
"""Two largest shares nearer than this: the phase is balanced, and the verdict's confidence low."""
AWAY = 0.10
"""Share of a phase off the CPU beyond which its time says little about model and device."""
_SPREADS = 2.0
"""How many times its readings' spread a ceiling may be off."""


def balanced(shares: dict[str, float]) -> str:
    """That the two largest shares are close, naming both; "" where they are not."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    if len(ranked) > 1 and ranked[0][1] - ranked[1][1] >= CLOSE_SHARES:
        return ""
    if len(ranked) < 2:  # noqa: PLR2004 - two to be between
        return "balanced: no shares are known"
    (first, most), (second, next_most) = ranked[:2]
    return (
        f"balanced between {first} ({most:.0%}) and {second} ({next_most:.0%}): the two largest shares are close, and "
        "relieving one of them alone gains little"
    )


def defect(phase: PhaseRecord, cost: PassCost, roofs: Roofs) -> str:
    """What makes numbers unfit for a verdict, in words; "" where nothing does."""
    ledger = phase.ledger
    parts = (ledger.issue_ns, ledger.select_ns, ledger.wait_ns, ledger.deliver_ns, ledger.shared_ns, ledger.offcpu_ns)
    if any(value is not None and not _sound(value) for value in (*parts, phase.wall_ns)):
        return "a time in the phase's ledger is negative or not a number"
    if phase.wall_ns <= 0 or phase.passes <= 0:
        return "the phase has no length: it has no passes, or they took no time"
    if ledger.total_ns != phase.wall_ns:
        return "the phase's ledger does not add up to its wall"
    amounts = (cost.flops, cost.weight_bytes, cost.kv_read_bytes, cost.kv_write_bytes, cost.bytes.model, cost.calls)
    if not all(_sound(value) for value in amounts):
        return "an amount of work is negative or not a number"
    for name, ceiling in (("compute", roofs.compute), ("memory", roofs.memory), ("kernel", roofs.kernel)):
        if ceiling is not None and (not _sound(ceiling.value) or ceiling.value <= 0):
            return f"the {name} ceiling is {ceiling.value}: it must be a positive number; calibrate again"
    return ""


def shifted_demands(needed: Demand, roofs: Roofs) -> tuple[Demand, ...]:
    """What is demanded with one of the roofs as far off as its readings were spread; without the groups.

    Args:
        needed: What the roofs demand as they are.
        roofs: How far each may be off.
    """
    ends = [(factor, 1.0) for factor in _ends(roofs.compute)] + [(1.0, factor) for factor in _ends(roofs.memory)]
    return tuple(_stretched(needed, compute, memory) for compute, memory in ends)


def _stretched(needed: Demand, compute: float, memory: float) -> Demand:
    compute_ns = memory_ns = 0.0
    for entry in needed.groups:
        arithmetic_ns, traffic_ns = entry.compute_ns * compute, entry.memory_ns * memory
        if arithmetic_ns >= traffic_ns:
            compute_ns += arithmetic_ns
        else:
            memory_ns += traffic_ns
    return replace(needed, groups=(), compute_ns=compute_ns, memory_ns=memory_ns)


def _ends(ceiling: Ceiling) -> tuple[float, ...]:
    """By what a time at this ceiling has to be multiplied if it is as low, or as high, as its readings allow."""
    if not ceiling.spread or not math.isfinite(ceiling.spread):
        return ()
    width = min(0.9, _SPREADS * ceiling.spread)
    return 1 / (1 - width), 1 / (1 + width)


def _sound(value: float) -> bool:
    return math.isfinite(value) and value >= 0
