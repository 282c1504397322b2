"""What a machine was doing during one window: facts only, like records.py, but of devices and not of requests."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["GpuReading", "GpuSample", "HostSample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU, over the window that ended with this reading. None means not known; `missing` says why.

    The activities come from the device's own counters (GPM, on Hopper and later), averaged over the whole device
    and `window_s`. The two time shares come from NVML and say something weaker: in which share of the driver's own
    sampling period some kernel ran, or some memory was touched, however little of the device that took.

    Attributes:
        uuid: The driver's identity of the device.
        index: Its number in NVML's order, which is not CUDA's.
        name: As the driver calls it.
        driver_version: Of the driver.
        unix_ns: Wall-clock time of the reading.
        window_s: Seconds that the activities are averaged over.
        time_share: NVML's "GPU-Util": share of time in which some kernel ran (0..1).
        memory_time_share: Share of time in which device memory was read or written at all (0..1).
        engine_activity: Share of the window in which the compute or graphics engine was busy (0..1).
        sm_activity: Share of SM-cycles with at least one warp resident (0..1).
        sm_occupancy: Warps resident over those that could be (0..1).
        tensor_activity: Share of SM-cycles in which tensor cores worked (0..1).
        fp64_activity: The same for other float64 arithmetic.
        fp32_activity: The same for other float32 arithmetic.
        fp16_activity: The same for other float16 arithmetic.
        dram_activity: DRAM bandwidth used over its theoretical maximum (0..1).
        pcie_tx_bytes_per_s: PCIe traffic from this GPU.
        pcie_rx_bytes_per_s: PCIe traffic to this GPU.
        pcie_limit_bytes_per_s: What the link as it is trained now carries in one direction, by its specification.
        sm_clock_hz: Clock of the SMs.
        sm_clock_max_hz: Its maximum.
        memory_clock_hz: Clock of the memory.
        clock_reasons: Why clocks are below their maximum, NVML's reasons by name; empty where there is none.
        memory_used_bytes: Allocated, over all processes, with what the driver reserves.
        memory_total_bytes: Size of the memory.
        power_w: Draw of the board.
        power_limit_w: Limit that is enforced.
        energy_j: Counter of energy since the driver was loaded.
        temperature_c: Of the GPU's die, in degrees Celsius.
        mig: Whether the device is partitioned (Multi-Instance GPU).
        lost: Whether the driver says that the device has fallen off the bus.
        missing: Field name and why it is None.
    """

    uuid: str
    index: int
    name: str = ""
    driver_version: str = ""
    unix_ns: int = 0
    window_s: float | None = None
    time_share: float | None = None
    memory_time_share: float | None = None
    engine_activity: float | None = None
    sm_activity: float | None = None
    sm_occupancy: float | None = None
    tensor_activity: float | None = None
    fp64_activity: float | None = None
    fp32_activity: float | None = None
    fp16_activity: float | None = None
    dram_activity: float | None = None
    pcie_tx_bytes_per_s: float | None = None
    pcie_rx_bytes_per_s: float | None = None
    pcie_limit_bytes_per_s: float | None = None
    sm_clock_hz: float | None = None
    sm_clock_max_hz: float | None = None
    memory_clock_hz: float | None = None
    clock_reasons: tuple[str, ...] | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    mig: bool | None = None
    lost: bool = False
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """Every GPU at one moment.

    Attributes:
        gpus: One sample each, in NVML's order.
        missing: Why there are none; "" where there are some.
    """

    gpus: tuple[GpuSample, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSample:
    """The machine and one process (this one, where no other was named), over the window that ended with this reading.

    Attributes:
        unix_ns: Wall-clock time of the reading.
        window_s: Seconds that the shares are averaged over; None at the first reading.
        cpu_share: Busy time of all processors over all their time (0..1).
        process_cpu_share: CPU time of the process over the time of the processors it may use (0..1).
        cpus: Processors of the machine.
        usable_cpus: Those of them that the process may run on.
        cpu_frequency_hz: Mean over the processors, as the system reports it now.
        cpu_frequency_max_hz: Its maximum.
        rss_bytes: Memory of the process that is resident.
        memory_available_bytes: Memory of the machine that could be had without swapping; a container's limit is
            not considered.
        memory_total_bytes: Memory of the machine.
        missing: Field name and why it is None.
    """

    unix_ns: int = 0
    window_s: float | None = None
    cpu_share: float | None = None
    process_cpu_share: float | None = None
    cpus: int | None = None
    usable_cpus: int | None = None
    cpu_frequency_hz: float | None = None
    cpu_frequency_max_hz: float | None = None
    rss_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    missing: dict[str, str] = field(default_factory=dict)
