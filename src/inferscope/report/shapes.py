"""Times over batch and prompt length, where the records have several: what a sweep measures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.report.chart import COLOURS, Chart, Drawing, Grid, in_chart, setup_label
from inferscope.report.charts import FAMILIES_SHOWN
from inferscope.report.phase_sums import median
from inferscope.report.units import UNKNOWN, count, duration_ns, ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.report.digest import Digest, Setup, SetupSum

__all__ = ["Knee", "knee", "shapes"]

LEAST_SHAPES = 3
LEAST_BATCHES = 3
CURVES = 12
_MS = 1e6
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star")


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where time per token over batch, fitted as fixed + per_sequence · batch, is twice its fixed part.

    Attributes:
        batch_size: There; None where it is not between the batches measured, or the fit has no such point.
        fixed_ns: What a pass costs whatever the batch.
        per_sequence_ns: What each sequence adds.
        note: How it was found, or why not, in words.
    """

    batch_size: float | None
    fixed_ns: float
    per_sequence_ns: float
    note: str


def knee(points: list[tuple[int, float]]) -> Knee | None:
    """The knee of (batch, ns per token), by least squares; None of fewer than three different batches."""
    batches = sorted({batch for batch, _ in points})
    if len(batches) < LEAST_BATCHES:
        return None
    x, y = sum(batch for batch, _ in points) / len(points), sum(time for _, time in points) / len(points)
    spread = sum((batch - x) ** 2 for batch, _ in points)
    slope = sum((batch - x) * (time - y) for batch, time in points) / spread
    fixed = y - slope * x
    how = f"least squares over {len(points)} medians; no interval"
    if slope <= 0:
        return Knee(batch_size=None, fixed_ns=fixed, per_sequence_ns=slope, note="no sequence costs time here: no knee")
    if fixed <= 0:
        return Knee(batch_size=None, fixed_ns=fixed, per_sequence_ns=slope, note="below the smallest batch measured")
    where = fixed / slope
    if not batches[0] <= where <= batches[-1]:
        side = "above the largest" if where > batches[-1] else "below the smallest"
        return Knee(batch_size=None, fixed_ns=fixed, per_sequence_ns=slope, note=f"{side} batch measured")
    return Knee(batch_size=where, fixed_ns=fixed, per_sequence_ns=slope, note=how)


def shapes(found: Digest) -> tuple[Chart, ...]:
    """TTFT, TPOT and throughput over batch (over prompt length where there is one batch); () where shapes are few."""
    families: dict[Setup, list[SetupSum]] = defaultdict(list)
    for each in found.setups.values():
        if each.setup.batch_size and each.setup.input_len:
            families[each.setup.family].append(each)
    enough = [each for each in families.values() if len(each) >= LEAST_SHAPES]
    curves = [_curves(setups) for setups in sorted(enough, key=len, reverse=True)[:FAMILIES_SHOWN]]
    if not curves:
        return ()
    charts = (
        ("ttft", "TTFT", "ms, median", lambda each: _scaled(median(each.ttfts_ns), _MS)),
        ("tpot", "TPOT", "ms, median", lambda each: _scaled(median(each.tpots_ns), _MS)),
        ("throughput", "Throughput", "new tokens per s", _throughput),
    )
    return tuple(
        Chart(
            key=f"shape-{key}",
            summary=f"{name} over {curves[0].axis}{_knee_words(curves) if key == 'tpot' else ''}",
            drawings=tuple(_drawing(each, value, unit, knees=key == "tpot") for each in curves),
            choose="Of" if len(curves) > 1 else "",
            grid=_grid(curves) if key == "tpot" else None,
        )
        for key, name, unit, value in charts
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curves:
    """One model's curves, each along the sizes of `axis`, and the knees of their times per token."""

    label: str
    axis: str
    lines: dict[str, list[SetupSum]]
    knees: dict[str, Knee]


def _curves(setups: list[SetupSum]) -> _Curves:
    by_batch = len({each.setup.batch_size for each in setups}) > 1
    lines: dict[str, list[SetupSum]] = defaultdict(list)
    for each in setups:
        lines[f"{each.setup.input_len:,} tokens in" if by_batch else f"batch {each.setup.batch_size:,}"].append(each)
    order = "batch_size" if by_batch else "input_len"
    longest = sorted(lines.items(), key=lambda item: -len(item[1]))[:CURVES]
    kept = {name: sorted(each, key=lambda one: getattr(one.setup, order)) for name, each in longest}
    knees = {name: found for name, each in kept.items() if by_batch and (found := knee(_times(each))) is not None}
    label = setup_label(setups[0].setup, sizes=False)
    return _Curves(label=label, axis="batch" if by_batch else "prompt tokens", lines=kept, knees=knees)


def _knee_words(curves: list[_Curves]) -> str:
    said = [f"{name}: {_where(one)}" for each in curves for name, one in each.knees.items()]
    return f", knees: {'; '.join(said)}" if said else ""


def _where(one: Knee) -> str:
    return one.note if one.batch_size is None else f"batch {ratio(one.batch_size)} ({one.note})"


def _times(line: list[SetupSum]) -> list[tuple[int, float]]:
    return [
        (each.setup.batch_size, value)
        for each in line
        if each.setup.batch_size is not None and (value := median(each.tpots_ns)) is not None
    ]


def _throughput(each: SetupSum) -> float | None:
    return each.output_tokens / (each.output_wall_ns / 1e9) if each.output_wall_ns else None


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _drawing(curves: _Curves, value: Callable[[SetupSum], float | None], unit: str, *, knees: bool) -> Drawing:
    axis, colours = curves.axis, list(COLOURS.values())
    hover = f"%{{fullData.name}}<br>{axis} %{{x}}: %{{y:.4g}}, %{{customdata}} requests<extra></extra>"
    field = "batch_size" if axis == "batch" else "input_len"
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": in_chart(name),
            "x": [getattr(each.setup, field) for each in line],
            "y": [value(each) for each in line],
            "customdata": [each.requests for each in line],
            "hovertemplate": hover,
            "marker": {"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 8},
            "line": {"color": colours[number % len(colours)]},
            "meta": "curve",
        }
        for number, (name, line) in enumerate(curves.lines.items())
    ]
    if knees:
        data += [_knee_mark(one) for one in curves.knees.values() if one.batch_size is not None]
    sizes = sorted({getattr(each.setup, field) for line in curves.lines.values() for each in line})
    layout = {
        "height": 340,
        "xaxis": {"type": "log", "tickvals": sizes, "title": {"text": axis}},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    }
    return Drawing(label=curves.label, data=data, layout=layout)


def _knee_mark(one: Knee) -> dict[str, Any]:
    where = one.batch_size or 0.0
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"knee at batch {ratio(where)}",
        "x": [where],
        "y": [(one.fixed_ns + one.per_sequence_ns * where) / _MS],
        "marker": {"symbol": "circle-open-dot", "size": 15, "color": COLOURS["red"], "line": {"width": 2}},
        "hovertemplate": "%{fullData.name}: twice the fixed time of a pass<extra></extra>",
        "meta": "knee",
    }


def _grid(curves: list[_Curves]) -> Grid:
    rows = tuple(
        (
            each_curves.label,
            count(each.setup.batch_size),
            count(each.setup.input_len),
            count(each.requests),
            duration_ns(median(each.ttfts_ns)),
            duration_ns(median(each.tpots_ns)),
            f"{ratio(_throughput(each))} token/s",
            _where(each_curves.knees[name]) if name in each_curves.knees else UNKNOWN,
        )
        for each_curves in curves
        for name, line in each_curves.lines.items()
        for each in line
    )
    heading = ("of what", "batch", "prompt tokens", "requests", "TTFT", "TPOT", "throughput", "knee of TPOT")
    return Grid(heading=heading, rows=rows)
