import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferscope.errors import CalibrationError, SettingError, UnknownDeviceError
from inferscope.hardware import calibration, calibration_file, cpu_roofs, cuda_roofs, host_costs
from inferscope.hardware.calibration import cached, calibrate, current_device_spec, load
from inferscope.hardware.catalog import lookup
from inferscope.hardware.probe import identify
from inferscope.hardware.stability import MAX_SPREAD, Outcome
from inferscope.specs import Ceiling, DeviceSpec

BUDGETS = ("_COMPUTE_S", "_COPY_S", "_GEMV_S", "_CACHE_S", "_DISPATCH_S", "_MODULE_S", "_SYNC_S")
BY_DTYPE = ("compute_flops_per_s", "gemv_bytes_per_s")
SCALARS = ("copy_bytes_per_s", "cache_bytes_per_s", "dispatch_ns", "module_op_ns", "sync_ns")
LABELS = {
    "copy_bytes_per_s": "copy past the cache",
    "cache_bytes_per_s": "copy inside the cache",
    "dispatch_ns": "one operator",
    "module_op_ns": "one operator in a module",
    "sync_ns": "reading one number",
    "compute_flops_per_s": "matrix product in float32",
    "gemv_bytes_per_s": "matrix times vector in float32",
}


def host_state():
    return {
        "random": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "precision": torch.get_float32_matmul_precision(),
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One real calibration of this processor, and what it did besides."""
    folder = tmp_path_factory.mktemp("calibration")
    steps = []
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = host_state()
        spec = calibrate(
            dtypes=("float32",), cache_dir=folder, progress=lambda name, share: steps.append((name, share))
        )
        after = host_state()
    return spec, folder, steps, before, after


@pytest.fixture
def hasty(monkeypatch):
    """Budgets that leave time for next to nothing, and arrays that take little to prepare."""
    for name in BUDGETS:
        monkeypatch.setattr(calibration, name, 0.01)
    for name in ("_COPY_CACHES", "_WEIGHT_CACHES"):
        monkeypatch.setattr(cpu_roofs, name, 1)


def known(**changes):
    """This device with every ceiling, as if it had been measured."""
    roof = Ceiling(value=2e11, source="measured", spread=0.01, note="made up")
    spec = replace(
        identify(),
        compute_flops_per_s={"float32": roof, "bfloat16": roof},
        gemv_bytes_per_s={"float32": replace(roof, value=2e10), "bfloat16": replace(roof, value=3e10)},
        copy_bytes_per_s=replace(roof, value=4e10),
        cache_bytes_per_s=roof,
        dispatch_ns=replace(roof, value=900.0),
        module_op_ns=replace(roof, value=1600.0),
        sync_ns=replace(roof, value=100.0),
        measured_unix_ns=1_700_000_000_000_000_000,
    )
    return replace(spec, **changes)


def store(folder, spec, dtypes=("float32", "bfloat16")):
    content = calibration_file.CalibrationFile(schema=calibration_file.SCHEMA, dtypes=dtypes, device=spec)
    path = calibration_file.file_of(folder, identify().key)
    calibration_file.write(path, content)
    return path


def edited(path, **changes):
    """Replace values of the file's device by path: "dispatch_ns.value"."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))


def test_each_resource_has_a_ceiling_or_a_reason(measured):
    spec = measured[0]
    roofs = {name: getattr(spec, name) for name in SCALARS}
    roofs |= {name: getattr(spec, name).get("float32") for name in BY_DTYPE}
    for name, roof in roofs.items():
        reasons = [text for text in spec.rejected if text.startswith(f"{LABELS[name]}: ")]
        if roof is None:
            assert len(reasons) == 1
        else:
            assert reasons == []
            assert roof.value > 0
            assert roof.source == "measured"
            assert 0 <= roof.spread <= MAX_SPREAD
            assert "best stable window" in roof.note
    assert any(roofs.values())


def test_a_calibrated_device_is_the_identified_one(measured):
    spec = measured[0]
    assert spec.measured_unix_ns > 1_700_000_000_000_000_000
    assert spec.certainty is None
    bare = replace(spec, **dict.fromkeys(SCALARS), compute_flops_per_s={}, gemv_bytes_per_s={})
    assert replace(bare, measured_unix_ns=None, rejected=()) == identify()


def test_the_host_is_left_as_it_was(measured):
    *_, before, after = measured
    assert after == before


def test_progress_names_each_resource_and_ends_at_one(measured):
    steps = measured[2]
    assert [name for name, _ in steps[:-1]] != []
    assert set(LABELS.values()) == {name for name, _ in steps[:-1]}
    assert steps[0][1] == 0
    assert steps[-1] == ("done", 1.0)
    assert [share for _, share in steps] == sorted(share for _, share in steps)


def test_what_was_measured_is_not_measured_again(measured):
    spec, folder, *_ = measured
    assert cached(cache_dir=folder) == spec
    assert current_device_spec(cache_dir=folder) == spec
    assert [path.suffix for path in folder.iterdir()] == [".json"]
    steps = []
    again = calibrate(dtypes=("float32",), cache_dir=folder, progress=lambda name, _: steps.append(name))
    assert steps[:-1] == [text.partition(":")[0] for text in spec.rejected]
    assert calibration._ceilings(spec).items() <= calibration._ceilings(again).items()


def test_another_number_of_threads_has_no_calibration(measured):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert cached(cache_dir=measured[1]) is None
    finally:
        torch.set_num_threads(threads)


def test_operators_in_a_module_are_counted_and_leave_the_random_state(measured):
    state = torch.get_rng_state()
    stack, counter = host_costs._Stack(torch.device("cpu")), host_costs._Counter()
    with torch.no_grad(), counter:
        result = stack(torch.ones((1, 1, 8)))
    assert torch.isfinite(result).all()
    assert counter.count > 20 * host_costs._LAYERS
    assert torch.equal(torch.get_rng_state(), state)


def test_only_what_is_missing_is_measured(tmp_path, hasty):
    store(tmp_path, known(copy_bytes_per_s=None, rejected=("copy past the cache: it was noisy",)))
    steps = []
    spec = calibrate(dtypes=("float16",), cache_dir=tmp_path, progress=lambda name, _: steps.append(name))
    assert steps == ["matrix product in float16", "matrix times vector in float16", "copy past the cache", "done"]
    assert calibration._ceilings(known(copy_bytes_per_s=None)).items() <= calibration._ceilings(spec).items()
    assert spec.measured_unix_ns > known().measured_unix_ns
    (path,) = tmp_path.iterdir()
    assert calibration_file.read(path, identify().key).dtypes == ("float32", "bfloat16", "float16")


def test_refresh_measures_everything_anew(tmp_path, hasty):
    store(tmp_path, known())
    steps = []
    fresh = calibrate(
        dtypes=("float32",), cache_dir=tmp_path, refresh=True, progress=lambda name, _: steps.append(name)
    )
    assert len(steps) == 9 + len(["done"])
    assert fresh.measured_unix_ns > known().measured_unix_ns
    assert not set(calibration._ceilings(known()).values()) & set(calibration._ceilings(fresh).values())
    assert cached(cache_dir=tmp_path) == fresh


def test_a_stored_calibration_is_read_back_as_it_was(tmp_path):
    path = store(tmp_path, known())
    assert load(path, identify().key) == known()
    steps = []
    assert calibrate(cache_dir=tmp_path, progress=lambda *step: steps.append(step)) == known()
    assert steps == []


def test_without_a_file_there_is_nothing_and_nothing_is_said(tmp_path, capsys, notices_reset):
    assert cached(cache_dir=tmp_path / "none") is None
    assert current_device_spec(cache_dir=tmp_path / "none") == identify()
    (tmp_path / "file").write_text("")
    assert cached(cache_dir=tmp_path / "file") is None
    assert capsys.readouterr().err == ""


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "truncated"),
    "empty": (lambda path: path.write_text(""), "truncated"),
    "not json": (lambda path: path.write_text("calibrated: yes"), "malformed"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "malformed"),
    "deep": (lambda path: path.write_text('{"schema": 1, "x": ' + "[" * 100_000), ""),
    "too large": (lambda path: path.write_text(" " * (2 << 20)), "larger than any calibration"),
    "another layout": (lambda path: edited(path, schema=2), "layout 2"),
    "no layout": (lambda path: path.write_text("{}"), "schema"),
    "no device": (lambda path: edited(path, device=None), "device"),
    "foreign": (
        lambda path: edited(path, device__key="cpu:other"),
        "measured on another device or setup ('cpu:other')",
    ),
    "nan": (lambda path: path.write_text(path.read_text().replace("900.0", "NaN")), "malformed"),
    "infinite": (lambda path: path.write_text(path.read_text().replace("900.0", "1e999")), ""),
    "null": (lambda path: edited(path, device__dispatch_ns__value=None), "device.dispatch_ns.value"),
    "negative": (lambda path: edited(path, device__dispatch_ns__value=-900), "dispatch_ns is -900"),
    "absurd": (lambda path: edited(path, device__dispatch_ns__value=1e12), "dispatch_ns is 1e+12"),
    "slow": (
        lambda path: edited(path, device__compute_flops_per_s__float32__value=0.2),
        "compute_flops_per_s of float32",
    ),
    "text": (lambda path: edited(path, device__dispatch_ns__value="fast"), "device.dispatch_ns.value"),
    "no spread": (lambda path: edited(path, device__dispatch_ns__spread=None), "spread of None"),
    "unstable": (lambda path: edited(path, device__dispatch_ns__spread=0.4), "spread of 0.4"),
    "promised": (lambda path: edited(path, device__dispatch_ns__source="datasheet"), "called datasheet"),
    "unknown dtype": (lambda path: edited(path, dtypes=["float32", "load"]), "unknown dtype 'load'"),
    "no memory": (lambda path: edited(path, device__memory_bytes=0), "memory_bytes is 0"),
    "no time": (lambda path: edited(path, device__measured_unix_ns=None), "when it was measured"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_cannot_be_believed_is_refused_with_name_and_reason(kind, tmp_path, capsys, notices_reset):
    damage, reason = DAMAGE[kind]
    path = store(tmp_path, known())
    damage(path)
    with pytest.raises(CalibrationError) as raised:
        load(path, identify().key)
    assert str(raised.value).startswith(f"{path}: ")
    assert reason in str(raised.value)
    assert cached(cache_dir=tmp_path) is None
    said = capsys.readouterr().err
    assert "calibration-unusable" in said
    assert str(path) in said
    assert cached(cache_dir=tmp_path) is None
    assert capsys.readouterr().err == ""


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"none\.json: cannot be read"):
        load(tmp_path / "none.json", "any")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2_000), removed=st.integers(0, 30), inserted=st.binary(max_size=30))
def test_any_damage_is_read_or_refused(tmp_path, position, removed, inserted):
    path = store(tmp_path, known())
    data = path.read_bytes()
    path.write_bytes(data[:position] + inserted + data[position + removed :])
    refusal, key = str(path), identify().key
    try:
        key = load(path, key).key
    except CalibrationError as error:
        refusal = str(error)
    assert refusal.startswith(str(path))
    assert key == identify().key


def test_calibrating_replaces_a_damaged_file(tmp_path, hasty):
    path = store(tmp_path, known())
    path.write_text("{")
    spec = calibrate(cache_dir=tmp_path)
    assert load(path, identify().key) == spec


def test_a_folder_that_cannot_be_written_costs_the_file_not_the_result(tmp_path, hasty, capsys, notices_reset):
    (tmp_path / "file").write_text("")
    spec = calibrate(dtypes=("float32",), cache_dir=tmp_path / "file" / "folder")
    assert spec.measured_unix_ns is not None
    said = capsys.readouterr().err
    assert said.count("cache-unwritable") == 1
    assert "INFERSCOPE_CACHE_DIR" in said


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    path = calibration_file.file_of(tmp_path, identify().key)
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        store(tmp_path, known())
    assert list(tmp_path.iterdir()) == [path]


def test_the_default_folder_is_the_one_in_the_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERSCOPE_CACHE_DIR", str(tmp_path))
    store(tmp_path / "calibration", known())
    assert cached() == known()


def test_a_resource_that_fails_is_absent_and_says_why():
    def noisy():
        raise cpu_roofs.RejectedError("it was noisy")

    def broken():
        raise RuntimeError("not implemented\nwith a long trace")

    steps = [
        calibration._Step(label="copy", attribute="copy_bytes_per_s", run=noisy),
        calibration._Step(label="product", attribute="compute_flops_per_s", dtype="float16", run=broken),
        calibration._Step(label="reading", attribute="sync_ns", run=lambda: known().dispatch_ns),
    ]
    spec = calibration._measure(identify(), steps, {}, None)
    assert spec.copy_bytes_per_s is None
    assert spec.compute_flops_per_s == {}
    assert spec.sync_ns == known().dispatch_ns
    assert spec.rejected == ("copy: it was noisy", "product: RuntimeError: not implemented")


def test_an_interrupted_calibration_leaves_torch_as_it_was():
    def interrupted():
        raise KeyboardInterrupt

    before = host_state()
    with pytest.raises(KeyboardInterrupt):
        calibration._measure(identify(), [calibration._Step(label="x", attribute="sync_ns", run=interrupted)], {}, None)
    assert host_state() == before


def test_no_window_is_no_ceiling():
    with pytest.raises(cpu_roofs.RejectedError, match="too few"):
        cpu_roofs.ceiling(Outcome(window=None, readings=3, reason="too few"), "a copy")


def test_arrays_that_would_fill_the_memory_are_not_made():
    with pytest.raises(cpu_roofs.RejectedError, match="more than a quarter of the memory left"):
        cpu_roofs.copy(1 << 40, 1 << 41, 0.1)
    with pytest.raises(cpu_roofs.RejectedError, match="more than a quarter of the memory left"):
        cpu_roofs.gemv(torch.float32, 1 << 40, None, 0.1)


def test_a_cache_of_unknown_size_has_no_bandwidth():
    with pytest.raises(cpu_roofs.RejectedError, match="size of the last-level cache is not known"):
        cpu_roofs.cache_copy(None, 0.1)


@pytest.mark.parametrize("dtypes", [(), ("int8",), ("float32", "nan"), "float32"])
def test_dtypes_without_a_matrix_product_are_refused(dtypes, tmp_path):
    with pytest.raises(SettingError, match="float32, float16, bfloat16"):
        calibrate(dtypes=dtypes, cache_dir=tmp_path)


@pytest.mark.parametrize("device", ["meta", "abacus"])
def test_other_devices_are_refused(device, tmp_path):
    with pytest.raises(UnknownDeviceError):
        calibrate(device, cache_dir=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(tmp_path):
    with pytest.raises(UnknownDeviceError, match="CUDA is not available"):
        calibrate("cuda", cache_dir=tmp_path)
    assert cached("cuda", cache_dir=tmp_path) is None


def test_a_device_without_a_key_is_only_named(tmp_path):
    assert current_device_spec("meta", cache_dir=tmp_path) == DeviceSpec(name="meta", kind="meta")


def test_a_gpu_without_a_calibration_gets_its_datasheet():
    row = lookup("B100-SXM")
    gpu = DeviceSpec(name=row.name, kind="cuda", key="cuda:GPU-1", memory_bytes=190 << 30, cache_bytes=1)
    spec = calibration._with_datasheet(gpu, row)
    assert spec.compute_flops_per_s == row.compute_flops_per_s
    assert spec.copy_bytes_per_s == row.copy_bytes_per_s
    assert (spec.key, spec.memory_bytes, spec.certainty) == ("cuda:GPU-1", 190 << 30, "low")


def test_more_than_the_datasheet_is_not_believed():
    row = lookup("H100-SXM5-80GB")
    published = row.copy_bytes_per_s
    roof = Ceiling(value=published.value * 1.04, source="measured", spread=0.01)
    assert cuda_roofs.within_datasheet(roof, row, published) is roof
    assert cuda_roofs.within_datasheet(replace(roof, value=1e20), None, None).value == 1e20
    with pytest.raises(cpu_roofs.RejectedError, match=r"110%.*H100-SXM5-80GB"):
        cuda_roofs.within_datasheet(replace(roof, value=published.value * 1.1), row, published)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_can_be_calibrated(tmp_path):
    spec = calibrate("cuda", cache_dir=tmp_path)
    assert spec.kind == "cuda"
    assert spec.sync_ns is not None or any(text.startswith("reading one number") for text in spec.rejected)
    assert current_device_spec("cuda", cache_dir=tmp_path) == spec
