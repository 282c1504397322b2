"""What a timeline says in sums: kernels, driver calls, copies, ranges and launches of one profile. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LaunchSum", "NamedSum", "RangeSum", "SystemsReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSum:
    """All calls of one name.

    Attributes:
        name: Of the kernel, the driver's function or the kind of copy.
        total_ns: Their time, one after the other: not the time they took, where they overlap.
        count: How many.
    """

    name: str
    total_ns: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSum:
    """All ranges of one name.

    Attributes:
        name: As the program has named it.
        domain: In which; "" for the default one.
        phase: The phase it stands for, where it is one of ours; else None.
        instances: How many.
        host_ns: From push to pop on the host; None where that was not exported.
        device_ns: From the start of the first to the end of the last kernel launched in each, gaps between them
            included; None where no projection was exported.
    """

    name: str
    domain: str
    phase: str | None
    instances: int
    host_ns: float | None = None
    device_ns: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSum:
    """All launches of one kernel through one function.

    Attributes:
        kernel: Its name.
        api: The driver's or runtime's function.
        count: How many.
        call_ns: Mean duration of the call.
        queue_ns: Mean wait from the call's end to the kernel's start; None where none waited.
        kernel_ns: Mean duration of the kernel.
    """

    kernel: str
    api: str
    count: int
    call_ns: float
    queue_ns: float | None
    kernel_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemsReport:
    """The tables of one profile; one that was not exported is None.

    Attributes:
        sources: The files.
        kernels: Longest first, as the others.
        calls: Of the CUDA runtime and driver.
        copies: Of memory, and fills.
        ranges: NVTX ranges.
        launches: Most frequent first.
        notes: What was passed over, in words.
    """

    sources: tuple[str, ...]
    kernels: tuple[NamedSum, ...] | None = None
    calls: tuple[NamedSum, ...] | None = None
    copies: tuple[NamedSum, ...] | None = None
    ranges: tuple[RangeSum, ...] | None = None
    launches: tuple[LaunchSum, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def sync_ns(self) -> float | None:
        """Time the host spent in calls that wait for the device by their name; None without the table of calls."""
        if self.calls is None:
            return None
        return sum(call.total_ns for call in self.calls if "Synchronize" in call.name)
