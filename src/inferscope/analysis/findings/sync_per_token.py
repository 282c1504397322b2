"""The host reads one number from the device after every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence, Finding

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case

__all__ = ["look"]

_MINIMUM_PASSES = 2
_WORTH_ACTING = 0.05


def look(case: Case) -> Finding | None:
    """Fires where at least one host read per pass was seen at its seam; on a CPU it is only worth knowing."""
    phase = case.phase
    if phase.name != "decode" or phase.syncs is None or phase.passes < _MINIMUM_PASSES:
        return None
    per_pass = phase.syncs / phase.passes
    if per_pass < 1:
        return None
    wait = (phase.ledger.wait_ns or 0) / phase.wall_ns if phase.wall_ns else 0.0
    on_cpu = (case.record.model.device or "cpu").startswith("cpu")
    return Finding(
        code="sync-per-token",
        severity="OPT" if not on_cpu and wait >= _WORTH_ACTING else "INFO",
        phase="decode",
        claim=f"generate reads its stop flag on the host {per_pass:.0f} time per token"
        + (": free on a CPU, a synchronisation on a GPU." if on_cpu else ", which waits for the device each time."),
        evidence=(
            Evidence(metric="syncs_per_pass", value=per_pass, threshold=1.0, source="measured", note="a lower bound"),
            Evidence(metric="wait_share", value=wait, source="measured", note="of the phase's wall"),
        ),
        saves=None,
        action="Nothing on a CPU. On a GPU, keep the next pass queued while the flag is read (a deferred stop check or "
        "a compiled decode loop). Precondition: one extra pass at the end is acceptable.",
        not_helping="Removing other reads first: this one is in transformers' own loop and returns every token.",
        verify="Compare wait per pass before and after; the tokens must be equal.",
    )
