"""Kernels that stay below their roof, though neither dispatch nor Python explains it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.advice import THROTTLES
from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.25


def look(case: Case) -> Finding | None:
    """Fires where time below the roofs, not explained by operator overhead, is a sizeable share."""
    share = case.share("inefficient")
    if case.cost is None or min(share, case.own_share) - _of_the_clock(case) < _WORTH_SAYING * case.ran_share:
        return None
    return case.finding(
        "kernel-inefficient",
        "OPT",
        f"{100 * share:.0f} % of {case.phase.name} is neither work at the roof nor overhead: its kernels run "
        f"below what this device gives ({_reached(case)}).",
        Evidence(metric="inefficient_share", value=share, threshold=_WORTH_SAYING, source="measured"),
        *case.evidence("roof_per_pass_ns", "dispatch_per_pass_ns", "recorded_kernel_share", "gemv_bytes_per_s"),
        saving=case.saving("that other kernels recover 20 to 80 % of it (assumed)", Change("kernels", 0.2, 0.8)),
        action="Try other kernels for the same work: another dtype, torch.compile, a thread count equal to the "
        "physical cores, larger batches (matrix times vector is the slowest kernel a CPU has).",
        not_helping="Buying bandwidth or FLOP/s: what is there is not used.",
        verify=f"change one of these; the share of roof rises, and {case.phase.name}'s wall falls.",
    )


def _reached(case: Case) -> str:
    share = case.verdict.roof_share
    return "share of roof unknown" if share is None else f"{100 * share:.0f} % of the roof inside forwards"


def _of_the_clock(case: Case) -> float:
    """Share of the phase that kernels may have lost to clocks that were held down, by a window of the GPU."""
    gpu = case.surroundings.gpu
    if gpu is None or not gpu.sm_clock_hz or not gpu.sm_clock_max_hz or not {*(gpu.clock_reasons or ())} & {*THROTTLES}:
        return 0.0
    return max(0.0, 1 - gpu.sm_clock_hz / gpu.sm_clock_max_hz)
