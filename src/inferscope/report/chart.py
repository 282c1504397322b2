"""What a chart is, before it is drawn: plotly's plain dictionaries, a sentence for those who cannot see it, a table.

Nothing here imports plotly: the dictionaries are its public format, and the page draws them.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from inferscope.report.summary import KINDS
from inferscope.report.units import clean

__all__ = ["COLOURS", "KIND_COLOURS", "KIND_PATTERNS", "PHASES", "Chart", "Drawing", "Grid", "in_chart"]

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
    "issue": COLOURS["green"],
    "select": COLOURS["orange"],
    "wait": COLOURS["pink"],
    "deliver": COLOURS["blue"],
    "shared": COLOURS["sky"],
    "tail": COLOURS["sky"],
    "self": COLOURS["red"],
    "residual": COLOURS["grey"],
}
KIND_PATTERNS = dict.fromkeys(KINDS, "") | {"select": "/", "wait": "x", "deliver": "-", "tail": ".", "residual": "\\"}

PHASES = {
    "prefill": ("circle", COLOURS["blue"]),
    "decode": ("diamond", COLOURS["red"]),
    "encode": ("square", COLOURS["green"]),
    "verify": ("triangle-up", COLOURS["pink"]),
    "draft": ("triangle-down", COLOURS["orange"]),
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


def in_chart(text: str) -> str:
    """Text from outside for a label: plotly reads a few HTML tags in labels, and must find none."""
    return html.escape(clean(text), quote=False)
