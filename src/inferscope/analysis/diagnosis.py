"""The verdict on each phase: what share of its time which resource holds back.

What the host stamps give without a profiler is inferred as follows. A phase's wall is forwards plus the host's
time between them; the latter is overhead, and so is time in which the thread was kept off the CPU. Inside forwards,
the roofs demand some of the time (compute, memory or cache). Of the rest, what the measured matrix-vector kernel
stays below the memory roof is `inefficient`, and the measured cost of dispatching as many operators as the model
runs is overhead. What neither explains is split in the proportion of what is explained: a machine that is slower
today than when it was calibrated is slower at both. Where operators were recorded, nothing has to be split: what they
took beyond the roofs and their own fixed cost is `inefficient`, and what is left of the forwards is overhead. The
verdict is tried with the dispatch cost at the ends of its range and with the ceilings as far off as their readings were
spread, and one that flips has low confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.cost import evaluate
from inferscope.analysis.device_verdict import judge_on_device
from inferscope.analysis.doubts import AWAY, balanced, defect, shifted_demands
from inferscope.analysis.recorded import recorded_operators
from inferscope.analysis.roofline import Roofs, demand, roofs_for
from inferscope.analysis.verdict import BOUNDS, Diagnosis, Evidence, PhaseDiagnosis
from inferscope.errors import CostUnavailableError

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.recorded import Recorded
    from inferscope.analysis.roofline import Demand
    from inferscope.analysis.verdict import Bound
    from inferscope.records import GenerationRecord, PhaseRecord
    from inferscope.specs import DeviceSpec

__all__ = ["diagnose"]

BEATEN_ROOF = 1.05
"""A demand above this multiple of the time taken means that a ceiling is wrong, not that the phase is fast."""
WIDE_SPREAD = 0.5
"""(p90 - p50)/p50 of the passes beyond which their average says little."""
FEW_PASSES = 5
SLOWER_THAN_CALIBRATED = 3.0
"""How many times the calibrated cost of an operator is still believed: longer code paths, a busier machine."""
_NS_TO_S = 1e-9
_S_TO_NS = 1e9


@dataclass(frozen=True, slots=True)
class _Split:
    """A phase's wall by class, in nanoseconds."""

    compute_ns: float
    memory_ns: float
    inefficient_ns: float
    overhead_ns: float
    communication_ns: float
    unexplained_ns: float
    memory_class: Bound

    def shares(self) -> dict[str, float]:
        total = self.compute_ns + self.memory_ns + self.inefficient_ns + self.overhead_ns + self.communication_ns
        shares: dict[str, float] = dict.fromkeys(BOUNDS, 0.0)
        if total <= 0:
            return {}
        shares["compute"] = self.compute_ns / total
        shares[self.memory_class] += self.memory_ns / total
        shares["inefficient"] = self.inefficient_ns / total
        shares["overhead"] = self.overhead_ns / total
        shares["communication"] = self.communication_ns / total
        return shares


def diagnose(record: GenerationRecord, *, device: DeviceSpec | None) -> Diagnosis:
    """The verdict on every phase of a record.

    Args:
        record: What was measured.
        device: Its ceilings; None, or one without ceilings, gives "unknown" with the reason.

    Returns:
        One verdict per phase, in the record's order; shares sum to 1 where they are known.
    """
    return Diagnosis(device=device, phases=tuple(_judge(record, phase, device) for phase in record.phases))


def _judge(record: GenerationRecord, phase: PhaseRecord, device: DeviceSpec | None) -> PhaseDiagnosis:
    cost, why_no_cost = _cost_of(record, phase)
    evidence = _host_evidence(phase)
    if cost is None:
        return _unknown(phase, cost, evidence, why_no_cost)
    on_host = (record.model.device or "cpu").partition(":")[0] == "cpu"
    if not on_host and phase.device is None:
        return _unknown(
            phase,
            cost,
            evidence,
            "device time was not measured: host stamps alone cannot judge an asynchronous device",
        )
    roofs = _usable_roofs(record, phase, cost, device)
    if device is None or isinstance(roofs, str):
        return _unknown(phase, cost, evidence, str(roofs))
    if on_host:
        return _judged(phase, device, cost, roofs, evidence)
    verdict = judge_on_device(phase, cost, roofs, demand(cost, roofs), evidence)
    return _unknown(phase, cost, evidence, verdict) if isinstance(verdict, str) else verdict


def _usable_roofs(
    record: GenerationRecord, phase: PhaseRecord, cost: PassCost, device: DeviceSpec | None
) -> Roofs | str:
    """The roofs to judge a phase by; in words why there can be no verdict."""
    if device is None:
        return "no ceilings are known for the device this ran on: run `inferscope calibrate` there"
    working_set = (cost.weight_bytes + cost.kv_read_bytes) / max(phase.passes, 1)
    roofs = roofs_for(device, record.model.dtype, working_set)
    if isinstance(roofs, str):
        what = "some were too unsteady to keep: calibrate again while nothing else runs" if device.rejected else ""
        return f"{roofs}: {what or 'run `inferscope calibrate`'}"
    return defect(phase, cost, roofs) or roofs


def _cost_of(record: GenerationRecord, phase: PhaseRecord) -> tuple[PassCost | None, str]:
    if record.model.cost is None:
        return None, record.model.cost_note or "the model's operators were not counted"
    if phase.ledger.shared_ns is not None:
        return None, "its passes are shared with other requests: what they cost is nobody's alone, and was not counted"
    if not phase.work:
        return None, "a pass had a shape that could not be read"
    if phase.name in {"draft", "encode", "unknown"}:
        return None, f"passes of the phase {phase.name} run operators that were not counted"
    try:
        return evaluate(record.model.cost, phase.work), ""
    except CostUnavailableError as error:
        return None, str(error)


def _host_evidence(phase: PhaseRecord) -> tuple[Evidence, ...]:
    if phase.wall_ns <= 0:
        return ()
    wall = phase.wall_ns
    between = phase.ledger.select_ns + phase.ledger.deliver_ns + (phase.ledger.wait_ns or 0)
    rows = (
        Evidence(metric="forward_share", value=phase.ledger.issue_ns / wall, source="measured", note="inside forwards"),
        Evidence(metric="between_share", value=between / wall, source="measured", note="between forwards"),
    )
    if phase.ledger.shared_ns is None:
        return rows
    shared = phase.ledger.shared_ns / wall
    return (*rows, Evidence(metric="shared_share", value=shared, source="measured", note="the turn of other requests"))


def _judged(
    phase: PhaseRecord, device: DeviceSpec, cost: PassCost, roofs: Roofs, evidence: tuple[Evidence, ...]
) -> PhaseDiagnosis:
    needed = demand(cost, roofs)
    recorded = recorded_operators(phase)
    split = _split(phase, cost, roofs, needed, _operator_ns(device, "module_op_ns"))
    shares = split.shares()
    bound = _largest(shares)
    unexplained = Evidence(
        metric="unexplained_share",
        value=split.unexplained_ns / max(phase.wall_ns, 1),
        source="measured",
        note="neither roofs, known kernels nor dispatch: split in the proportion of what is explained",
    )
    reasons = _doubts(phase, device, cost, roofs, needed, shares)
    forward_s = phase.ledger.issue_ns * _NS_TO_S
    copy = device.copy_bytes_per_s
    moved = cost.weight_bytes + cost.kv_read_bytes + cost.kv_write_bytes
    return PhaseDiagnosis(
        name=phase.name,
        bound=bound,
        confidence="low" if reasons else "high",
        shares=shares,
        cost=cost,
        mfu=_ratio(cost.flops, forward_s * roofs.compute.value),
        mbu=_ratio(moved, forward_s * copy.value) if copy is not None else None,
        achieved_flops_per_s=_ratio(cost.flops, forward_s),
        achieved_bytes_per_s=_ratio(cost.bytes.model, forward_s),
        roof_share=_ratio(needed.total_ns, phase.ledger.issue_ns),
        evidence=(
            *evidence,
            *_roof_evidence(phase, device, cost, needed, roofs),
            unexplained,
            *_recorded_evidence(phase, recorded),
        ),
        reasons=reasons,
    )


def _split(phase: PhaseRecord, cost: PassCost, roofs: Roofs, needed: Demand, operator_ns: float | None) -> _Split:
    """A phase's wall by class; the demand is scaled down where it exceeds the time taken."""
    recorded = recorded_operators(phase)
    forward = phase.ledger.issue_ns
    scale = min(1.0, forward / needed.total_ns) if needed.total_ns > 0 else 1.0
    rest = max(0.0, forward - scale * needed.total_ns)
    away = min(rest, _no_kernels_ns(phase))
    rest -= away
    if recorded is not None:
        inside = min(rest, recorded.beyond(scale * needed.total_ns, operator_ns or 0.0))
        between_devices = min(inside, recorded.communication_ns)
        return _Split(
            compute_ns=scale * needed.compute_ns,
            memory_ns=scale * needed.memory_ns,
            inefficient_ns=inside - between_devices,
            overhead_ns=away + rest - inside + phase.wall_ns - forward,
            communication_ns=between_devices,
            unexplained_ns=0.0,
            memory_class=roofs.memory_class,
        )
    slow_kernel = min(rest, _slow_kernel_ns(phase, cost, roofs))
    dispatch = min(rest - slow_kernel, cost.calls * operator_ns) if operator_ns is not None else 0.0
    working = scale * needed.total_ns + slow_kernel
    explained = working + dispatch
    unexplained = rest - slow_kernel - dispatch
    of_kernels = unexplained * working / explained if explained > 0 else unexplained
    return _Split(
        compute_ns=scale * needed.compute_ns,
        memory_ns=scale * needed.memory_ns,
        inefficient_ns=slow_kernel + of_kernels,
        overhead_ns=away + dispatch + unexplained - of_kernels + phase.wall_ns - forward,
        communication_ns=0.0,
        unexplained_ns=unexplained,
        memory_class=roofs.memory_class,
    )


def _no_kernels_ns(phase: PhaseRecord) -> float:
    """Time of the forwards in which the thread did not run, or collected garbage: no kernel's fault.

    Approximation: a collector is kept off the CPU as often as the rest of the phase is.
    """
    wall = max(phase.wall_ns, 1)
    away = float(phase.ledger.offcpu_ns or 0)
    collected = max(0.0, (phase.ledger.gc_ns or 0) - (phase.wall_ns - phase.ledger.issue_ns))
    return away + collected * max(0.0, 1 - away / wall)


def _slow_kernel_ns(phase: PhaseRecord, cost: PassCost, roofs: Roofs) -> float:
    """What reading the weights takes longer than at the memory roof where the matrices meet a single token."""
    if roofs.kernel is None or phase.tokens != phase.passes:
        return 0.0
    return max(0.0, _S_TO_NS * cost.weight_bytes * (1 / roofs.kernel.value - 1 / roofs.memory.value))


def _recorded_evidence(phase: PhaseRecord, recorded: Recorded | None) -> tuple[Evidence, ...]:
    if recorded is None or phase.deep is None:
        return ()
    python = phase.deep.python_share
    inside = (recorded.heavy_ns + recorded.light_ns) / phase.wall_ns
    rows = [
        Evidence(
            metric="recorded_kernel_share",
            value=inside,
            source="measured",
            note=f"of the phase's wall inside operators, from {phase.deep.passes} recorded passes",
        )
    ]
    if python is not None:
        rows.append(
            Evidence(
                metric="recorded_python_share",
                value=python,
                source="measured",
                note="of the recorded passes, between operators: recording makes this part longer",
            )
        )
    return tuple(rows)


def _doubts(
    phase: PhaseRecord,
    device: DeviceSpec,
    cost: PassCost,
    roofs: Roofs,
    needed: Demand,
    shares: dict[str, float],
) -> tuple[str, ...]:
    """Why the verdict is not certain, in words; nothing where it is."""
    close = balanced(shares)
    reasons = [close] if close else []
    low, middle = _operator_ns(device, "dispatch_ns"), _operator_ns(device, "module_op_ns")
    high = middle * SLOWER_THAN_CALIBRATED if middle is not None else None
    ends = [_split(phase, cost, roofs, needed, operator_ns).shares() for operator_ns in (low, high)]
    if any(_largest(end) != _largest(shares) for end in ends):
        reasons.append("the verdict turns on what an operator costs here, which host stamps alone do not tell")
    others = [_split(phase, cost, roofs, other, middle).shares() for other in shifted_demands(needed, roofs)]
    if any(_largest(other) != _largest(shares) for other in others):
        reasons.append("the verdict turns on a ceiling whose readings were spread: calibrate again on a quiet machine")
    if needed.total_ns > BEATEN_ROOF * phase.ledger.issue_ns:
        reasons.append("faster than the measured roofs: a ceiling is too low, calibrate again")
    median, p90 = phase.pass_ns.p50, phase.pass_ns.p90
    if phase.passes >= FEW_PASSES and median and p90 and (p90 - median) / median > WIDE_SPREAD:
        reasons.append("pass times are spread widely")
    if (phase.ledger.offcpu_ns or 0) > AWAY * phase.wall_ns:
        reasons.append("the thread was kept off the CPU for a sizeable part: other work ran on this machine")
    if roofs.compute.source != "measured" or roofs.memory.source != "measured":
        reasons.append("ceilings are from a datasheet, not measured")
    if cost.uncounted:
        reasons.append("operators without a formula: " + ", ".join(cost.uncounted))
    return tuple(reasons)


def _roof_evidence(
    phase: PhaseRecord, device: DeviceSpec, cost: PassCost, needed: Demand, roofs: Roofs
) -> tuple[Evidence, ...]:
    forward_s = max(phase.ledger.issue_ns, 1) * _NS_TO_S
    passes = max(phase.passes, 1)
    rows = [
        Evidence(
            metric="achieved_flops_per_s",
            value=cost.flops / forward_s,
            threshold=roofs.compute.value,
            source="measured",
            note=f"analytic FLOPs over measured time; roof {roofs.compute.source}",
        ),
        Evidence(
            metric="achieved_bytes_per_s",
            value=cost.bytes.model / forward_s,
            threshold=roofs.memory.value,
            source="measured",
            note=f"analytic bytes over measured time; {roofs.memory_class} roof {roofs.memory.source}",
        ),
        Evidence(
            metric="roof_per_pass_ns",
            value=needed.total_ns / passes,
            threshold=phase.ledger.issue_ns / passes,
            source="analytic",
            note="least time at the roofs, against the time taken",
        ),
    ]
    low, middle = _operator_ns(device, "dispatch_ns"), _operator_ns(device, "module_op_ns")
    if middle is not None:
        rows.append(
            Evidence(
                metric="dispatch_per_pass_ns",
                value=cost.calls * middle / passes,
                low=cost.calls * low / passes if low is not None else None,
                high=cost.calls * middle * SLOWER_THAN_CALIBRATED / passes,
                threshold=phase.ledger.issue_ns / passes,
                source="measured",
                note=f"{cost.calls // passes} operators at their measured fixed cost, against the time taken",
            )
        )
    if roofs.kernel is not None:
        rows.append(
            Evidence(
                metric="gemv_bytes_per_s",
                value=roofs.kernel.value,
                threshold=roofs.memory.value,
                source="measured",
                note="what matrix times vector reaches here, against the memory roof",
            )
        )
    return tuple(rows)


def _operator_ns(device: DeviceSpec, name: str) -> float | None:
    ceiling = device.module_op_ns if name == "module_op_ns" else device.dispatch_ns
    ceiling = ceiling or device.dispatch_ns
    return ceiling.value if ceiling is not None else None


def _largest(shares: dict[str, float]) -> Bound:
    if not shares:
        return "unknown"
    return max(BOUNDS, key=lambda bound: shares.get(bound, 0.0))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _unknown(phase: PhaseRecord, cost: PassCost | None, evidence: tuple[Evidence, ...], reason: str) -> PhaseDiagnosis:
    forward_s = phase.ledger.issue_ns * _NS_TO_S
    host_only = cost is not None and not reason.startswith("device time")
    return PhaseDiagnosis(
        name=phase.name,
        bound="unknown",
        confidence="low",
        shares={},
        cost=cost,
        mfu=None,
        mbu=None,
        achieved_flops_per_s=_ratio(cost.flops, forward_s) if cost is not None and host_only else None,
        achieved_bytes_per_s=_ratio(cost.bytes.model, forward_s) if cost is not None and host_only else None,
        roof_share=None,
        evidence=evidence,
        reasons=(reason,),
    )
