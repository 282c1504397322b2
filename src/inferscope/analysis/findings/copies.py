"""Copies inside forwards: between host and device, or from one layout or dtype to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.10
_NAMED = 3


def look(case: Case) -> Finding | None:
    """Fires where recorded operators say that copies other than the growing cache take much of the forwards."""
    communication = case.share("communication")
    copies = case.part("copies")
    share = max(copies, communication)
    if share < _WORTH_SAYING:
        return None
    largest = _largest(case)
    what = "copies" if case.on_cpu else "copies and transfers"
    return case.finding(
        "copies-in-forward",
        "OPT",
        f"{share:.0%} of {case.phase.name} is {what} inside its forwards{largest}.",
        Evidence(
            metric="copy_share",
            value=copies,
            threshold=_WORTH_SAYING,
            source="measured",
            note="of the phase, from recorded passes",
        ),
        Evidence(metric="communication_share", value=communication, threshold=_WORTH_SAYING, source="measured"),
        saving=case.saving(
            "that 50 to 100 % of the copies are not needed (assumed)",
            Change("communication" if communication > copies else "copies", 0.5, 1.0),
        ),
        action="Look for `.to(...)`, `.cpu()`, `.contiguous()` and casts in the forward: make the tensors where and "
        "how they are used, once, before the loop. Transfers that stay: pinned memory and `non_blocking=True`.",
        not_helping="A faster device: it would wait for the same transfers.",
        verify="copies per pass fall in the recorded operators (`deep_every=1`).",
    )


def _largest(case: Case) -> str:
    """The copies that took longest, with how often they ran."""
    deep = case.phase.deep
    if deep is None or deep.passes <= 0:
        return ""
    named = [entry for entry in deep.largest if entry.group == "copy"][:_NAMED]
    said = ", ".join(f"{entry.name} ({entry.calls // deep.passes} per pass)" for entry in named)
    return f": {said}" if said else ""
