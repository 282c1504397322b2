"""What follows from a window: warnings by name, and what to do about the bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.analysis.utilisation import WindowVerdict
    from inferscope.analysis.verdict import Evidence, Severity
    from inferscope.samples import GpuSample

__all__ = [
    "CODES",
    "THROTTLES",
    "gpu_lost",
    "gpu_util_misleads",
    "host_shared",
    "memory_nearly_full",
    "partitioned",
    "recommend",
    "throttled",
]

THROTTLES = {
    "sw_thermal_slowdown": "thermal",
    "hw_thermal_slowdown": "thermal",
    "sw_power_cap": "power",
    "hw_power_brake_slowdown": "power",
    "hw_slowdown": "hardware",
}
"""NVML's reasons for lowered clocks that slow work down, by kind; the others follow the load or a setting."""

CODES = (
    "gpu-lost",
    "gpu-memory-nearly-full",
    "gpu-partitioned",
    "gpu-throttled-hardware",
    "gpu-throttled-power",
    "gpu-throttled-thermal",
    "gpu-util-misleads",
    "host-shared",
    "window-cache",
    "window-communication",
    "window-compute",
    "window-compute-without-tensor-cores",
    "window-idle",
    "window-inefficient",
    "window-memory",
    "window-overhead",
    "window-unknown",
)
"""Every code that a monitor's finding can have."""

_FEW_TENSOR_CYCLES = 0.05


def recommend(verdict: WindowVerdict) -> tuple[Finding, ...]:
    """What to do, warnings first.

    Args:
        verdict: On one device; the others it carries are left alone.

    Returns:
        Findings; `saves` is None throughout, since a window does not tell what a change would save.
    """
    chosen = _advice(verdict)
    on_bound = _finding(
        f"window-{chosen.code or verdict.bound}",
        chosen.severity,
        chosen.claim,
        verdict.evidence,
        action=chosen.action,
        not_helping=chosen.not_helping,
        verify=chosen.verify,
    )
    return (*verdict.warnings, on_bound)


def gpu_util_misleads(gpu: GpuSample, evidence: Iterable[Evidence]) -> Finding:
    """GPU-Util reads full, and the device is mostly unused."""
    sm, dram = gpu.sm_activity or 0.0, gpu.dram_activity or 0.0
    return _finding(
        "gpu-util-misleads",
        "WARN",
        f'"GPU-Util {gpu.time_share or 0.0:.0%}" misleads: some kernel was running most of the time, but SMs held '
        f"work for {sm:.0%} of their cycles and memory ran at {dram:.0%} of its bandwidth.",
        _only(evidence, "gpu_util_share", "sm_activity_share", "dram_activity_share", "arithmetic_share"),
        action="Judge by SM and DRAM activity. There is room on this device: decode more sequences per pass, or cut "
        "the time between launches (compiled passes, CUDA graphs).",
        not_helping="Another GPU, because this one reads full.",
        verify="With a larger batch GPU-Util stays, SM or DRAM activity and tokens per second rise.",
    )


def throttled(kind: str, gpu: GpuSample, evidence: Iterable[Evidence]) -> Finding:
    """Clocks are held down while the device works."""
    reasons = [reason for reason in gpu.clock_reasons or () if THROTTLES.get(reason) == kind]
    actions = {
        "thermal": "Look at cooling and at the temperature of the neighbours in the chassis.",
        "power": "At full load a power cap is normal. Where it is not wanted: raise the limit "
        "(`nvidia-smi -pl`, as administrator), or look at the power supply for a power brake.",
        "hardware": "Look at temperature, power supply and the board: the hardware has cut the clock by half or more.",
    }
    severity: Severity = "INFO" if reasons == ["sw_power_cap"] else "WARN"
    return _finding(
        f"gpu-throttled-{kind}",
        severity,
        f"The GPU's clocks are held down: {', '.join(reasons)}.",
        _only(evidence, "sm_clock_share", "power_share"),
        action=actions[kind],
        not_helping="Changes to the model are judged wrongly while clocks move: compare at equal clocks.",
        verify="The reason is gone and `sm_clock_share` returns to 1 under the same load.",
    )


def gpu_lost(gpu: GpuSample) -> Finding:
    """The driver says that the GPU has fallen off the bus."""
    reason = gpu.missing.get("time_share", "the driver does not answer")
    return _finding(
        "gpu-lost",
        "WARN",
        f"GPU {gpu.index} is lost: {reason}.",
        (),
        action="Drain this machine; look for Xid errors in the kernel's log. The GPU needs a reset or a reboot.",
        not_helping="Restarting the program: the device does not answer anybody.",
        verify="`nvidia-smi` lists the device again.",
    )


def memory_nearly_full(evidence: Iterable[Evidence]) -> Finding:
    """Little device memory is left."""
    return _finding(
        "gpu-memory-nearly-full",
        "WARN",
        "The GPU's memory is nearly full: a longer prompt or a larger batch may not fit.",
        _only(evidence, "memory_used_share"),
        action="Limit batch size or context, or store weights or the cache narrower.",
        not_helping="torch keeps freed memory in its own pool, which counts as used here: compare with "
        "`torch.cuda.memory_reserved()` before acting.",
        verify="`memory_used_share` stays below the threshold at the largest request you expect.",
    )


def partitioned() -> Finding:
    """The counters are the whole device's, this process has a part of it."""
    return _finding(
        "gpu-partitioned",
        "INFO",
        "The GPU is partitioned (MIG): what NVML tells here is of the whole device, not of one partition.",
        (),
        action="Judge this process by its requests: hand the monitor to `trace(model, sinks=[monitor])`.",
        not_helping="Reading GPU-Util: NVML does not have it for partitioned devices.",
        verify="The requests' own bounds appear in the sample's workload.",
    )


def host_shared(evidence: Iterable[Evidence]) -> Finding:
    """Other processes keep the processors busy."""
    return _finding(
        "host-shared",
        "WARN",
        "The processors are full, and a good part of that is other processes: they compete with this one.",
        _only(evidence, "cpu_share", "process_cpu_share"),
        action="Move the other work away, or bind this process to processors of its own.",
        not_helping="More threads in this process: there is no processor left for them.",
        verify="`cpu_share` falls to about what this process takes, and requests get faster.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advice:
    """What to say about one bound; `code` after the hyphen of "window-"."""

    severity: Severity
    claim: str
    action: str
    not_helping: str
    verify: str
    code: str = ""


_GPU = {
    "memory": _Advice(
        severity="OPT",
        claim="Memory bandwidth holds the device back.",
        action="Decode more sequences per pass (the weights are read once for all of them), or store weights or the "
        "KV cache narrower.",
        not_helping="A device with more FLOP/s at the same bandwidth.",
        verify="Tokens per second rise at about the same DRAM activity.",
    ),
    "compute": _Advice(
        severity="OPT",
        claim="Arithmetic holds the device back.",
        action="Fewer tokens per request (a cached prefix), or a dtype with a higher peak. At this point a larger "
        "batch buys latency, not throughput.",
        not_helping="More bandwidth, or narrower weights whose arithmetic stays as it was.",
        verify="Tokens per second rise at about the same tensor activity.",
    ),
    "overhead": _Advice(
        severity="OPT",
        claim="The device waits for launches, or kernels fill few of its SMs.",
        action="Decode more sequences per pass; take the host out of the way (static cache and compiled passes, CUDA "
        "graphs). `inferscope.trace` says which part of a pass is the host's.",
        not_helping="A faster device: it would wait more.",
        verify="SM activity rises at the same load.",
    ),
    "inefficient": _Advice(
        severity="OPT",
        claim="SMs hold work, but neither memory nor arithmetic is near its limit: kernels wait for latency.",
        action="Use fused attention and fused kernels, larger batches, shapes that tensor cores take. A kernel "
        "profiler (Nsight Compute) says what the warps wait for.",
        not_helping="A device with more bandwidth or FLOP/s: neither is used here.",
        verify="DRAM or tensor activity rises.",
    ),
    "communication": _Advice(
        severity="OPT",
        claim="The PCIe link is busy while memory and arithmetic are not: data comes from or goes to the host.",
        action="Keep weights on the device (no offload, a narrower dtype, a smaller model), pin host memory, and "
        "copy while kernels run.",
        not_helping="A faster device behind the same link.",
        verify="PCIe traffic falls and SM activity rises.",
    ),
    "idle": _Advice(
        severity="INFO",
        claim="The device had next to nothing to do.",
        action="Nothing on the device. If requests are waiting, look before it: queueing, tokenising, the network.",
        not_helping="Any optimisation of the model.",
        verify="Under load the window shows a bound.",
    ),
    "unknown": _Advice(
        severity="INFO",
        claim="What is known here does not tell what holds the device back.",
        action="Read the reasons. Hand the monitor to `trace(model, sinks=[monitor])`: requests carry their own "
        "verdicts.",
        not_helping="Reading GPU-Util instead: it is a share of time, not of the device.",
        verify="The reasons are gone.",
    ),
}
_WITHOUT_TENSOR_CORES = _Advice(
    code="compute-without-tensor-cores",
    severity="OPT",
    claim="Arithmetic holds the device back, and tensor cores stand still.",
    action="Load the model in bfloat16, or allow TF32 for float32 products "
    '(`torch.set_float32_matmul_precision("high")`). Precondition: quality holds; outputs will differ.',
    not_helping="More bandwidth.",
    verify="Tensor activity rises from zero, and the same requests take less time.",
)
_BY_REQUESTS = "What to do about a phase stands in the requests' findings (`session.last.findings`). "
_HOST = {
    "memory": _Advice(
        severity="OPT",
        claim="By the requests' own verdicts, memory bandwidth holds them back.",
        action=_BY_REQUESTS + "In general: narrower weights, or more sequences per pass.",
        not_helping="More threads: they share the same memory.",
        verify="Tokens per second rise.",
    ),
    "cache": _Advice(
        severity="INFO",
        claim="By the requests' own verdicts, the last-level cache feeds them: faster than memory would.",
        action=_BY_REQUESTS + "Keep the working set inside the cache.",
        not_helping="More memory bandwidth.",
        verify="The cache share stays when the batch grows.",
    ),
    "compute": _Advice(
        severity="OPT",
        claim="By the requests' own verdicts, arithmetic holds them back.",
        action=_BY_REQUESTS + "In general: a dtype with a higher peak, fewer tokens, more processors.",
        not_helping="More memory bandwidth.",
        verify="Tokens per second rise.",
    ),
    "overhead": _Advice(
        severity="OPT",
        claim="By the requests' own verdicts, overhead holds them back: dispatching operators, Python between passes, "
        "time off the processor.",
        action=_BY_REQUESTS + "In general: fewer and larger operators (compilation, larger batches).",
        not_helping="A faster device.",
        verify="The overhead share falls.",
    ),
    "inefficient": _Advice(
        severity="OPT",
        claim="By the requests' own verdicts, kernels run below what this machine gives.",
        action=_BY_REQUESTS + "In general: another dtype, thread count or batch size, compiled kernels.",
        not_helping="A better machine: it would not be used either.",
        verify="The inefficient share falls.",
    ),
    "communication": _Advice(
        severity="OPT",
        claim="By the requests' own verdicts, communication holds them back.",
        action=_BY_REQUESTS + "In general: fewer, larger transfers.",
        not_helping="A faster device behind the same link.",
        verify="The communication share falls.",
    ),
    "idle": _Advice(
        severity="INFO",
        claim="The machine had next to nothing to do.",
        action="Nothing. If requests are waiting, look before it: queueing, the network.",
        not_helping="Any optimisation of the model.",
        verify="Under load the window shows a bound.",
    ),
    "unknown": _Advice(
        severity="INFO",
        claim="The load of processors does not tell what holds requests back.",
        action="Hand the monitor to `trace(model, sinks=[monitor])`, and run `inferscope calibrate` once: requests "
        "then carry their own verdicts.",
        not_helping="Reading the processors' load: waiting for memory counts as busy.",
        verify="The reasons are gone.",
    ),
}


def _advice(verdict: WindowVerdict) -> _Advice:
    if verdict.device == "host":
        return _HOST[verdict.bound]
    if verdict.bound == "compute" and _without_tensor_cores(verdict):
        return _WITHOUT_TENSOR_CORES
    return _GPU.get(verdict.bound, _GPU["unknown"])


def _without_tensor_cores(verdict: WindowVerdict) -> bool:
    tensor = next((row.value for row in verdict.evidence if row.metric == "tensor_activity_share"), None)
    return tensor is not None and tensor < _FEW_TENSOR_CYCLES


def _only(evidence: Iterable[Evidence], *metrics: str) -> tuple[Evidence, ...]:
    return tuple(row for row in evidence if row.metric in metrics)


def _finding(
    code: str,
    severity: Severity,
    claim: str,
    evidence: tuple[Evidence, ...],
    *,
    action: str,
    not_helping: str,
    verify: str,
) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        phase=None,
        claim=claim,
        evidence=evidence,
        saves=None,
        action=action,
        not_helping=not_helping,
        verify=verify,
    )
