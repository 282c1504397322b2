"""Python's garbage collector pauses the generating thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.05


def look(case: Case) -> Finding | None:
    """Fires where collections on this thread take a sizeable share of a phase."""
    share = case.part("gc")
    if share < _WORTH_SAYING:
        return None
    paused = sum(worst.cause == "gc" for worst in case.phase.worst)
    return case.finding(
        "gc-pauses",
        "OPT",
        f"Python's garbage collector takes {share:.0%} of {case.phase.name}, on the generating thread.",
        Evidence(
            metric="gc_share", value=share, threshold=_WORTH_SAYING, source="measured", note="of the phase's wall"
        ),
        Evidence(metric="gc_worst_passes", value=float(paused), source="measured", note="of the slowest passes kept"),
        saving=case.saving("that 80 to 100 % of the pauses go", Change("gc", 0.8, 1.0)),
        action="After loading, `gc.collect(); gc.freeze()`: the model's objects are not looked at again. Look for code "
        "that calls gc.collect() or makes many objects per token; collect between requests. Precondition: cycles made "
        "meanwhile are few.",
        not_helping="A faster device, or compiling the model: the thread stands still.",
        verify="ledger.gc_ns falls to near 0, and the slowest passes with it.",
    )
