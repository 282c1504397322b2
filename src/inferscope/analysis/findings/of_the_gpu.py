"""What a window of the GPU says about the request that ran in it: GPU-Util that misleads, clocks, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.utilisation import WindowSample, classify

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]


def look(whole: Whole) -> tuple[Finding, ...]:
    """The warnings that a monitor would give about the same window; nothing without one."""
    gpu = whole.surroundings.gpu
    return () if gpu is None else classify(WindowSample(gpus=(gpu,))).warnings
