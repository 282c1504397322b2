"""The generating thread was kept off the CPU: other threads, other processes, or a quota."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.doubts import AWAY
from inferscope.analysis.findings.thread_oversubscription import oversubscribed
from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]


def look(case: Case) -> Finding | None:
    """Fires where the thread did not run for a sizeable part of a phase on a CPU, and nothing traced explains it."""
    if not case.on_cpu or case.phase.ledger.offcpu_ns is None or case.phase.wall_ns <= 0:
        return None  # waiting for a GPU looks the same
    if oversubscribed(case.record.process):
        return None  # the threads compete with each other, and that has a finding of its own
    share = min(1.0, case.phase.ledger.offcpu_ns / case.phase.wall_ns)
    # What waits between the passes may be a processor or a streamer that sleeps.
    unexplained = case.part("offcpu inside") - case.part("neighbours")
    if unexplained <= AWAY:
        return None
    return case.finding(
        "cpu-contention",
        "WARN",
        f"For {100 * share:.0f} % of {case.phase.name} the generating thread did not run: something else had the "
        "CPU, the interpreter lock or the quota.",
        Evidence(metric="offcpu_share", value=share, threshold=AWAY, source="measured", note="of the phase"),
        Evidence(metric="contended_share", value=case.part("neighbours"), source="measured", note="by traced requests"),
        saving=case.saving("that at least half of it comes back (assumed)", Change("offcpu inside", 0.5, 1.0)),
        action="Look at what else runs: other processes, threads that hold the interpreter, a CPU quota, more intra-op "
        "threads than cores (torch.set_num_threads).",
        not_helping="Anything about the model. Numbers taken meanwhile say little about kernels and ceilings.",
        verify="run the same request on a quiet machine; off CPU is near 0, and the verdict is worth reading.",
    )
