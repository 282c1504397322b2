"""A comparison on a terminal, in colour where it has some (extra `cli`: rich)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from inferscope.report.comparison import HEADINGS, change_tables, gate_lines, headline, opinion_lines, warnings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from inferscope.analysis.comparison import Comparison
    from inferscope.analysis.gates import GateResult

__all__ = ["ComparisonView"]

_ANSWERS = {"less": "green", "more": "red", "same": "dim", "cannot tell": "yellow"}
_OUTCOMES = {"held": "green", "failed": "bold red", "cannot tell": "yellow"}
_BASELINE, _CANDIDATE, _INTERVAL = 1, 2, 4
_NARROWEST = frozenset({_BASELINE, _CANDIDATE, _INTERVAL})
_LEFT_OUT = ((78, frozenset[int]()), (58, frozenset({_BASELINE, _CANDIDATE})))
"""Columns that a terminal from so many characters on does without: numbers are left out, never cut off."""


class ComparisonView:
    """One comparison for `Console.print`. Text from outside becomes `Text`, in which rich looks for no markup."""

    def __init__(self, comparison: Comparison, gates: Sequence[GateResult] = ()) -> None:
        self._comparison = comparison
        self._gates = gates

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Everything, top down."""
        first, *others = headline(self._comparison)
        yield Text(first, style="bold")
        yield from (Text(line, style="dim") for line in others)
        yield from (Text(line, style="bold yellow") for line in warnings(self._comparison))
        yield Text("")
        yield self._changes(options.max_width)
        for title, lines in opinion_lines(self._comparison):
            yield Text(f"\n{title}", style="bold")
            yield from (Padding(Text(line), (0, 0, 0, 2)) for line in lines)
        if self._gates:
            yield Text("\nConditions", style="bold")
            for result, line in zip(self._gates, gate_lines(self._gates), strict=True):
                yield Padding(Text(line, style=_OUTCOMES[result.outcome]), (0, 0, 0, 2))

    def _changes(self, width: int) -> Table:
        left_out = next((columns for least, columns in _LEFT_OUT if width >= least), _NARROWEST)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for index, heading in enumerate(HEADINGS):
            if index not in left_out:
                outer = index in {0, len(HEADINGS) - 1}
                table.add_column(heading, justify="left" if outer else "right", no_wrap=True)
        for title, rows in change_tables(self._comparison):
            table.add_row(Text(title, style="bold"))
            for row in rows:
                *cells, answer = row.cells
                kept = [Text(cell) for index, cell in enumerate(cells) if index not in left_out]
                table.add_row(*kept, Text(answer, style=_ANSWERS[row.answer]))
        return table
