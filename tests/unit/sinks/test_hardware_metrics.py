from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum

import inferscope
from inferscope.analysis.utilisation import WindowSample, classify
from inferscope.analysis.workload import EnergyShare, Workload
from inferscope.samples import HostSample
from inferscope.sinks.hardware_metrics import outlet
from inferscope.sinks.hardware_semconv import METRICS
from inferscope.testing import ReplayedGpus, make_gpu_sample

GPU = make_gpu_sample(clock_reasons=("sw_thermal_slowdown",), memory_used_bytes=79 * 2**30)
SAMPLE = WindowSample(
    gpus=(GPU,),
    host=HostSample(
        cpu_share=0.5, process_cpu_share=0.25, cpus=8, usable_cpus=8, cpu_frequency_hz=2.6e9, rss_bytes=10**9
    ),
    workload=Workload(
        horizon_s=60.0,
        requests=4,
        tokens_per_s=80.0,
        energy=(EnergyShare(device=GPU.uuid, low_j=80.0, high_j=120.0, requests=4, tokens=40),),
    ),
    took_s=0.002,
)


@pytest.fixture
def reader():
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    reader.provider = provider
    yield reader
    provider.shutdown()


def collected(reader):
    """Metrics by name, as a reader receives them."""
    data = reader.get_metrics_data()
    found = {}
    for resource in [] if data is None else data.resource_metrics:
        for scope in resource.scope_metrics:
            assert scope.scope.name == "inferscope"
            found |= {metric.name: metric for metric in scope.metrics}
    return found


def points(metric):
    return {tuple(sorted(point.attributes.items())): point.value for point in metric.data.data_points}


class Owner:
    pass


def shown(reader, sample=SAMPLE, fresh_s=60.0):
    owner = Owner()
    outlet(reader.provider).show(owner, sample, classify(sample), fresh_s=fresh_s)
    return owner


def test_every_metric_arrives_as_the_table_says(reader):
    owner = shown(reader)
    found = collected(reader)
    assert found.keys() == {row.name for row in METRICS}
    for row in METRICS:
        metric = found[row.name]
        assert (metric.unit, metric.description) == (row.unit, row.meaning)
        assert isinstance(metric.data, Gauge if row.kind == "gauge" else Sum)
        if isinstance(metric.data, Sum):
            assert metric.data.is_monotonic == (row.kind == "counter")
        for point in metric.data.data_points:
            assert point.attributes.keys() == set(row.attributes)
    assert owner


def test_the_conventions_names_carry_the_conventions_values(reader):
    owner = shown(reader)
    found = collected(reader)
    identity = {
        "hw.id": GPU.uuid,
        "hw.name": "GPU 0",
        "hw.model": "NVIDIA H100 80GB HBM3",
        "hw.vendor": "NVIDIA",
        "hw.driver_version": "580.00",
        "hw.type": "gpu",
    }
    alone = tuple(sorted(identity.items()))
    assert points(found["hw.gpu.utilization"]) == {tuple(sorted({**identity, "hw.gpu.task": "general"}.items())): 1.0}
    for name, value in {
        "hw.gpu.memory.usage": 79 * 2**30,
        "hw.gpu.memory.limit": 80 * 2**30,
        "hw.gpu.memory.utilization": 79 / 80,
        "hw.power": 430.0,
        "hw.energy": 1_000_000.0,
        "hw.temperature": 55.0,
        "inferscope.gpu.sm.activity": 0.93,
        "inferscope.gpu.dram.activity": 0.71,
        "inferscope.gpu.throttled": 1,
    }.items():
        assert points(found[name]) == {alone: value}
    assert sorted(points(found["hw.status"]).values()) == [0, 0, 1]
    assert {dict(key)["hw.state"] for key, value in points(found["hw.status"]).items() if value} == {"degraded"}
    assert owner


def test_the_verdict_is_a_set_of_states_that_sums_to_one_per_device(reader):
    owner = shown(reader)
    found = collected(reader)
    by_device = {}
    for key, value in points(found["inferscope.window.bound"]).items():
        by_device.setdefault(dict(key)["hw.id"], {})[dict(key)["inferscope.bound"]] = value
    assert by_device[GPU.uuid]["memory"] == 1
    assert all(sum(states.values()) == 1 for states in by_device.values())
    assert by_device.keys() == {GPU.uuid, "host"}
    warned = {dict(key)["inferscope.finding"] for key in points(found["inferscope.window.warning"])}
    assert warned == {"gpu-throttled-thermal", "gpu-memory-nearly-full"}
    assert list(points(found["inferscope.workload.energy_per_token.low"]).values()) == [2.0]
    assert list(points(found["inferscope.workload.energy_per_request.high"]).values()) == [30.0]
    assert owner


def test_what_is_unknown_has_no_point(reader):
    empty = WindowSample(gpus=(replace(GPU, power_w=None, energy_j=None, sm_activity=None, clock_reasons=None),))
    owner = shown(reader, empty)
    found = collected(reader)
    absent = {"hw.power", "hw.energy", "inferscope.gpu.sm.activity", "inferscope.gpu.throttled"}
    absent |= {"system.cpu.utilization", "process.memory.usage", "inferscope.workload.tokens"}
    assert not absent & found.keys()
    assert "hw.temperature" in found
    assert owner


def test_a_lost_gpu_has_failed_and_tells_nothing_else(reader):
    lost = replace(GPU, lost=True, **dict.fromkeys(("time_share", "power_w", "temperature_c", "clock_reasons")))
    owner = shown(reader, WindowSample(gpus=(lost,)))
    found = collected(reader)
    assert {dict(key)["hw.state"] for key, value in points(found["hw.status"]).items() if value} == {"failed"}
    assert "hw.power" not in found
    assert owner


def test_an_old_window_and_a_withdrawn_one_are_not_told(reader):
    owner = shown(reader, fresh_s=-1.0)
    assert collected(reader) == {}
    owner = shown(reader)
    outlet(reader.provider).withdraw(Owner())  # not the owner's to take away
    assert collected(reader)
    outlet(reader.provider).withdraw(owner)
    assert collected(reader) == {}


def test_a_provider_has_its_instruments_once(reader):
    assert outlet(reader.provider) is outlet(reader.provider)


def test_a_running_monitor_feeds_the_users_provider_and_stops_with_its_block(reader):
    monitor = inferscope.BottleneckMonitor(gpus=ReplayedGpus(GPU), interval_s=0.1, meter_provider=reader.provider)
    for _ in range(2):
        with monitor:
            end = time.monotonic() + 10
            while "hw.power" not in (found := collected(reader)):
                assert time.monotonic() < end
                time.sleep(0.02)
            assert found["process.memory.usage"].data.data_points[0].value > 1_000_000
        assert collected(reader) == {}


GLOBAL = """
import time
import inferscope
from inferscope.testing import ReplayedGpus, make_gpu_sample
with inferscope.BottleneckMonitor(gpus=ReplayedGpus(make_gpu_sample()), interval_s=0.1) as monitor:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))  # later than the monitor
    while monitor.latest is None:
        time.sleep(0.01)
    time.sleep(0.05)
    scope = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
    print(scope.scope.name, len({metric.name for metric in scope.metrics}) > 15)
"""


def test_a_global_provider_that_is_set_later_is_fed_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", GLOBAL], capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "inferscope True"


def test_names_are_unique_dotted_and_have_units():
    names = [row.name for row in METRICS]
    assert len(names) == len(set(names))
    for row in METRICS:
        assert re.fullmatch(r"(hw|inferscope|system|process)(\.[a-z0-9_]+)+", row.name)
        assert row.unit
        assert row.meaning.endswith(".")
        assert "|" not in row.meaning
