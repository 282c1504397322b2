import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from inferscope.report.progress import TimeLeft, progress


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


def test_without_a_terminal_nothing_is_said_where_no_lines_are_wanted():
    out = io.StringIO()
    with progress(Console(file=out), lines=False) as tell:
        tell("reading", 0.5)
    assert out.getvalue() == ""


def test_what_is_written_to_standard_output_meanwhile_stays_there(capsys):
    terminal = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    with progress(terminal) as tell:
        tell("reading", 0.5)
        print("theirs")  # noqa: T201 - that is the test
    assert capsys.readouterr().out == "theirs\n"
    assert "theirs" not in terminal.file.getvalue()


@given(rate=st.floats(1e-3, 0.5), now_s=st.floats(0, 1e6), seconds=st.floats(1.1, 10))
def test_at_an_even_pace_the_time_left_is_exact(rate, now_s, seconds):
    left = TimeLeft()
    share = min(rate * seconds, 1.0)
    assert left.seconds(0.0, now_s) is None
    told = left.seconds(share, now_s + seconds)
    assert told == pytest.approx((1.0 - share) / (share / seconds), rel=1e-3, abs=1e-6)


def test_time_left_begins_anew_with_the_next_stage_and_is_not_guessed():
    left = TimeLeft()
    assert left.text(0.0, 10.0) == ""
    assert left.text(0.5, 10.5) == ""  # too early to tell
    assert left.text(0.5, 75.0) == "1:05 left"
    assert left.text(0.1, 80.0) == ""  # another stage
    assert left.text(0.1, 99.0) == ""  # nothing done since
    assert left.text(None, 100.0) == ""
    assert left.text(0.2, 101.0) == ""
