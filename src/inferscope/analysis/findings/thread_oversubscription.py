"""More intra-op threads than processors they may run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding
    from inferscope.records import ProcessState

__all__ = ["look", "oversubscribed"]


_CHANGES = (Change("kernels", 0.5, 0.9), Change("offcpu", 0.5, 0.9), Change("dispatch", 0.0, 0.9))


def oversubscribed(process: ProcessState | None) -> bool:
    """Whether torch uses more threads within an operator than there are processors for them."""
    if process is None or process.intra_op_threads is None or not process.usable_cpus:
        return False
    return process.intra_op_threads > process.usable_cpus


def look(whole: Whole) -> Finding | None:
    """Fires on a CPU where torch's threads outnumber the processors that the process may use."""
    process = whole.record.process
    on_cpu = (whole.record.model.device or "cpu").startswith("cpu")
    if not on_cpu or process is None or not oversubscribed(process):
        return None
    return whole.finding(
        "thread-oversubscription",
        "WARN",
        f"torch uses {process.intra_op_threads} threads within an operator, and the process may run on "
        f"{process.usable_cpus} processors: the threads wait for each other.",
        Evidence(
            metric="intra_op_threads",
            value=float(process.intra_op_threads or 0),
            threshold=float(process.usable_cpus or 0),
            source="measured",
        ),
        *(row for case in whole.cases[-1:] for row in case.evidence("unexplained_share")),
        saving=whole.saving(
            "that 50 to 90 % of what kernels lose, and of the time off the CPU, is lost to this, and up to 90 % of "
            "what calling operators takes: each waits for its threads (assumed)",
            {case.phase.name: _CHANGES for case in whole.cases},
        ),
        action="torch.set_num_threads(the number of physical cores this process may use), or OMP_NUM_THREADS before "
        "the start. Precondition: nothing; results may differ in the last bits.",
        not_helping="More threads, or a larger quota that is not there.",
        verify="run the same request with fewer threads; every phase's wall falls.",
    )
