"""`inferscope doctor` as a process: on this machine, with parts of it taken away, with secrets in its environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from inferscope.experiments import checkup
from inferscope.hardware import calibration_file, probe
from inferscope.hardware.calibration_file import CalibrationFile
from inferscope.opinion import diagnose
from inferscope.testing import make_record

pytest.importorskip("typer")

SECRET = "Bearer-0123456789-not-for-anybody"  # noqa: S105 - made up
_RUN = "import sys; {before}; from inferscope.cli.main import main; sys.exit(main(['doctor', *{arguments!r}]))"


def doctor(*arguments, blocked=(), **environment):
    """The process, and what it said by name where that is JSON."""
    before = "; ".join(f"sys.modules[{name!r}] = None" for name in blocked) or "pass"
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(before=before, arguments=arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    found = json.loads(done.stdout) if "--json" in arguments else {"checks": []}
    return done, {check["name"]: check for check in found["checks"]}


def test_this_machine_works_and_secrets_stay_where_they_are(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done, found = doctor(
            "--json",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://user:{SECRET}@127.0.0.1:{port}/{SECRET}?key={SECRET}",
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization={SECRET},x-key={SECRET}",
            INFERSCOPE_CACHE_DIR=str(tmp_path),
            INFERSCOPE_DEEP_EVERY="1000",
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["works"] is True
    assert SECRET not in done.stdout + done.stderr
    assert found["OTLP endpoint"]["found"] == f"127.0.0.1:{port}, 2 headers (not shown), takes connections"
    assert found["torch"]["status"] == found["dependencies"]["status"] == found["cache folder"]["status"] == "ok"
    assert found["calibration"]["why"] == "none was made"
    assert "deep_every 1000" in found["settings"]["found"]
    assert list(found) == [name for name, _ in checkup._CHECKS]
    assert all(check["why"] for check in found.values() if check["status"] != "ok")
    assert list(tmp_path.iterdir()) == []


def test_without_anything_optional_it_says_so_and_works():
    blocked = ("transformers", "pynvml", "inferscope._hot", "inferscope._cupti", "opentelemetry.exporter")
    done, found = doctor("--json", blocked=blocked)
    assert found["transformers"]["status"] == found["C extension"]["status"] == "missing"
    assert "hand-written loops" in found["transformers"]["costs"]
    assert "Python code watches" in found["C extension"]["found"]
    assert "not built" in found["driver counter"]["why"]
    assert "binding is not installed" in found["NVML"]["why"]
    assert "no exporter" in found["OpenTelemetry"]["found"]
    # The binding is a package that inferscope depends on: without it the installation is not whole.
    assert found["dependencies"]["status"] == "broken"
    assert done.returncode == 3


def test_without_torch_it_is_told_not_raised():
    done, found = doctor("--json", blocked=("torch",))
    assert done.returncode == 3
    assert found["torch"]["status"] == "broken"
    assert "Traceback" not in done.stderr
    assert found["python"]["status"] == found["dependencies"]["status"] == "ok"
    assert found["CUDA"]["status"] == "missing"


def test_a_wrong_setting_and_a_closed_port_in_the_table():
    with socket.socket() as taken:  # and nobody listens there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done, _ = doctor(INFERSCOPE_OVERHEAD_BUDGET="much", OTEL_EXPORTER_OTLP_ENDPOINT=f"127.0.0.1:{port}")
    assert done.returncode == 3
    assert "INFERSCOPE_OVERHEAD_BUDGET='much'" in done.stdout
    assert f"127.0.0.1:{port}" in done.stdout
    assert "no connection" in done.stdout


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, monkeypatch, files, quota):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(checkup, "_CGROUP", tmp_path)
    assert checkup._cpu_quota() == quota


def test_a_calibration_of_another_configuration_is_told_from_none(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERSCOPE_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "calibration"
    folder.mkdir()
    (folder / "cpu-0123456789abcdef.json").write_text("{}", encoding="utf-8")
    assert "1 stored, of other configurations" in checkup._calibration().why
    device = replace(probe.identify("cpu"), measured_unix_ns=1_790_000_000_000_000_000)
    stored = CalibrationFile(schema=1, dtypes=("float32",), device=device)
    calibration_file.write(calibration_file.file_of(folder, device.key), stored)
    found = diagnose(make_record(device_key=device.key)).diagnosis.device  # where a verdict looks for it
    assert (found, checkup._calibration().status) == (device, "ok")
    monkeypatch.setenv("INFERSCOPE_CACHE_DIR", "/proc/nowhere")
    assert checkup._cache().status == "missing"
