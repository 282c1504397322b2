"""What is measured on a GPU, without one: real operators on a CPU, a clock of events that ticks, a recorded driver."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from recorded_driver import RecordedDriver, install
from torch.utils._python_dispatch import TorchDispatchMode

from inferscope.errors import CalibrationError, SettingError
from inferscope.hardware import calibration, calibration_file, cuda_roofs, nvml, stability
from inferscope.hardware.conditions import Conditions
from inferscope.hardware.cpu_roofs import RejectedError
from inferscope.report.ceilings import ceilings
from inferscope.specs import Ceiling, CostTerms, DeviceSpec, ModelSpec, OperatorTerms

KEY = "cuda:11111111-2222-3333-4444-555555555555, driver 580.95.05"
CPU = torch.device("cpu")
TICK_MS = 1.0
SIZE = 1 << 20
BUDGET_S = 20.0
CAPPED, HOT = 0x4, 0x20
REASONS = "nvmlDeviceGetCurrentClocksEventReasons"


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Event:
    """Every pair of events lies one tick apart, whatever runs between them."""

    def __init__(self, **_):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, _other):
        return TICK_MS


@pytest.fixture
def captured(monkeypatch):
    """torch.cuda's events and graphs, and what was captured."""
    modes = []

    @contextlib.contextmanager
    def graph(_graph, **options):
        assert options["capture_error_mode"] == "thread_local"
        with Counted() as mode:
            yield
        modes.append(mode.names)

    h100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 << 30)
    stands_in = {
        "Event": Event,
        "device": lambda _device: contextlib.nullcontext(),
        "synchronize": lambda *_: None,
        "Stream": lambda _device: None,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": graph,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": lambda _index: h100,
    }
    for name, stand_in in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    small = {"_LEAST_ARRAY_BYTES": SIZE, "_WARM_UP_S": 0.0, "_OWN_ROWS": (8, 16), "_READINGS": 2 * stability.WINDOW}
    for name, value in small.items():
        monkeypatch.setattr(cuda_roofs, name, value)
    monkeypatch.setattr(stability, "_LEAST_SHARE", 0.0)  # as many readings as are needed, however slow the machine
    monkeypatch.setattr(cuda_roofs, "GEMV_SHAPES", ((64, 128),))
    monkeypatch.setattr(cuda_roofs.CudaRoofs.gemm, "__defaults__", (((32, 64, 128),),))
    return modes


@pytest.fixture
def driver(monkeypatch):
    found = install(monkeypatch, RecordedDriver())
    found.answers[REASONS] = CAPPED
    monkeypatch.setattr(nvml, "_SHARED", nvml._Shared())
    return found


def seconds_passing():
    """A clock on which a second passes with each look: NVML is asked at every reading."""
    moments = iter(range(10**9))
    return lambda: float(next(moments))


def roofs_of(read):
    return cuda_roofs.CudaRoofs(CPU, None, Conditions(KEY, read))


def test_each_roof_counts_its_own_work(captured, driver):
    roofs, tick_s = roofs_of(nvml.Nvml(seconds_passing()).read), TICK_MS / 1e3
    for name, moved in {"copy": 2, "triad": 3, "fill": 1}.items():
        roof = getattr(roofs, name)(BUDGET_S)
        assert roof.value == pytest.approx(moved * SIZE / tick_s), name
        assert roof.source == "measured"
        assert f"{SIZE >> 20} MiB" in roof.note
    assert roofs.gemm(torch.float32, BUDGET_S).value == pytest.approx(2 * 32 * 64 * 128 / tick_s)
    assert roofs.product(torch.float32, 128, 64, BUDGET_S).value == pytest.approx(2 * 16 * 64 * 128 / tick_s)
    assert roofs.gemv(torch.float32, BUDGET_S).value == pytest.approx(SIZE / tick_s)


def test_a_node_is_a_part_of_the_graph_that_was_captured(captured, driver):
    node = roofs_of(nvml.Nvml(seconds_passing()).read).graph_node_ns(BUDGET_S)
    (names,) = captured
    assert set(names) == {"add_"}
    assert node.value == pytest.approx(TICK_MS * 1e6 / len(names))
    assert f"graph of {len(names)} additions" in node.note


def test_clocks_and_power_stand_beside_the_ceiling(captured, driver):
    note = roofs_of(nvml.Nvml(seconds_passing()).read).fill(BUDGET_S).note
    assert "SM clock 1,410 of 1,980 MHz, power 430 of 700 W, clocks held down by the cap on power" in note


def test_what_is_read_while_heat_holds_the_clocks_down_is_no_ceiling(captured, driver, monkeypatch):
    monkeypatch.setattr(stability, "_MAX_READINGS", 50)
    driver.answers[REASONS] = HOT
    with pytest.raises(RejectedError, match=r"clocks were held down meanwhile \(sw_thermal_slowdown\)"):
        roofs_of(nvml.Nvml(seconds_passing()).read).copy(BUDGET_S)


def test_readings_after_it_cooled_down_count(captured, driver):
    looks = iter([HOT] * 7)
    reader = nvml.Nvml(seconds_passing())

    def read():
        driver.answers[REASONS] = next(looks, 0)
        return reader.read()

    roof = roofs_of(read).copy(BUDGET_S)
    assert roof.value == pytest.approx(2 * SIZE / (TICK_MS / 1e3))
    assert "readings under sw_thermal_slowdown left out" in roof.note


@pytest.mark.parametrize("key", ["cuda:another", KEY])
def test_without_news_of_this_gpu_nothing_is_refused_and_nothing_claimed(captured, driver, key):
    driver.answers[REASONS] = HOT
    if key == KEY:
        driver.errors["*"] = 12
    roofs = cuda_roofs.CudaRoofs(CPU, None, Conditions(key, nvml.Nvml(seconds_passing()).read))
    assert "clocks and power not known (NVML" in roofs.copy(BUDGET_S).note


def layer(group):
    zeros = (0,)
    return OperatorTerms(
        group=group,
        regime="decode",
        calls=zeros,
        launches=zeros,
        flops=zeros,
        flops_full=zeros,
        weight_bytes=zeros,
        activation_bytes=zeros,
        executed_bytes=zeros,
    )


def model_of(dtype="float32"):
    groups = ("linear 128x64", "lm_head 64x512", "attention", "linear 128x64")
    cost = CostTerms(
        operators=tuple(map(layer, groups)), kv_bytes_per_token=0, logits_bytes=0, supports_logits_to_keep=True
    )
    return ModelSpec(name="own", model_class="Own", dtype=dtype, cost=cost)


def measured_gpu(monkeypatch, model):
    for name in ("_COMPUTE_S", "_COPY_S", "_GEMV_S", "_CACHE_S", "_BESIDE_S"):
        monkeypatch.setattr(calibration, name, BUDGET_S)
    identity = DeviceSpec(name="H100", kind="cuda", key=KEY, cache_bytes=SIZE)
    steps = calibration._cuda_steps(identity, CPU, ("float32",), calibration._layers(identity, model))
    return calibration._measure(identity, steps, {}, None)


def test_what_stands_beside_is_measured_kept_and_shown(captured, driver, monkeypatch, tmp_path):
    spec = measured_gpu(monkeypatch, model_of())
    assert spec.rejected == ()
    products = {"product_float32_128x64_flops_per_s", "product_float32_64x512_flops_per_s"}
    assert set(spec.beside) == {"triad_bytes_per_s", "fill_bytes_per_s", "graph_node_ns", *products}
    # A layer of the model is faster here than what is always tried: then that is the ceiling.
    assert spec.compute_flops_per_s["float32"] == spec.beside["product_float32_64x512_flops_per_s"]
    path = calibration_file.file_of(tmp_path, KEY)
    content = calibration_file.CalibrationFile(schema=calibration_file.SCHEMA, dtypes=("float32",), device=spec)
    calibration_file.write(path, content)
    assert calibration.load(path, KEY) == spec
    rows = {row.name: row.value for row in ceilings(spec)}
    assert rows["graph node"] == "5.00 µs"
    assert rows["product float32 64x512"].endswith("FLOP/s")
    assert rows["triad"].endswith("B/s")


@pytest.mark.parametrize(
    ("name", "value", "reason"), [("fill_bytes_per_s", -1.0, "fill_bytes_per_s is -1"), ("fill", 1e9, "end in a unit")]
)
def test_a_file_with_impossible_readings_beside_is_refused(name, value, reason, tmp_path):
    roof = Ceiling(value=value, source="measured", spread=0.01)
    odd = DeviceSpec(name="H100", kind="cuda", key=KEY, measured_unix_ns=1, beside={name: roof})
    path = calibration_file.file_of(tmp_path, KEY)
    content = calibration_file.CalibrationFile(schema=calibration_file.SCHEMA, dtypes=("float32",), device=odd)
    calibration_file.write(path, content)
    with pytest.raises(CalibrationError, match=reason):
        calibration.load(path, KEY)


def test_models_that_cannot_be_measured_are_refused_by_name():
    gpu, cpu = DeviceSpec(name="H100", kind="cuda"), DeviceSpec(name="CPU", kind="cpu")
    for identity, model, reason in (
        (cpu, model_of(), "CUDA device only"),
        (gpu, model_of("int8"), "int8"),
        (gpu, replace(model_of(), cost=None), "no counted operators"),
    ):
        with pytest.raises(SettingError, match=reason):
            calibration._layers(identity, model)
