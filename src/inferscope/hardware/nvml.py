"""GPUs as NVML tells of them: the one file that knows pynvml.

NVML holds a lock in the driver that can stall kernel launches, so nothing here asks more than once a second,
however many monitors there are, and never from a thread that generates. No CUDA function is called and no context
is made. Activities are differences of two GPM samples; the driver gives wrong ones for windows under 100 ms.

Nothing in this file has been confirmed on hardware: it follows NVIDIA's headers, and tests drive the real binding
with recorded answers in place of the driver.

Source: nvml.h of CUDA 13 (GPM metric ids and units, clock event reasons), the PCI Express specifications.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inferscope.samples import GpuReading, GpuSample

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEAST_INTERVAL_S", "LEAST_WINDOW_S", "Nvml", "driver_version", "shared"]

LEAST_INTERVAL_S = 1.0
"""NVML is not asked more often; in between, the latest reading is given again."""
LEAST_WINDOW_S = 0.1
"""Shorter GPM windows are invalid."""
RETRY_S = 60.0
"""How long to wait before looking again for a driver that was not there."""

FIRST_READING = "a window begins with this reading: the next one has a value"
_NO_GPM = "needs the counters of Hopper or later (GPM)"
_MIB = 1 << 20
_MOST_PERCENT = 110.0  # counters sampled at slightly different moments may exceed the whole by a little

_GPM_SHARES = {
    "engine_activity": 1,
    "sm_activity": 2,
    "sm_occupancy": 3,
    "tensor_activity": 5,
    "dram_activity": 10,
    "fp64_activity": 11,
    "fp32_activity": 12,
    "fp16_activity": 13,
}
_GPM_RATES = {"pcie_tx_bytes_per_s": 20, "pcie_rx_bytes_per_s": 21}
_GPM = {**_GPM_SHARES, **_GPM_RATES}

_CLOCK_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}

# Payload bytes per second of one lane in one direction, by generation, after line coding.
_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


@functools.cache  # opening NVML takes milliseconds, and a driver does not change under a running process
def driver_version() -> str:
    """The NVIDIA driver's version, "" where NVML is not there (ROCm, no driver, no binding)."""
    try:
        import pynvml  # noqa: PLC0415 - only where there is a GPU to ask about

        pynvml.nvmlInit()
        try:
            return _text(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 - the binding raises its own types; without it one only knows less
        return ""


class _LostError(Exception):
    """The driver says that the GPU has fallen off the bus."""


class _ClosedError(Exception):
    """Somebody else in this process shut NVML down once too often."""


class Nvml:
    """Reads every GPU that NVML shows, at most once a second; safe to call from any thread.

    Attributes:
        missing: Why NVML cannot be asked; "" where it can, or was not tried yet.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Open nothing yet.

        Args:
            clock: Seconds, rising.
        """
        self.missing = ""
        self._clock = clock
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self._reading = GpuReading()
        self._read_s: float | None = None

    def read(self) -> GpuReading:
        """Every GPU now, or the latest reading where that is less than a second old. Never raises."""
        with self._lock:
            now_s = self._clock()
            pause_s = RETRY_S if self.missing else LEAST_INTERVAL_S
            if self._read_s is None or now_s - self._read_s >= pause_s:
                self._read_s = now_s
                self._reading = self._ask()
            return self._reading

    def close(self) -> None:
        """Give NVML back. Reading again opens it again."""
        with self._lock:
            for device in self._devices:
                device.close()
            if self._nvml is not None:
                with contextlib.suppress(Exception):  # a driver that is gone cannot be shut down either
                    self._nvml.nvmlShutdown()
            self._devices, self._nvml, self._read_s = [], None, None

    def _ask(self) -> GpuReading:
        if self._nvml is None:
            self.missing = self._open()
        if self.missing:
            return GpuReading(missing=self.missing)
        try:
            gpus = tuple(device.read(self._clock()) for device in self._devices)
        except _ClosedError as error:
            self._nvml, self._devices = None, []
            return GpuReading(missing=f"NVML was shut down by other code in this process: {error}")
        return GpuReading(gpus=gpus, missing="" if gpus else "NVML shows no GPU to this process")

    def _open(self) -> str:
        try:
            import pynvml  # noqa: PLC0415 - only where somebody monitors
        except ImportError as error:
            return f"the NVML binding is not installed: {error}"
        try:
            pynvml.nvmlInit()
        except Exception as error:  # noqa: BLE001 - the binding raises its own types, and OSError for a broken library
            return f"NVML cannot be used: {_words(error)}"
        try:
            count = pynvml.nvmlDeviceGetCount()
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
        except Exception as error:  # noqa: BLE001 - the same
            with contextlib.suppress(Exception):
                pynvml.nvmlShutdown()
            return f"NVML cannot be used: {_words(error)}"
        self._nvml = pynvml
        self._devices = [_Device(pynvml, index, driver) for index in range(count)]
        return ""


class _Device:
    """One GPU: its handle, and the GPM sample that its next window begins with."""

    def __init__(self, nvml: Any, index: int, driver: str) -> None:  # noqa: ANN401 - the binding is untyped
        self._nvml = nvml
        self._handle: Any = None
        self._known = GpuSample(uuid=f"nvml-index-{index}", index=index, driver_version=driver)
        self._gpm: _Gpm | None = None

    def read(self, now_s: float) -> GpuSample:
        """Everything that can be read; what cannot be is None and has its reason."""
        stamped = replace(self._known, unix_ns=time.time_ns())
        try:
            values, missing = self._values(now_s)
        except _LostError as error:
            # The handle may be worth nothing any more: a GPU that was reset is looked up anew.
            self.close()
            return replace(stamped, lost=True, missing=dict.fromkeys(_READ_FIELDS, str(error)))
        return replace(stamped, uuid=self._known.uuid, name=self._known.name, **values, missing=missing)

    def close(self) -> None:
        """Free what is held in the driver."""
        if self._gpm is not None:
            self._gpm.close()
        self._gpm, self._handle = None, None

    def _values(self, now_s: float) -> tuple[dict[str, Any], dict[str, str]]:
        values: dict[str, Any] = {}
        missing: dict[str, str] = {}
        if self._handle is None:
            refusal = self._open()
            if refusal:
                return values, dict.fromkeys(_READ_FIELDS, refusal)
        for fields, ask in _QUESTIONS:
            try:
                values.update(ask(self._nvml, self._handle))
            except Exception as error:  # noqa: BLE001 - one field that cannot be read costs the others nothing
                self._survive(error)
                missing.update(dict.fromkeys(fields, _words(error)))
        if self._gpm is not None:
            found, lacking = self._gpm.read(self._handle, now_s)
            if "lost" in lacking:
                raise _LostError(lacking["lost"])
            values.update(found)
            missing.update(lacking)
        return values, missing

    def _open(self) -> str:
        """Get the handle and who this is; the reason why not, or ""."""
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(self._known.index)
            uuid = _text(self._nvml.nvmlDeviceGetUUID(self._handle))
            name = _text(self._nvml.nvmlDeviceGetName(self._handle))
        except Exception as error:  # noqa: BLE001 - refused to this process, or gone
            self._handle = None
            self._survive(error)
            return _words(error)
        self._known = replace(self._known, uuid=uuid, name=name)
        self._gpm = _Gpm(self._nvml, self._handle)
        return ""

    def _survive(self, error: Exception) -> None:
        code = getattr(error, "value", None)
        if code == self._nvml.NVML_ERROR_GPU_IS_LOST:
            raise _LostError(_words(error)) from error
        if code == self._nvml.NVML_ERROR_UNINITIALIZED:
            raise _ClosedError(_words(error)) from error


class _Gpm:
    """Windows between successive GPM samples of one device."""

    def __init__(self, nvml: Any, handle: Any) -> None:  # noqa: ANN401 - the binding is untyped
        self._nvml = nvml
        self._samples: list[Any] = []
        self._begin_s: float | None = None
        self._refusal = self._allocate(handle)

    def read(self, handle: Any, now_s: float) -> tuple[dict[str, Any], dict[str, str]]:  # noqa: ANN401
        """What happened since the sample before, and why what is missing is."""
        if self._refusal:
            return {}, self._all(self._refusal)
        begin_s = self._begin_s
        if begin_s is not None and now_s - begin_s < LEAST_WINDOW_S:
            return {}, self._all(f"the window is shorter than {LEAST_WINDOW_S} s")
        try:
            self._nvml.nvmlGpmSampleGet(handle, self._samples[1])
            # The new sample becomes the old one, whatever comes of the difference.
            self._samples.reverse()
            self._begin_s = now_s
            if begin_s is None:
                return {}, self._all(FIRST_READING)
            return self._difference(window_s=now_s - begin_s)
        except Exception as error:  # noqa: BLE001 - permission, a partitioned device, a driver without it
            self._begin_s = None
            if getattr(error, "value", None) == self._nvml.NVML_ERROR_GPU_IS_LOST:
                return {}, {"lost": _words(error)}
            return {}, self._all(_words(error))

    def close(self) -> None:
        """Free the samples."""
        for sample in self._samples:
            with contextlib.suppress(Exception):
                self._nvml.nvmlGpmSampleFree(sample)
        self._samples, self._refusal = [], "closed"

    def _allocate(self, handle: Any) -> str:  # noqa: ANN401
        try:
            if not self._nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                return _NO_GPM
            for _ in range(2):
                self._samples.append(self._nvml.nvmlGpmSampleAlloc())
        except Exception as error:  # noqa: BLE001 - an old driver, an old binding, or no permission
            self.close()
            return f"{_NO_GPM}: {_words(error)}"
        return ""

    def _difference(self, *, window_s: float) -> tuple[dict[str, Any], dict[str, str]]:
        request = self._nvml.c_nvmlGpmMetricsGet_t()
        request.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(_GPM)
        request.sample2, request.sample1 = self._samples
        for place, metric in enumerate(_GPM.values()):
            request.metrics[place].metricId = metric
        self._nvml.nvmlGpmMetricsGet(request)
        values: dict[str, Any] = {"window_s": window_s}
        missing: dict[str, str] = {}
        for place, name in enumerate(_GPM):
            answer = request.metrics[place]
            if answer.nvmlReturn:
                missing[name] = _words(self._nvml.NVMLError(answer.nvmlReturn))
                continue
            try:
                values[name] = _share(answer.value) if name in _GPM_SHARES else _rate(answer.value * _MIB)
            except ValueError as error:
                missing[name] = str(error)
        return values, missing

    @staticmethod
    def _all(reason: str) -> dict[str, str]:
        return dict.fromkeys(("window_s", *_GPM), reason)


def _utilisation(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401 - the binding is untyped, here and below
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"time_share": _share(rates.gpu), "memory_time_share": _share(rates.memory)}


def _memory(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401
    info = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_used_bytes": int(info.used), "memory_total_bytes": int(info.total)}


def _link(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401
    generation = nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)
    lane = _LANE_BYTES_PER_S.get(generation)
    if lane is None:
        raise ValueError(f"PCI Express generation {generation} is not known here")
    return {"pcie_limit_bytes_per_s": lane * nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)}


def _reasons(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401
    names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
    bits = _first(nvml, *((name, (handle,)) for name in names))
    return {"clock_reasons": tuple(name for bit, name in _CLOCK_REASONS.items() if bits & bit)}


def _temperature(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401
    question = (handle, nvml.NVML_TEMPERATURE_GPU)
    value = _first(nvml, ("nvmlDeviceGetTemperature", question), ("nvmlDeviceGetTemperatureV", question))
    return {"temperature_c": float(value)}


def _mig(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401
    try:
        return {"mig": bool(nvml.nvmlDeviceGetMigMode(handle)[0])}
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:  # this GPU cannot be partitioned
            return {"mig": False}
        raise


def _clock(field: str, function: str, kind: str) -> tuple[tuple[str, ...], Callable[[Any, Any], dict[str, Any]]]:
    def ask(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401
        return {field: getattr(nvml, function)(handle, getattr(nvml, kind)) * 1e6}  # MHz

    return (field,), ask


def _milli(field: str, function: str) -> tuple[tuple[str, ...], Callable[[Any, Any], dict[str, Any]]]:
    def ask(nvml: Any, handle: Any) -> dict[str, Any]:  # noqa: ANN401
        return {field: getattr(nvml, function)(handle) / 1e3}  # milliwatts, millijoules

    return (field,), ask


_QUESTIONS: tuple[tuple[tuple[str, ...], Callable[[Any, Any], dict[str, Any]]], ...] = (
    (("time_share", "memory_time_share"), _utilisation),
    (("memory_used_bytes", "memory_total_bytes"), _memory),
    (("pcie_limit_bytes_per_s",), _link),
    (("clock_reasons",), _reasons),
    (("temperature_c",), _temperature),
    (("mig",), _mig),
    _clock("sm_clock_hz", "nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
    _clock("sm_clock_max_hz", "nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
    _clock("memory_clock_hz", "nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
    _milli("power_w", "nvmlDeviceGetPowerUsage"),
    _milli("power_limit_w", "nvmlDeviceGetEnforcedPowerLimit"),
    _milli("energy_j", "nvmlDeviceGetTotalEnergyConsumption"),
)
_READ_FIELDS = (*(field for fields, _ in _QUESTIONS for field in fields), "window_s", *_GPM)


def _first(nvml: Any, *calls: tuple[str, tuple[Any, ...]]) -> Any:  # noqa: ANN401
    """The answer of the first function that binding and driver both have: names changed between versions."""
    refusal: Exception | None = None
    for name, arguments in calls:
        try:
            return getattr(nvml, name)(*arguments)
        except AttributeError as error:
            refusal = refusal or error
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                raise
            refusal = refusal or error
    raise refusal or LookupError("nothing was asked")


def _share(percent: float) -> float:
    value = float(percent)
    if not (math.isfinite(value) and 0 <= value <= _MOST_PERCENT):
        raise ValueError(f"the driver answered {value:g} %")
    return min(value / 100, 1.0)


def _rate(bytes_per_s: float) -> float:
    if not (math.isfinite(bytes_per_s) and bytes_per_s >= 0):
        raise ValueError(f"the driver answered {bytes_per_s:g} B/s")
    return bytes_per_s


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


class _Shared:
    """The one reader of this process: several monitors together ask no more often than one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reader: Nvml | None = None


_SHARED = _Shared()


def shared() -> Nvml:
    """The reader that every monitor of this process uses."""
    with _SHARED.lock:
        if _SHARED.reader is None:
            _SHARED.reader = Nvml()
        return _SHARED.reader


def _forget() -> None:
    """In a forked child: what the parent opened is the parent's, and its locks may be held."""
    _SHARED.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
