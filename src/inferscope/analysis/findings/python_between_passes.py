"""Time between forwards: logits processors, stopping criteria, sampling, the streamer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence, Finding

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case

__all__ = ["look"]

_WORTH_SAYING = 0.15


def look(case: Case) -> Finding | None:
    """Fires where selecting and delivering tokens takes a sizeable share of a phase."""
    phase = case.phase
    if phase.name not in {"decode", "verify"} or phase.wall_ns <= 0:
        return None
    select = phase.ledger.select_ns / phase.wall_ns
    deliver = phase.ledger.deliver_ns / phase.wall_ns
    if max(select, deliver) < _WORTH_SAYING:
        return None
    worse, what = (select, "selecting tokens") if select >= deliver else (deliver, "the streamer")
    return Finding(
        code="python-between-passes",
        severity="OPT",
        phase=phase.name,
        claim=f"{100 * worse:.0f} % of {phase.name} is {what}, between the forwards, while the model does nothing.",
        evidence=(
            Evidence(metric="select_share", value=select, threshold=_WORTH_SAYING, source="measured"),
            Evidence(metric="deliver_share", value=deliver, threshold=_WORTH_SAYING, source="measured"),
        ),
        saves=case.saves(
            0.3 * worse,
            0.9 * worse,
            "that 30 to 90 % of it can go (assumed)",
        ),
        action="Look at logits processors and stopping criteria first: vectorise them or drop them. Let the streamer "
        "only queue tokens and decode text in another thread.",
        not_helping="Anything about the model: dtype, attention, compile. The time is not inside it.",
        verify="Remove one processor, criterion or the streamer at a time and compare select and deliver per pass.",
    )
