"""The tutorial from a clone to a limit in CI, as a newcomer goes it: its commands, in a clean clone, with the clock.

The first command installs everything into the clone and converts the demo's model: minutes, most of them pip's. What
the commands print, and their seconds, go to benchmarks/results/newcomer-cpu.json and from there into the page.
"""

from __future__ import annotations

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
        shown: Lines of what it prints that are kept, from the first and from the last; all where they are fewer.
    """

    name: str
    command: str
    shown: tuple[int, int] = (0, 0)


STEPS = (
    Step(name="demo", command="make demo", shown=(0, 14)),
    Step(name="again", command="make demo"),
    Step(
        name="run",
        command=".venv/bin/inferscope run --out before.jsonl examples/answer.py --no-cache",
        shown=(19, 0),
    ),
    Step(name="report", command=".venv/bin/inferscope report before.jsonl -o report.html", shown=(9, 0)),
    Step(name="change", command=".venv/bin/inferscope run --out after.jsonl examples/answer.py", shown=(10, 0)),
    Step(
        name="compare",
        command='.venv/bin/inferscope compare before.jsonl after.jsonl --fail-if "tpot > 5 %"',
        shown=(100, 0),
    ),
    Step(name="budget", command=".venv/bin/python -m pytest examples/ci/test_budget.py", shown=(20, 0)),
)


def environment(cache: Path) -> dict[str, str]:
    """This process's, without what would point to another inferscope, and with a cache folder that is empty."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "INFERSCOPE"))}
    return {**kept, "INFERSCOPE_CACHE_DIR": str(cache), "COLUMNS": "100", "PYTHONUTF8": "1"}


def excerpt(text: str, shown: tuple[int, int], folder: Path) -> str:
    """The lines that are shown, without the temporary folder's name."""
    lines = [line.rstrip() for line in text.replace(str(folder), PLACE).strip("\n").splitlines()]
    first, last = shown
    if len(lines) <= first + last:
        return "\n".join(lines)
    return "\n".join([*lines[:first], *(["..."] if first and last else []), *(lines[-last:] if last else [])])


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
    return {"command": step.command, "wall_s": seconds, "text": excerpt(done.stdout, step.shown, folder)}


def main() -> None:
    """Clone what is committed, walk, write the result file."""
    with tempfile.TemporaryDirectory(prefix="newcomer-") as temporary:
        folder = Path(temporary) / "inferscope"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        variables = environment(Path(temporary) / "cache")
        write("newcomer-cpu", {step.name: taken(step, folder, variables) for step in STEPS})


if __name__ == "__main__":
    main()
