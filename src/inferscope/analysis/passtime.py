"""How long a pass takes: by operator group, each bound by its own slower resource, then summed.

A device that works by itself is held up by its own time or by the host that issues its kernels, whichever is longer.
Where the host computes, both follow each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inferscope.analysis.kernels import product_shape
from inferscope.analysis.machine import IN_MODEL
from inferscope.analysis.roofline import group_demand
from inferscope.analysis.verdict import BOUNDS

if TYPE_CHECKING:
    from inferscope.analysis.cost import GroupCost, PassCost
    from inferscope.analysis.machine import Machine
    from inferscope.analysis.verdict import Bound

__all__ = ["PassShape", "PassTime", "at_end", "pass_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassShape:
    """The pass that stands for a phase.

    Attributes:
        batch_size: Sequences.
        q_len: New tokens per sequence.
        kv_len: Tokens attended to per sequence, on average over the phase.
        working_set_bytes: Weights and cache that the pass touches.
    """

    batch_size: int
    q_len: int
    kv_len: float
    working_set_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """Time of one pass.

    Attributes:
        device_ns: By class, of the device, or of the operators where the host computes.
        host_ns: Of the host: issuing every operator.
        between_ns: Of the host, between this pass and the next.
        on_host: Whether the two follow each other.
    """

    device_ns: dict[str, float]
    host_ns: float
    between_ns: float
    on_host: bool

    @property
    def forward_ns(self) -> float:
        """Of the forward alone."""
        busy = sum(self.device_ns.values())
        return busy + self.host_ns if self.on_host else max(busy, self.host_ns)

    @property
    def total_ns(self) -> float:
        """With what follows before the next pass."""
        return self.forward_ns + self.between_ns

    def shares(self) -> dict[str, float]:
        """Of the total, by class; they sum to 1.

        A device that waits for its host is held up by that alone, however long its kernels take meanwhile.
        """
        total = self.total_ns
        if total <= 0:
            return {}
        if not self.on_host and self.host_ns > sum(self.device_ns.values()):
            return {**dict.fromkeys(BOUNDS, 0.0), "overhead": 1.0}
        shares: dict[str, float] = {bound: self.device_ns.get(bound, 0.0) / total for bound in BOUNDS}
        shares["overhead"] += 1 - sum(shares.values())
        return shares

    @property
    def bound(self) -> Bound:
        """The class with the largest share."""
        shares = self.shares()
        return max(BOUNDS, key=lambda bound: shares.get(bound, 0.0)) if shares else "unknown"


def pass_time(cost: PassCost, shape: PassShape, machine: Machine) -> PassTime:
    """Time of one pass.

    Args:
        cost: Of that pass.
        shape: Of that pass.
        machine: Where it runs.
    """
    device: dict[str, float] = {}
    for group in cost.groups:
        for bound, spent_ns in _group(group, shape, machine, cost).items():
            device[bound] = device.get(bound, 0.0) + spent_ns * machine.device_factor
    hidden_ns = cost.launches * machine.dispatch_ns if machine.kernels is not None else 0.0
    return PassTime(
        device_ns=device,
        host_ns=max(0.0, cost.calls * machine.operator_ns - hidden_ns) * machine.host_factor,
        between_ns=machine.between_ns * machine.host_factor,
        on_host=machine.on_host,
    )


def at_end(machine: Machine, end: float) -> Machine:
    """The machine at an end of its interval: +1 is as slow, -1 as fast as it may be."""
    return replace(
        machine,
        device_factor=machine.device_factor * math.exp(end * machine.device_spread),
        host_factor=machine.host_factor * math.exp(end * machine.host_spread),
    )


def _group(group: GroupCost, shape: PassShape, machine: Machine, cost: PassCost) -> dict[str, float]:
    rate, kind = _stream(shape, machine)
    flops_per_s = machine.attention_flops_per_s if group.group == "attention" else machine.compute_flops_per_s
    moved = _bytes(group, machine)
    roof = group_demand(group.group, flops=group.flops, moved_bytes=moved, flops_per_s=flops_per_s, bytes_per_s=rate)
    needed: dict[str, float] = {"compute" if roof.binds == "compute" else kind: roof.needed_ns}
    if machine.kernels is None:
        return {**needed, "overhead": _kernels(group, machine, cost) * machine.launch_ns}
    seen_ns = machine.kernels.group_ns(group, batch_size=shape.batch_size, q_len=shape.q_len, kv_len=shape.kv_len)
    if seen_ns is None:
        return needed
    seen_ns *= IN_MODEL
    bound, needed_ns = next(iter(needed.items()))
    dispatch_ns = min(seen_ns, group.launches * machine.dispatch_ns)
    needed_ns = min(needed_ns, seen_ns - dispatch_ns)
    return {bound: needed_ns, "overhead": dispatch_ns, "inefficient": seen_ns - dispatch_ns - needed_ns}


def _stream(shape: PassShape, machine: Machine) -> tuple[float, str]:
    fits = machine.device.cache_bytes is not None and shape.working_set_bytes <= machine.device.cache_bytes
    if fits and machine.cache_bytes_per_s is not None:
        return machine.cache_bytes_per_s, "cache"
    return machine.memory_bytes_per_s, "memory"


def _heavy(group: GroupCost) -> bool:
    """Whether it is a matrix product or attention: work that no compiler fuses away."""
    return group.flops > 0 or product_shape(group.group) is not None


def _bytes(group: GroupCost, machine: Machine) -> float:
    if _heavy(group) or machine.execution == "compiled":
        return float(group.bytes)
    return float(max(group.bytes, group.executed_bytes))


def _kernels(group: GroupCost, machine: Machine, cost: PassCost) -> float:
    """Kernels of a group: as dispatched, or as they are left over when a compiler has fused the elementwise work."""
    if machine.execution == "eager" or _heavy(group) or group.group in {"kv-cache", "embedding"}:
        return float(group.launches)
    fused = sum(entry.launches for entry in cost.groups if _heavy(entry)) / 2
    rest = sum(
        entry.launches for entry in cost.groups if not _heavy(entry) and entry.group not in {"kv-cache", "embedding"}
    )
    return group.launches * min(1.0, fused / rest) if rest else 0.0
