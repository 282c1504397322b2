import io

import pytest
from rich.console import Console

from inferscope.report.progress import progress


def test_without_a_terminal_each_stage_is_told_once():
    out = io.StringIO()
    with progress(Console(file=out, width=40)) as tell:
        tell("loading [red]x[/red]", None)
        tell("loading [red]x[/red]", 0.5)
        tell("measuring\x1b[2J", 0.0)
    assert out.getvalue().splitlines() == ["loading [red]x[/red] ...", "measuring [2J ..."]


def test_on_a_terminal_a_bar_is_drawn_and_nothing_stays():
    out = io.StringIO()
    terminal = Console(file=out, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with progress(terminal) as tell:
        tell("loading [red]x[/red]", None)
        tell("measuring", 0.5)
    assert out.getvalue().endswith("\x1b[1A\x1b[2K")  # up one line and erase it


def test_a_terminal_without_a_cursor_gets_lines():
    out = io.StringIO()
    with progress(Console(file=out, width=80, force_terminal=True, _environ={"TERM": "dumb"})) as tell:
        tell("measuring", 0.5)
    assert out.getvalue() == "measuring ...\n"


def _fail_inside():
    with progress(Console(file=io.StringIO(), force_terminal=True)) as tell:
        tell("loading", None)
        raise ValueError("theirs")


def test_a_failure_inside_passes_through():
    with pytest.raises(ValueError, match="theirs"):
        _fail_inside()
