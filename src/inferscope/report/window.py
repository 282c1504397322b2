"""A window of a machine as words: one line for a pipe, rows for a terminal. What is unknown says so."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from inferscope.report.units import UNKNOWN, clean, duration_ns, metric, percent, ratio, scaled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.analysis.utilisation import WindowSample, WindowVerdict
    from inferscope.analysis.verdict import Finding
    from inferscope.analysis.workload import Workload
    from inferscope.samples import GpuSample, HostSample

__all__ = ["DeviceText", "as_json", "device_texts", "heading", "one_line", "workload_lines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceText:
    """One device in words.

    Attributes:
        title: Which one.
        bound: What held it back.
        confidence: "high" or "low".
        bars: Label, share (0..1, None where unknown) and what is beside it.
        facts: Label and value.
        notes: Warnings and reasons, with their severity: "WARN", "INFO" or "".
        advice: What to do, in one sentence; "" where there is nothing to say.
    """

    title: str
    bound: str
    confidence: str
    bars: tuple[tuple[str, float | None, str], ...]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    advice: str


def heading(sample: WindowSample) -> str:
    """When, how long, and at what cost."""
    moment = datetime.fromtimestamp(sample.unix_ns / 1e9, tz=timezone.utc)
    window_s = sample.host.window_s
    parts = [f"{moment:%Y-%m-%d %H:%M:%S} UTC"]
    if window_s is not None:
        parts.append(f"window {duration_ns(window_s * 1e9)}")
    parts.append(f"taken in {duration_ns(sample.took_s * 1e9)}")
    return " · ".join(parts)


def device_texts(
    sample: WindowSample, verdict: WindowVerdict, advice: dict[str, tuple[Finding, ...]]
) -> tuple[DeviceText, ...]:
    """Every device, the one that the verdict is on first.

    Args:
        sample: The window.
        verdict: On it.
        advice: By device identity, as `recommend` gives it.
    """
    gpus = {gpu.uuid: gpu for gpu in sample.gpus}
    return tuple(
        _device(one, gpus.get(one.device), sample, advice.get(one.device, ())) for one in (verdict, *verdict.others)
    )


def workload_lines(load: Workload) -> tuple[str, ...]:
    """The requests of the last minute; nothing where the monitor is no sink of any."""
    if not load.requests:
        return ()
    parts = [f"{load.requests:,} requests ended in the last {duration_ns(load.horizon_s * 1e9)}"]
    if load.aborted:
        parts.append(f"{load.aborted:,} aborted")
    if load.tokens_per_s is not None:
        parts.append(f"at least {ratio(load.tokens_per_s)} token/s")
    lines = [" · ".join(parts)]
    for phase in load.phases:
        known = ", ".join(
            f"{name} {percent(share)}" for name, share in sorted(phase.shares.items(), key=lambda i: -i[1]) if share > 0
        )
        lines.append(f"{clean(phase.name)}: {phase.bound}" + (f" ({known})" if known else ""))
    for energy in load.energy:
        each = energy.per_token_j
        if each is not None:
            lines.append(f"energy per token: {_joules(each[0])} to {_joules(each[1])} (whole device)")
    return tuple(lines)


def one_line(sample: WindowSample, verdict: WindowVerdict) -> str:
    """The window in one line, for a pipe: when, which device, its bound, its numbers, its warnings."""
    moment = datetime.fromtimestamp(sample.unix_ns / 1e9, tz=timezone.utc)
    words = [f"{moment:%H:%M:%S}"]
    for one in (verdict, *verdict.others):
        numbers = " ".join(
            f"{row.metric.removesuffix('_share')}={metric(row.metric, row.value)}".replace(" %", "%")
            for row in one.evidence
        )
        names = " ".join(f"!{finding.code}" for finding in one.warnings)
        words.append(" ".join(word for word in (f"{clean(one.subject)}: {one.bound}", numbers, names) if word))
    return " | ".join(words)


def as_json(sample: WindowSample, verdict: WindowVerdict, findings: Iterable[Finding]) -> dict[str, Any]:
    """The window as a mapping that any JSON encoder takes: no value in it is NaN or infinite."""
    found: dict[str, Any] = _finite(
        {"sample": asdict(sample), "verdict": asdict(verdict), "findings": [asdict(finding) for finding in findings]}
    )
    return found


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _device(
    verdict: WindowVerdict, gpu: GpuSample | None, sample: WindowSample, advice: tuple[Finding, ...]
) -> DeviceText:
    notes: list[tuple[str, str]] = [(one.severity, f"{one.code}: {one.claim}") for one in verdict.warnings]
    notes += [("", reason) for reason in verdict.reasons]
    if gpu is None:
        bars, facts = _host_bars(sample.host), _host_facts(sample.host)
        if sample.gpus_missing:
            notes.append(("", f"no GPU: {sample.gpus_missing}"))
    else:
        bars, facts = _gpu_bars(gpu), _gpu_facts(gpu)
        notes += [("", text) for text in _missing(gpu)]
    return DeviceText(
        title=clean(verdict.subject),
        bound=verdict.bound,
        confidence=verdict.confidence,
        bars=bars,
        facts=facts,
        notes=tuple((severity, clean(text)) for severity, text in notes),
        advice=advice[-1].action if advice else "",
    )


def _gpu_bars(gpu: GpuSample) -> tuple[tuple[str, float | None, str], ...]:
    return (
        ("GPU-Util", gpu.time_share, "some kernel ran: share of time"),
        ("SM", gpu.sm_activity, "cycles with a warp"),
        ("tensor", gpu.tensor_activity, "cycles at work"),
        ("DRAM", gpu.dram_activity, "of the theoretical bandwidth"),
        ("memory", _of(gpu.memory_used_bytes, gpu.memory_total_bytes), _pair(gpu)),
        ("power", _of(gpu.power_w, gpu.power_limit_w), _watts(gpu)),
    )


def _gpu_facts(gpu: GpuSample) -> tuple[tuple[str, str], ...]:
    clock = scaled(gpu.sm_clock_hz, "Hz")
    if gpu.sm_clock_max_hz is not None:
        clock += f" of {scaled(gpu.sm_clock_max_hz, 'Hz')}"
    reasons = UNKNOWN if gpu.clock_reasons is None else ", ".join(gpu.clock_reasons) or "none"
    temperature = UNKNOWN if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} °C"
    return (
        ("SM clock", clock),
        ("clock reasons", reasons),
        ("temperature", temperature),
        ("PCIe from GPU", scaled(gpu.pcie_tx_bytes_per_s, "B/s")),
        ("PCIe to GPU", scaled(gpu.pcie_rx_bytes_per_s, "B/s")),
    )


def _host_bars(host: HostSample) -> tuple[tuple[str, float | None, str], ...]:
    used = _of(host.memory_available_bytes, host.memory_total_bytes)
    bars: list[tuple[str, float | None, str]] = [("CPU", host.cpu_share, f"of {host.cpus or UNKNOWN} processors")]
    if host.process_cpu_share is not None:
        bars.append(("process", host.process_cpu_share, f"of the {host.usable_cpus} it may use"))
    left = f"{scaled(host.memory_available_bytes, 'B')} available"
    return (*bars, ("memory", None if used is None else 1 - used, left))


def _host_facts(host: HostSample) -> tuple[tuple[str, str], ...]:
    facts = [("CPU clock", scaled(host.cpu_frequency_hz, "Hz"))]
    if host.rss_bytes is not None:
        facts.append(("resident memory", scaled(host.rss_bytes, "B")))
    return tuple(facts)


def _missing(gpu: GpuSample) -> list[str]:
    """Reasons, each with the fields it stands for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in gpu.missing.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"not known: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _of(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else min(value / whole, 1.0)


def _pair(gpu: GpuSample) -> str:
    return f"{scaled(gpu.memory_used_bytes, 'B')} of {scaled(gpu.memory_total_bytes, 'B')}"


def _watts(gpu: GpuSample) -> str:
    # No prefix: boards are compared in watts.
    draw, most = (UNKNOWN if value is None else f"{value:.0f} W" for value in (gpu.power_w, gpu.power_limit_w))
    return f"{draw} of {most}"


def _joules(value_j: float) -> str:
    return f"{value_j * 1e3:.3g} mJ" if value_j < 1 else f"{value_j:.3g} J"
