"""The generating thread was kept off the CPU: other threads, other processes, or a quota."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.diagnosis import AWAY
from inferscope.analysis.verdict import Evidence, Finding

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case

__all__ = ["look"]


def look(case: Case) -> Finding | None:
    """Fires where the thread did not run for a sizeable part of a phase on a CPU."""
    away_ns = case.phase.ledger.offcpu_ns
    on_cpu = (case.record.model.device or "cpu").startswith("cpu")
    if not on_cpu or away_ns is None or case.phase.wall_ns <= 0:
        return None  # waiting for a GPU looks the same
    share = min(1.0, away_ns / case.phase.wall_ns)
    if share <= AWAY:
        return None
    return Finding(
        code="cpu-contention",
        severity="WARN",
        phase=case.phase.name,
        claim=f"For {100 * share:.0f} % of {case.phase.name} the generating thread did not run: something else had the "
        "CPU, the interpreter lock or the quota.",
        evidence=(
            Evidence(metric="offcpu_share", value=share, threshold=AWAY, source="measured", note="of the phase"),
        ),
        saves=case.saves(
            0.5 * share,
            share,
            "that at least half of it comes back (assumed)",
        ),
        action="Look at what else runs: other processes, threads that hold the interpreter, a CPU quota, more intra-op "
        "threads than cores (torch.set_num_threads).",
        not_helping="Anything about the model. Numbers taken meanwhile say little about kernels and ceilings.",
        verify="Run the same request on a quiet machine: off CPU should be near 0, and the verdict is worth reading.",
    )
