"""What a trace says about the rates that were assumed: by which factor each phase was slower.

A factor stands for everything between a roof and what an operator reaches, so that it may be carried to another batch,
another length, another format, and with more doubt to another device.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inferscope.analysis.cost import evaluate
from inferscope.analysis.passtime import PassShape, pass_time
from inferscope.errors import PredictionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.machine import Machine
    from inferscope.records import GenerationRecord, PhaseRecord
    from inferscope.specs import CostTerms

__all__ = ["Anchor", "anchored", "anchors_of", "mean_pass", "per_pass"]

_OTHER_DEVICE_SPREAD = 0.15
_LEAST_SPREAD = 0.10
_NO_FACTOR = 1.0
_PHASES = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What one phase of one or several traces took, over what was expected.

    Attributes:
        phase: "prefill" or "decode".
        device_factor: Of the device, or of everything in the forward where the host computes.
        host_factor: Of the host's operators.
        between_ns: Of the host, between two passes.
        setup_ns: Before the first pass.
        spread: Standard deviation of the factors' logarithms; None for a single trace.
        traces: How many there were.
    """

    phase: str
    device_factor: float
    host_factor: float
    between_ns: float
    setup_ns: float
    spread: float | None
    traces: int


def anchors_of(records: Sequence[GenerationRecord], machine: Machine) -> tuple[Anchor, ...]:
    """The anchors that some traces give.

    Args:
        records: Of one model.
        machine: Where they were measured, at the rates that are to be corrected.

    Raises:
        PredictionError: They hold no phase that could be held against an expectation.
    """
    found = [_anchor(name, records, machine) for name in _PHASES]
    kept = tuple(anchor for anchor in found if anchor is not None)
    if not kept:
        raise PredictionError("the trace has no phase with counted work and a known time to anchor a prediction on")
    return kept


def anchored(machine: Machine, anchor: Anchor, *, same_device: bool) -> Machine:
    """The machine, as slow as the trace says.

    Args:
        machine: Of the prediction.
        anchor: Of the phase.
        same_device: Whether the trace is of this very device.
    """
    spread = max(_LEAST_SPREAD, anchor.spread or 0.0)
    if anchor.traces == 1:
        spread += 0.05
    compiled = machine.execution == "compiled"
    return replace(
        machine,
        basis="anchored",
        device_factor=anchor.device_factor,
        host_factor=_NO_FACTOR if compiled else anchor.host_factor,
        between_ns=machine.between_ns if compiled else anchor.between_ns / anchor.host_factor,
        device_spread=spread if same_device else math.hypot(machine.device_spread, spread, _OTHER_DEVICE_SPREAD),
        host_spread=spread if same_device else max(machine.host_spread, spread),
    )


def mean_pass(terms: CostTerms, phase: PhaseRecord) -> tuple[PassCost, PassShape] | None:
    """The average pass of a phase and its shape; None where its work is not known."""
    runs = [run for work in phase.work for run in work.runs or ()]
    passes = sum(work.passes for work in phase.work)
    if not runs or not passes:
        return None
    cost = evaluate(terms, phase.work)
    kv = sum(run.passes * (run.past_len + run.q_len + run.step * (run.passes - 1) / 2) for run in runs) / passes
    first = max(runs, key=lambda run: run.passes)
    return per_pass(cost, passes), PassShape(
        batch_size=first.batch_size,
        q_len=first.q_len,
        kv_len=kv,
        working_set_bytes=(cost.weight_bytes + cost.kv_read_bytes) / passes,
    )


def per_pass(cost: PassCost, passes: int) -> PassCost:
    """The cost of one of several passes, on average, to a whole byte and operation."""
    if passes == 1:
        return cost
    parts = ("flops", "flops_full", "bytes", "executed_bytes", "calls", "launches", "weight_bytes")
    groups = tuple(
        replace(group, **{name: round(getattr(group, name) / passes) for name in parts}) for group in cost.groups
    )
    whole = ("flops", "flops_full", "weight_bytes", "kv_read_bytes", "kv_write_bytes", "activation_bytes")
    return replace(
        cost,
        **{name: round(getattr(cost, name) / passes) for name in (*whole, "calls", "launches")},
        bytes=replace(
            cost.bytes,
            **{name: round(getattr(cost.bytes, name) / passes) for name in ("minimum", "model", "executed")},
        ),
        groups=groups,
    )


def _anchor(name: str, records: Sequence[GenerationRecord], machine: Machine) -> Anchor | None:
    seen = [found for record in records if (found := _factors(name, record, machine)) is not None]
    if not seen:
        return None
    logs = [math.log(device) for device, _, _, _ in seen]
    return Anchor(
        phase=name,
        device_factor=math.exp(statistics.fmean(logs)),
        host_factor=math.exp(statistics.fmean(math.log(host) for _, host, _, _ in seen)),
        between_ns=statistics.median(between for _, _, between, _ in seen),
        setup_ns=statistics.median(setup for _, _, _, setup in seen),
        spread=statistics.stdev(logs) if len(logs) > 1 else None,
        traces=len(seen),
    )


def _factors(name: str, record: GenerationRecord, machine: Machine) -> tuple[float, float, float, float] | None:
    """Factors of device and host, time between passes and before the first; None where a trace does not tell."""
    phase = record.phase(name)
    if phase is None or record.model.cost is None or phase.passes < 1 or phase.ledger.issue_ns <= 0:
        return None
    pair = mean_pass(record.model.cost, phase)
    if pair is None:
        return None
    expected = pass_time(pair[0], pair[1], machine)
    issue_ns = phase.ledger.issue_ns / phase.passes
    ledger = phase.ledger
    between_ns = (ledger.select_ns + ledger.deliver_ns + (ledger.wait_ns or 0)) / phase.passes
    setup_ns = float(record.ledger.setup_ns)
    if machine.on_host:
        factor = issue_ns / expected.forward_ns
        return factor, factor, between_ns, setup_ns
    busy_ns = sum(expected.device_ns.values())
    if phase.device is None or not busy_ns or not expected.host_ns or not phase.device.high_ns:
        return None
    device_ns = (phase.device.low_ns + phase.device.high_ns) / 2 / (phase.device.passes or phase.passes)
    # What the host waits for in the read of a token is the device's time, and is predicted as such.
    selecting_ns = (ledger.select_ns + ledger.deliver_ns) / phase.passes
    return device_ns / busy_ns, issue_ns / expected.host_ns, selecting_ns, setup_ns
