"""The host reads numbers from the device for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.recorded import waits_per_pass
from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_MINIMUM_PASSES = 2
_WORTH_ACTING = 0.05
_SEVERAL = 2.0
"""Waits per token from which on some are not generate's own."""
_IDLE = 0.25
"""Share of overhead from which on waits inside passes are taken to be a cause of it."""
_PLACES = 3


def look(case: Case) -> Finding | None:
    """Fires where the host reads at least once per pass; on a CPU it is only worth knowing.

    On a GPU waiting is no loss while the device works: it asks for action where the device is idle meanwhile, or where
    reads inside the passes keep host and device from working at the same time.
    """
    phase = case.phase
    counted = waits_per_pass(phase)
    if phase.name != "decode" or counted is None or phase.passes < _MINIMUM_PASSES or counted < 1:
        return None
    lint = case.surroundings.lint
    per_token = max(counted, lint.syncs_per_token if lint is not None else 0.0)
    idle = case.share("overhead")
    several = not case.on_cpu and per_token >= _SEVERAL and idle >= _IDLE
    between = not case.on_cpu and case.verdict.bound != "overhead" and idle >= _WORTH_ACTING
    places = _places(case)
    return case.finding(
        "sync-per-token",
        "OPT" if several or between else "INFO",
        _claim(case, per_token) + (f" Lines that wait: {places}." if places else ""),
        Evidence(metric="syncs_per_pass", value=counted, threshold=1.0, source="measured", note="a lower bound"),
        Evidence(metric="wait_share", value=case.part("wait"), source="measured", note="of the phase's wall"),
        *(_linted(places, lint.syncs_per_token) if lint is not None else ()),
        saving=case.saving(
            "that host and device work at the same time without the waits inside passes, which saves at most the "
            "shorter of the two (assumed)",
            Change("forward", 0.05, 0.5),
        )
        if several
        else None,
        action="Nothing on a CPU. On a GPU, keep numbers on the device (`torch.where` for `if`, tensors for `.item()`) "
        "and keep the next pass queued while the stop flag is read (a deferred stop check or a compiled decode loop). "
        "Precondition: one extra pass at the end is acceptable. `inferscope lint` names every line that waits.",
        not_helping="Pipeline parallelism: each stage waits for the token, too. Where there is one wait per token, "
        "looking for others: this one is in transformers' own loop.",
        verify="wait per pass falls, and the tokens are equal.",
    )


def _claim(case: Case, per_token: float) -> str:
    if case.phase.syncs is None:  # no stop check of generate's was seen: a loop of somebody's own
        what = f"The host reads from the device {per_token:.0f} times per pass"
    elif per_token >= _SEVERAL:
        what = f"The host reads from the device {per_token:.0f} times per token, most of them inside the pass"
    else:
        what = f"generate reads its stop flag on the host {per_token:.0f} time per token"
    if case.on_cpu:
        return f"{what}: free on a CPU, a synchronisation on a GPU."
    return f"{what}, which waits for the device each time."


def _linted(places: str, per_token: float) -> Iterable[Evidence]:
    return (Evidence(metric="syncs_per_token", value=per_token, source="analytic", note=f"lint: {places}"),)


def _places(case: Case) -> str:
    """The lines that wait, the most frequent first: as seen in passes that were looked at, else by the lint."""
    lint = case.surroundings.lint
    if case.phase.sync_points:
        seen = case.phase.sync_points[:_PLACES]
        return ", ".join(f"{one.caller_file or one.file}:{one.caller_line or one.line}" for one in seen)
    if lint is None:
        return ""
    points = [point for point in lint.sync_points if point.per_token > 0 and point.certainty == "certain"]
    points.sort(key=lambda point: -point.per_token)
    return ", ".join(
        f"{point.caller_file or point.file}:{point.caller_line or point.line} ({point.operator})"
        for point in points[:_PLACES]
    )
