from __future__ import annotations

import math
import os
import sys

import pynvml
import pytest
from recorded_driver import LOST, REFUSED, UNSUPPORTED, RecordedDriver, install

from inferscope.analysis.utilisation import WindowSample, classify
from inferscope.hardware import nvml


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def driver(monkeypatch):
    return install(monkeypatch, RecordedDriver())


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reader(driver, clock):
    reader = nvml.Nvml(clock)
    yield reader
    reader.close()


def second(reader, clock):
    """The second reading, a second after the first: the first that has a window."""
    reader.read()
    clock.now += 1.0
    return reader.read()


def test_units_are_converted_once(reader, clock):
    (gpu,) = second(reader, clock).gpus
    assert gpu.uuid == "GPU-11111111-2222-3333-4444-555555555555"
    assert (gpu.name, gpu.driver_version, gpu.index) == ("NVIDIA H100 80GB HBM3", "580.95.05", 0)
    assert (gpu.time_share, gpu.memory_time_share) == (1.0, 0.34)
    assert (gpu.engine_activity, gpu.sm_activity, gpu.sm_occupancy) == (0.98, 0.935, 0.41)
    assert (gpu.tensor_activity, gpu.dram_activity, gpu.fp32_activity) == (0.02, 0.71, 0.05)
    assert (gpu.pcie_tx_bytes_per_s, gpu.pcie_rx_bytes_per_s) == (10 * 2**20, 20 * 2**20)
    assert gpu.pcie_limit_bytes_per_s == pytest.approx(63e9, rel=0.01)
    assert (gpu.sm_clock_hz, gpu.sm_clock_max_hz, gpu.memory_clock_hz) == (1.41e9, 1.98e9, 2.619e9)
    assert gpu.clock_reasons == ("sw_power_cap", "sw_thermal_slowdown")
    assert (gpu.power_w, gpu.power_limit_w, gpu.energy_j, gpu.temperature_c) == (430.0, 700.0, 5000.0, 61.0)
    assert (gpu.memory_used_bytes, gpu.memory_total_bytes) == (20 * 2**30, 80 * 2**30)
    assert (gpu.mig, gpu.lost, gpu.missing, gpu.window_s) == (False, False, {}, 1.0)


def test_the_first_reading_has_no_window_and_says_so(reader):
    (gpu,) = reader.read().gpus
    assert gpu.sm_activity is None
    assert gpu.missing["sm_activity"] == nvml.FIRST_READING
    assert gpu.time_share == 1.0


def test_each_window_begins_where_the_last_ended(reader, clock, driver):
    for _ in range(4):
        reader.read()
        clock.now += 1.5
    assert driver.gpm_pairs == [(1, 2), (2, 3), (3, 4)]


def test_nvml_is_asked_once_a_second_however_often_somebody_reads(reader, clock, driver):
    begin = clock.now
    for step in range(101):
        clock.now = begin + step * 0.05
        reader.read()
    assert driver.calls.count("nvmlDeviceGetUtilizationRates") == 6
    assert driver.calls.count("nvmlGpmSampleGet") == 6


def test_the_driver_s_version_is_known_or_empty(driver):
    nvml.driver_version.cache_clear()
    try:
        assert nvml.driver_version() == "580.95.05"
        assert driver.calls[-1] == "nvmlShutdown"
        nvml.driver_version.cache_clear()
        driver.errors["nvmlInitWithFlags"] = REFUSED
        assert nvml.driver_version() == ""
    finally:
        nvml.driver_version.cache_clear()


def test_readers_of_one_process_are_one():
    assert nvml.shared() is nvml.shared()


def test_without_a_driver_the_reason_is_given_and_the_driver_is_not_asked_each_second(monkeypatch, clock):
    asked = []

    def absent():
        asked.append(clock.now)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    reader = nvml.Nvml(clock)
    for _ in range(130):
        reading = reader.read()
        clock.now += 1.0
    assert reading.gpus == ()
    assert "NVML Shared Library Not Found" in reading.missing
    assert len(asked) == 3


def test_without_the_binding_the_reason_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "binding is not installed" in nvml.Nvml().read().missing


def test_a_driver_that_refuses_everything_is_survived(driver, reader):
    driver.errors["nvmlInitWithFlags"] = REFUSED
    assert "Insufficient Permissions" in reader.read().missing


def test_no_gpu_shown_is_said(driver, reader):
    driver.count = 0
    assert reader.read() == nvml.GpuReading(missing="NVML shows no GPU to this process")


def test_each_field_that_is_refused_has_its_reason_and_the_others_their_values(reader, clock, driver):
    driver.errors |= {"nvmlDeviceGetTotalEnergyConsumption": UNSUPPORTED, "nvmlGpmSampleGet": REFUSED}
    (gpu,) = second(reader, clock).gpus
    assert gpu.energy_j is None
    assert gpu.missing["energy_j"] == "Not Supported"
    assert gpu.missing["dram_activity"] == "Insufficient Permissions"
    assert gpu.power_w == 430.0
    verdict = classify(WindowSample(gpus=(gpu,)))
    assert verdict.bound == "unknown"
    assert "Insufficient Permissions" in verdict.reasons[0]


def test_before_hopper_activities_say_what_they_need(reader, clock, driver):
    driver.gpm_supported = 0
    (gpu,) = second(reader, clock).gpus
    assert "Hopper" in gpu.missing["sm_activity"]
    assert "Hopper" in gpu.missing["pcie_rx_bytes_per_s"]
    assert "nvmlGpmSampleGet" not in driver.calls


def test_one_metric_that_gpm_refuses_costs_the_others_nothing(reader, clock, driver):
    driver.gpm_errors[5] = UNSUPPORTED
    (gpu,) = second(reader, clock).gpus
    assert (gpu.tensor_activity, gpu.missing) == (None, {"tensor_activity": "Not Supported"})
    assert gpu.dram_activity == 0.71


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1.0, 4294967295.0])
def test_nonsense_from_the_driver_is_not_passed_on(reader, clock, driver, nonsense):
    driver.gpm[2] = driver.gpm[20] = nonsense
    (gpu,) = second(reader, clock).gpus
    assert gpu.sm_activity is None
    assert "the driver answered" in gpu.missing["sm_activity"]
    if nonsense != 4294967295.0:  # a rate of that size is fast, not nonsense
        assert gpu.pcie_tx_bytes_per_s is None


def test_counters_a_little_above_the_whole_are_the_whole(reader, clock, driver):
    driver.gpm[2] = 100.4
    assert second(reader, clock).gpus[0].sm_activity == 1.0


def test_a_lost_gpu_is_stated_in_every_field_and_comes_back(reader, clock, driver):
    second(reader, clock)
    driver.errors["*"] = LOST
    clock.now += 1
    (gpu,) = reader.read().gpus
    assert gpu.lost
    assert gpu.uuid.startswith("GPU-1111")
    assert gpu.time_share is gpu.energy_j is gpu.sm_activity is None
    assert set(gpu.missing.values()) == {"GPU is lost"}
    assert classify(WindowSample(gpus=(gpu,))).warnings[0].code == "gpu-lost"
    driver.errors.clear()
    clock.now += 1
    (gpu,) = reader.read().gpus
    assert (gpu.lost, gpu.power_w) == (False, 430.0)
    assert gpu.missing["sm_activity"] == nvml.FIRST_READING


def test_a_gpu_lost_between_its_fields_and_its_counters(reader, clock, driver):
    second(reader, clock)
    driver.errors["nvmlGpmSampleGet"] = LOST
    clock.now += 1
    assert reader.read().gpus[0].lost


def test_a_gpu_that_was_lost_before_is_there_without_a_name(driver, reader):
    driver.errors["nvmlDeviceGetHandleByIndex_v2"] = LOST
    (gpu,) = reader.read().gpus
    assert (gpu.lost, gpu.uuid) == (True, "nvml-index-0")


def test_a_gpu_refused_to_this_process_does_not_hide_the_others(driver, reader):
    driver.count = 2
    driver.errors["nvmlDeviceGetUUID"] = REFUSED
    first, _ = reader.read().gpus
    assert set(first.missing.values()) == {"Insufficient Permissions"}
    assert not first.lost


def test_a_partitioned_gpu_is_told(reader, clock, driver):
    driver.mig = 1
    driver.errors["nvmlDeviceGetUtilizationRates"] = UNSUPPORTED
    (gpu,) = second(reader, clock).gpus
    assert gpu.mig
    assert gpu.missing["time_share"] == "Not Supported"


def test_a_gpu_that_cannot_be_partitioned_is_not(reader, driver):
    driver.errors["nvmlDeviceGetMigMode"] = UNSUPPORTED
    (gpu,) = reader.read().gpus
    assert gpu.mig is False
    assert "mig" not in gpu.missing


def test_functions_that_newer_or_older_drivers_lack_are_replaced(reader, driver):
    del driver.answers["nvmlDeviceGetCurrentClocksEventReasons"]
    driver.answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = 0x40
    assert reader.read().gpus[0].clock_reasons == ("hw_thermal_slowdown",)


def test_a_link_of_a_generation_to_come_has_no_invented_limit(reader, driver):
    driver.answers["nvmlDeviceGetCurrPcieLinkGeneration"] = 9
    (gpu,) = reader.read().gpus
    assert gpu.pcie_limit_bytes_per_s is None
    assert "generation 9" in gpu.missing["pcie_limit_bytes_per_s"]


def test_nvml_shut_down_by_somebody_else_is_opened_again(reader, clock, driver):
    second(reader, clock)
    driver.errors["*"] = pynvml.NVML_ERROR_UNINITIALIZED
    clock.now += 1
    assert "shut down by other code" in reader.read().missing
    driver.errors.clear()
    clock.now += 1
    assert reader.read().gpus[0].power_w == 430.0


def test_closing_frees_the_samples_and_reading_opens_again(reader, clock, driver):
    second(reader, clock)
    reader.close()
    assert driver.calls.count("nvmlGpmSampleFree") == 2
    assert driver.calls[-1] == "nvmlShutdown"
    assert reader.read().gpus[0].power_w == 430.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_use_what_the_parent_opened():
    parent = nvml.shared()
    with nvml._SHARED.lock:  # even while another thread holds the lock
        child = os.fork()
        if child == 0:
            os._exit(0 if nvml.shared() is not parent else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert nvml.shared() is parent
