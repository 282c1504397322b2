"""The operator table: recorded time by group beside what the model's cost says that group does in a pass.

Recorded are sampled passes, and the cost is that of the phase's mean pass: in a long decode the cache that a sampled
pass reads may be shorter or longer than the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.roofline import Roofs, group_demand, roofs_for

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.verdict import Bound
    from inferscope.records import GenerationRecord, OperatorTime, PhaseRecord
    from inferscope.specs import DeviceSpec

__all__ = ["COSTED", "GroupRow", "operator_table", "why_unbound"]

_S_TO_NS = 1e9
COSTED = {"attention": "attention", "linear": "linear", "experts": "moe"}
"""Counted groups, and the recorded ones that draw the same line.

What moves data is grouped by its use in the one and by its name in the other.
"""
SLOW_SHARE = 0.5
"""Share of its roof below which neither roof is what binds a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One group of operators in the mean recorded pass.

    Attributes:
        group: As in `OperatorTime`.
        time_ns: Per recorded pass.
        share: Of the recorded passes' wall (0..1).
        calls: Per recorded pass.
        launches: Per recorded pass; None where no device did the work.
        flops: Of the phase's mean pass; None where the groups do not correspond.
        bytes: The same, as `PassCost.bytes.model`.
        flops_per_s: `flops` over `time_ns`.
        bytes_per_s: `bytes` over `time_ns`.
        bound: The roof that demands more, or "inefficient" below half of it; None where that is not known.
        roof_share: Time that roof demands over `time_ns`.
    """

    group: str
    time_ns: float
    share: float | None
    calls: float
    launches: float | None
    flops: float | None = None
    bytes: float | None = None
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    bound: Bound | None = None
    roof_share: float | None = None


def operator_table(
    record: GenerationRecord, phase: PhaseRecord, cost: PassCost | None, device: DeviceSpec | None
) -> tuple[GroupRow, ...]:
    """The groups of a phase, longest first; nothing where no pass was recorded.

    Args:
        record: The request.
        phase: Of it.
        cost: Of the phase, as its verdict has it; None where there is none.
        device: Whose roofs to hold it against; None for none.
    """
    if phase.deep is None:
        return ()
    found = _roofs(record, phase, cost, device)
    roofs = found if isinstance(found, Roofs) else None
    return tuple(_row(entry, phase, cost, roofs) for entry in phase.operators)


def why_unbound(
    record: GenerationRecord, phase: PhaseRecord, cost: PassCost | None, device: DeviceSpec | None
) -> tuple[str, ...]:
    """Why groups of a phase's table have no bound, a reason for all of them or one for those that lack it.

    Args:
        record: The request.
        phase: Of it.
        cost: As for `operator_table`.
        device: Likewise.

    Returns:
        Nothing where each group has one, or no pass was recorded.
    """
    rows = operator_table(record, phase, cost, device)
    without = [row.group for row in rows if row.bound is None]
    if not without:
        return ()
    found = _roofs(record, phase, cost, device)
    if isinstance(found, str):
        return (found,)
    uncounted = [row.group for row in rows if row.bound is None and row.flops is None]
    timeless = [row.group for row in rows if row.bound is None and row.flops is not None]
    reasons = []
    if uncounted:
        reasons.append(f"the cost model counts by use and not by name: it has no work of {', '.join(uncounted)}")
    if timeless:
        reasons.append(f"no time was recorded for {', '.join(timeless)}")
    return tuple(reasons)


def _roofs(
    record: GenerationRecord, phase: PhaseRecord, cost: PassCost | None, device: DeviceSpec | None
) -> Roofs | str:
    """The roofs, or in words why there are none."""
    if cost is None:
        return record.model.cost_note or "the model's operators were not counted"
    if device is None:
        return "no ceilings are known: `inferscope calibrate` measures this machine's"
    if not phase.passes:
        return "the phase has no passes"
    return roofs_for(device, record.model.dtype, (cost.weight_bytes + cost.kv_read_bytes) / phase.passes)


def _row(entry: OperatorTime, phase: PhaseRecord, cost: PassCost | None, roofs: Roofs | None) -> GroupRow:
    recorded = phase.deep.passes if phase.deep is not None else 1
    time_ns = entry.time_ns / recorded
    flops = bytes_ = None
    if cost is not None and phase.passes:
        parts = [each for each in cost.groups if COSTED.get(each.group.partition(" ")[0]) == entry.group]
        if parts:
            flops = sum(each.flops for each in parts) / phase.passes
            bytes_ = sum(each.bytes for each in parts) / phase.passes
    bound, roof_share = _bound(entry.group, time_ns, flops, bytes_, roofs)
    return GroupRow(
        group=entry.group,
        time_ns=time_ns,
        share=entry.share,
        calls=entry.calls / recorded,
        launches=None if entry.launches is None else entry.launches / recorded,
        flops=flops,
        bytes=bytes_,
        flops_per_s=_S_TO_NS * flops / time_ns if flops is not None and time_ns else None,
        bytes_per_s=_S_TO_NS * bytes_ / time_ns if bytes_ is not None and time_ns else None,
        bound=bound,
        roof_share=roof_share,
    )


def _bound(
    group: str, time_ns: float, flops: float | None, bytes_: float | None, roofs: Roofs | None
) -> tuple[Bound | None, float | None]:
    if flops is None or bytes_ is None or roofs is None or not time_ns:
        return None, None
    needed = group_demand(
        group, flops=flops, moved_bytes=bytes_, flops_per_s=roofs.compute.value, bytes_per_s=roofs.memory.value
    )
    share = needed.needed_ns / time_ns
    if share < SLOW_SHARE:
        return "inefficient", share
    return ("compute" if needed.binds == "compute" else roofs.memory_class), share
