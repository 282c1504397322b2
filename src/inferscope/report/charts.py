"""The charts of the report: roofline, ledger, gaps between tokens. See also timeline.py and shapes.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.report.chart import (
    COLOURS,
    PHASES,
    Chart,
    Drawing,
    Grid,
    in_chart,
    part_colour,
    pattern,
    setup_label,
    short_id,
    time_axis,
)
from inferscope.report.summary import KINDS
from inferscope.report.units import UNKNOWN, count, duration_ns, percent, ratio, scaled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.report.digest import Digest, Row, SetupSum
    from inferscope.report.operator_sums import OperatorKey, OperatorSum
    from inferscope.report.phase_sums import PhaseSum
    from inferscope.specs import Ceiling, DeviceSpec

__all__ = ["FAMILIES_SHOWN", "gaps", "ledger", "ledgers", "roofline"]

FAMILIES_SHOWN = 8
GAP_BARS = 60
_GAMMA = 1.02
_MS = 1e6
_DECADE = 1.6
_MINOR = {"ticks": "outside", "showgrid": False, "dtick": "D1"}


def roofline(found: Digest, device: DeviceSpec, datasheet: DeviceSpec | None, *, number: int = 0) -> Chart | None:
    """Every phase and recorded operator on one device, under its roofs; None where no phase can be placed."""
    setups = [setup for setup in found.setups.values() if setup.roofs is not None and setup.roofs.key == device.key]
    marks = [(setup, phase) for setup in setups for phase in setup.phases.values() if phase.values["intensity"]]
    marks = [(setup, phase) for setup, phase in marks if phase.values["flops_per_s"]]
    if not marks:
        return None
    models = {setup.setup.model for setup in setups}
    operators = [
        (key, each) for key, each in found.operators.by_key.items() if each.flops_per_s and key.model in models
    ]
    roofs = _roofs(device, datasheet, {setup.setup.dtype or "" for setup in setups})
    lows = [phase.middle("intensity") or 1 for _, phase in marks] + [
        each.middle("intensity") or 1 for _, each in operators
    ]
    low, high = min(lows) / 3, max([*lows, *(roof.ridge for roof in roofs)]) * 4
    data = [_roof_trace(roof, low=low, high=high) for roof in roofs]
    data += [_phase_trace(name, [pair for pair in marks if pair[1].name == name]) for name in _phase_names(marks)]
    if operators:
        data.append(_operator_trace(operators))
    layout = {
        "height": 460,
        "xaxis": {
            "type": "log",
            "title": {"text": "FLOP per byte"},
            "range": [math.log10(low), math.log10(high)],
            "dtick": 1,
            "minor": _MINOR,
        },
        "yaxis": {"type": "log", "title": {"text": "FLOP/s"}, "exponentformat": "SI", "dtick": 1, "minor": _MINOR},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.2},
    }
    return Chart(
        key=f"roofline-{number}",
        summary=f"Roofline of {device.name}: achieved FLOP per second over FLOP per byte, for {len(marks)} phases and "
        f"{len(operators)} groups of operators, under {len(roofs)} roofs.",
        drawings=(Drawing(label="", data=data, layout=layout),),
        grid=_roofline_grid(marks, operators),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roof:
    """One bandwidth and one compute ceiling together; `shown` at once, or only when asked for."""

    label: str
    flops_per_s: float
    bytes_per_s: float
    source: str
    shown: bool

    @property
    def ridge(self) -> float:
        return self.flops_per_s / self.bytes_per_s


def _roofs(device: DeviceSpec, datasheet: DeviceSpec | None, dtypes: set[str]) -> list[_Roof]:
    """Every roof that can be drawn: those of the dtypes that ran are shown at once."""
    found = []
    for spec in (device, *([datasheet] if datasheet is not None and datasheet != device else [])):
        for dtype, compute in spec.compute_flops_per_s.items():
            for name, bandwidth in _bandwidths(spec, dtype if dtype in dtypes else None):
                sources = dict.fromkeys((compute.source, bandwidth.source))
                label = f"{dtype} {scaled(compute.value, 'FLOP/s')}, {name} {scaled(bandwidth.value, 'B/s')}"
                roof = _Roof(
                    label=f"{label} (dense, {'/'.join(sources)})",
                    flops_per_s=compute.value,
                    bytes_per_s=bandwidth.value,
                    source="/".join(sources),
                    shown=dtype in dtypes,
                )
                found.append(roof)
    return found


def _bandwidths(spec: DeviceSpec, dtype: str | None) -> list[tuple[str, Ceiling]]:
    """Those of a dtype that ran; of others the copy alone."""
    found = [] if spec.copy_bytes_per_s is None else [("memory copy", spec.copy_bytes_per_s)]
    if dtype is not None and dtype in spec.gemv_bytes_per_s:
        found.append(("matrix·vector", spec.gemv_bytes_per_s[dtype]))
    if dtype is not None and spec.cache_bytes_per_s is not None:
        found.append(("copy in cache", spec.cache_bytes_per_s))
    return found


def _roof_trace(roof: _Roof, *, low: float, high: float) -> dict[str, Any]:
    low, high = min(low, roof.ridge / 2), max(high, roof.ridge * 2)
    cached = "cache" in roof.label
    return {
        "type": "scatter",
        "mode": "lines",
        "name": in_chart(roof.label),
        "x": [low, roof.ridge, high],
        "y": [low * roof.bytes_per_s, roof.flops_per_s, roof.flops_per_s],
        "line": {
            "dash": ("dot" if cached else "solid") if roof.source == "measured" else "dash",
            "width": 1.5 if cached or "vector" in roof.label else 2.5,
            "color": COLOURS["grey" if cached else "green" if "vector" in roof.label else "red"],
        },
        "visible": True if roof.shown else "legendonly",
        "hovertemplate": "%{fullData.name}<extra></extra>",
        "meta": "roof",
    }


def _phase_names(marks: list[tuple[SetupSum, PhaseSum]]) -> list[str]:
    return list(dict.fromkeys(phase.name for _, phase in marks))


def _phase_trace(name: str, marks: list[tuple[SetupSum, PhaseSum]]) -> dict[str, Any]:
    symbol, colour = PHASES.get(name, ("star", COLOURS["grey"]))
    texts = [
        f"{in_chart(setup_label(setup.setup))}<br>{in_chart(name)}: {phase.bound}, median of "
        f"{len(phase.values['flops_per_s'])} requests<br>{scaled(phase.middle('flops_per_s'), 'FLOP/s')}, "
        f"{scaled(phase.middle('bytes_per_s'), 'B/s')}, {ratio(phase.middle('intensity'))} FLOP per byte"
        for setup, phase in marks
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": in_chart(name),
        "x": [phase.middle("intensity") for _, phase in marks],
        "y": [phase.middle("flops_per_s") for _, phase in marks],
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 1, "color": "#fff"}},
        "meta": "phase",
    }


def _operator_trace(operators: list[tuple[OperatorKey, OperatorSum]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "operators of recorded passes",
        "x": [each.middle("intensity") for _, each in operators],
        "y": [each.middle("flops_per_s") for _, each in operators],
        "text": [
            f"{in_chart(key.phase)} {in_chart(key.group)}<br>{scaled(each.middle('flops_per_s'), 'FLOP/s')}, "
            f"{percent(each.share)} of the recorded passes"
            for key, each in operators
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "square-open", "size": 10, "color": COLOURS["pink"], "line": {"width": 2}},
        "meta": "operator",
    }


def _roofline_grid(marks: list[tuple[SetupSum, PhaseSum]], operators: list[tuple[OperatorKey, OperatorSum]]) -> Grid:
    rows = [
        (
            setup_label(setup.setup),
            phase.name,
            ratio(phase.middle("intensity")),
            scaled(phase.middle("flops_per_s"), "FLOP/s"),
            scaled(phase.middle("bytes_per_s"), "B/s"),
            percent(phase.middle("roof_share")),
            phase.bound,
        )
        for setup, phase in marks
    ]
    rows += [
        (
            key.model,
            f"{key.phase}: {key.group}",
            ratio(each.middle("intensity")),
            scaled(each.middle("flops_per_s"), "FLOP/s"),
            UNKNOWN,
            percent(each.middle("roof_share")),
            each.bounds.most_common(1)[0][0] if each.bounds else UNKNOWN,
        )
        for key, each in operators
    ]
    heading = ("of what", "phase", "FLOP per byte", "FLOP/s", "B/s", "share of roof", "bound")
    return Grid(heading=heading, rows=tuple(rows))


def ledger(found: Digest) -> Chart:
    """Where the time of all requests went, part after part, and the same for each model."""
    families = found.families
    sums = [("all requests", found.total)] if len(families) != 1 else []
    sums += [(setup_label(each.setup), each) for each in families[:FAMILIES_SHOWN]]
    drawings = tuple(_waterfall(label, each) for label, each in sums)
    whole = sums[0][1]
    return Chart(
        key="ledger",
        summary=f"Where {duration_ns(whole.wall_ns)} of {count(whole.requests)} requests went: each part of the ledger "
        "begins where the one before ends, and the last ends at the wall.",
        drawings=drawings,
        choose="Requests of" if len(drawings) > 1 else "",
        grid=_ledger_grid(whole),
    )


def _waterfall(label: str, whole: SetupSum) -> Drawing:
    parts = [(phase, kind, time_ns) for (phase, kind), time_ns in whole.parts.items() if time_ns]
    unit_ns, unit = time_axis(whole.wall_ns)
    base, bases = 0, []
    for *_, time_ns in parts:
        bases.append(base / unit_ns)
        base += time_ns
    bars = [
        _bar(
            f"{phase} {kind}".strip(),
            bases[number],
            time_ns / unit_ns,
            f"{duration_ns(time_ns)} · {percent(time_ns / whole.wall_ns)}",
            {"color": part_colour(phase, kind), "pattern": pattern(kind)},
        )
        | {"customdata": [KINDS[kind].meaning]}
        for number, (phase, kind, time_ns) in enumerate(parts)
    ]
    wall = _bar("wall", 0, whole.wall_ns / unit_ns, duration_ns(whole.wall_ns), {"color": COLOURS["grey"]})
    bars.append(wall | {"customdata": ["all parts together"]})
    layout = {
        "barmode": "overlay",
        "height": 110 + 26 * (len(parts) + 1),
        "xaxis": {"title": {"text": f"{unit}, summed over the requests"}, "range": [0, whole.wall_ns / unit_ns * 1.16]},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "showlegend": False,
    }
    return Drawing(label=label, data=bars, layout=layout)


def _bar(name: str, base: float, length: float, text: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "y": [in_chart(name)],
        "x": [length],
        "base": [base],
        "text": [text],
        "textposition": "auto",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{text}<br>%{customdata}<extra></extra>",
        "marker": marker,
    }


def _ledger_grid(whole: SetupSum) -> Grid:
    rows = [
        (
            f"{phase} {kind}".strip(),
            duration_ns(time_ns),
            f"{time_ns:,}",
            percent(_share(time_ns, whole.wall_ns)),
            meaning,
        )
        for (phase, kind), time_ns in whole.parts.items()
        for meaning in [KINDS[kind].meaning]
    ]
    rows += [
        (f"{phase} {kind}".strip(), UNKNOWN, UNKNOWN, UNKNOWN, f"not known apart in {count(requests)} requests")
        for (phase, kind), requests in whole.unmarked.items()
    ]
    total = sum(whole.parts.values())
    rows.append(
        ("sum of the parts", duration_ns(total), f"{total:,}", percent(_share(total, whole.wall_ns)), "the wall")
    )
    return Grid(heading=("part", "time", "ns", "share", "what it is"), rows=tuple(rows))


def ledgers(found: Digest) -> Chart:
    """The ledger of single requests, as bars of stacked parts."""
    rows = found.rows
    kinds = list(dict.fromkeys((phase, kind) for row in rows for phase, kind, _ in row.parts))
    names = [f"{short_id(row.request_id)} · {duration_ns(row.wall_ns)}" for row in rows]
    unit_ns, unit = time_axis(rows[0].wall_ns if rows else 0)
    data = [_stack(part, rows, names, unit_ns) for part in kinds]
    layout = {
        "barmode": "stack",
        "height": 150 + 20 * len(rows),
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
    }
    heading = ("request", "of what", "wall", *(f"{phase} {kind}".strip() for phase, kind in kinds))
    cells = tuple(
        (row.request_id, setup_label(row.setup), duration_ns(row.wall_ns), *(_part(row, part) for part in kinds))
        for row in rows
    )
    return Chart(
        key="ledgers",
        summary=f"Ledgers of {len(rows)} single requests, the slowest first.",
        drawings=(Drawing(label="", data=data, layout=layout),),
        grid=Grid(heading=heading, rows=cells),
    )


def _stack(part: tuple[str, str], rows: Iterable[Row], names: list[str], unit_ns: float) -> dict[str, Any]:
    phase, kind = part
    times = [sum(time_ns for *key, time_ns in row.parts if tuple(key) == part) for row in rows]
    return {
        "type": "bar",
        "orientation": "h",
        "name": f"{in_chart(phase)} {kind}".strip(),
        "y": names,
        "x": [time_ns / unit_ns for time_ns in times],
        "text": [duration_ns(time_ns) for time_ns in times],
        "textposition": "none",
        "hovertemplate": "%{fullData.name}: %{text}<extra>%{y}</extra>",
        "marker": {"color": part_colour(phase, kind), "pattern": pattern(kind)},
    }


def _part(row: Row, part: tuple[str, str]) -> str:
    return duration_ns(sum(time_ns for phase, kind, time_ns in row.parts if (phase, kind) == part))


def gaps(found: Digest) -> Chart | None:
    """How long the gaps between tokens were; None where no record holds them."""
    families = [each for each in found.families if each.itl.buckets][:FAMILIES_SHOWN]
    if not families:
        return None
    drawings = tuple(_histogram(setup_label(each.setup), each) for each in families)
    sketch = families[0].itl.finished()
    rows = []
    for each in families:
        one = each.itl.finished()
        quantiles = (one.p50, one.p90, one.p99, one.max)
        rows.append((setup_label(each.setup), count(one.count), *(duration_ns(value) for value in quantiles)))
    return Chart(
        key="gaps",
        summary=f"Gaps between tokens: {count(sketch.count)} of them, half below {duration_ns(sketch.p50)}, one in a "
        f"hundred above {duration_ns(sketch.p99)}.",
        drawings=drawings,
        choose="Requests of" if len(drawings) > 1 else "",
        grid=Grid(heading=("of what", "gaps", "p50", "p90", "p99", "max"), rows=tuple(rows)),
    )


def _histogram(label: str, each: SetupSum) -> Drawing:
    sketch = each.itl.finished()
    first, last = sketch.buckets[0][0], sketch.buckets[-1][0]
    width = max(1, -(-(last - first + 1) // GAP_BARS))
    counts: dict[int, int] = {}
    for index, number in sketch.buckets:
        counts[(index - first) // width] = counts.get((index - first) // width, 0) + number
    ends = [
        (_GAMMA ** (first + width * bar - 1) / _MS, _GAMMA ** (first + width * (bar + 1) - 1) / _MS) for bar in counts
    ]
    bars = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in ends],
        "width": [high - low for low, high in ends],
        "y": list(counts.values()),
        "text": [f"{duration_ns(low * _MS)} to {duration_ns(high * _MS)}" for low, high in ends],
        "textposition": "none",
        "hovertemplate": "%{text}: %{y} gaps<extra></extra>",
        "marker": {"color": COLOURS["blue"]},
    }
    quantiles = (
        ("p50", sketch.p50, 1.0),
        ("p90", sketch.p90, 0.93),
        ("p99", sketch.p99, 0.86),
        ("max", sketch.max, 0.79),
    )
    low, high = math.log10(ends[0][0]), math.log10(max(ends[-1][1], ends[0][0] * _DECADE))
    layout = {
        "height": 340,
        "xaxis": {"type": "log", "title": {"text": "ms between two tokens"}, "range": [low - 0.02, high + 0.02]},
        "yaxis": {"title": {"text": "gaps"}},
        "bargap": 0,
        "showlegend": False,
        "shapes": [_line(value) for _, value, _ in quantiles if value],
        "annotations": [_note(name, value, y) for name, value, y in quantiles if value],
    }
    return Drawing(label=label, data=[bars], layout=layout)


def _line(value_ns: int) -> dict[str, Any]:
    x = value_ns / _MS
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "width": 1.5, "color": COLOURS["red"]},
    }


def _note(name: str, value_ns: int, y: float) -> dict[str, Any]:
    return {
        "x": math.log10(value_ns / _MS),
        "y": y,
        "xref": "x",
        "yref": "paper",
        "showarrow": False,
        "text": f"{name} {duration_ns(value_ns)}",
        "xanchor": "right",
        "yanchor": "top",
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
