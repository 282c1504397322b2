"""How long a report of many records takes, in which memory, and how large its page is.

python benchmarks/report_scale.py [RECORDS]
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from inferscope.cli.main import main as inferscope

FOLDER = Path(__file__).parent.parent / "examples" / "records"
DAY_NS = 86_400 * 10**9


def main() -> None:
    """Repeat the committed records, each seventh with another prompt length, and report on them."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    lines = [line for name in ("requests", "sweep") for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    known = [json.loads(line) for line in lines]
    chosen = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        with path.open("w") as file:
            for index in range(records):
                record = known[index % len(known)] | {"request_id": f"{index:016x}"}
                record["started_unix_ns"] += index * DAY_NS // records
                if index % 7 == 0:
                    record["input_tokens"] = chosen.randint(10, 2000) * record["batch_size"]
                file.write(json.dumps(record) + "\n")
        for form in ("html", "perfetto"):
            out = Path(folder) / form
            started_s, busy_s = time.perf_counter(), time.process_time()
            code = inferscope(
                ["report", str(path), "--ceilings", str(FOLDER / "ceilings.json"), "--format", form, "-o", str(out)]
            )
            wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - busy_s
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            size = out.stat().st_size / 1e6
            print(
                f"{form}: {records:,} records ({path.stat().st_size / 1e6:.0f} MB), exit code {code}, {wall_s:.1f} s, "
                f"{cpu_s:.1f} s of CPU, at most {most:.0f} MiB so far, {size:.1f} MB written"
            )


if __name__ == "__main__":
    main()
