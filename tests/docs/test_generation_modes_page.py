"""The page on generation modes shows what runs, and leaves out no name that a pass can have."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from inferscope.capture import passes

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "generation-modes.md").read_text(encoding="utf-8")
ELSEWHERE = {"mixed", "prefill/mixed", "prefill/chunk/mixed", "decode/mixed", "prefill/continuation"}
"""Of continuous batching and hand-written loops."""


def test_the_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "prefill q 21 behind 0" in done.stdout
    assert re.search(r"drafted \d+ accepted \d+", done.stdout)


def test_every_name_of_a_pass_is_explained():
    names = {value.name for value in vars(passes).values() if isinstance(value, passes.PassName)} - ELSEWHERE
    assert not {name for name in names if f"`{name}`" not in PAGE}
