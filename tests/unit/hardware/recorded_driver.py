"""A stand-in for the driver's library below the real binding: answers by function name, through real structures.

The binding asks `_nvmlGetFunctionPointer` for a C function and calls it with ctypes arguments. Here it gets a
Python function that writes into the same arguments, so the binding's own structures, constants and exceptions run.
"""

# ruff: noqa: N802 - handlers are named as the C functions they stand for

from __future__ import annotations

from ctypes import addressof, cast

import pynvml

LOST = pynvml.NVML_ERROR_GPU_IS_LOST
REFUSED = pynvml.NVML_ERROR_NO_PERMISSION
UNSUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED


class RecordedDriver:
    """One driver with some GPUs; `errors` maps a function's name to the code that it returns.

    Attributes:
        calls: Names of the functions called, in order.
        gpm: Metric id and value of the next differences.
    """

    def __init__(self, count=1):
        self.count = count
        self.calls = []
        self.errors = {}
        self.answers = {
            "nvmlDeviceGetPowerUsage": 430_000,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x20,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetCurrPcieLinkGeneration": 5,
            "nvmlDeviceGetCurrPcieLinkWidth": 16,
        }
        self.clocks = {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 2619}
        self.utilisation = (100, 34)
        self.memory = (20 * 2**30, 80 * 2**30)
        self.mig = 0
        self.gpm_supported = 1
        self.gpm = {1: 98.0, 2: 93.5, 3: 41.0, 5: 2.0, 10: 71.0, 11: 0.0, 12: 5.0, 13: 1.0, 20: 10.0, 21: 20.0}
        self.gpm_errors = {}
        self.gpm_pairs = []
        self._moment = 0
        self._allocated = 0
        self._stamps = {}

    def function(self, name):
        def call(*arguments):
            self.calls.append(name)
            code = self.errors.get(name, self.errors.get("*", 0))
            if code:
                return code
            handler = getattr(self, f"_{name}", None)
            if handler is not None:
                handler(*(getattr(one, "_obj", one) for one in arguments))
            elif name in self.answers:
                arguments[-1]._obj.value = self.answers[name]
            elif name not in {"nvmlInitWithFlags", "nvmlShutdown", "nvmlGpmSampleFree"}:
                return pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
            return 0

        return call

    def _nvmlDeviceGetCount_v2(self, count):
        count.value = self.count

    def _nvmlSystemGetDriverVersion(self, buffer, _size):
        buffer.value = b"580.95.05"

    def _nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        cast_to = type(handle)
        handle.contents = cast(index.value + 0x1000, cast_to).contents

    def _nvmlDeviceGetUUID(self, _handle, buffer, _size):
        buffer.value = b"GPU-11111111-2222-3333-4444-555555555555"

    def _nvmlDeviceGetName(self, _handle, buffer, _size):
        buffer.value = b"NVIDIA H100 80GB HBM3"

    def _nvmlDeviceGetUtilizationRates(self, _handle, rates):
        rates.gpu, rates.memory = self.utilisation

    def _nvmlDeviceGetMemoryInfo(self, _handle, info):
        info.used, info.total = self.memory
        info.free = info.total - info.used

    def _nvmlDeviceGetMigMode(self, _handle, current, pending):
        current.value = pending.value = self.mig

    def _nvmlDeviceGetClockInfo(self, _handle, kind, clock):
        clock.value = self.clocks[kind.value]

    def _nvmlDeviceGetMaxClockInfo(self, _handle, kind, clock):
        clock.value = 1980

    def _nvmlGpmQueryDeviceSupport(self, _handle, support):
        support.isSupportedDevice = self.gpm_supported

    def _nvmlGpmSampleAlloc(self, sample):
        self._allocated += 1
        kind = type(sample)
        sample.contents = cast(0x2000 + 16 * self._allocated, kind).contents

    def _nvmlGpmSampleGet(self, _handle, sample):
        self._moment += 1
        self._stamps[_address(sample)] = self._moment

    def _nvmlGpmMetricsGet(self, request):
        self.gpm_pairs.append((self._stamps[_address(request.sample1)], self._stamps[_address(request.sample2)]))
        for place in range(request.numMetrics):
            metric = request.metrics[place]
            metric.nvmlReturn = self.gpm_errors.get(metric.metricId, 0)
            metric.value = self.gpm.get(metric.metricId, 0.0)


def _address(sample):
    return addressof(sample.contents)


def install(monkeypatch, driver):
    """Put a driver under the binding for one test."""
    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", lambda: None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", driver.function)
    return driver
