"""What device this is, found out without measuring anything."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inferscope.errors import UnknownDeviceError
from inferscope.hardware.catalog import match_cuda_name
from inferscope.hardware.nvml import driver_version
from inferscope.specs import DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "available_memory_bytes",
    "datasheet",
    "float32_precision",
    "identify",
    "last_level_cache_bytes",
    "parse_device",
]

_CPU_ROOT = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_UNKNOWN = "unknown"


def identify(device: str = "cpu") -> DeviceSpec:
    """The device as it says it is, without any ceiling.

    The key tells this very device in this very configuration from every other. For a CPU: model, cores this
    process may use, threads, vector extension, torch version, and the precision of float32 products where it
    is not the default. For a GPU: its UUID, driver and torch version. The CUDA half follows the documentation
    of torch and NVML and has not been confirmed on hardware.

    Args:
        device: torch device string ("cpu", "cuda", "cuda:1"). Other kinds that torch knows get a name only.

    Raises:
        UnknownDeviceError: torch knows no such device, or it is a CUDA device and CUDA is not available.
    """
    target = parse_device(device)
    if target.type == "cpu":
        return _identify_cpu()
    if target.type == "cuda":
        return _identify_cuda(target)
    return DeviceSpec(name=target.type, kind=target.type)


def parse_device(device: str) -> torch.device:
    """The torch device of that name.

    Raises:
        UnknownDeviceError: torch knows no such device.
    """
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnknownDeviceError(f"no device {device!r}: {reason}") from error


def datasheet(device: str) -> DeviceSpec | None:
    """The catalogue row of a CUDA device that is there, None where it is not certain which one it is."""
    properties = _properties(_index(parse_device(device)))
    return match_cuda_name(properties.name, properties.total_memory)


def float32_precision() -> str:
    """How float32 products may be computed: "highest" (as float32), "high", "medium", or "mixed" settings."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # newer torch refuses to answer once its two ways of setting it are mixed
        return "mixed"


def last_level_cache_bytes(root: Path = _CPU_ROOT, cpus: Iterable[int] | None = None) -> int | None:
    """Size of the outermost cache over the processors this process may use, None where it is not readable.

    Large processors have several last-level caches, one per group of cores: each that can be reached is
    counted, once.

    Args:
        root: Folder with one `cpuN` per processor, as in sysfs.
        cpus: Numbers of the processors that count; None for those this process may run on.
    """
    counted: set[int] = set()
    total = 0
    for cpu in sorted(_usable_cpus() if cpus is None else cpus):
        if cpu in counted:
            continue
        outermost = _outermost_cache(root / f"cpu{cpu}" / "cache")
        if outermost is None:
            return None
        size, sharing = outermost
        total += size
        counted |= {cpu, *sharing}
    return total or None


def available_memory_bytes() -> int | None:
    """Memory to be had without pushing anything out, within the container's limit; None if unknown."""
    free = _meminfo_bytes("MemAvailable")
    limit = _cgroup_bytes("memory.max", "memory/memory.limit_in_bytes")
    used = _cgroup_bytes("memory.current", "memory/memory.usage_in_bytes")
    if limit is None or used is None:
        return free
    # File pages count as used but are given back on demand: a model read from disk would fill the container.
    left = max(limit - used + _cgroup_file_bytes(), 0)
    return left if free is None else min(free, left)


def _identify_cpu() -> DeviceSpec:
    name, generation = _cpu_name(_text(_CPUINFO))
    threads = torch.get_num_threads()
    parts = (
        f"cpu:{name}",
        generation,
        f"cores {len(_usable_cpus())}",
        f"threads {threads}",
        torch.backends.cpu.get_cpu_capability(),
        f"torch {torch.__version__}",
        _precision_part(),
    )
    return DeviceSpec(
        name=name,
        kind="cpu",
        key=", ".join(part for part in parts if part),
        cache_bytes=last_level_cache_bytes(),
        memory_bytes=_memory_bytes(),
        threads=threads,
        torch_version=str(torch.__version__),
    )


def _identify_cuda(target: torch.device) -> DeviceSpec:
    index = _index(target)
    properties = _properties(index)
    row = match_cuda_name(properties.name, properties.total_memory)
    identity = getattr(properties, "uuid", None) or f"{properties.name} number {index}"
    parts = (
        f"cuda:{identity}",
        f"driver {driver_version() or _UNKNOWN}",
        f"torch {torch.__version__}",
        _precision_part(),
    )
    return DeviceSpec(
        name=properties.name if row is None else row.name,
        kind="cuda",
        key=", ".join(part for part in parts if part),
        # AMD's catalogue rows name the cache behind the L2, which torch does not.
        cache_bytes=(row and row.cache_bytes) or getattr(properties, "L2_cache_size", None) or None,
        memory_bytes=properties.total_memory,
        torch_version=str(torch.__version__),
    )


def _index(target: torch.device) -> int:
    """Number of a CUDA device that is there.

    Raises:
        UnknownDeviceError: CUDA is not available, or has no such device.
    """
    if not torch.cuda.is_available():
        raise UnknownDeviceError(f"no device '{target}': CUDA is not available in torch {torch.__version__}")
    index = torch.cuda.current_device() if target.index is None else target.index
    count = torch.cuda.device_count()
    if index >= count:
        raise UnknownDeviceError(f"no device '{target}': torch sees {count} CUDA device(s)")
    return index


def _properties(index: int) -> Any:  # noqa: ANN401 - fields differ between versions of torch
    return torch.cuda.get_device_properties(index)


def _precision_part() -> str:
    # A reduced precision changes what a float32 product costs: such a calibration is another device's.
    precision = float32_precision()
    return "" if precision == "highest" else f"float32 products {precision}"


def _cpu_name(cpuinfo: str) -> tuple[str, str]:
    """Model name, and family, model and stepping as one text ("" where there are none, as on Arm)."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine() or _UNKNOWN
    # Virtual machines name several generations alike ("AMD EPYC"): these numbers tell them apart.
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if fields.get(key)]
    return name, " ".join(numbers)


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _outermost_cache(folder: Path) -> tuple[int, set[int]] | None:
    """Size in bytes of the highest-level cache described in a folder, and the processors that share it."""
    best: tuple[int, int, set[int]] | None = None
    for index in sorted(folder.glob("index*")):
        level = _text(index / "level").strip()
        size = _size_bytes(_text(index / "size"))
        if _text(index / "type").strip() == "Instruction" or not level.isdecimal() or size is None:
            continue
        if best is None or int(level) > best[0]:
            best = int(level), size, _cpu_list(_text(index / "shared_cpu_list"))
    return None if best is None else best[1:]


def _cpu_list(text: str) -> set[int]:
    """Processor numbers of sysfs's list format ("0-3,8")."""
    numbers: set[int] = set()
    for low, high in re.findall(r"(\d+)(?:-(\d+))?", text):
        numbers.update(range(int(low), int(high or low) + 1))
    return numbers


def _size_bytes(text: str) -> int | None:
    match = re.fullmatch(r"\s*([0-9]{1,9})([KMG]?)B?\s*", text)
    size = 0 if match is None else int(match[1]) * _SIZE_UNITS[match[2]]
    return size or None


def _memory_bytes() -> int | None:
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    limit = _cgroup_bytes("memory.max", "memory/memory.limit_in_bytes")
    return physical if limit is None else min(physical, limit)


def _meminfo_bytes(field: str) -> int | None:
    match = re.search(rf"^{field}:\s*([0-9]+) kB$", _text(_MEMINFO), re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


def _cgroup_bytes(*names: str) -> int | None:
    """The first number found under these names (version 2, then 1); None where there is no limit ("max")."""
    for name in names:
        text = _text(_CGROUP_ROOT / name).strip()
        if text.isdecimal():
            return int(text)
    return None


def _cgroup_file_bytes() -> int:
    for name in ("memory.stat", "memory/memory.stat"):
        match = re.search(r"^inactive_file ([0-9]+)$", _text(_CGROUP_ROOT / name), re.MULTILINE)
        if match is not None:
            return int(match[1])
    return 0


def _text(path: Path) -> str:
    """The file's text, "" where it cannot be read: everything here is a hint."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
