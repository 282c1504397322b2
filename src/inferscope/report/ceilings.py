"""A device and its ceilings in words, each with how it is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from inferscope.report.units import UNKNOWN, clean, duration_ns, percent, scaled

if TYPE_CHECKING:
    from inferscope.specs import Ceiling, DeviceSpec

__all__ = ["CeilingRow", "ceilings", "device_title", "roof_source"]

_UNITS = {"_flops_per_s": "FLOP/s", "_bytes_per_s": "B/s", "_ns": "ns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingRow:
    """One ceiling of a device in words."""

    name: str
    value: str
    source: str
    spread: str
    note: str


def device_title(device: DeviceSpec) -> str:
    """The device and what its ceilings rest on."""
    parts = [device.name, device.kind]
    if device.threads is not None:
        parts.append(f"{device.threads} threads")
    if device.memory_bytes is not None:
        parts.append(f"{scaled(device.memory_bytes, 'B')} memory")
    if device.cache_bytes is not None:
        parts.append(f"{scaled(device.cache_bytes, 'B')} last-level cache")
    if device.torch_version is not None:
        parts.append(f"torch {device.torch_version}")
    if device.measured_unix_ns is not None:
        moment = datetime.fromtimestamp(device.measured_unix_ns / 1e9, tz=timezone.utc)
        parts.append(f"measured {moment:%Y-%m-%d %H:%M} UTC")
    if device.certainty is not None:
        parts.append(f"datasheet, certainty {device.certainty}")
    return clean(" · ".join(parts))


def ceilings(device: DeviceSpec) -> tuple[CeilingRow, ...]:
    """Every ceiling that is known, with its source; the noted ways in which it was measured."""
    return tuple(
        CeilingRow(
            name=clean(name),
            value=duration_ns(ceiling.value) if unit == "ns" else scaled(ceiling.value, unit),
            source=ceiling.source,
            spread=percent(ceiling.spread),
            note=clean(ceiling.note),
        )
        for name, ceiling, unit in _ceilings(device)
    )


def roof_source(device: DeviceSpec | None) -> str:
    """How the ceilings of a device are known, in a word or two."""
    if device is None:
        return UNKNOWN
    sources = {ceiling.source for _, ceiling, _ in _ceilings(device)}
    return "+".join(sorted(sources)) or UNKNOWN


def _ceilings(device: DeviceSpec) -> list[tuple[str, Ceiling, str]]:
    found = [(f"compute {dtype}", ceiling, "FLOP/s") for dtype, ceiling in sorted(device.compute_flops_per_s.items())]
    found += [(f"matrix·vector {dtype}", ceiling, "B/s") for dtype, ceiling in sorted(device.gemv_bytes_per_s.items())]
    single = (
        ("memory copy", device.copy_bytes_per_s, "B/s"),
        ("copy in cache", device.cache_bytes_per_s, "B/s"),
        ("one operator", device.dispatch_ns, "ns"),
        ("operator in a module", device.module_op_ns, "ns"),
        ("read from device", device.sync_ns, "ns"),
    )
    found += [(name, ceiling, unit) for name, ceiling, unit in single if ceiling is not None]
    for name, ceiling in sorted(device.beside.items()):
        for ending, unit in _UNITS.items():
            if name.endswith(ending):
                found.append((name.removesuffix(ending).replace("_", " "), ceiling, unit))
    return found
