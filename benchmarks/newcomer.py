"""The tutorial from a clone to a limit in CI, as a newcomer goes it: its commands, in a clean clone, with the clock.

The first command installs everything into the clone and converts the demo's model: minutes, most of them pip's. What
the commands print, and their seconds, go to benchmarks/results/newcomer-cpu.json and from there into the page.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import write

ROOT = Path(__file__).parent.parent
PLACE = "/home/you/inferscope"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of the tutorial.

    Attributes:
        name: Of the step, in the result file.
        command: As it is pasted, in the clone.
        after: What it prints is kept from the line that begins so; from the first without one.
        before: And up to the line that begins so; to the last without one.
    """

    name: str
    command: str
    after: str = ""
    before: str = ""


STEPS = (
    Step(name="demo", command="make demo", after="Files "),
    Step(name="again", command="make demo", after="Files "),
    Step(
        name="run",
        command=".venv/bin/inferscope run --out before.jsonl examples/answer.py --no-cache",
        before="The slowest request",
    ),
    Step(name="report", command=".venv/bin/inferscope report before.jsonl -o report.html"),
    Step(
        name="change",
        command=".venv/bin/inferscope run --out after.jsonl examples/answer.py",
        before="The slowest request",
    ),
    Step(
        name="compare",
        command='.venv/bin/inferscope compare before.jsonl after.jsonl --fail-if "tpot > 5 %"',
    ),
    Step(name="budget", command=".venv/bin/python -m pytest examples/ci/test_budget.py"),
)


def environment(cache: Path) -> dict[str, str]:
    """This process's, without what would point to another inferscope, and with a cache folder that is empty."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "INFERSCOPE"))
    }
    return {**kept, "INFERSCOPE_CACHE_DIR": str(cache), "COLUMNS": "100", "PYTHONUTF8": "1"}


def excerpt(text: str, step: Step, folder: Path) -> str:
    """The lines that the page shows, without the temporary folder's name."""
    lines = [line.rstrip() for line in text.replace(str(folder), PLACE).splitlines()]
    first = next((number for number, line in enumerate(lines) if step.after and line.startswith(step.after)), 0)
    shown = list(itertools.takewhile(lambda line: not (step.before and line.startswith(step.before)), lines[first:]))
    return "\n".join(shown).strip("\n")


def taken(step: Step, folder: Path, variables: dict[str, str]) -> dict[str, Any]:
    """Run a step; it must end well.

    Args:
        step: What to run.
        folder: The clone.
        variables: The environment.
    """
    print(f"$ {step.command}", flush=True)
    began = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    seconds = time.perf_counter() - began
    print(f"  {seconds:.1f} s, exit code {done.returncode}", flush=True)
    if done.returncode:
        sys.exit(done.stdout)
    return {"command": step.command, "wall_s": seconds, "text": excerpt(done.stdout, step, folder)}


def main() -> None:
    """Clone what is committed, walk, write the result file."""
    with tempfile.TemporaryDirectory(prefix="newcomer-") as temporary:
        folder = Path(temporary) / "inferscope"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        variables = environment(Path(temporary) / "cache")
        write("newcomer-cpu", {step.name: taken(step, folder, variables) for step in STEPS})


if __name__ == "__main__":
    main()
