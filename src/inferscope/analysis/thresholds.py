"""Every number that a verdict on a window turns on, with its source: one table, also the reference's."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["THRESHOLDS", "Threshold", "limit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """One number that verdicts turn on.

    Attributes:
        name: As the code and the reference call it.
        value: A share (0..1).
        meaning: What is held against it.
        source: Where it comes from.
    """

    name: str
    value: float
    meaning: str
    source: str


_DCGM = "NVIDIA DCGM user guide, profiling metrics"
_NCU = "Nsight Compute, rule SpeedOfLight"
_OURS = "inferscope's choice, not measured"

# fmt: off
# A table reads as rows.
THRESHOLDS = (
    Threshold(name="idle", value=0.05, source=_OURS,
              meaning="Busy for less of the window than this: idle."),
    Threshold(name="busy", value=0.90, source=_OURS,
              meaning='GPU-Util from here on counts as "full" when it is asked whether it misleads.'),
    Threshold(name="mostly_busy", value=0.50, source=_OURS,
              meaning="Busy for less of the window than this: what held the busy part back matters less, "
                      "confidence low."),
    Threshold(name="dram_practical", value=0.80, source=_DCGM,
              meaning="DRAM activity that kernels reach in practice: activity is held against this, not against 1."),
    Threshold(name="sm_ineffective", value=0.50, source=_DCGM,
              meaning="SM activity below this while busy: the device is not filled."),
    Threshold(name="limited", value=0.60, source=_NCU,
              meaning="Traffic or arithmetic at or above this share of its practical limit: it is the bound; both "
                      "below: latency, not throughput."),
    Threshold(name="saturated", value=0.80, source=_NCU,
              meaning="From here on the bound is certain."),
    Threshold(name="balanced", value=0.10, source=_NCU,
              meaning="Traffic and arithmetic closer than this: balanced, confidence low."),
    Threshold(name="misleading", value=0.30, source=_OURS,
              meaning="GPU-Util full while traffic and arithmetic both stay below this share of their limits, or SMs "
                      "below `sm_ineffective`: it misleads."),
    Threshold(name="pcie_limited", value=0.60, source=_OURS,
              meaning="One direction of PCIe at or above this share of the link's specified rate: communication."),
    Threshold(name="memory_full", value=0.95, source=_OURS,
              meaning="Device memory in use above this share: nearly full."),
    Threshold(name="host_busy", value=0.95, source=_OURS,
              meaning="All processors together busier than this: the host is saturated."),
    Threshold(name="foreign_load", value=0.25, source=_OURS,
              meaning="Processor time of other processes above this share: other work competes with this process."),
)
# fmt: on
LIMITS = {row.name: row.value for row in THRESHOLDS}


def limit(name: str) -> float:
    """The threshold of that name."""
    return LIMITS[name]
