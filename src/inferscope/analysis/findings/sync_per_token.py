"""The host reads one number from the device after every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_MINIMUM_PASSES = 2
_WORTH_ACTING = 0.05
_PLACES = 3


def look(case: Case) -> Finding | None:
    """Fires where at least one host read per pass was seen at its seam; on a CPU it is only worth knowing."""
    phase = case.phase
    if phase.name != "decode" or phase.syncs is None or phase.passes < _MINIMUM_PASSES:
        return None
    per_pass = phase.syncs / phase.passes
    if per_pass < 1:
        return None
    wait, places = case.part("wait"), _places(case)
    lint = case.surroundings.lint
    counted = (
        ()
        if lint is None
        else (
            Evidence(metric="syncs_per_token", value=lint.syncs_per_token, source="analytic", note=f"lint: {places}"),
        )
    )
    return case.finding(
        "sync-per-token",
        "OPT" if not case.on_cpu and wait >= _WORTH_ACTING else "INFO",
        f"generate reads its stop flag on the host {per_pass:.0f} time per token"
        + (": free on a CPU, a synchronisation on a GPU." if case.on_cpu else ", which waits for the device each time.")
        + (f" Lines that wait: {places}." if places else ""),
        Evidence(metric="syncs_per_pass", value=per_pass, threshold=1.0, source="measured", note="a lower bound"),
        Evidence(metric="wait_share", value=wait, source="measured", note="of the phase's wall"),
        *counted,
        action="Nothing on a CPU. On a GPU, keep the next pass queued while the flag is read (a deferred stop check or "
        "a compiled decode loop). Precondition: one extra pass at the end is acceptable. `inferscope lint` names every "
        "line that waits.",
        not_helping="Removing other reads first: this one is in transformers' own loop and returns every token. "
        "Pipeline parallelism: each stage waits for the token, too.",
        verify="wait per pass falls, and the tokens are equal.",
    )


def _places(case: Case) -> str:
    """The lines that wait once for each token or more often, the most frequent first."""
    lint = case.surroundings.lint
    if lint is None:
        return ""
    points = [point for point in lint.sync_points if point.per_token > 0 and point.certainty == "certain"]
    points.sort(key=lambda point: -point.per_token)
    return ", ".join(
        f"{point.caller_file or point.file}:{point.caller_line or point.line} ({point.operator})"
        for point in points[:_PLACES]
    )
