"""Every metric that a monitor emits: its name, instrument, unit, meaning and where its values come from.

The `hw`, `system` and `process` names and attributes are those of OpenTelemetry's conventions; what these have no
name for is under `inferscope`.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

from inferscope.analysis.advice import THROTTLES
from inferscope.analysis.utilisation import WindowBound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inferscope.analysis.utilisation import WindowSample, WindowVerdict
    from inferscope.samples import GpuSample

__all__ = ["METRICS", "Metric", "hardware_markdown"]

Kind = Literal["gauge", "counter", "updowncounter"]
Point = tuple[float, dict[str, str]]
_BOUND_NAMES: tuple[str, ...] = get_args(WindowBound)
_STATES = ("ok", "degraded", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table: an observable instrument and where its values come from.

    Attributes:
        name: Of the instrument.
        kind: Which instrument.
        unit: UCUM unit.
        meaning: One sentence for the reference.
        attributes: Keys on each of its points.
        read: Its points; what is unknown has none.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    attributes: tuple[str, ...]
    read: Callable[[WindowSample, WindowVerdict], Iterable[Point]]


_GPU_KEYS = ("hw.id", "hw.name", "hw.model", "hw.vendor", "hw.driver_version", "hw.type")


def _gpu_attributes(gpu: GpuSample) -> dict[str, str]:
    known = {
        "hw.id": gpu.uuid,
        "hw.name": f"GPU {gpu.index}",
        "hw.model": gpu.name,
        "hw.vendor": "NVIDIA",
        "hw.driver_version": gpu.driver_version,
        "hw.type": "gpu",
    }
    return {key: value for key, value in known.items() if value}


def _per_gpu(value: Callable[[GpuSample], float | None], **extra: str) -> Callable[..., Iterator[Point]]:
    more = {key.replace("_", "."): text for key, text in extra.items()}

    def read(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
        for gpu in sample.gpus:
            found = value(gpu)
            if found is not None:
                yield found, {**_gpu_attributes(gpu), **more}

    return read


def _gpu(name: str, kind: Kind, unit: str, meaning: str, field: str) -> Metric:
    get: Callable[[GpuSample], Any] = attrgetter(field)
    return Metric(name=name, kind=kind, unit=unit, meaning=meaning, attributes=_GPU_KEYS, read=_per_gpu(get))


def _memory_share(gpu: GpuSample) -> float | None:
    if gpu.memory_used_bytes is None or not gpu.memory_total_bytes:
        return None
    return gpu.memory_used_bytes / gpu.memory_total_bytes


def _throttled(gpu: GpuSample) -> int | None:
    return None if gpu.clock_reasons is None else int(any(reason in THROTTLES for reason in gpu.clock_reasons))


def _clocks(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
    for gpu in sample.gpus:
        for domain, value in (("sm", gpu.sm_clock_hz), ("memory", gpu.memory_clock_hz)):
            if value is not None:
                yield value, {**_gpu_attributes(gpu), "inferscope.clock": domain}


def _pcie(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
    for gpu in sample.gpus:
        for direction, value in (("transmit", gpu.pcie_tx_bytes_per_s), ("receive", gpu.pcie_rx_bytes_per_s)):
            if value is not None:
                yield value, {**_gpu_attributes(gpu), "network.io.direction": direction}


def _status(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
    for gpu in sample.gpus:
        slowed = {"thermal", "hardware"} & {THROTTLES.get(reason, "") for reason in gpu.clock_reasons or ()}
        state = "failed" if gpu.lost else "degraded" if slowed else "ok"
        for name in _STATES:
            yield int(name == state), {**_gpu_attributes(gpu), "hw.state": name}


def _verdicts(verdict: WindowVerdict) -> tuple[WindowVerdict, ...]:
    return (verdict, *verdict.others)


def _bounds(_sample: WindowSample, verdict: WindowVerdict) -> Iterator[Point]:
    for one in _verdicts(verdict):
        for bound in _BOUND_NAMES:
            yield int(one.bound == bound), {"hw.id": one.device, "inferscope.bound": bound}


def _window_shares(_sample: WindowSample, verdict: WindowVerdict) -> Iterator[Point]:
    for one in _verdicts(verdict):
        for name, share in one.shares.items():
            yield share, {"hw.id": one.device, "inferscope.class": name}


def _warnings(_sample: WindowSample, verdict: WindowVerdict) -> Iterator[Point]:
    for one in _verdicts(verdict):
        for finding in one.warnings:
            yield 1, {"hw.id": one.device, "inferscope.finding": finding.code}


def _energy(limit: int) -> Callable[..., Iterator[Point]]:
    def read(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
        for energy in sample.workload.energy:
            if energy.per_token_j is not None:
                yield energy.per_token_j[limit], {"hw.id": energy.device}

    return read


def _request_energy(limit: int) -> Callable[..., Iterator[Point]]:
    def read(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
        for energy in sample.workload.energy:
            yield energy.per_request_j[limit], {"hw.id": energy.device}

    return read


def _single(path: str, **attributes: str) -> Callable[..., Iterator[Point]]:
    get: Callable[[WindowSample], Any] = attrgetter(path)
    fixed = {key.replace("_", "."): text for key, text in attributes.items()}

    def read(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
        value = get(sample)
        if value is not None:
            yield value, dict(fixed)

    return read


def _tokens(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
    if sample.workload.tokens_per_s is not None:
        yield sample.workload.tokens_per_s, {}


def _took(sample: WindowSample, _verdict: WindowVerdict) -> Iterator[Point]:
    yield sample.took_s, {}


# fmt: off
# A table reads as rows.
METRICS: tuple[Metric, ...] = (
    Metric(name="hw.gpu.utilization", kind="gauge", unit="1", attributes=(*_GPU_KEYS, "hw.gpu.task"),
           meaning="NVML's GPU-Util: share of time in which some kernel ran (0..1). Says little: see SM activity.",
           read=_per_gpu(attrgetter("time_share"), hw_gpu_task="general")),
    _gpu("hw.gpu.memory.usage", "updowncounter", "By", "Device memory in use, over all processes.",
         "memory_used_bytes"),
    _gpu("hw.gpu.memory.limit", "updowncounter", "By", "Size of the device's memory.", "memory_total_bytes"),
    Metric(name="hw.gpu.memory.utilization", kind="gauge", unit="1", attributes=_GPU_KEYS,
           meaning="Usage over limit (0..1).", read=_per_gpu(_memory_share)),
    _gpu("hw.power", "gauge", "W", "Draw of the board.", "power_w"),
    _gpu("hw.energy", "counter", "J", "Energy since the driver was loaded.", "energy_j"),
    _gpu("hw.temperature", "gauge", "Cel", "Of the GPU's die.", "temperature_c"),
    Metric(name="hw.status", kind="updowncounter", unit="1", attributes=(*_GPU_KEYS, "hw.state"),
           meaning="1 for the state the GPU is in: `ok`, `degraded` (throttled by heat or hardware), `failed` (lost).",
           read=_status),
    _gpu("inferscope.gpu.engine.activity", "gauge", "1",
         "Share of the window in which the compute or graphics engine was busy (0..1).", "engine_activity"),
    _gpu("inferscope.gpu.sm.activity", "gauge", "1", "Share of SM-cycles with at least one warp resident (0..1).",
         "sm_activity"),
    _gpu("inferscope.gpu.sm.occupancy", "gauge", "1", "Warps resident over those possible (0..1).", "sm_occupancy"),
    _gpu("inferscope.gpu.tensor.activity", "gauge", "1", "Share of SM-cycles with tensor cores at work (0..1).",
         "tensor_activity"),
    _gpu("inferscope.gpu.dram.activity", "gauge", "1",
         "DRAM bandwidth used over its theoretical maximum (0..1).", "dram_activity"),
    Metric(name="inferscope.gpu.pcie.rate", kind="gauge", unit="By/s", attributes=(*_GPU_KEYS, "network.io.direction"),
           meaning="PCIe traffic over the window, seen from the GPU.", read=_pcie),
    Metric(name="inferscope.gpu.clock", kind="gauge", unit="Hz", attributes=(*_GPU_KEYS, "inferscope.clock"),
           meaning="Clock of the SMs (`sm`) and of the memory (`memory`).", read=_clocks),
    Metric(name="inferscope.gpu.throttled", kind="gauge", unit="1", attributes=_GPU_KEYS,
           meaning="1 while clocks are held down by heat, power or hardware, else 0.", read=_per_gpu(_throttled)),
    Metric(name="inferscope.window.bound", kind="gauge", unit="1", attributes=("hw.id", "inferscope.bound"),
           meaning="1 for what held the device (`hw.id`, or `host`) back in the window, 0 for the others.",
           read=_bounds),
    Metric(name="inferscope.window.share", kind="gauge", unit="1", attributes=("hw.id", "inferscope.class"),
           meaning="Parts of the window, summing to 1: `idle`, `empty`, `occupied` of a GPU; by bound for the host.",
           read=_window_shares),
    Metric(name="inferscope.window.warning", kind="gauge", unit="1", attributes=("hw.id", "inferscope.finding"),
           meaning="1 for each warning of the window, by code; absent otherwise.", read=_warnings),
    Metric(name="inferscope.window.took", kind="gauge", unit="s", attributes=(),
           meaning="What taking the window cost, on the monitor's thread.", read=_took),
    Metric(name="inferscope.workload.tokens", kind="gauge", unit="{token}/s", attributes=(),
           meaning="New tokens per second over the last minute, of requests that have ended: a lower bound.",
           read=_tokens),
    Metric(name="inferscope.workload.energy_per_token.low", kind="gauge", unit="J/{token}",
           attributes=("hw.id",),
           meaning="The device drew at least this much per new token while requests ran.", read=_energy(0)),
    Metric(name="inferscope.workload.energy_per_token.high", kind="gauge", unit="J/{token}",
           attributes=("hw.id",),
           meaning="And at most this much.", read=_energy(1)),
    Metric(name="inferscope.workload.energy_per_request.low", kind="gauge", unit="J/{request}",
           attributes=("hw.id",),
           meaning="The device drew at least this much per request while requests ran.", read=_request_energy(0)),
    Metric(name="inferscope.workload.energy_per_request.high", kind="gauge", unit="J/{request}",
           attributes=("hw.id",),
           meaning="And at most this much.", read=_request_energy(1)),
    Metric(name="system.cpu.utilization", kind="gauge", unit="1", attributes=(),
           meaning="Busy time of all processors over all their time (0..1).", read=_single("host.cpu_share")),
    Metric(name="hw.cpu.speed", kind="gauge", unit="Hz", attributes=("hw.id", "hw.type"),
           meaning="Clock now, mean over the processors.",
           read=_single("host.cpu_frequency_hz", hw_id="cpu", hw_type="cpu")),
    Metric(name="process.cpu.utilization", kind="gauge", unit="1", attributes=(),
           meaning="CPU time of the process over that of the processors it may use (0..1).",
           read=_single("host.process_cpu_share")),
    Metric(name="process.memory.usage", kind="updowncounter", unit="By", attributes=(),
           meaning="Resident memory of the process.", read=_single("host.rss_bytes")),
)
# fmt: on
"""All instruments, in the order of the reference."""


def hardware_markdown() -> str:
    """The table for docs/reference/telemetry.md."""
    lines = ["## A monitor's metrics\n", f"{_LEAD}\n", "| metric | instrument | unit | attributes | meaning |"]
    lines.append("|---|---|---|---|---|")
    for row in METRICS:
        if row.attributes[: len(_GPU_KEYS)] == _GPU_KEYS:
            keys = ["GPU", *(f"`{key}`" for key in row.attributes[len(_GPU_KEYS) :])]
        else:
            keys = [f"`{key}`" for key in row.attributes]
        lines.append(f"| `{row.name}` | {row.kind} | {row.unit} | {', '.join(keys)} | {row.meaning} |")
    return "\n".join(lines)


_LEAD = (
    "Fed by a running `inferscope.BottleneckMonitor`; every instrument is observable and tells the newest window. "
    "A window older than three intervals is not told any more, so a monitor that stopped leaves gaps, not flat lines. "
    "What is unknown has no point. `GPU` stands for "
    + ", ".join(f"`{key}`" for key in _GPU_KEYS)
    + ": the GPU's UUID, its number in NVML's order, the driver's name for it, `NVIDIA`, the driver's version, `gpu`."
)
