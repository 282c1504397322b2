"""What holds a device back, window by window, from its counters.

A window is an average over whatever ran in it, so the verdict on one is weaker than that on a phase of a request:
it says which resource was near its limit while the device was busy. Of a GPU's window the shares close: no kernel
(`idle`), a kernel but this SM without a warp (`empty`), an SM with warps (`occupied`). Inside the occupied part,
traffic and arithmetic are held against what kernels reach in practice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from inferscope.analysis import advice
from inferscope.analysis.thresholds import limit
from inferscope.analysis.verdict import BOUNDS, Evidence
from inferscope.analysis.workload import Workload
from inferscope.samples import HostSample

if TYPE_CHECKING:
    from inferscope.analysis.verdict import Confidence, Finding
    from inferscope.samples import GpuSample

__all__ = ["WindowBound", "WindowSample", "WindowVerdict", "classify"]

WindowBound = Literal["idle", "compute", "memory", "cache", "inefficient", "overhead", "communication", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSample:
    """One window of a machine: its GPUs, itself, and the requests of the last minute.

    Attributes:
        unix_ns: Wall-clock time at its end.
        gpus: One sample per GPU.
        gpus_missing: Why there are none; "" where there are some.
        host: The machine and this process.
        workload: The requests, where the monitor is a sink of them.
        took_s: What taking the sample cost, on the thread that took it.
    """

    unix_ns: int = 0
    gpus: tuple[GpuSample, ...] = ()
    gpus_missing: str = ""
    host: HostSample = field(default_factory=HostSample)
    workload: Workload = field(default_factory=Workload)
    took_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowVerdict:
    """What held one device back during a window.

    Attributes:
        subject: The device in words.
        device: Its identity: a GPU's UUID, or "host".
        bound: What was near its limit; "idle" where nothing ran, "unknown" where the evidence does not decide.
        confidence: "low" where it does so only just, or speaks for a small part of the window.
        shares: Of the window, summing to 1. Of a GPU: idle, empty, occupied. Of the host: shares by bound of the
            requests' time. Empty where they are not known.
        evidence: The numbers behind it.
        warnings: What else stands out, by name.
        reasons: Why the bound is unknown or the confidence low, in words.
        others: Verdicts on the machine's other devices.
    """

    subject: str
    device: str
    bound: WindowBound
    confidence: Confidence
    shares: dict[str, float] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()
    warnings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()
    others: tuple[WindowVerdict, ...] = ()


def classify(sample: WindowSample) -> WindowVerdict:
    """The verdict on a window: on the busiest GPU, or on the host where that is where requests ran.

    Args:
        sample: Whatever is known; nothing that is missing raises.

    Returns:
        The verdict on one device, with those on the others in `others`.
    """
    gpus = sorted((_gpu(gpu, sample.workload) for gpu in sample.gpus), key=_rank)
    host = _host(sample)
    working = [verdict for verdict in gpus if verdict.bound != "idle"]
    # Requests that ran on the CPU say more about the host than an idle or silent GPU says about anything.
    by_requests = sample.workload.on_host > 0 and not any(verdict.shares for verdict in working)
    first = host if by_requests or not gpus else (working or gpus)[0]
    others = tuple(verdict for verdict in (*gpus, host) if verdict is not first)
    return replace(first, others=others)


def _rank(verdict: WindowVerdict) -> float:
    """Busiest first."""
    return -max((row.value for row in verdict.evidence if row.metric in {"busy_share", "sm_activity_share"}), default=0)


def _gpu(gpu: GpuSample, load: Workload) -> WindowVerdict:
    busy = _either(gpu.engine_activity, gpu.time_share)
    evidence = _gpu_evidence(gpu, busy)
    bound, confidence, reasons = _gpu_bound(gpu, busy, load)
    return WindowVerdict(
        subject=" ".join(word for word in (f"GPU {gpu.index}", gpu.name) if word),
        device=gpu.uuid,
        bound=bound,
        confidence=confidence,
        shares=_gpu_shares(gpu, busy),
        evidence=evidence,
        warnings=tuple(_gpu_warnings(gpu, busy, evidence)),
        reasons=reasons,
    )


def _gpu_bound(gpu: GpuSample, busy: float | None, load: Workload) -> tuple[WindowBound, Confidence, tuple[str, ...]]:
    if gpu.lost:
        return "unknown", "low", (f"the GPU is lost: {gpu.missing.get('time_share', 'the driver does not answer')}",)
    if _is_idle(gpu, busy):
        return "idle", "high", ()
    if gpu.mig:
        return "unknown", "low", ("the GPU is partitioned (MIG): its counters are not those of one partition",)
    activity = gpu.sm_activity
    if activity is None or gpu.dram_activity is None or gpu.tensor_activity is None:
        why = gpu.missing.get("sm_activity") or gpu.missing.get("dram_activity") or "activity was not read"
        return (
            "unknown",
            "low",
            (f"shares of time do not tell what a kernel waits for, and activity is missing: {why}",),
        )
    if _starved(load, busy):
        ran = f"requests ran for {load.busy_share:.0%} of the last {load.horizon_s:.0f} s"
        return "overhead", "low", (f"{ran}, the device for {busy:.0%} of this window: it waited for the host",)
    divisor = max(busy if busy is not None else 1.0, activity, limit("idle"))
    doubts = _gpu_doubts(busy)
    bound, certain, reason = _pressed(gpu, divisor)
    reasons = tuple(text for text in (reason, *doubts) if text)
    return bound, "high" if certain and not doubts else "low", reasons


def _pressed(gpu: GpuSample, divisor: float) -> tuple[WindowBound, bool, str]:
    """Which resource was near its limit while the device was busy, whether that is certain, and what is to be said."""
    memory = _while_busy(gpu.dram_activity, divisor) / limit("dram_practical")
    compute = _while_busy(_arithmetic(gpu), divisor)
    link = max(_link_shares(gpu), default=0.0) / divisor
    memory, link = min(memory, 1.0), min(link, 1.0)
    if max(memory, compute) < limit("limited"):
        if link >= limit("pcie_limited"):
            return "communication", link >= limit("saturated"), ""
        return _unpressed(gpu, divisor)
    bound: WindowBound = "memory" if memory > compute else "compute"
    if abs(memory - compute) < limit("balanced"):
        return bound, False, "balanced: traffic and arithmetic are equally near their limits"
    certain = max(memory, compute) >= limit("saturated")
    return bound, certain, "" if certain else "near its limit, not at it: the window may mix phases"


def _unpressed(gpu: GpuSample, divisor: float) -> tuple[WindowBound, bool, str]:
    if _while_busy(gpu.sm_activity, divisor) < limit("sm_ineffective"):
        return (
            "overhead",
            False,
            (
                "counters of the whole device do not tell gaps between launches from kernels that fill few SMs: the "
                "requests' own ledgers do"
            ),
        )
    return "inefficient", False, "SMs hold warps, but neither traffic nor arithmetic is near its limit: latency"


def _gpu_doubts(busy: float | None) -> tuple[str, ...]:
    doubts = []
    if busy is None:
        doubts.append("how long the device was busy is not known: activity is judged over the whole window")
    elif busy < limit("mostly_busy"):
        doubts.append(f"the device was busy for {busy:.0%} of the window only")
    return tuple(doubts)


def _starved(load: Workload, busy: float | None) -> bool:
    """Whether requests kept running on GPUs while this one, working, mostly was not."""
    on_gpus = load.requests - load.on_host
    waiting = on_gpus > 0 and load.busy_share >= limit("busy")
    return waiting and busy is not None and busy < limit("mostly_busy")


def _is_idle(gpu: GpuSample, busy: float | None) -> bool:
    known = [value for value in (busy, gpu.sm_activity) if value is not None]
    return bool(known) and max(known) < limit("idle")


def _gpu_shares(gpu: GpuSample, busy: float | None) -> dict[str, float]:
    if busy is None or gpu.sm_activity is None:
        return {}
    occupied = gpu.sm_activity
    engaged = max(busy, occupied)  # two counters, read a moment apart
    return {"idle": 1 - engaged, "empty": engaged - occupied, "occupied": occupied}


def _gpu_evidence(gpu: GpuSample, busy: float | None) -> tuple[Evidence, ...]:
    rows = (
        ("gpu_util_share", gpu.time_share, None, "NVML GPU-Util: share of time in which some kernel ran"),
        ("busy_share", busy, limit("idle"), "engine busy" if gpu.engine_activity is not None else "GPU-Util"),
        ("sm_activity_share", gpu.sm_activity, limit("sm_ineffective"), "SM-cycles with a warp"),
        ("dram_activity_share", gpu.dram_activity, limit("dram_practical"), "of the theoretical bandwidth"),
        ("tensor_activity_share", gpu.tensor_activity, limit("limited"), "SM-cycles with tensor cores at work"),
        ("arithmetic_share", _arithmetic(gpu), limit("limited"), "busiest arithmetic unit, tensor cores included"),
        ("sm_occupancy_share", gpu.sm_occupancy, None, "warps resident over those possible"),
        ("pcie_share", max(_link_shares(gpu), default=None), limit("pcie_limited"), "busier direction of the link"),
        ("sm_clock_share", _ratio(gpu.sm_clock_hz, gpu.sm_clock_max_hz), None, "of the highest clock"),
        ("power_share", _ratio(gpu.power_w, gpu.power_limit_w), None, "of the limit"),
        (
            "memory_used_share",
            _ratio(gpu.memory_used_bytes, gpu.memory_total_bytes),
            limit("memory_full"),
            "of the size",
        ),
    )
    return _known(rows)


def _gpu_warnings(gpu: GpuSample, busy: float | None, evidence: tuple[Evidence, ...]) -> list[Finding]:
    warnings = []
    if gpu.lost:
        warnings.append(advice.gpu_lost(gpu))
    if _misleads(gpu):
        warnings.append(advice.gpu_util_misleads(gpu, evidence))
    if gpu.clock_reasons is not None and not _is_idle(gpu, busy):
        held = [advice.THROTTLES[reason] for reason in gpu.clock_reasons if reason in advice.THROTTLES]
        warnings += [advice.throttled(kind, gpu, evidence) for kind in sorted(set(held))]
    full = _ratio(gpu.memory_used_bytes, gpu.memory_total_bytes)
    if full is not None and full > limit("memory_full"):
        warnings.append(advice.memory_nearly_full(evidence))
    if gpu.mig:
        warnings.append(advice.partitioned())
    return warnings


def _misleads(gpu: GpuSample) -> bool:
    """Whether GPU-Util reads full while the device is mostly unused."""
    if gpu.time_share is None or gpu.time_share < limit("busy"):
        return False
    if gpu.sm_activity is None or gpu.dram_activity is None or gpu.mig:
        return False
    if gpu.sm_activity < limit("sm_ineffective"):
        return True
    arithmetic = _arithmetic(gpu)
    if arithmetic is None:
        return False
    return max(gpu.dram_activity / limit("dram_practical"), arithmetic) < limit("misleading")


def _host(sample: WindowSample) -> WindowVerdict:
    host, load = sample.host, sample.workload
    evidence = _known(
        (
            ("cpu_share", host.cpu_share, limit("host_busy"), "all processors"),
            ("process_cpu_share", host.process_cpu_share, None, "this process, of the processors it may use"),
            ("cpu_frequency_share", _ratio(host.cpu_frequency_hz, host.cpu_frequency_max_hz), None, "of the highest"),
            ("requests_busy_share", load.busy_share if load.requests else None, None, "some request ran"),
        )
    )
    bound, confidence, shares, reasons = _host_bound(sample)
    return WindowVerdict(
        subject="host",
        device="host",
        bound=bound,
        confidence=confidence,
        shares=shares,
        evidence=evidence,
        warnings=tuple(_host_warnings(host, evidence)),
        reasons=reasons,
    )


def _host_bound(sample: WindowSample) -> tuple[WindowBound, Confidence, dict[str, float], tuple[str, ...]]:
    phases = [phase for phase in sample.workload.phases if phase.shares]
    if sample.workload.on_host and phases:
        return _by_requests(sample.workload)
    share = sample.host.cpu_share
    if share is not None and share < limit("idle"):
        return "idle", "high", {}, ()
    why = "the load of processors does not tell arithmetic from waiting for memory"
    if not sample.workload.requests:
        return "unknown", "low", {}, (f"{why}: trace(model, sinks=[monitor]) lets requests say it",)
    return "unknown", "low", {}, (f"{why}, and the requests' own verdicts are unknown",)


def _by_requests(load: Workload) -> tuple[WindowBound, Confidence, dict[str, float], tuple[str, ...]]:
    """What the requests' own verdicts add up to, weighted by time."""
    sums: dict[str, float] = {}
    for phase in load.phases:
        for name, share in phase.shares.items():
            sums[name] = sums.get(name, 0.0) + share * phase.wall_s * phase.known_share
    whole = sum(sums.values())
    if whole <= 0:
        return "unknown", "low", {}, ("the requests' own verdicts carry no shares",)
    shares = {name: value / whole for name, value in sums.items()}
    ranked = sorted(shares.values(), reverse=True)
    bound: WindowBound = max(BOUNDS, key=lambda name: shares.get(name, 0.0))
    reasons = []
    if len(ranked) > 1 and ranked[0] - ranked[1] < limit("balanced"):
        reasons.append("balanced: the two largest shares are close")
    if load.busy_share < limit("mostly_busy"):
        reasons.append(f"requests ran for {load.busy_share:.0%} of the last {load.horizon_s:.0f} s only")
    known = sum(phase.wall_s * phase.known_share for phase in load.phases) / sum(p.wall_s for p in load.phases)
    if known < limit("mostly_busy"):
        reasons.append(f"verdicts are known for {known:.0%} of the requests' time only")
    return bound, "low" if reasons else "high", shares, tuple(reasons)


def _host_warnings(host: HostSample, evidence: tuple[Evidence, ...]) -> list[Finding]:
    if host.cpu_share is None or host.process_cpu_share is None or not host.usable_cpus or not host.cpus:
        return []
    own_of_all = host.process_cpu_share * host.usable_cpus / host.cpus
    if host.cpu_share >= limit("host_busy") and host.cpu_share - own_of_all >= limit("foreign_load"):
        return [advice.host_shared(evidence)]
    return []


def _arithmetic(gpu: GpuSample) -> float | None:
    pipes = (gpu.tensor_activity, gpu.fp64_activity, gpu.fp32_activity, gpu.fp16_activity)
    return max((value for value in pipes if value is not None), default=None)


def _link_shares(gpu: GpuSample) -> list[float]:
    rates = (gpu.pcie_rx_bytes_per_s, gpu.pcie_tx_bytes_per_s)
    shares = [_ratio(rate, gpu.pcie_limit_bytes_per_s) for rate in rates]
    return [min(share, 1.0) for share in shares if share is not None]


def _while_busy(activity: float | None, divisor: float) -> float:
    return min((activity or 0.0) / divisor, 1.0)


def _either(first: float | None, second: float | None) -> float | None:
    return first if first is not None else second


def _ratio(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else value / whole


def _known(rows: tuple[tuple[str, float | None, float | None, str], ...]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(metric=metric, value=value, threshold=threshold, source="measured", note=note)
        for metric, value, threshold, note in rows
        if value is not None
    )
