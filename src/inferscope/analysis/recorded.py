"""What recorded operators say of a phase's forwards: evidence where the ledger alone has to infer.

Recording makes a pass slower between the operators more than inside them. So an operator's time is taken as it is, per
pass, and the time without operators is not: it is what the forwards' own wall leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferscope.records import PhaseRecord

__all__ = ["Recorded", "communication_ns", "recorded_operators", "waits_per_pass"]

_HEAVY = {"attention", "linear", "moe"}
"""Groups whose operators do what the cost counts."""
_COMMUNICATION = ("c10d", "nccl", "all_reduce", "allreduce", "all_gather", "allgather", "reduce_scatter", "memcpy htod",
                  "memcpy dtoh")  # fmt: skip
"""Parts of the names of operators and device work that do nothing but move data between devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Operators of a phase, carried over from the recorded passes to all.

    Attributes:
        heavy_ns: In products, attention and experts.
        heavy_calls: Of those.
        light_ns: In all other operators.
        light_calls: Of those.
        communication_ns: Of it, between devices.
    """

    heavy_ns: float
    heavy_calls: float
    light_ns: float
    light_calls: float
    communication_ns: float

    def beyond(self, needed_ns: float, operator_ns: float) -> float:
        """Time inside operators that neither the roofs nor an operator's fixed cost explains.

        Args:
            needed_ns: What the roofs demand.
            operator_ns: Fixed cost of one operator.
        """
        heavy_ns = max(0.0, self.heavy_ns - needed_ns - self.heavy_calls * operator_ns)
        return heavy_ns + max(0.0, self.light_ns - self.light_calls * operator_ns)


def recorded_operators(phase: PhaseRecord) -> Recorded | None:
    """What was recorded of a phase whose operators ran on the host; None where nothing was."""
    deep = phase.deep
    whole = [entry for entry in phase.operators if entry.name is None]
    if deep is None or deep.passes <= 0 or deep.device_busy_ns is not None or not whole or phase.passes <= 0:
        return None
    inside_ns = sum(entry.time_ns for entry in whole) * phase.passes / deep.passes
    # More than the forwards took cannot have been inside them: then the recorded passes were slower throughout.
    room = min(1.0, phase.ledger.issue_ns / inside_ns) if inside_ns > 0 else 0.0
    scale = phase.passes / deep.passes
    heavy = [entry for entry in whole if entry.group in _HEAVY]
    light = [entry for entry in whole if entry.group not in _HEAVY]
    return Recorded(
        heavy_ns=room * scale * sum(entry.time_ns for entry in heavy),
        heavy_calls=scale * sum(entry.calls for entry in heavy),
        light_ns=room * scale * sum(entry.time_ns for entry in light),
        light_calls=scale * sum(entry.calls for entry in light),
        communication_ns=communication_ns(phase),
    )


def communication_ns(phase: PhaseRecord) -> float:
    """Time of the phase in operators that move data between devices, as recorded; 0 where nothing was."""
    deep = phase.deep
    if deep is None or deep.passes <= 0:
        return 0.0
    found = (
        entry.time_ns for entry in deep.largest if any(part in (entry.name or "").lower() for part in _COMMUNICATION)
    )
    return min(float(phase.wall_ns), sum(found) * phase.passes / deep.passes)


def waits_per_pass(phase: PhaseRecord) -> float | None:
    """How often the host waits for the device in a pass and the selection after it; None where nobody counted.

    A lower bound: by the passes that were looked at for it, by counts within forwards, or by the stop check's seam.
    """
    if phase.passes <= 0:
        return None
    seam = None if phase.syncs is None else phase.syncs / phase.passes
    looked = sum(point.count for point in phase.sync_points) / phase.sync_passes if phase.sync_passes else None
    counted = [(step.passes, step.syncs) for step in phase.steps if step.syncs is not None]
    inside = sum(passes * syncs for passes, syncs in counted) / phase.passes + (seam or 0.0) if counted else None
    known = [value for value in (seam, looked, inside) if value is not None]
    return max(known) if known else None
