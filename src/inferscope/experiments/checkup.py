"""What is there on this machine and what is missing, why, and what that costs: the facts behind `inferscope doctor`.

Each check stands alone and may fail: that is a finding, too. Nothing is measured, nothing is sent, and nothing that
was configured is told beyond what cannot be a secret: of an endpoint its host and port, of headers how many.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from inferscope.errors import CalibrationError, SettingError
from inferscope.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.samples import GpuReading

__all__ = ["Check", "examine"]

Status = Literal["ok", "note", "missing", "broken"]

LEAST_PYTHON = (3, 10)
LEAST_TORCH = (2, 4)
LEAST_TRANSFORMERS = (4, 56)
_REQUIRED = ("opentelemetry.sdk", "structlog", "pynvml", "psutil", "msgspec", "wrapt")
_CONNECT_S = 1.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: "ok"; "note" (as it is, and worth knowing); "missing" (everything works without, and less is known);
            "broken" (inferscope does not work).
        found: What there is.
        why: Why it is not "ok"; "" where it is.
        costs: What one does without, and what would help; "" where nothing.
    """

    name: str
    status: Status
    found: str
    why: str = ""
    costs: str = ""


def examine() -> tuple[Check, ...]:
    """Look at everything; a check that fails itself is a check that found something missing."""
    return tuple(_looked(name, look) for name, look in _CHECKS)


def _looked(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - whatever stands in the way of looking is what there is to tell
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return Check(name=name, status="missing", found="could not be looked at", why=why)


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})"
    if sys.version_info[:2] < LEAST_PYTHON:
        return Check(name="python", status="broken", found=found, why="3.10 is the oldest that is supported")
    return Check(name="python", status="ok", found=found)


def _torch() -> Check:
    name = "torch"
    try:
        import torch  # noqa: PLC0415 - its absence can be told
    except Exception as error:  # noqa: BLE001 - a broken build raises anything
        return Check(
            name=name,
            status="broken",
            found="not importable",
            why=f"{type(error).__name__}: {error}",
            costs="nothing can be traced: pip install torch",
        )
    if _version(torch.__version__) < LEAST_TORCH:
        return Check(name=name, status="broken", found=torch.__version__, why="2.4 is the oldest that is supported")
    return Check(name=name, status="ok", found=str(torch.__version__))


def _transformers() -> Check:
    name = "transformers"
    if not _is_there(name):
        return Check(
            name=name,
            status="missing",
            found="not installed",
            why="it is an extra: pip install 'inferscope[hf]'",
            costs="generate() is not there to be traced; hand-written loops are",
        )
    version = metadata.version(name)
    if _version(version) < LEAST_TRANSFORMERS:
        return Check(
            name=name,
            status="broken",
            found=version,
            why="4.56 is the oldest that is supported",
            costs="the phases of generate() may be named wrongly",
        )
    return Check(name=name, status="ok", found=version)


def _dependencies() -> Check:
    absent = [package for package in _REQUIRED if not _is_there(package)]
    if absent:
        return Check(
            name="dependencies",
            status="broken",
            found=f"not importable: {', '.join(absent)}",
            why="the installation is not whole",
            costs="install again: pip install inferscope",
        )
    return Check(name="dependencies", status="ok", found=f"all {len(_REQUIRED)}")


def _hot() -> Check:
    from inferscope.capture.implementation import IMPLEMENTATION  # noqa: PLC0415 - not before what it needs was seen

    if IMPLEMENTATION.name == "native":
        return Check(name="C extension", status="ok", found="watches the forwards")
    return Check(
        name="C extension",
        status="missing",
        found="Python code watches the forwards",
        why=IMPLEMENTATION.reason,
        costs="each pass costs more, and records hold the same: install from source with a C compiler",
    )


def _cuda() -> Check:
    import torch  # noqa: PLC0415 - its absence was told

    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
        return Check(name="CUDA", status="ok", found=f"{torch.version.cuda}, {torch.cuda.device_count()} x {names}")
    why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no usable device"
    return Check(
        name="CUDA",
        status="note",
        found="not available",
        why=why,
        costs="the CPU is the device: no events, kernels or launches; operators are recorded all the same",
    )


def _driver() -> Check:
    from inferscope.hardware.nvml import driver_version  # noqa: PLC0415 - as above

    version = driver_version()
    if version:
        return Check(name="NVIDIA driver", status="ok", found=version)
    return Check(name="NVIDIA driver", status="note", found="none", why="NVML cannot be opened: no driver, or no GPU")


def _nvml() -> Check:
    from inferscope.hardware.nvml import Nvml  # noqa: PLC0415 - as above

    nvml = Nvml()
    try:
        return _gpm(nvml.read())
    finally:
        nvml.close()


def _gpm(reading: GpuReading) -> Check:
    if reading.missing:
        return Check(
            name="NVML",
            status="missing",
            found="not available",
            why=reading.missing,
            costs="inferscope watch knows the host alone",
        )
    without = [gpu.name for gpu in reading.gpus if "GPM" in gpu.missing.get("sm_activity", "")]
    if without:
        return Check(
            name="NVML",
            status="note",
            found=f"{len(reading.gpus)} GPUs, {len(without)} of them without GPM",
            why="GPM needs Hopper or later",
            costs="their SM, tensor core and memory activities are not known",
        )
    return Check(name="NVML", status="ok", found=f"{len(reading.gpus)} GPUs, with GPM")


def _counter() -> Check:
    from inferscope.meters import counters  # noqa: PLC0415 - as above

    name, costs = "driver counter", "counters='native' counts nothing; deep_every tells launches of recorded passes"
    absent = counters.missing()
    if absent:
        return Check(name=name, status="missing", found="no extension", why=absent, costs=costs)
    counter = counters.quiet()
    if counter.open():
        counter.close()
        return Check(name=name, status="ok", found=f"CUPTI of {counter.library} takes a subscription")
    found = f"CUPTI of {counter.library}" if counter.library else "no libcupti"
    return Check(name=name, status="missing", found=found, why=counter.reason, costs=costs)


def _calibration() -> Check:
    import torch  # noqa: PLC0415 - as above

    from inferscope.hardware import calibration_file, probe  # noqa: PLC0415 - as above

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Settings.from_environment().cache_dir / "calibration"
    key = probe.identify(device).key
    path = calibration_file.file_of(folder, key)
    costs = "verdicts have no measured ceilings: run inferscope calibrate"
    if path.exists():
        try:
            calibration_file.read(path, key)
        except CalibrationError as error:
            return Check(name="calibration", status="missing", found="not usable", why=str(error), costs=costs)
        return Check(name="calibration", status="ok", found=f"of {device}: {path}")
    others = len(list(folder.glob(f"{device}-*.json"))) if folder.is_dir() else 0
    why = f"{others} stored, of other configurations (torch, threads, driver)" if others else "none was made"
    return Check(name="calibration", status="missing", found="none of this device as it is", why=why, costs=costs)


def _cache() -> Check:
    folder = Settings.from_environment().cache_dir
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            return Check(name="cache folder", status="ok", found=str(folder))
    except (OSError, StopIteration) as error:
        return Check(
            name="cache folder",
            status="missing",
            found=str(folder),
            why=f"cannot be written to: {error}",
            costs="calibrations and operator costs are made again each time: set INFERSCOPE_CACHE_DIR",
        )


def _provider() -> Check:
    from opentelemetry import trace  # noqa: PLC0415 - its absence was told

    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Check(
            name="OpenTelemetry",
            status="note",
            found="OTEL_SDK_DISABLED=true",
            why="it is switched off",
            costs="no spans, whatever is set up; records and JSONL are not touched",
        )
    sampler = os.environ.get("OTEL_TRACES_SAMPLER", "").strip()
    kept = f", OTEL_TRACES_SAMPLER={sampler}" if sampler else ""
    kind = type(trace.get_tracer_provider()).__name__
    if kind == "ProxyTracerProvider":
        exporters = [name for name in ("grpc", "http") if _is_there(f"opentelemetry.exporter.otlp.proto.{name}")]
        there = f"exporters: {', '.join(exporters)}" if exporters else "no exporter: pip install 'inferscope[otlp]'"
        return Check(
            name="OpenTelemetry",
            status="note",
            found=f"no provider in this process{kept}; {there}",
            why="your program sets one, or calls inferscope.setup()",
            costs="without one there are no spans",
        )
    return Check(name="OpenTelemetry", status="ok", found=f"{kind}{kept}")


def _endpoint() -> Check:
    name, text = "OTLP endpoint", next((os.environ[key] for key in _ENDPOINTS if os.environ.get(key, "").strip()), "")
    headers = sum(len(os.environ.get(key, "").split(",")) for key in _HEADERS if os.environ.get(key, "").strip())
    kept = f", {headers} headers (not shown)" if headers else ""
    if not text:
        return Check(
            name=name, status="note", found=f"none in the environment{kept}", why="setup(endpoint=...) names one"
        )
    try:
        parts = urlsplit(text.strip() if "//" in text else f"//{text.strip()}")
        host, port = parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme, 4317)
    except ValueError:
        host, port = None, 0
    if host is None:
        return Check(
            name=name, status="missing", found=f"not an address{kept}", why="expected such as http://host:4317"
        )
    found = f"{host}:{port}{kept}"  # a user and a password in the address are left out, too
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return Check(
            name=name,
            status="missing",
            found=found,
            why=f"no connection: {error}",
            costs="spans are dropped and counted; requests are not held up",
        )
    return Check(name=name, status="ok", found=f"{found}, takes connections")


def _limits() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    threads = None
    if _is_there("torch"):
        import torch  # noqa: PLC0415 - as above

        threads = torch.get_num_threads()
    found = f"{usable} CPUs usable, quota {'none' if quota is None else f'{quota:g} CPUs'}, torch threads {threads}"
    most = usable if quota is None else min(usable, quota)
    if threads is not None and threads > most:
        return Check(
            name="CPU limits",
            status="note",
            found=found,
            why="torch starts more threads than may run at once",
            costs="passes are throttled, which shows as off-CPU time: set OMP_NUM_THREADS",
        )
    return Check(name="CPU limits", status="ok", found=found)


def _settings_check() -> Check:
    try:
        settings = Settings.from_environment()
    except SettingError as error:
        return Check(name="settings", status="broken", found="not usable", why=str(error), costs="no session opens")
    found = (
        f"sample_rate {settings.sample_rate:g}, deep_every {settings.deep_every}, plug_every {settings.plug_every}, "
        f"counters {settings.counters}, overhead_budget {settings.overhead_budget:g}"
    )
    if settings.disabled:
        return Check(
            name="settings", status="note", found=found, why="INFERSCOPE_DISABLED is set", costs="nothing is traced"
        )
    thins = (
        "requests go unobserved to keep it" if settings.budget_asked else "only what is sampled is put off to keep it"
    )
    return Check(name="settings", status="ok", found=f"{found} ({thins})")


def _cpu_quota() -> float | None:
    """CPUs that the container may use at once; None where it has no limit, or does not say."""
    try:
        text = (_CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        return None if text[0] == "max" else int(text[0]) / int(text[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        quota, period = (
            int((_CGROUP / "cpu" / f"cpu.cfs_{part}_us").read_text(encoding="utf-8")) for part in ("quota", "period")
        )
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _version(text: str) -> tuple[int, ...]:
    numbers = []
    for part in text.split("+", maxsplit=1)[0].split(".")[:2]:
        digits = "".join(character for character in part if character.isdigit())
        numbers.append(int(digits or 0))
    return tuple(numbers)


_CHECKS: tuple[tuple[str, Callable[[], Check]], ...] = (
    ("python", _python),
    ("torch", _torch),
    ("transformers", _transformers),
    ("dependencies", _dependencies),
    ("settings", _settings_check),
    ("C extension", _hot),
    ("CUDA", _cuda),
    ("NVIDIA driver", _driver),
    ("NVML", _nvml),
    ("driver counter", _counter),
    ("calibration", _calibration),
    ("cache folder", _cache),
    ("CPU limits", _limits),
    ("OpenTelemetry", _provider),
    ("OTLP endpoint", _endpoint),
)
