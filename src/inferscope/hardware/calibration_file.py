"""The file a calibration is kept in: read with suspicion, written whole or not at all."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from inferscope.drafts import draft
from inferscope.errors import CalibrationError
from inferscope.hardware.stability import MAX_SPREAD
from inferscope.specs import DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inferscope.specs import Ceiling

__all__ = ["DTYPES", "SCHEMA", "CalibrationFile", "file_of", "read", "read_device", "stored", "write"]

SCHEMA = 1
"""Version of the file's layout."""

DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Names of the dtypes whose products are measured."""

_LARGEST_FILE_BYTES = 1 << 20
_REMEDY = "measure again with inferscope.calibrate(refresh=True)"

# Wider than any device by orders of magnitude: what lies outside is a slipped unit or a damaged file.
_FLOPS_PER_S = (1e6, 1e18)
_BYTES_PER_S = (1e6, 1e16)
_NS = (1.0, 1e9)
_BY_UNIT = {"_flops_per_s": _FLOPS_PER_S, "_bytes_per_s": _BYTES_PER_S, "_ns": _NS}
_COUNT_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFile:
    """What one file holds.

    Attributes:
        schema: Version of this layout.
        dtypes: What was asked for; a dtype that is named here and has no ceiling was rejected.
        device: The device with its ceilings.
        provenance: What measured it, by name: versions, platform, load of the machine.
    """

    schema: int
    dtypes: tuple[str, ...]
    device: DeviceSpec
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    schema: int


def file_of(folder: Path, key: str) -> Path:
    """Where the calibration of the device with that key is kept."""
    kind = key.partition(":")[0]
    return folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def read(path: Path, expect_key: str) -> CalibrationFile:
    """The calibration in a file.

    Args:
        path: The file.
        expect_key: Key of the device it has to be of.

    Raises:
        CalibrationError: It is missing, damaged, of another layout, of another device, or holds numbers that no
            device has; the message names the file and the reason.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > _LARGEST_FILE_BYTES:
        raise CalibrationError(f"{path}: larger than any calibration ({_LARGEST_FILE_BYTES >> 20} MiB)")
    try:
        return _decode(data, expect_key)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}: {error}; {_REMEDY}") from error


def stored(folder: Path, key: str) -> DeviceSpec | None:
    """The device with that key as it was calibrated; None where no file of it is there that can be used.

    Args:
        folder: Of the calibrations.
        key: As `DeviceSpec.key`.
    """
    try:
        return read(file_of(folder, key), key).device
    except CalibrationError:  # there is none, or it is of an older layout: whoever calibrates is told
        return None


def read_device(path: Path) -> DeviceSpec:
    """A device from a file of what `inferscope calibrate --json` prints, on whatever machine.

    Raises:
        CalibrationError: It cannot be read, or holds numbers that no device has; the message names the file.
    """
    if not path.is_file():
        raise CalibrationError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as stream:
            device = msgspec.json.decode(stream.read(_LARGEST_FILE_BYTES), type=DeviceSpec)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}: not what `inferscope calibrate --json` prints: {error}") from error
    try:
        for name, roof, limits in _ceilings(device):
            _check_value(name, roof, limits)
    except ValueError as error:
        raise CalibrationError(f"{path}: {error}") from error
    return device


def write(path: Path, content: CalibrationFile) -> None:
    """Write a calibration so that a reader sees the old file or the new one, never half of one.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(content), indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft(path) as unfinished:
        unfinished.write_bytes(data + b"\n")


def _decode(data: bytes, expect_key: str) -> CalibrationFile:
    head = msgspec.json.decode(data, type=_Head)
    if head.schema != SCHEMA:
        raise ValueError(f"layout {head.schema}, this version of inferscope reads {SCHEMA}")
    content = msgspec.json.decode(data, type=CalibrationFile)
    device = content.device
    if device.key != expect_key:
        raise ValueError(f"measured on another device or setup ({device.key!r}), this is {expect_key!r}")
    unknown = {*content.dtypes, *device.compute_flops_per_s, *device.gemv_bytes_per_s} - set(DTYPES)
    if unknown:
        raise ValueError(f"unknown dtype {min(unknown)!r}")
    for name, roof, limits in _ceilings(device):
        _check_ceiling(name, roof, limits)
    for name in ("cache_bytes", "memory_bytes", "threads", "measured_unix_ns"):
        count = getattr(device, name)
        if count is not None and not 0 < count < _COUNT_LIMIT:
            raise ValueError(f"{name} is {count}, which no device has")
    if device.measured_unix_ns is None:
        raise ValueError("it does not say when it was measured")
    return content


def _ceilings(device: DeviceSpec) -> Iterator[tuple[str, Ceiling, tuple[float, float]]]:
    for dtype, roof in device.compute_flops_per_s.items():
        yield f"compute_flops_per_s of {dtype}", roof, _FLOPS_PER_S
    for dtype, roof in device.gemv_bytes_per_s.items():
        yield f"gemv_bytes_per_s of {dtype}", roof, _BYTES_PER_S
    for name, limits in (
        ("copy_bytes_per_s", _BYTES_PER_S),
        ("cache_bytes_per_s", _BYTES_PER_S),
        ("dispatch_ns", _NS),
        ("module_op_ns", _NS),
        ("sync_ns", _NS),
    ):
        roof = getattr(device, name)
        if roof is not None:
            yield name, roof, limits
    for name, roof in device.beside.items():
        unit = next((unit for unit in _BY_UNIT if name.endswith(unit)), None)
        if unit is None:
            raise ValueError(f"the name of {name!r} does not end in a unit")
        yield name, roof, _BY_UNIT[unit]


def _check_value(name: str, roof: Ceiling, limits: tuple[float, float]) -> None:
    low, high = limits
    if not (math.isfinite(roof.value) and low <= roof.value <= high):
        raise ValueError(f"{name} is {roof.value:g}, which no device has")


def _check_ceiling(name: str, roof: Ceiling, limits: tuple[float, float]) -> None:
    _check_value(name, roof, limits)
    if roof.source != "measured":
        raise ValueError(f"{name} is called {roof.source}, a calibration holds what was measured")
    if roof.spread is None or not 0 <= roof.spread <= MAX_SPREAD:
        raise ValueError(f"{name} has a spread of {roof.spread}, a ceiling has at most {MAX_SPREAD}")
