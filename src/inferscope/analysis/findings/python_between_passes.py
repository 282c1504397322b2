"""Time between forwards: logits processors, stopping criteria, sampling, the streamer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.doubts import AWAY
from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.15


def look(case: Case) -> Finding | None:
    """Fires where selecting and delivering tokens takes a sizeable share of a phase.

    Under beam search or with an assistant, without processors of the caller's, it is the search itself or the matching
    of candidates, which have findings of their own. And
    where the thread was kept off the CPU, as much of that is taken to lie between the passes as of the phase does: only
    what a caller brought may be what it waited in.
    """
    phase, options = case.phase, case.record.options
    if phase.name not in {"decode", "verify"} or phase.wall_ns <= 0:
        return None
    select = phase.ledger.select_ns / phase.wall_ns
    deliver = phase.ledger.deliver_ns / phase.wall_ns
    if max(select, deliver) < _WORTH_SAYING:
        return None
    away = min(1.0, case.part("offcpu")) if case.on_cpu else 0.0
    if not options.processors and max(select, deliver) * (1 - away) < _WORTH_SAYING:
        return None
    searches = (options.num_beams or 1) > 1 or phase.name == "verify"
    if searches and not options.processors and deliver < _WORTH_SAYING:
        return None
    worse, what, term = (
        (select, "selecting tokens", "select") if select >= deliver else (deliver, "the streamer", "deliver")
    )
    brought = f" The caller brought {', '.join(options.processors)}." if options.processors else ""
    return case.finding(
        "python-between-passes",
        "OPT",
        f"{100 * worse:.0f} % of {phase.name} is {what}, between the forwards, while the model does nothing.{brought}",
        Evidence(metric="select_share", value=select, threshold=_WORTH_SAYING, source="measured"),
        Evidence(metric="deliver_share", value=deliver, threshold=_WORTH_SAYING, source="measured"),
        *((_off_cpu(away),) if away > AWAY else ()),
        saving=case.saving("that 30 to 90 % of it can go (assumed)", Change(term, 0.3, 0.9)),
        action="Look at logits processors and stopping criteria first: vectorise them or drop them. Let the streamer "
        "only queue tokens and decode text in another thread.",
        not_helping="Anything about the model: dtype, attention, compile. The time is not inside it.",
        verify="remove one processor, criterion or the streamer at a time; select and deliver per pass fall.",
    )


def _off_cpu(share: float) -> Evidence:
    return Evidence(
        metric="offcpu_share",
        value=share,
        threshold=AWAY,
        source="measured",
        note="of the phase the thread did not run, between passes or inside: a sleeping processor, or other work",
    )
