"""What a chart is, before it is drawn: plotly's plain dictionaries, a sentence for those who cannot see it, a table.

Nothing here imports plotly: the dictionaries are its public format, and the page draws them.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.report.summary import KINDS
from inferscope.report.units import clean

if TYPE_CHECKING:
    from inferscope.report.digest import Setup

__all__ = [
    "COLOURS",
    "PHASES",
    "Chart",
    "Drawing",
    "Grid",
    "in_chart",
    "part_colour",
    "pattern",
    "setup_label",
    "short_id",
    "time_axis",
]

COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "sky": "#56B4E9",
    "red": "#D55E00",
    "pink": "#CC79A7",
    "grey": "#8A8F98",
}
"""Told apart with every kind of colour blindness (Okabe and Ito 2008); symbols and patterns repeat what they say."""

KIND_COLOURS = {
    "queue": COLOURS["grey"],
    "setup": COLOURS["sky"],
    "tail": COLOURS["sky"],
    "self": COLOURS["red"],
    "residual": COLOURS["grey"],
}
"""Of what belongs to the request itself; the parts of a phase have the phase's colour, and patterns tell them apart."""

KIND_PATTERNS = dict.fromkeys(KINDS, "") | {
    "queue": "\\",
    "select": "/",
    "wait": "x",
    "deliver": "-",
    "shared": "|",
    "tail": ".",
    "residual": "+",
}

_LEAST_UNITS = 2
PHASES = {
    "prefill": ("circle", COLOURS["blue"]),
    "decode": ("diamond", COLOURS["orange"]),
    "encode": ("square", COLOURS["green"]),
    "verify": ("triangle-up", COLOURS["pink"]),
    "draft": ("triangle-down", COLOURS["red"]),
    "mixed": ("cross", COLOURS["sky"]),
}
"""Symbol and colour of each phase's marks; others are grey stars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of words: a heading and rows; `numbers` are what a row sorts by where that is not the word."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[tuple[float | None, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One way in which a chart can be shown: what it is called, and plotly's data and layout."""

    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        key: Identifier in the page.
        summary: What it shows, in a sentence: its accessible name.
        drawings: One, or several to choose from.
        choose: What is chosen; "" with one drawing.
        grid: The same numbers as a table; None where one stands beside it anyway.
    """

    key: str
    summary: str
    drawings: tuple[Drawing, ...]
    choose: str = ""
    grid: Grid | None = None


def part_colour(phase: str, kind: str) -> str:
    """Of a part of the ledger."""
    return KIND_COLOURS.get(kind) or PHASES.get(phase, ("", COLOURS["grey"]))[1]


def pattern(kind: str | list[str]) -> dict[str, Any]:
    """How parts of one colour are told apart: plotly's pattern of bars."""
    shape = KIND_PATTERNS[kind] if isinstance(kind, str) else [KIND_PATTERNS.get(each, "") for each in kind]
    return {"shape": shape, "size": 6, "solidity": 0.35, "fillmode": "overlay", "fgcolor": "rgba(255,255,255,.75)"}


def time_axis(most_ns: float) -> tuple[float, str]:
    """Nanoseconds per unit, and the unit, in which times up to `most_ns` are read best."""
    for factor, unit in ((1e9, "s"), (1e6, "ms")):
        if most_ns >= factor * _LEAST_UNITS:
            return factor, unit
    return 1e3, "µs"


def setup_label(setup: Setup, *, sizes: bool = True) -> str:
    """A setup in words."""
    parts = [setup.model, setup.dtype, setup.attention, setup.device]
    if sizes and setup.batch_size is not None:
        parts.append(f"batch {setup.batch_size:,}")
    if sizes and setup.input_len is not None:
        parts.append(f"{setup.input_len:,} tokens in")
    return " · ".join(part for part in parts if part)


def short_id(request_id: str) -> str:
    """The end of a request's identifier: the beginning is that of its process."""
    return f"…{in_chart(request_id)[-6:]}"


def in_chart(text: str) -> str:
    """Text from outside for a label: plotly reads a few HTML tags in labels, and must find none."""
    return html.escape(clean(text), quote=False)
