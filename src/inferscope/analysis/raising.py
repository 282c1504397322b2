"""A request that was faster than a roof allows proves the roof too low: its own rate becomes the roof.

Only what one resource alone contradicts is believed: all operations, or all weights and cache, over all of the time.
That two roofs together ask for more time than was taken says that one is too low, but not which; such a verdict keeps
its doubt instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inferscope.analysis.cost import evaluate
from inferscope.errors import CostUnavailableError
from inferscope.specs import Ceiling

if TYPE_CHECKING:
    from inferscope.analysis.cost import PassCost
    from inferscope.records import GenerationRecord, PhaseRecord
    from inferscope.specs import DeviceSpec

__all__ = ["MOST_RAISED", "raised"]

MOST_RAISED = 1.5
"""A measured roof that is beaten by more was not a roof: calibrate again."""
_MOST_OVER_DATASHEET = 1.05
"""Beyond this, the clock or the count is wrong, not the datasheet."""
_TOO_LITTLE = 1.01
_STREAMED_CACHES = 4
"""A working set of fewer last-level caches is partly read from there."""


def raised(device: DeviceSpec, record: GenerationRecord) -> DeviceSpec:
    """The device with those roofs raised that the record beats; the very same object where it beats none.

    A raised roof is measured, at least this high, and its note says which request raised it and from what.

    Args:
        device: Its ceilings.
        record: Measured on it.
    """
    terms, dtype = record.model.cost, record.model.dtype or ""
    if terms is None or record.status != "ok":
        return device
    for phase in record.phases:
        seconds = _seconds(record, phase)
        if seconds is None or not phase.work or phase.ledger.shared_ns is not None:
            continue
        try:
            cost = evaluate(terms, phase.work)
        except CostUnavailableError:
            continue
        device = _by_phase(device, dtype, cost, seconds, f"{phase.name} of request {record.request_id}", phase.passes)
    return device


def _seconds(record: GenerationRecord, phase: PhaseRecord) -> float | None:
    """At least the time that the device had; None where that is not known or not all of it."""
    if phase.name not in {"prefill", "decode"}:
        return None
    if (record.model.device or "cpu").partition(":")[0] == "cpu":
        return phase.ledger.issue_ns / 1e9 or None
    if phase.device is None or phase.device.passes not in {None, phase.passes}:
        return None
    return phase.device.high_ns / 1e9 or None


def _by_phase(device: DeviceSpec, dtype: str, cost: PassCost, seconds: float, who: str, passes: int) -> DeviceSpec:
    compute = device.compute_flops_per_s.get(dtype)
    higher = None if compute is None else _higher(compute, cost.flops / seconds, who)
    if higher is not None:
        device = replace(device, compute_flops_per_s={**device.compute_flops_per_s, dtype: higher})
    streamed = cost.weight_bytes + cost.kv_read_bytes
    working_set = streamed / max(passes, 1)
    cache, memory = device.cache_bytes, device.copy_bytes_per_s
    if memory is None or cache is None or working_set < _STREAMED_CACHES * cache:
        return device
    read = device.gemv_bytes_per_s.get(dtype)
    best = read if read is not None and read.value > memory.value else memory
    higher = _higher(best, streamed / seconds, who)
    return device if higher is None else replace(device, copy_bytes_per_s=higher)


def _higher(roof: Ceiling, rate: float, who: str) -> Ceiling | None:
    most = MOST_RAISED if roof.source == "measured" else _MOST_OVER_DATASHEET
    if not roof.value * _TOO_LITTLE < rate <= roof.value * most:
        return None
    note = f"at least: raised by a request ({who}) from {roof.value:.4g} ({roof.source})"
    return Ceiling(value=rate, source="measured", spread=None, note=note)
