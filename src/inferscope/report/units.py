"""Numbers as people read them. What is unknown is a dash: never 0, never a guess."""

from __future__ import annotations

import math

__all__ = [
    "UNKNOWN",
    "clean",
    "count",
    "duration_ns",
    "metric",
    "percent",
    "ratio",
    "scaled",
]

UNKNOWN = "–"  # noqa: RUF001 - an en dash, as tables have it

_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_MINUTE_NS = 60e9
_SMALLEST_SHARE = 5e-5
_SUFFIXES = (
    ("_bytes_per_s", "B/s"),
    ("_flops_per_s", "FLOP/s"),
    ("_tokens_per_s", "token/s"),
    ("_bytes", "B"),
    ("_flops", "FLOP"),
    ("_hz", "Hz"),
)
_RATIOS = ("mfu", "mbu")


def duration_ns(value: float | None) -> str:
    """A duration given in nanoseconds, three figures: "88.4 ms", "1.23 s", "2 min 05 s"."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    value = _rounded(value)
    if abs(value) >= _MINUTE_NS:
        minutes, seconds = divmod(round(abs(value) / 1e9), 60)
        return f"{'-' if value < 0 else ''}{minutes} min {seconds:02d} s"
    return _with_unit(value, _TIMES, "ns")


def scaled(value: float | None, unit: str) -> str:
    """A quantity with a decimal prefix, three figures: 9.74e10 FLOP/s read "97.4 GFLOP/s"."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return _with_unit(_rounded(value), tuple((factor, prefix + unit) for factor, prefix in _PREFIXES), unit)


def percent(share: float | None) -> str:
    """A share (0..1) in percent, to a hundredth: "12.3 %", "0.04 %", "100 %"."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    if 0 < abs(share) < _SMALLEST_SHARE:
        return "< 0.01 %"
    value = _rounded(100 * share)
    return f"{_figures(value) if abs(value) >= 1 or value == 0 else f'{value:.2f}'} %"


def ratio(value: float | None) -> str:
    """A plain number, three figures; whole numbers are whole."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.0f}" if value == int(value) else _figures(_rounded(value))


def count(value: int | None) -> str:
    """A whole number with thousands apart."""
    return UNKNOWN if value is None else f"{value:,}"


def metric(name: str, value: float | None) -> str:
    """A number in the unit that its name ends with: 1200 of a "wait_ns" read "1.20 µs"."""
    if name.endswith("_share") or name in _RATIOS:
        return percent(value)
    if name.endswith("_ns"):
        return duration_ns(value)
    for suffix, unit in _SUFFIXES:
        if name.endswith(suffix):
            return scaled(value, unit)
    if name.endswith("_s"):
        return duration_ns(None if value is None else value * 1e9)
    return ratio(value)


def clean(text: str) -> str:
    """Text from outside without control characters: a model's name must not steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _with_unit(value: float, units: tuple[tuple[float, str], ...], smallest: str) -> str:
    for factor, unit in units:
        if abs(value) >= factor:
            return f"{_figures(value / factor)} {unit}"
    return f"{_figures(value) if value % 1 else f'{value:.0f}'} {smallest}"


def _rounded(value: float) -> float:
    """To three figures first, so that 999.96 takes the next unit instead of reading 1,000."""
    return float(f"{value:.3g}")


def _figures(value: float) -> str:
    """Three figures, without the exponent that `g` would bring."""
    if value == 0:
        return "0"
    whole = math.floor(math.log10(abs(value))) + 1
    return f"{value:,.{min(max(3 - whole, 0), 6)}f}"
