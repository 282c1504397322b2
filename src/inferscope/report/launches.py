"""What passes start on the device and wait for, and what inferscope itself costs, in words: of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.report.units import clean, count, duration_ns, percent, ratio

if TYPE_CHECKING:
    from inferscope.records import GenerationRecord, OwnOverhead, PhaseRecord, StepCount, SyncSeen

__all__ = [
    "LAUNCHES_TITLE",
    "WAITS_TITLE",
    "change_of",
    "context_of",
    "launch_lines",
    "overhead_lines",
    "place_of",
    "wait_lines",
]

LAUNCHES_TITLE = "Launches and host reads"
WAITS_TITLE = "Where the host waited"
_STEPS_SHOWN = 4
_PLACES_SHOWN = 8


def launch_lines(record: GenerationRecord) -> tuple[str, ...]:
    """Per phase: launches and waits per pass, each with how it is known, and what each kind of pass launches."""
    lines = []
    for phase in record.phases:
        if phase.steps or phase.launches is not None or phase.syncs is not None:
            lines.append(f"{clean(phase.name)}: {_per_pass(phase)}")
            lines += [f"{clean(step.name)} passes: {_step(step)}" for step in phase.steps[:_STEPS_SHOWN]]
            left = len(phase.steps) - _STEPS_SHOWN
            if left > 0:
                lines.append(f"{count(left)} more kinds of {clean(phase.name)} passes")
    return tuple(lines)


def _per_pass(phase: PhaseRecord) -> str:
    passes = max(phase.passes, 1)
    token = "pass, which is a token of each sequence" if phase.name == "decode" else "pass"
    if phase.launches is not None:
        said = f"{ratio(phase.launches / passes)} kernels launched per {token} [{phase.launches_source}]"
    elif not phase.steps:
        said = "launches not counted"
    else:
        counted = sum(step.passes for step in phase.steps)
        said = f"of {count(phase.passes)} passes {count(counted)} are of a kind that was counted"
    if phase.syncs is not None:
        said += f" · host reads seen: {ratio(phase.syncs / passes)} per pass [bound: at least]"
    return said


def context_of(step: StepCount) -> str:
    """The passes that a count is of, as batch and context."""
    context = f"{count(step.context_from)} to {count(step.context_to)}"
    return f"batch {count(step.batch_size)}, context {context}"


def change_of(step: StepCount) -> str:
    """The alarm: what the count was before it changed for good, or that it never settles; "" without either."""
    if step.varies:
        return "not the same in each: the latest count"
    if step.launches_before is None or step.launches_before == step.launches:
        return ""
    return (
        f"CHANGED from {count(step.launches_before)}: a recompilation, a graph that breaks, or attention that runs "
        "another way"
    )


def _step(step: StepCount) -> str:
    parts = [f"{count(step.launches)} {step.unit}s each [{step.source}, {count(step.samples)} counted]"]
    if step.graph_launches:
        parts.append(f"{count(step.graph_launches)} graphs")
    if step.syncs is not None:
        parts.append(f"{count(step.syncs)} waits within")
    parts.append(f"{count(step.passes)} of {context_of(step)}")
    change = change_of(step)
    return " · ".join([*parts, change] if change else parts)


def wait_lines(record: GenerationRecord) -> tuple[str, ...]:
    """Per phase that was looked at: the lines at which the host waited for the device."""
    lines = []
    for phase in record.phases:
        if phase.sync_passes is None:
            continue
        looked = f"{clean(phase.name)}, {count(phase.sync_passes)} passes looked at"
        if not phase.sync_points:
            lines.append(f"{looked}: no wait seen")
        for point in phase.sync_points[:_PLACES_SHOWN]:
            each = ratio(point.count / phase.sync_passes if phase.sync_passes else None)
            lines.append(f"{looked}: {each} per pass at {place_of(point)}")
        left = len(phase.sync_points) - _PLACES_SHOWN
        if left > 0:
            lines.append(f"{looked}: {count(left)} more places")
    return tuple(lines)


def place_of(point: SyncSeen) -> str:
    """File and line, with the line of the caller's own that led there."""
    place = f"{point.file}:{point.line}"
    if point.caller_file is not None:
        place += f", called from {point.caller_file}:{point.caller_line}"
    return clean(place)


def overhead_lines(own: OwnOverhead | None) -> tuple[str, ...]:
    """What observing costs beside what it takes of one request: share, budget, and the comparison by chance."""
    if own is None:
        return ()
    share = (
        "its share of the time is not told before 32 requests and 10 s were observed"
        if own.self_share is None
        else f"{percent(own.self_share)} of the latest observed requests' time [measured], what is sampled left out"
    )
    return (
        f"{share}; the budget is {percent(own.budget_share)}, {percent(own.observed_share)} of requests are observed",
        _compared(own),
    )


def _compared(own: OwnOverhead) -> str:
    if own.per_token_ns is None or own.low_ns is None or own.high_ns is None:
        return (
            "what it costs per token, its own clock's blind spots included, is not known: that takes requests of one "
            "shape of which chance leaves some unobserved (sample_rate below 1)"
        )
    return (
        f"{duration_ns(own.per_token_ns)} per new token, between {duration_ns(own.low_ns)} and "
        f"{duration_ns(own.high_ns)} [{own.provenance}: {count(own.observed)} requests observed against "
        f"{count(own.bare)} left out by chance, 95 %]"
    )
