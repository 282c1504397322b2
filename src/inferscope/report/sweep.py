"""A sweep on a terminal: times beside predictions, knees, out of memory, and the batch that meets an objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from inferscope.analysis.knees import knee_words
from inferscope.report.units import UNKNOWN, clean, duration_ns, percent, ratio, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

    from inferscope.analysis.knees import Curve
    from inferscope.analysis.scatter import Timing
    from inferscope.analysis.sweep_summary import MemoryEdge, PointResult, SeriesResult, Sweep

__all__ = ["SweepView"]

_NARROW = 100
"""Below so many columns, intervals and what is counted are left to --json."""


class SweepView:
    """What `inferscope sweep` prints."""

    def __init__(self, sweep: Sweep) -> None:
        """Show this one."""
        self._sweep = sweep

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Setting by setting: the table, then what it says."""
        sweep = self._sweep
        limit = "" if sweep.memory_limit_bytes is None else f" · within {scaled(sweep.memory_limit_bytes, 'B')}"
        head = f"{sweep.model} on {sweep.device} · {sweep.requests} requests, up to {sweep.rounds} per point{limit}"
        yield Text(clean(head), style="bold")
        for series in sweep.series:
            yield Text()
            yield Text(clean(str(series.setting)), style="bold")
            yield _table(series, wide=options.max_width >= _NARROW)
            for line in _answers(series, sweep.objective):
                yield Text(clean(line))
        for note in sweep.notes:
            yield Text(clean(note), style="dim")


def _table(series: SeriesResult, *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    predicted = any(one.expected_ttft_ns is not None for one in series.points)
    names = ["tokens in", "batch", "TTFT", *(["predicted"] if predicted else []), "TPOT"]
    names += [*(["predicted"] if predicted else []), "tokens/s", *(["counted memory"] if wide else []), ""]
    for name in names:
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for one in series.points:
        row = [f"{one.point.input_tokens:,}", f"{one.point.batch_size:,}", _time(one.ttft_ns, wide=wide)]
        row += [_expected(one.expected_ttft_ns)] if predicted else []
        row.append(_time(one.tpot_ns, wide=wide))
        row += [_expected(one.expected_tpot_ns)] if predicted else []
        row.append(ratio(one.tokens_per_s))
        row += [scaled(one.needed_bytes, "B")] if wide else []
        table.add_row(*row, Text(clean(_became(one))))
    return table


def _became(one: PointResult) -> str:
    if one.status == "measured":
        return ""
    return f"{one.status} ({one.note})" if one.note else one.status


def _time(timing: Timing | None, *, wide: bool) -> str:
    if timing is None:
        return UNKNOWN
    shown = duration_ns(timing.value)
    if not wide or timing.low is None or timing.high is None:
        return shown
    return f"{shown} ±{percent((timing.high / timing.low) ** 0.5 - 1)}"


def _expected(times_ns: tuple[float, float, float] | None) -> str:
    return UNKNOWN if times_ns is None else duration_ns(times_ns[1])


def _answers(series: SeriesResult, objective: str | None) -> Iterator[str]:
    yield from _knees("decode", series.decode, "batch")
    yield from _knees("prefill", series.prefill, "prompt tokens")
    for edge in series.memory:
        yield f"memory, {edge.input_tokens:,} tokens in: {_edge(edge)}"
    for goodput in series.goodput:
        speed = "" if goodput.tokens_per_s is None else f" ({ratio(goodput.tokens_per_s)} tokens/s)"
        yield f"{objective}, {goodput.input_tokens:,} tokens in{speed}: {goodput.said}"


def _knees(phase: str, curve: Curve | str, unit: str) -> Iterator[str]:
    if isinstance(curve, str):
        yield f"{phase}: cannot tell: {curve}"
        return
    said = knee_words(curve.weight_knee)
    yield f"{phase}, weight knee ({unit} from which computing takes longer than the weights): {said}"
    if phase == "decode":
        said = knee_words(curve.cache_knee)
        yield f"{phase}, cache knee (cached tokens that take as long as all that is fixed): {said}"
    slopes = [f"fixed {duration_ns(curve.fixed_ns)}"]
    if curve.per_x_ns is not None:
        slopes.append(
            f"{duration_ns(curve.per_x_ns)} per {'sequence' if phase == 'decode' else 'token'} beyond the knee"
        )
    if curve.per_z_ns is not None:
        slopes.append(f"{duration_ns(curve.per_z_ns)} per {'cached token' if phase == 'decode' else 'pair of tokens'}")
    yield f"{phase}, fit: {', '.join(slopes)}; misfit {percent(curve.misfit_share)}"


def _edge(edge: MemoryEdge) -> str:
    said = "no batch ran" if edge.largest_run is None else f"batch {edge.largest_run:,} ran"
    said += ", none was out of memory" if edge.smallest_out is None else ""
    if edge.smallest_out is not None:
        said += f", batch {edge.smallest_out:,} is out of memory ({edge.source})"
    return said if edge.counted is None else f"{said}; counted: out of memory at batch {edge.counted:,}"
