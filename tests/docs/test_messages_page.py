import ast
from pathlib import Path

import pytest

from inferscope import errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "messages.md"
HEADINGS = [line[4:] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("### ")]


def _error_slugs():
    return sorted({getattr(errors, name).slug for name in errors.__all__})


def _said_slugs():
    """First arguments of every `warn` and `fault` in the source that are written as strings."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"warn", "fault", "_fail"} and isinstance(node.args[0].value, str):
                yield node.args[0].value


@pytest.mark.parametrize("slug", _error_slugs())
def test_every_error_is_explained(slug):
    assert slug in HEADINGS


def test_every_warning_is_explained():
    said = set(_said_slugs())
    assert {"cache-unwritable", "model-cache-unusable", "usage"} <= said  # the walk finds what it looks for
    assert sorted(said - set(HEADINGS)) == []


def test_each_message_is_explained_once():
    assert len(HEADINGS) == len(set(HEADINGS))
