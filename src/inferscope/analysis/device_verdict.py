"""The verdict where an asynchronous device did the work: who waited for whom, and what the device was busy with.

Two questions, asked in this order. Who holds the pass up: where the device had caught up with the host when the host
had issued everything, the host does, whatever the kernels cost, and faster kernels would change nothing. Where the
device was still behind, the device does; its time, an interval, is then split by what the roofs demand. The interval
ends below at what the roofs demand of any device, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.doubts import balanced, shifted_demands
from inferscope.analysis.recorded import communication_ns, waits_per_pass
from inferscope.analysis.verdict import BOUNDS, Evidence, PhaseDiagnosis

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.roofline import Demand, Roofs
    from inferscope.analysis.verdict import Bound
    from inferscope.records import DeviceTime, PhaseRecord

__all__ = ["BEHIND", "STARVED", "judge_on_device"]

STARVED = 0.03
"""Lag over event time up to which the device waits for the host. Source: simulated courses, not confirmed on hardware:
starved 0 to 0.003, just past balance 0.10, saturated 0.82."""
BEHIND = 0.10
"""Lag over event time from which on the host surely waits for the device; between the two they are balanced."""
BEATEN_ROOF = 1.05
_SEVERAL = 2.0
"""Waits for each pass, its selection included, from which on some lie within it: generate's own is one."""
_NS_TO_S = 1e-9


@dataclass(frozen=True, slots=True)
class _Reading:
    """A phase's device time, scaled to all of its passes, in nanoseconds."""

    wall_ns: float
    low_ns: float
    high_ns: float
    lag_ns: float
    lag_share: float
    whole: bool
    communication_ns: float = 0.0
    waits_inside: float = 0.0


def judge_on_device(
    phase: PhaseRecord, cost: PassCost, roofs: Roofs, needed: Demand, evidence: tuple[Evidence, ...]
) -> PhaseDiagnosis | str:
    """The verdict on a phase whose forwards were timed on their device.

    Args:
        phase: With its device time.
        cost: What it asked for.
        roofs: The device's.
        needed: What they demand of the cost.
        evidence: What the host's stamps say.

    Returns:
        The verdict; in words why there is none.
    """
    read = _read(phase, phase.device)
    if isinstance(read, str):
        return read
    low_ns = min(read.high_ns, max(read.low_ns, needed.total_ns))
    ends = [_shares(device_ns, read, needed, roofs) for device_ns in (low_ns, read.high_ns)]
    shares = ends[0] if read.lag_share <= STARVED else ends[1]
    bound = max(BOUNDS, key=lambda name: shares[name])
    reasons = _doubts(read, shares, ends, needed, roofs, cost)
    device_s = read.high_ns * _NS_TO_S
    moved = cost.weight_bytes + cost.kv_read_bytes + cost.kv_write_bytes
    return PhaseDiagnosis(
        name=phase.name,
        bound=bound,
        confidence="low" if reasons else "high",
        shares=shares,
        cost=cost,
        mfu=cost.flops / (device_s * roofs.compute.value),
        mbu=moved / (device_s * roofs.memory.value),
        achieved_flops_per_s=cost.flops / device_s,
        achieved_bytes_per_s=cost.bytes.model / device_s,
        roof_share=needed.total_ns / read.high_ns,
        evidence=(*evidence, *_evidence(read, needed, phase.device.provenance if phase.device else "bound")),
        reasons=reasons,
    )


def _read(phase: PhaseRecord, device: DeviceTime | None) -> _Reading | str:
    if device is None or not device.passes or not device.cycles_ns or device.lag_share is None or not phase.passes:
        return "device time was not measured: host stamps alone cannot judge an asynchronous device"
    if device.low_ns < 0 or device.low_ns > device.high_ns or device.lag_share < 0:
        return "the device time is no interval: its ends are negative or the wrong way round"
    scale = phase.passes / device.passes
    wall_ns = float(max(phase.wall_ns, 1))
    return _Reading(
        wall_ns=wall_ns,
        low_ns=min(wall_ns, device.low_ns * scale),
        # Where nobody waits for it, the device goes on with a pass while the host has begun the next.
        high_ns=max(1.0, min(wall_ns, device.high_ns * scale)),
        lag_ns=min(wall_ns, (device.lag_ns or 0) * scale),
        lag_share=device.lag_share,
        whole=device.passes == phase.passes,
        communication_ns=communication_ns(phase),
        waits_inside=waits_per_pass(phase) or 0.0,
    )


def _shares(device_ns: float, read: _Reading, needed: Demand, roofs: Roofs) -> dict[str, float]:
    """The wall by class, if the device worked so long. What it starved in, and all beside forwards, is overhead."""
    scale = min(1.0, device_ns / needed.total_ns) if needed.total_ns > 0 else 1.0
    shares: dict[str, float] = dict.fromkeys(BOUNDS, 0.0)
    shares["compute"] = scale * needed.compute_ns / read.wall_ns
    shares[roofs.memory_class] += scale * needed.memory_ns / read.wall_ns
    shares["inefficient"] = max(0.0, device_ns - scale * needed.total_ns) / read.wall_ns
    between_devices = min(shares["inefficient"], read.communication_ns / read.wall_ns)
    shares["communication"] = between_devices
    shares["inefficient"] -= between_devices
    shares["overhead"] = max(0.0, read.wall_ns - device_ns) / read.wall_ns
    if read.lag_share <= STARVED:  # the host is what is waited for, however long the kernels take within that time
        working = 1.0 - shares["overhead"]
        behind = read.lag_ns / read.wall_ns
        for name in ("compute", roofs.memory_class, "inefficient", "communication"):
            shares[name] *= behind / working if working > behind else 1.0
        shares["overhead"] = 1.0 - sum(value for name, value in shares.items() if name != "overhead")
    return shares


def _doubts(
    read: _Reading,
    shares: dict[str, float],
    ends: list[dict[str, float]],
    needed: Demand,
    roofs: Roofs,
    cost: PassCost,
) -> tuple[str, ...]:
    close = balanced(shares)
    reasons = [close] if close else []
    if STARVED < read.lag_share < BEHIND:
        reasons.append("balanced: host and device take about equally long, and either may hold up the other")
    if len({_largest(end) for end in ends}) > 1:
        reasons.append(
            f"the device worked for {read.low_ns / read.wall_ns:.0%} to {read.high_ns / read.wall_ns:.0%} of the "
            "phase's wall, and the verdict turns on where in between: a plugged or profiled pass would tell"
        )
    others = [_shares(read.high_ns, read, other, roofs) for other in shifted_demands(needed, roofs)]
    if read.lag_share > STARVED and any(_largest(other) != _largest(shares) for other in others):
        reasons.append("the verdict turns on a ceiling whose readings were spread: calibrate again")
    if read.waits_inside >= _SEVERAL:
        reasons.append(
            f"the host waits about {read.waits_inside:.0f} times in each pass: that the device had been caught up with "
            "at the end does not tell which of the two is waited for"
        )
    if not read.whole:
        reasons.append("some passes could not be timed on the device, and are taken to be like the others")
    if needed.total_ns > BEATEN_ROOF * read.high_ns:
        reasons.append("faster than the roofs: a ceiling is too low, calibrate again")
    if roofs.compute.source != "measured" or roofs.memory.source != "measured":
        reasons.append("ceilings are from a datasheet, not measured")
    if cost.uncounted:
        reasons.append("operators without a formula: " + ", ".join(cost.uncounted))
    return tuple(reasons)


def _evidence(read: _Reading, needed: Demand, provenance: str) -> tuple[Evidence, ...]:
    return (
        Evidence(
            metric="lag_share",
            value=read.lag_share,
            threshold=STARVED,
            source="measured",
            note="of the time between a pass's events, what lay after the host had issued it: near 0 it is the host "
            "that is waited for",
        ),
        Evidence(
            metric="device_share",
            value=read.high_ns / read.wall_ns,
            low=read.low_ns / read.wall_ns,
            high=read.high_ns / read.wall_ns,
            source="bound" if provenance == "bound" else "measured",
            note=f"the device worked on forwards ({provenance}); event time is only the upper end",
        ),
        Evidence(
            metric="roof_share_of_device",
            value=needed.total_ns / read.high_ns,
            source="analytic",
            note="least time at the roofs, against the most the device worked",
        ),
    )


def _largest(shares: dict[str, float]) -> Bound:
    return max(BOUNDS, key=lambda name: shares[name])
