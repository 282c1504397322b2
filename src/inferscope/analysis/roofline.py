"""What the roofs demand of a phase: time by operator group, each bound by its own slower resource.

`group_demand` is where an operator group meets two rates: verdicts, findings' savings, operator tables and predictions
all take it from here, and differ in the rates that they hold it against.

A phase is the sum over its operator groups, never the maximum of two sums: a phase can spend half of its time
at one roof and half at the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost
    from inferscope.specs import Ceiling, DeviceSpec

__all__ = ["Demand", "GroupDemand", "Roofs", "demand", "group_demand", "roofs_for"]

_S_TO_NS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofs:
    """The ceilings that apply to one dtype on one device.

    Attributes:
        compute: FLOP/s of the dtype.
        memory: Bytes per second that a stream of weights or cache can reach.
        memory_class: "cache" where the working set fits into the last-level cache, else "memory".
        kernel: Bytes per second that this torch's matrix-vector kernel reaches; None where not measured.
    """

    compute: Ceiling
    memory: Ceiling
    memory_class: Literal["memory", "cache"]
    kernel: Ceiling | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDemand:
    """Time that one operator group cannot do without.

    Attributes:
        group: The operator group.
        compute_ns: At the compute roof.
        memory_ns: At the memory roof.
    """

    group: str
    compute_ns: float
    memory_ns: float

    @property
    def needed_ns(self) -> float:
        """The slower of the two."""
        return max(self.compute_ns, self.memory_ns)

    @property
    def binds(self) -> Literal["compute", "memory"]:
        """Which of the two that is."""
        return "compute" if self.compute_ns >= self.memory_ns else "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Time that a phase cannot do without.

    Attributes:
        groups: By operator group, largest first.
        compute_ns: Sum over the groups that the compute roof binds.
        memory_ns: Sum over the groups that the memory roof binds.
    """

    groups: tuple[GroupDemand, ...]
    compute_ns: float
    memory_ns: float

    @property
    def total_ns(self) -> float:
        """Both sums."""
        return self.compute_ns + self.memory_ns


def roofs_for(device: DeviceSpec, dtype: str | None, working_set_bytes: float) -> Roofs | str:
    """The roofs to hold a phase against.

    Args:
        device: Its ceilings.
        dtype: Of the weights.
        working_set_bytes: Weights and cache that one pass touches.

    Returns:
        The roofs, or in words which ceiling is missing.
    """
    compute = device.compute_flops_per_s.get(dtype or "")
    if compute is None:
        return f"no compute ceiling for {dtype or 'mixed dtypes'} on {device.name}"
    if device.copy_bytes_per_s is None:
        return f"no memory ceiling for {device.name}"
    kernel = device.gemv_bytes_per_s.get(dtype or "")
    fits = device.cache_bytes is not None and working_set_bytes <= device.cache_bytes
    if fits and device.cache_bytes_per_s is not None:
        return Roofs(compute=compute, memory=device.cache_bytes_per_s, memory_class="cache", kernel=None)
    memory = device.copy_bytes_per_s
    if kernel is not None and kernel.value > memory.value:
        memory = kernel  # reading alone can beat a copy: what was reached is the roof
    return Roofs(compute=compute, memory=memory, memory_class="memory", kernel=kernel)


def group_demand(
    group: str, *, flops: float, moved_bytes: float, flops_per_s: float, bytes_per_s: float
) -> GroupDemand:
    """Time that one operator group takes where it is held up by its slower resource alone.

    Args:
        group: Its name.
        flops: Of all of its operators.
        moved_bytes: Likewise.
        flops_per_s: Rate of arithmetic: a ceiling, or what operators reach of it.
        bytes_per_s: Rate of memory, likewise.
    """
    return GroupDemand(
        group=group, compute_ns=_S_TO_NS * flops / flops_per_s, memory_ns=_S_TO_NS * moved_bytes / bytes_per_s
    )


def demand(cost: PassCost, roofs: Roofs) -> Demand:
    """Time that the roofs demand for a cost, group by group.

    Approximation: operators of one group are alike in shape, so that the group's sums stand for each of them.
    """
    groups = sorted(
        (
            group_demand(
                entry.group,
                flops=entry.flops,
                moved_bytes=entry.bytes,
                flops_per_s=roofs.compute.value,
                bytes_per_s=roofs.memory.value,
            )
            for entry in cost.groups
        ),
        key=lambda entry: -entry.needed_ns,
    )
    return Demand(
        groups=tuple(groups),
        compute_ns=sum(entry.needed_ns for entry in groups if entry.binds == "compute"),
        memory_ns=sum(entry.needed_ns for entry in groups if entry.binds == "memory"),
    )
