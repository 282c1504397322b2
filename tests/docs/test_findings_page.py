"""The reference of findings has a section for every code, and none for a code that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from inferscope.analysis import advice
from inferscope.analysis.findings import CODES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "findings.md"


def test_codes_and_sections_are_the_same():
    headings = re.findall(r"^### (\S+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(headings) == sorted({*CODES, *advice.CODES})


def test_codes_stand_in_their_modules():
    """The key under which a rule is listed is the code that it gives."""
    folder = Path(advice.__file__).parent / "findings"
    written = {
        code
        for path in folder.glob("*.py")
        if path.name != "__init__.py"
        for code in re.findall(r'finding\(\s*"([a-z-]+)"', path.read_text(encoding="utf-8"))
    }
    assert written == set(CODES)
