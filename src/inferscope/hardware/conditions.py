"""Under which conditions a GPU was measured: its clocks, its power, and what held the clocks down meanwhile.

NVML is asked at most once a second, so that what is known at a reading may be a second old: clocks that heat holds
down stay down for longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.samples import GpuReading, GpuSample

__all__ = ["Conditions"]

_SLOWED = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})
"""Reasons that are no part of the GPU as it can be. The cap on power is: large products run into it on a sound GPU."""
_CAPPED = "sw_power_cap"


class Conditions:
    """What NVML says of one GPU while it is measured; where NVML cannot be asked, nothing is known and nothing refused.

    Attributes:
        slowed: The reasons that held clocks down at some reading since `begin`.
    """

    def __init__(self, key: str, read: Callable[[], GpuReading]) -> None:
        """Ask nothing yet.

        Args:
            key: Of the device, as `DeviceSpec.key`: holds the GPU's UUID.
            read: Every GPU now, or up to a second ago.
        """
        self._key = key
        self._read = read
        self.begin()

    def begin(self) -> None:
        """Forget what was seen: another resource is measured."""
        self.slowed: tuple[str, ...] = ()
        self._missing = ""
        self._seen: dict[int, GpuSample] = {}

    def undisturbed(self) -> bool:
        """Look now: whether nothing is known that makes the GPU slower than it can be."""
        reading = self._read()
        own = next((gpu for gpu in reading.gpus if gpu.uuid and gpu.uuid.removeprefix("GPU-") in self._key), None)
        if own is None:
            self._missing = reading.missing or "NVML does not show this GPU"
            return True
        self._seen[own.unix_ns] = own
        now = sorted(_SLOWED & {*(own.clock_reasons or ())})
        self.slowed = tuple(dict.fromkeys((*self.slowed, *now)))
        return not now

    def words(self) -> str:
        """What was seen since `begin`, for the note of a ceiling."""
        samples = list(self._seen.values())
        if not samples:
            return f"clocks and power not known ({self._missing or 'not asked'})"
        parts = [
            _span("SM clock", "MHz", 1e-6, [(gpu.sm_clock_hz, gpu.sm_clock_max_hz) for gpu in samples]),
            _span("power", "W", 1.0, [(gpu.power_w, gpu.power_limit_w) for gpu in samples]),
        ]
        if any(_CAPPED in (gpu.clock_reasons or ()) for gpu in samples):
            parts.append("clocks held down by the cap on power")
        if self.slowed:
            parts.append(f"readings under {', '.join(self.slowed)} left out")
        return ", ".join(parts)


def _span(name: str, unit: str, scale: float, readings: list[tuple[float | None, float | None]]) -> str:
    known = [value * scale for value, _ in readings if value is not None]
    if not known:
        return f"{name} not known"
    least, most = f"{min(known):,.0f}", f"{max(known):,.0f}"
    limit = next((limit for _, limit in readings if limit is not None), None)
    of = "" if limit is None else f" of {limit * scale:,.0f}"
    return f"{name} {least if least == most else f'{least} to {most}'}{of} {unit}"
