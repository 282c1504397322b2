"""What the datasheets promise: published dense peaks of GPUs, with how certain each row is.

Units are converted here and nowhere else. Rates are decimal (1 TFLOP/s = 1e12, 1 GB/s = 1e9). Sizes are
binary: an "80 GB" card carries five stacks of 16 GiB and its driver reports 85.5e9 bytes; caches likewise.
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
import re
from importlib import resources
from typing import TYPE_CHECKING

from inferscope.errors import RecordFormatError, UnknownDeviceError
from inferscope.specs import Ceiling, DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["catalog", "lookup", "match_cuda_name", "parse"]

_FILE = "gpus.csv"
_COMPUTE = {
    "float32": "fp32_tflops",
    "tf32": "tf32_tflops_dense",
    "float16": "fp16_tflops_dense_fp32acc",
    "bfloat16": "bf16_tflops_dense",
    "float8": "fp8_tflops_dense",
    "int8": "int8_tops_dense",
    "float4": "fp4_tflops_dense",
}
_OTHER_COLUMNS = ("name", "mem_bw_gbs", "mem_gb", "l2_mb", "llc_mb", "sources", "certainty", "note")
_CERTAINTIES = ("high", "medium", "low")
_TERA = 1e12
_GIGA = 1e9
_MEBI = 1 << 20
_GIBI = 1 << 30
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
# Above every real column by a factor of a thousand: a slipped unit is refused, not believed.
_ABSURD = 1e8

# Sold as one product, but two dies that torch lists as two devices: each has half of everything.
_DIES = {"MI250X": 2}

# What the driver calls a device (lower case, without the maker), and the row it is.
_CUDA_NAMES = {
    "v100-sxm2-16gb": "V100-SXM2-16GB",
    "v100-sxm2-32gb": "V100-SXM2-32GB",
    "v100-pcie-32gb": "V100-PCIE-32GB",
    "t4": "T4",
    "a10": "A10",
    "a10g": "A10G",
    "a30": "A30",
    "a40": "A40",
    "a100-sxm4-40gb": "A100-SXM4-40GB",
    "a100-sxm4-80gb": "A100-SXM4-80GB",
    "a100-pcie-40gb": "A100-PCIE-40GB",
    "a100-80gb-pcie": "A100-PCIE-80GB",
    "l4": "L4",
    "l40": "L40",
    "l40s": "L40S",
    "rtx-3090": "RTX-3090",
    "rtx-4090": "RTX-4090",
    "rtx-5090": "RTX-5090",
    "rtx-a6000": "RTX-A6000",
    "rtx-6000-ada-generation": "RTX-6000-Ada",
    "rtx-pro-6000-blackwell-server-edition": "RTX-PRO-6000-Blackwell-Server",
    "h100-pcie": "H100-PCIE-80GB",
    "h100-80gb-hbm3": "H100-SXM5-80GB",
    "h100-nvl": "H100-NVL-94GB",
    "h200": "H200-SXM-141GB",
    "h200-nvl": "H200-NVL",
    "gh200-480gb": "GH200-96GB",  # 480 GB is the processor's memory; the size check tells 96 from 144
    "b100": "B100-SXM",
    "b200": "B200-SXM-180GB",
    "gb200": "GB200",
    "b300-sxm6-ac": "B300-SXM",
    "mi250x": "MI250X",
    "mi300x": "MI300X",
    "mi300x-oam": "MI300X",
    "mi325x": "MI325X",
    "mi325x-oam": "MI325X",
    "mi355x": "MI355X",
    "mi355x-oam": "MI355X",
}
_MAKERS = re.compile(r"^(nvidia |amd |tesla |geforce |instinct )+")
# Error correction and the driver take up to an eighth of what the datasheet says; a slice (MIG) has far less.
_LEAST_MEMORY_SHARE = 0.87
_MOST_MEMORY_SHARE = 1.02


@functools.cache
def catalog() -> dict[str, DeviceSpec]:
    """Every GPU of the packaged catalogue by its name, in the order of the file.

    Source: gpus.csv beside this module; each ceiling's note names the sheets behind it.
    """
    text = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    return parse(text, _FILE)


def lookup(name: str) -> DeviceSpec:
    """The catalogue row of a GPU, upper and lower case alike.

    Args:
        name: Such as "H100-SXM5-80GB".

    Raises:
        UnknownDeviceError: No row has that name; the message lists close ones.
    """
    wanted = name.strip().casefold()
    rows = {key.casefold(): spec for key, spec in catalog().items()}
    if wanted in rows:
        return rows[wanted]
    close = _close(wanted, rows)
    if close:
        names = ", ".join(rows[key].name for key in close)
        raise UnknownDeviceError(f"no GPU {name!r} in the catalogue; did you mean {names}?")
    names = ", ".join(spec.name for spec in rows.values())
    raise UnknownDeviceError(f"no GPU {name!r} in the catalogue, and nothing like it; it has {names}")


def match_cuda_name(torch_device_name: str, memory_bytes: int) -> DeviceSpec | None:
    """The catalogue row of the device torch names so, or None where that is not certain.

    A name alone is not enough: a virtual GPU and a bigger variant share names with the full card, so the
    memory must fit too.

    Args:
        torch_device_name: As `torch.cuda.get_device_name` says ("NVIDIA H100 80GB HBM3").
        memory_bytes: As `torch.cuda.get_device_properties` says (`total_memory`).

    Returns:
        The row, or None for a device that is unknown, ambiguous or only part of one.
    """
    plain = _MAKERS.sub("", torch_device_name.strip().casefold())
    row = _CUDA_NAMES.get(re.sub(r"[\s_-]+", "-", plain))
    spec = None if row is None else catalog().get(row)
    if spec is None or spec.memory_bytes is None:
        return None
    share = memory_bytes / spec.memory_bytes
    return spec if _LEAST_MEMORY_SHARE <= share <= _MOST_MEMORY_SHARE else None


def parse(text: str, name: str) -> dict[str, DeviceSpec]:
    """Read a catalogue.

    Args:
        text: Comma-separated values with a header line.
        name: What to call the file in errors.

    Returns:
        One spec per row, by name.

    Raises:
        RecordFormatError: Something in it is not as expected; the message names file and line.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    specs: dict[str, DeviceSpec] = {}
    try:
        _check_header(reader.fieldnames)
        for row in reader:
            _add(specs, _spec(row))
    except (csv.Error, ValueError) as error:
        # DictReader's own count lags behind where the error comes from within a row.
        raise RecordFormatError(f"{name}, line {max(reader.reader.line_num, 1)}: {error}") from error
    return {spec.name: spec for spec in specs.values()}


def _add(specs: dict[str, DeviceSpec], spec: DeviceSpec) -> None:
    key = spec.name.casefold()  # `lookup` does not tell "t4" from "T4" either
    if key in specs:
        raise ValueError(f"{spec.name} is there twice")
    specs[key] = spec


def _close(wanted: str, rows: Iterable[str]) -> list[str]:
    parts = [key for key in rows if wanted and wanted in key]
    return parts or difflib.get_close_matches(wanted, list(rows), n=5, cutoff=0.5)


def _check_header(header: Iterable[str] | None) -> None:
    columns = list(header or ())
    if len(columns) != len(set(columns)):
        raise ValueError("a column is there twice")
    missing = sorted({*_COMPUTE.values(), *_OTHER_COLUMNS} - set(columns))
    if missing:
        raise ValueError(f"columns are missing: {', '.join(missing)}")


def _spec(row: dict[str, str]) -> DeviceSpec:
    # DictReader puts surplus values under None and fills missing ones with None, whatever its types say.
    if None in row or None in row.values():
        raise ValueError("not as many values as columns")
    name = row["name"].strip()
    if not name:
        raise ValueError("name is empty")
    certainty = row["certainty"].strip()
    if certainty not in _CERTAINTIES:
        raise ValueError(f"certainty is {certainty!r}, expected one of {', '.join(_CERTAINTIES)}")
    dies = _DIES.get(name, 1)
    note = _note(row, dies)
    bandwidth = _ceiling(row, "mem_bw_gbs", _GIGA / dies, note)
    cache = _number(row, "llc_mb") or _number(row, "l2_mb")
    memory = _number(row, "mem_gb")
    compute = {dtype: _ceiling(row, column, _TERA / dies, note) for dtype, column in _COMPUTE.items()}
    return DeviceSpec(
        name=name,
        kind="cuda",
        compute_flops_per_s={dtype: roof for dtype, roof in compute.items() if roof is not None},
        copy_bytes_per_s=bandwidth,
        cache_bytes=None if cache is None else int(cache * _MEBI / dies),
        memory_bytes=None if memory is None else int(memory * _GIBI / dies),
        certainty=certainty,
    )


def _note(row: dict[str, str], dies: int) -> str:
    one_die = "" if dies == 1 else f"one of {dies} dies, which torch lists as devices"
    parts = (row["sources"].strip(), row["note"].strip(), one_die)
    return "; ".join(part for part in parts if part)


def _ceiling(row: dict[str, str], column: str, unit: float, note: str) -> Ceiling | None:
    value = _number(row, column)
    return None if value is None else Ceiling(value=value * unit, source="datasheet", note=note)


def _number(row: dict[str, str], column: str) -> float | None:
    text = row[column].strip()
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{column} is {text!r}, expected a positive number or nothing")
    value = float(text)
    if not 0 < value < _ABSURD:
        raise ValueError(f"{column} is {text!r}, which no device has")
    return value
