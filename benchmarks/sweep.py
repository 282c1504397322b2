"""SmolLM2-135M over batch and prompt length, as a user would sweep it: what the command printed, and its JSON.

About ten minutes on two cores; an interrupted run goes on with what is in build/sweep-smollm2.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import inferscope
from machine import write

RECORDS = Path(__file__).parent.parent / "build" / "sweep-smollm2.jsonl"
ARGUMENTS = ("--batch", "1,2,4,8,16", "--input-tokens", "16,64,256", "--objective", "ttft<=1s,tpot<=100ms")
PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"


def swept(*more: str) -> str:
    """Standard output of the command, which must end well."""
    command = [sys.executable, "-c", PROGRAM, "sweep", *ARGUMENTS, "--out", str(RECORDS), "--resume", *more]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment, check=True).stdout


def main() -> None:
    """Measure, print, and write the result file."""
    inferscope.calibrate()  # so that predictions stand beside
    text = swept()
    print(text)
    shown = "\n".join(line.rstrip() for line in text.splitlines() if not line.startswith("records: "))
    asked = " ".join(f'"{word}"' if "<" in word else word for word in ARGUMENTS)
    write("sweep-cpu", {"command": f"inferscope sweep {asked}", "text": shown, "sweep": json.loads(swept("--json"))})


if __name__ == "__main__":
    main()
