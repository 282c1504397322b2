"""What is done with stored records needs no torch: shown in an environment that does not have it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import venv
from pathlib import Path

import inferscope
from inferscope.hardware import calibration_file
from inferscope.hardware.calibration_file import CalibrationFile
from inferscope.opinion import diagnose
from inferscope.sinks.jsonl import JsonlSink
from inferscope.specs import Ceiling, DeviceSpec
from inferscope.testing import make_record, make_result

MODEL = Path(__file__).parent / "analysis" / "models" / "llama-3.1-8b.json"
DEVICE = DeviceSpec(
    key="cpu:of-another-machine",
    name="another",
    measured_unix_ns=1_790_000_000_000_000_000,
    kind="cpu",
    compute_flops_per_s={"float32": Ceiling(value=2e11, source="measured", spread=0.01)},
    copy_bytes_per_s=Ceiling(value=3e10, source="measured", spread=0.01),
    gemv_bytes_per_s={"float32": Ceiling(value=2e10, source="measured", spread=0.01)},
)
PROGRAM = """
import sys
from pathlib import Path

import inferscope
from inferscope.sinks.model_file import read_model
from inferscope.testing import make_record

baseline, candidate, model = sys.argv[1:]
record = inferscope.read_records(baseline)[0]
result = inferscope.diagnose(record)
assert result.diagnosis.device.name == "another", result.diagnosis.device
assert result.findings is not None and "Findings" in str(result)
elsewhere = inferscope.diagnose(make_record(device_key="cpu:never-seen"))
assert elsewhere.diagnosis.device is None
assert "decode" in str(inferscope.compare(baseline, candidate))
predicted = inferscope.predict(read_model(Path(model)), gpu="H100-SXM5-80GB", dtype="bfloat16")
assert 0 < predicted.ttft_s.low <= predicted.ttft_s.high
for missing in ("torch", "transformers", "opentelemetry", "psutil", "pynvml", "jinja2", "plotly", "rich", "typer"):
    try:
        __import__(missing)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{missing} is installed here")
"""
INSTALLED = ("msgspec", "structlog", "typing_extensions")
"""All that the environment holds beside inferscope itself."""


def bare_python(folder):
    """The interpreter of an environment without torch, and without anything else that judging does not need."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in INSTALLED:
        origin = Path(importlib.util.find_spec(name).origin)
        found = origin.parent if origin.name == "__init__.py" else origin
        (packages / found.name).symlink_to(found)
    (packages / "inferscope.pth").write_text(str(Path(inferscope.__file__).parents[1]))
    return folder / "bin" / "python"


def keep(folder):
    path = calibration_file.file_of(folder / "calibration", DEVICE.key)
    calibration_file.write(path, CalibrationFile(schema=1, dtypes=("float32",), device=DEVICE))


def test_a_record_is_judged_by_what_is_stored_for_its_device(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERSCOPE_CACHE_DIR", str(tmp_path))
    record = make_record(device_key=DEVICE.key)
    assert diagnose(record).diagnosis.device is None
    keep(tmp_path)
    assert diagnose(record).diagnosis.device == DEVICE


def test_records_are_read_judged_compared_and_predicted_from_without_torch(tmp_path):
    keep(tmp_path)
    files = [tmp_path / "before.jsonl", tmp_path / "after.jsonl"]
    for file in files:
        sink = JsonlSink(file)
        for number in range(6):
            record = make_record(device_key=DEVICE.key, request_id=f"{number:016x}")
            sink(make_result(record=record))
    environment = {**os.environ, "INFERSCOPE_CACHE_DIR": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    arguments = [str(bare_python(tmp_path / "bare")), "-c", PROGRAM, *map(str, (*files, MODEL))]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
