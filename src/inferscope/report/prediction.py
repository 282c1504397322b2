"""Predictions side by side: a table, a roofline in characters, and everything that was assumed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from inferscope.report.units import UNKNOWN, clean, duration_ns, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from inferscope.analysis.prediction import Estimate, PhasePrediction, Prediction
    from inferscope.specs import DeviceSpec

__all__ = ["PredictionView", "roofline"]

_WIDTH = 64
_HEIGHT = 12
_LEAST_INTENSITY = -1.0
_MARKS = "123456789abcdefghijklmnopqrstuvwxyz"


class PredictionView:
    """What `inferscope predict` prints."""

    def __init__(
        self, predictions: Sequence[Prediction], devices: Sequence[DeviceSpec], refused: Sequence[str] = ()
    ) -> None:
        """Show these.

        Args:
            predictions: Of one model.
            devices: Those that they are for.
            refused: What could not be predicted, in words.
        """
        self._predictions = tuple(predictions)
        self._devices = tuple(devices)
        self._refused = tuple(refused)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts, one after the other."""
        if self._predictions:
            first = self._predictions[0]
            yield Text(
                clean(
                    f"{first.model} · {first.dtype}"
                    + (f" · weights {first.quantization}" if first.quantization else "")
                    + (f" · cache {first.kv_dtype}" if first.kv_dtype != first.dtype else "")
                    + f" · {first.input_tokens} tokens in, {first.output_tokens} out · {first.execution}"
                )
            )
            yield _table(self._predictions, options.max_width)
            for device in self._devices:
                own = [(mark, one) for mark, one in self._marked() if one.device == device.name]
                if own:
                    yield Text(roofline(device, own))
        for line in self._notes():
            yield Text(clean(line))

    def _marked(self) -> list[tuple[str, Prediction]]:
        return [(_MARKS[number % len(_MARKS)], one) for number, one in enumerate(self._predictions)]

    def _notes(self) -> list[str]:
        rows: list[str] = []
        for title, name in (("How obtained", "provenance"), ("Assumed", "assumptions")):
            found = dict.fromkeys(row for one in self._predictions for row in getattr(one, name))
            if found:
                rows += ["", title, *(f"  {row}" for row in found)]
        if self._refused:
            rows += ["", "Not predicted", *(f"  {row}" for row in self._refused)]
        return rows


_COLUMNS = ("", "device", "batch", "TTFT", "TPOT", "tokens/s", "prefill", "decode", "memory", "")
_NARROW = 72
"""With fewer characters than these, columns would be cut to nothing."""


def _table(predictions: Sequence[Prediction], width: int) -> Table:
    if width < _NARROW:
        return _list(predictions)
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in {"batch", "TTFT", "TPOT", "tokens/s", "memory"} else "left")
    for number, one in enumerate(predictions):
        table.add_row(*_cells(number, one))
    return table


def _list(predictions: Sequence[Prediction]) -> Table:
    """One below the other, a line for each column."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for number, one in enumerate(predictions):
        for name, cell in zip(_COLUMNS, _cells(number, one), strict=True):
            table.add_row(name, cell.replace("\n", " "))
    return table


def _cells(number: int, one: Prediction) -> tuple[str, ...]:
    memory = one.memory
    return (
        _MARKS[number % len(_MARKS)],
        clean(one.device),
        str(one.batch_size),
        _time(one.ttft_s),
        _time(one.tpot_s),
        _rate(one.tokens_per_s),
        _bound(one.phase("prefill")),
        _bound(one.phase("decode")),
        UNKNOWN if memory.total_bytes is None else scaled(memory.total_bytes, "B"),
        memory.verdict,
    )


def _time(value: Estimate | None) -> str:
    if value is None:
        return UNKNOWN
    low, mid, high = (duration_ns(1e9 * part) for part in (value.low, value.mid, value.high))
    return f"{mid}\n({low} to {high})"


def _rate(value: Estimate) -> str:
    return f"{_figures(value.mid)}\n({_figures(value.low)} to {_figures(value.high)})"


def _figures(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def _bound(phase: PhasePrediction | None) -> str:
    if phase is None:
        return UNKNOWN
    return f"{phase.bound}\n{100 * phase.shares[phase.bound]:.0f} %"


def roofline(device: DeviceSpec, marked: Sequence[tuple[str, Prediction]]) -> str:
    """A roofline in characters: phases as marks, on logarithmic scales, under the device's roofs.

    The slope is bandwidth, the flat part compute; prefill stands as its mark, decode as its mark too, further left.

    Args:
        device: Whose roofs to draw.
        marked: Predictions for it, each with the character that stands for it.

    Returns:
        Lines of text; "" where a roof is not known.
    """
    memory = device.copy_bytes_per_s
    peak = device.compute_flops_per_s.get(marked[0][1].dtype)
    if memory is None or peak is None:
        return ""
    phases = [(mark, phase) for mark, one in marked for phase in one.phases if phase.cost.arithmetic_intensity]
    intensities = [math.log10(phase.cost.arithmetic_intensity or 1.0) for _, phase in phases]
    ridge = math.log10(peak.value / memory.value)
    left, right = min([_LEAST_INTENSITY + 1, *intensities]) - 0.3, max([ridge, *intensities]) + 0.7
    top = math.log10(peak.value) + 0.15
    bottom = min([math.log10(memory.value) + left, *(math.log10(phase.flops_per_s) for _, phase in phases)]) - 0.15
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]

    def put(x: float, y: float, mark: str) -> None:
        column = round((x - left) / (right - left) * (_WIDTH - 1))
        row = round((top - y) / (top - bottom) * (_HEIGHT - 1))
        grid[min(max(row, 0), _HEIGHT - 1)][min(max(column, 0), _WIDTH - 1)] = mark

    for column in range(_WIDTH):
        x = left + (right - left) * column / (_WIDTH - 1)
        put(x, min(math.log10(memory.value) + x, math.log10(peak.value)), "-" if x > ridge else "/")
    for mark, phase in phases:
        put(math.log10(phase.cost.arithmetic_intensity or 1.0), math.log10(phase.flops_per_s), mark)
    certainty = f", certainty {device.certainty}" if device.certainty else ""
    head = (
        f"\n{clean(device.name)}: {scaled(peak.value, 'FLOP/s')} dense {marked[0][1].dtype}, "
        f"{scaled(memory.value, 'B/s')} ({peak.source}{certainty}), ridge {peak.value / memory.value:.0f} FLOP/B"
    )
    lines = ["  │" + "".join(row).rstrip() for row in grid]
    axis = "  └" + "─" * _WIDTH
    foot = f"   {10**left:.2g}{'FLOP per byte':^{_WIDTH - 12}}{10**right:.2g}"
    return "\n".join([head, *lines, axis, foot])
