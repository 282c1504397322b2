"""What hardware counters say of kernels, summed by kernel and by phase. Pure: the counters were read elsewhere.

A sum is known only where every launch in it has the number: a total of the launches that happen to have one would be
a number of something else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "OUTSIDE",
    "CounterReport",
    "CounterSums",
    "KernelCounters",
    "Launch",
    "PhaseCounters",
    "Rule",
    "Tally",
    "longest_first",
]

OUTSIDE = "(no range)"
"""Stands for the phase of what ran in no range of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of a kernel, as its counters tell it; what was not collected is None.

    Attributes:
        kernel: Its name.
        phase: Of the range it ran in; `OUTSIDE` where there is none.
        pass_id: Identity of the forward it ran in; None where the range carries none.
        duration_ns: On the device, at the clocks that the profiler had set.
        compute_share: Speed of light of the SMs (0..1 of what the device can sustain).
        memory_share: Speed of light of the memory system.
        dram_share: Speed of light of the DRAM alone.
        tensor_share: Share of cycles in which the tensor pipe was active, 0..1.
        dram_read_bytes: Read from DRAM.
        dram_write_bytes: Written to it.
        dram_bytes: Both.
        sector_bytes: Bytes that threads used of what global loads fetched, with `sectors`: 32 per sector at best.
        sectors: Sectors those loads fetched.
        flops: Operations by type of arithmetic (fp16, fp32, fp64, tensor bf16, ...).
        tensor_instructions: Instructions of the tensor pipe.
    """

    kernel: str
    phase: str = OUTSIDE
    pass_id: str | None = None
    duration_ns: float | None = None
    compute_share: float | None = None
    memory_share: float | None = None
    dram_share: float | None = None
    tensor_share: float | None = None
    dram_read_bytes: float | None = None
    dram_write_bytes: float | None = None
    dram_bytes: float | None = None
    sector_bytes: float | None = None
    sectors: float | None = None
    flops: tuple[tuple[str, float], ...] = ()
    tensor_instructions: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterSums:
    """Counters of several launches together; None where not every one of them has the number.

    Attributes:
        launches: How many.
        duration_ns: Of the kernels, one after the other: not the time the device took, where they overlap.
        compute_share: Mean weighted by duration, 0..1, as the three that follow.
        memory_share: See `Launch`.
        dram_share: See `Launch`.
        tensor_share: See `Launch`.
        dram_read_bytes: Sum, as all that follow.
        dram_write_bytes: See `Launch`.
        dram_bytes: See `Launch`.
        bytes_per_sector: Bytes used of each fetched sector of 32.
        flops: By type of arithmetic, most first. A type that only some launches have is left out.
        tensor_instructions: See `Launch`.
    """

    launches: int
    duration_ns: float | None = None
    compute_share: float | None = None
    memory_share: float | None = None
    dram_share: float | None = None
    tensor_share: float | None = None
    dram_read_bytes: float | None = None
    dram_write_bytes: float | None = None
    dram_bytes: float | None = None
    bytes_per_sector: float | None = None
    flops: tuple[tuple[str, float], ...] = ()
    tensor_instructions: float | None = None

    @property
    def sass_flops(self) -> float | None:
        """Operations of the plain pipes; None where not all three of fp16, fp32 and fp64 were collected."""
        found = dict(self.flops)
        plain = [found.get(kind) for kind in ("fp16", "fp32", "fp64")]
        return None if any(value is None for value in plain) else sum(value or 0.0 for value in plain)

    @property
    def tensor_flops(self) -> float | None:
        """Floating-point operations of the tensor pipe; None where none of its types was collected."""
        found = [
            value for kind, value in self.flops if kind.startswith("tensor ") and not kind.startswith("tensor int")
        ]
        return sum(found) if found else None

    @property
    def total_flops(self) -> float | None:
        """Both; None where either is unknown."""
        plain, tensor = self.sass_flops, self.tensor_flops
        return None if plain is None or tensor is None else plain + tensor

    @property
    def dram_bytes_per_s(self) -> float | None:
        """Traffic over the kernels' own time."""
        if self.dram_bytes is None or not self.duration_ns:
            return None
        return self.dram_bytes / self.duration_ns * 1e9


_SUMMED = ("duration_ns", "dram_read_bytes", "dram_write_bytes", "dram_bytes", "tensor_instructions")
_WEIGHTED = ("compute_share", "memory_share", "dram_share", "tensor_share")


@dataclass(slots=True)
class Tally:
    """Adds up launches, in the memory of a few numbers."""

    launches: int = 0
    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, launch: Launch) -> None:
        """One more launch."""
        self.launches += 1
        for name in _SUMMED:
            self._take(name, getattr(launch, name))
        for name in _WEIGHTED:
            share, weight = getattr(launch, name), launch.duration_ns
            self._take(name, None if share is None or weight is None else share * weight)
            self._take(f"only {name}", share)  # of a single launch no weight is needed
        both = launch.sector_bytes is not None and launch.sectors is not None
        self._take("sector_bytes", launch.sector_bytes if both else None)
        self._take("sectors", launch.sectors if both else None)
        for kind, value in launch.flops:
            self._take(f"flops {kind}", value)

    def _take(self, name: str, value: float | None) -> None:
        if value is not None:
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def _whole(self, name: str) -> float | None:
        return self._sums[name] if self.launches and self._counts.get(name) == self.launches else None

    def _mean(self, name: str) -> float | None:
        if self.launches == 1:
            return self._whole(f"only {name}")
        total, weights = self._whole(name), self._whole("duration_ns")
        return total / weights if total is not None and weights else None

    def sums(self) -> CounterSums:
        """What was added."""
        used, fetched = self._whole("sector_bytes"), self._whole("sectors")
        kinds = [name.removeprefix("flops ") for name in self._sums if name.startswith("flops ")]
        flops = [(kind, value) for kind in kinds if (value := self._whole(f"flops {kind}")) is not None]
        return CounterSums(
            launches=self.launches,
            duration_ns=self._whole("duration_ns"),
            compute_share=self._mean("compute_share"),
            memory_share=self._mean("memory_share"),
            dram_share=self._mean("dram_share"),
            tensor_share=self._mean("tensor_share"),
            dram_read_bytes=self._whole("dram_read_bytes"),
            dram_write_bytes=self._whole("dram_write_bytes"),
            dram_bytes=self._whole("dram_bytes"),
            bytes_per_sector=used / fetched if used is not None and fetched else None,
            flops=tuple(sorted(flops, key=lambda entry: (-entry[1], entry[0]))),
            tensor_instructions=self._whole("tensor_instructions"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one of Nsight Compute's own rules said of a kernel.

    Attributes:
        name: Of the rule.
        kind: "OPT", "WRN" or "INF", as the file has it.
        text: Its words.
        kernel: Of which kernel.
        phase: In which phase.
        speedup_share: Part of the kernel's time that it promises to save, 0..1; None where it promises nothing.
        times: How often it was said in these words.
    """

    name: str
    kind: str
    text: str
    kernel: str
    phase: str
    speedup_share: float | None = None
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCounters:
    """Launches of one kernel in one phase."""

    kernel: str
    phase: str
    sums: CounterSums


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCounters:
    """Launches of one phase.

    Attributes:
        phase: Its name, or `OUTSIDE`.
        sums: Of all its kernels.
        passes: Forwards that they ran in; None where the ranges do not say.
    """

    phase: str
    sums: CounterSums
    passes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterReport:
    """What a file of counters holds.

    Attributes:
        source: The file.
        page: "raw", one row per launch, or "details", one row per metric.
        number_style: "1,234.5" or "1.234,5".
        style_seen: Whether a number of the file shows that style; else it is assumed.
        total: Of all launches.
        phases: By phase, in the order in which they appear.
        kernels: By kernel and phase, longest first.
        rules: Of the details page, largest promise first.
        notes: What could not be read, and what follows from it, in words.
    """

    source: str
    page: str
    number_style: str
    style_seen: bool
    total: CounterSums
    phases: tuple[PhaseCounters, ...]
    kernels: tuple[KernelCounters, ...]
    rules: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()

    def phase(self, name: str) -> PhaseCounters | None:
        """The counters of a phase; None where none of its kernels was profiled."""
        return next((entry for entry in self.phases if entry.phase == name), None)


def longest_first(kernels: Iterable[KernelCounters]) -> tuple[KernelCounters, ...]:
    """By duration, or by launches where that is unknown."""
    return tuple(sorted(kernels, key=lambda one: (-(one.sums.duration_ns or 0.0), -one.sums.launches, one.kernel)))
