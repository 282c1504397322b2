import pytest

from inferscope.report.lint import lint_to_text
from inferscope.syncs import LAUNCHES_ARE_A_LOWER_BOUND, LintReport, Rate, SyncPoint


def report(**changed):
    facts = {
        "model": "tiny",
        "unit": "token",
        "batch_size": 2,
        "counted_tokens": (2, 8),
        "device": "cpu",
        "launches_per_token": 1234.0,
        "launches_per_request": 19.0,
        "syncs_per_token": 1.5,
        "syncs_per_request": 4.0,
        "possible_syncs_per_token": 0.0,
        "possible_syncs_per_request": 1.0,
        "sync_points": (
            SyncPoint(
                operator="Tensor.item",
                file="app/model.py",
                line=12,
                per_token=1.5,
                per_request=0.0,
                why="the host reads a value",
                certainty="certain",
                caller_file="app/run.py",
                caller_line=3,
            ),
            SyncPoint(
                operator="Tensor.tolist",
                file="app/\x1b[31mmodel.py",
                line=14,
                per_token=0.0,
                per_request=1.0,
                why="the host reads a value",
                certainty="possible",
            ),
        ),
        "launches": tuple((f"aten::op{i}", Rate(per_token=float(20 - i), per_request=0.0)) for i in range(12)),
        "notes": (LAUNCHES_ARE_A_LOWER_BOUND,),
        "versions": (("torch", "2.13.0"),),
    }
    return LintReport(**{**facts, **changed})


def test_each_point_is_said_with_its_line_and_how_often():
    lines = lint_to_text(report()).splitlines()
    assert "  1.5 per token  Tensor.item  app/model.py:12" in lines
    assert "      called from app/run.py:3" in lines
    assert any(line.startswith("  1 per request (possible)  Tensor.tolist") for line in lines)
    assert [line.split() for line in lines if line.startswith("launches")] == [["launches", "≥", "1,234", "≥", "19"]]
    assert "  and 2 more" in lines


def test_nothing_steers_the_terminal():
    assert "\x1b" not in lint_to_text(report(model="\x1b[2Jtiny"))


@pytest.mark.parametrize("width", [72, 100])
def test_lines_keep_the_width(width):
    assert max(len(line) for line in lint_to_text(report(), width=width).splitlines()) <= width


def test_passes_are_called_passes():
    text = lint_to_text(report(unit="pass", counted_tokens=None, batch_size=None))
    assert "per pass" in text
    assert "per token" not in text
