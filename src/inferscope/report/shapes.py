"""Times over batch and prompt length, where the records have several: what a sweep measures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.analysis.knees import decode_size, fit_curve, knee_words
from inferscope.analysis.scatter import scatter_of
from inferscope.report.chart import COLOURS, Chart, Drawing, Grid, in_chart, setup_label
from inferscope.report.charts import FAMILIES_SHOWN
from inferscope.report.phase_sums import median
from inferscope.report.units import count, duration_ns, ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.analysis.knees import Curve, Knee
    from inferscope.report.digest import Digest, Setup, SetupSum

__all__ = ["shapes"]

LEAST_SHAPES = 3
CURVES = 12
TIMES_FITTED = 32
"""Of each shape: beyond these the scatter is known, and pairs of times become many."""
_MS = 1e6
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star")


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
    """One model's curves, each along the sizes of `axis`, and what was fitted to the times per token of all of them.

    Attributes:
        label: Whose.
        axis: "batch" or "prompt tokens".
        lines: By what is the same along each.
        fit: Over batches; in words, why there is none.
    """

    label: str
    axis: str
    lines: dict[str, list[SetupSum]]
    fit: Curve | str


def _curves(setups: list[SetupSum]) -> _Curves:
    by_batch = len({each.setup.batch_size for each in setups}) > 1
    lines: dict[str, list[SetupSum]] = defaultdict(list)
    for each in setups:
        lines[f"{each.setup.input_len:,} tokens in" if by_batch else f"batch {each.setup.batch_size:,}"].append(each)
    order = "batch_size" if by_batch else "input_len"
    longest = sorted(lines.items(), key=lambda item: -len(item[1]))[:CURVES]
    kept = {name: sorted(each, key=lambda one: getattr(one.setup, order)) for name, each in longest}
    return _Curves(
        label=setup_label(setups[0].setup, sizes=False),
        axis="batch" if by_batch else "prompt tokens",
        lines=kept,
        fit=_fit(setups),
    )


def _knee_words(curves: list[_Curves]) -> str:
    fits = [each.fit for each in curves if each.axis == "batch"]
    said = [fit if isinstance(fit, str) else _told(fit.weight_knee) for fit in fits]
    return f"; weight knee: {'; '.join(said)}" if said else ""


def _told(knee: Knee) -> str:
    words = knee_words(knee)
    return words if None in {knee.value, knee.low, knee.high} else f"batch {words}"


def _fit(setups: list[SetupSum]) -> Curve | str:
    """Of all batches and prompt lengths together, as a sweep fits its points."""
    sizes: list[tuple[float, float]] = []
    times: list[dict[int, float]] = []
    for each in setups:
        size = _size(each)
        if size is not None and each.tpots_ns:
            step = -(-len(each.tpots_ns) // TIMES_FITTED)
            sizes.append(size)
            # Records of a report may come from anywhere: no two of them are taken for one round.
            first = len(times) * TIMES_FITTED
            times.append(dict(enumerate(each.tpots_ns[::step], first)))
    return fit_curve(sizes, scatter_of(times)) if times else "no time per token is known"


def _size(each: SetupSum) -> tuple[float, float] | None:
    batch, tokens = each.setup.batch_size, each.setup.input_len
    if not batch or not tokens:
        return None
    return decode_size(batch, tokens, each.output_tokens / each.requests / batch)


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
    if knees and not isinstance(curves.fit, str):
        data += _knee_mark(curves, curves.fit)
    sizes = sorted({getattr(each.setup, field) for line in curves.lines.values() for each in line})
    layout = {
        "height": 340,
        "xaxis": {"type": "log", "tickvals": sizes, "title": {"text": axis}},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    }
    return Drawing(label=curves.label, data=data, layout=layout)


def _knee_mark(curves: _Curves, fit: Curve) -> list[dict[str, Any]]:
    """The weight knee, on the fit of the first line; none where it cannot be told."""
    where, per_z = fit.weight_knee.value, fit.per_z_ns or 0.0
    first = _size(next(iter(curves.lines.values()))[0])
    if where is None or first is None or curves.axis != "batch":
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"weight knee: {_told(fit.weight_knee)}",
            "x": [where],
            "y": [(fit.fixed_ns + per_z * where * first[1] / first[0]) / _MS],
            "marker": {"symbol": "circle-open-dot", "size": 15, "color": COLOURS["red"], "line": {"width": 2}},
            "hovertemplate": "%{fullData.name}<extra></extra>",
            "meta": "knee",
        }
    ]


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
        )
        for each_curves in curves
        for line in each_curves.lines.values()
        for each in line
    )
    heading = ("of what", "batch", "prompt tokens", "requests", "TTFT", "TPOT", "throughput")
    return Grid(heading=heading, rows=rows)
