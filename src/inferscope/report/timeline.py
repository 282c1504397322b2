"""One request after another in time: what the host did, what the device did, as far as the record holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferscope.report.chart import COLOURS, PHASES, Chart, Drawing, Grid, in_chart, short_id, time_axis
from inferscope.report.units import UNKNOWN, count, duration_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.verdict import Result
    from inferscope.records import GenerationRecord, PassSample

__all__ = ["lanes_missing", "timeline"]

PASSES_DRAWN = 400
"""Bars in one lane; more passes than that are drawn several to a bar, and said so."""


def timeline(kept: Sequence[Result]) -> Chart | None:
    """The requests that are kept whole, one to be chosen; None where there is none."""
    if not kept:
        return None
    drawings = tuple(_drawing(result.record) for result in kept)
    rows = [
        (
            result.record.request_id,
            result.record.model.name,
            duration_ns(result.record.wall_ns),
            duration_ns(result.record.ttft_ns),
            count(len(result.record.pass_samples)) if result.record.pass_samples else "not kept",
            lanes_missing(result.record) or "–",  # noqa: RUF001 - an en dash, as tables have it
        )
        for result in kept
    ]
    heading = ("request", "model", "wall", "TTFT", "passes kept", "not drawn")
    return Chart(
        key="timeline",
        summary="What the host and the device did during one request, from its start.",
        drawings=drawings,
        choose="Request" if len(drawings) > 1 else "",
        grid=Grid(heading=heading, rows=tuple(rows)),
    )


def lanes_missing(record: GenerationRecord) -> str:
    """What the record does not hold, and the timeline therefore does not show; "" where it is all there."""
    missing = []
    if not record.pass_samples:
        missing.append('single passes (trace with detail="passes" keeps them)')
    elif record.pass_samples_dropped:
        missing.append(f"{count(record.pass_samples_dropped)} passes beyond the cap")
    if not _device_bars(record):
        missing.append("the device's lane (no device times in the record)")
    if len(record.pass_samples) > PASSES_DRAWN:
        size = -(-len(record.pass_samples) // PASSES_DRAWN)
        missing.append(f"single passes: {size} to a bar")
    return "; ".join(missing)


_Bar = tuple[str, int, int, str, str]
"""Lane, start and length in ns, what kind, and words."""


def _drawing(record: GenerationRecord) -> Drawing:
    bars = [*_phase_bars(record), *_pass_bars(record.pass_samples), *_slow_bars(record), *_device_bars(record)]
    kinds = list(dict.fromkeys(kind for *_, kind, _ in bars))
    lanes = list(dict.fromkeys(lane for lane, *_ in bars))
    unit_ns, unit = time_axis(record.wall_ns)
    missing = lanes_missing(record)
    title = f"not drawn: {missing}" if missing else ""
    layout = {
        "height": 150 + 44 * len(lanes),
        "barmode": "overlay",
        "xaxis": {
            "title": {"text": f"{unit} from the start of the request"},
            "range": [0, record.wall_ns / unit_ns * 1.01],
        },
        "yaxis": {"autorange": "reversed", "automargin": True, "categoryarray": lanes, "categoryorder": "array"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        "meta": title,
    }
    label = f"{short_id(record.request_id)} · {duration_ns(record.wall_ns)} · {record.model.name}"
    return Drawing(label=label, data=[_trace(kind, bars, unit_ns) for kind in kinds], layout=layout)


def _trace(kind: str, bars: list[_Bar], unit_ns: float) -> dict[str, Any]:
    mine = [bar for bar in bars if bar[3] == kind]
    name = kind.partition("/")[0].removeprefix("device ").removeprefix("slow ")
    _, colour = PHASES.get(name, ("", COLOURS["grey"]))
    pattern = "/" if kind.startswith("slow ") else ""
    return {
        "type": "bar",
        "orientation": "h",
        "name": in_chart(kind),
        "y": [lane for lane, *_ in mine],
        "base": [start / unit_ns for _, start, *_ in mine],
        "x": [length / unit_ns for _, _, length, *_ in mine],
        "text": [in_chart(words) for *_, words in mine],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": _OWN_COLOURS.get(kind, colour),
            "line": {"width": 0.5, "color": "rgba(127,127,127,.6)"},
            "pattern": {"shape": pattern, "size": 6, "solidity": 0.35, "fillmode": "overlay", "fgcolor": "#fff"},
        },
    }


_OWN_COLOURS = {"setup": COLOURS["sky"], "tail": COLOURS["sky"], "queue": COLOURS["grey"]}


def _phase_bars(record: GenerationRecord) -> list[_Bar]:
    queue = record.ledger.queue_ns or 0
    bars = [("request", 0, queue, "queue", f"queue {duration_ns(queue)}")] if queue else []
    first = min((phase.start_ns for phase in record.phases), default=record.wall_ns)
    bars.append(("request", queue, max(first - queue, 0), "setup", f"setup {duration_ns(record.ledger.setup_ns)}"))
    for phase in record.phases:
        words = (
            f"{phase.name}: {count(phase.passes)} passes, {duration_ns(phase.wall_ns)}, from "
            f"{duration_ns(phase.start_ns)} to {duration_ns(phase.end_ns)}"
        )
        bars.append(("request", phase.start_ns, phase.end_ns - phase.start_ns, phase.name, words))
    last = max((phase.end_ns for phase in record.phases), default=0)
    if record.wall_ns > last:
        bars.append(("request", last, record.wall_ns - last, "tail", f"tail {duration_ns(record.ledger.tail_ns)}"))
    return bars


def _pass_bars(samples: Sequence[PassSample]) -> list[_Bar]:
    size = max(1, -(-len(samples) // PASSES_DRAWN))
    bars = []
    for first in range(0, len(samples), size):
        group = samples[first : first + size]
        one = group[0]
        end = group[-1].start_ns + group[-1].host_ns
        words = (
            f"passes {first} to {first + len(group) - 1}, {one.name}: {duration_ns(sum(p.host_ns for p in group))}"
            if len(group) > 1
            else f"pass {first}, {one.name}: {duration_ns(one.host_ns)} on the host, "
            f"{_known(one.batch_size)} sequences of {_known(one.q_len)} behind {_known(one.past_len)} tokens"
        )
        bars.append(("host passes", one.start_ns, end - one.start_ns, one.name, words))
    return bars


def _slow_bars(record: GenerationRecord) -> list[_Bar]:
    return [
        (
            "slowest cycles",
            worst.start_ns,
            worst.cycle_ns,
            f"slow {phase.name}",
            (
                f"{phase.name} pass {worst.index}: {duration_ns(worst.cycle_ns)}, {worst.cause} "
                f"{duration_ns(worst.excess_ns)} over the typical pass"
            ),
        )
        for phase in record.phases
        for worst in phase.worst
        if worst.excess_ns > 0
    ]


def _device_bars(record: GenerationRecord) -> list[_Bar]:
    timed = [(f"pass, {each.name}", each.name, each.device) for each in record.pass_samples]
    if not any(device is not None and device.start_ns is not None for *_, device in timed):
        timed = [(phase.name, phase.name, phase.device) for phase in record.phases]
    bars = []
    for label, name, device in timed:
        if device is None or device.start_ns is None or device.end_ns is None:
            continue
        words = (
            f"{label}: the device worked at least {duration_ns(device.low_ns)}, at most {duration_ns(device.high_ns)} "
            f"({device.provenance})"
        )
        bars.append(("device", device.start_ns, max(device.end_ns - device.start_ns, 0), f"device {name}", words))
    return bars


def _known(value: int | None) -> str:
    return UNKNOWN if value is None else count(value)
