"""`inferscope import-ncu` and `import-nsys` as processes: what they print and what they exit with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferscope.sinks.jsonl import JsonlSink
from inferscope.testing import make_result

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "integrations"))
from nsight_files import CALLS, GEMV, KERNELS, NORM, PROJECTED, raw_page, stack

PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"


def inferscope(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "150"},
        timeout=300,
        check=False,
    )


@pytest.fixture
def counters(tmp_path):
    path = tmp_path / "counters.csv"
    hostile = "k\x1b[31m<script>"
    ranges = stack("request", "decode", payload=7)
    path.write_text(raw_page([("gemv", ranges, GEMV), (hostile, stack("request"), NORM)]), encoding="utf-8")
    return path


def test_counters_are_shown_as_tables_and_as_json_beside_a_record(counters, tmp_path):
    record = tmp_path / "run.jsonl"
    sink = JsonlSink(record)
    sink(make_result())
    sink.close()
    shown = inferscope("import-ncu", counters, "--record", record)
    assert shown.returncode == 0, shown.stderr
    for words in ("decode", "(between passes)", "1.20 GB", "Beside the cost model", "cannot tell"):
        assert words in shown.stdout
    assert "\x1b" not in shown.stdout
    as_json = inferscope("import-ncu", counters, "--record", record, "--passes", "decode=1", "--json")
    report = json.loads(as_json.stdout)
    assert report["phases"][0]["phase"] == "decode"
    assert report["phases"][0]["sums"]["dram_bytes"] == pytest.approx(1200.5e6)
    assert {one["verdict"] for one in report["residuals"]} == {"cannot tell"}  # the made record has no cost


def test_a_timeline_is_shown_as_tables_and_as_json(tmp_path):
    paths = []
    for name, text in (("a", KERNELS), ("b", CALLS), ("c", PROJECTED)):
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text(text, encoding="utf-8")
    shown = inferscope("import-nsys", *paths)
    assert shown.returncode == 0, shown.stderr
    for words in ("inferscope:decode", "rms_norm", "cudaLaunchKernel", "6 ms in calls that wait"):
        assert words in shown.stdout.replace("6.00 ms", "6 ms")
    assert json.loads(inferscope("import-nsys", *paths, "--json").stdout)["sync_ns"] == 6e6


@pytest.mark.parametrize(
    ("arguments", "slug", "words"),
    [
        (("import-ncu", "{}/nothing.csv"), "record-format", "no such file"),
        (("import-ncu", "{}"), "record-format", "not a file"),
        (("import-ncu", "{}/counters.csv", "--passes", "decode"), "bad-setting", "such as decode=1"),
        (("import-ncu", "{}/counters.csv", "--record", "{}/counters.csv"), "record-format", "counters.csv, line 1"),
        (("import-nsys", "{}/counters.csv"), "record-format", "no header found up to here"),
        (("import-nsys",), "usage", "FILE.csv"),
    ],
    ids=["missing", "folder", "passes", "record", "other tool", "no file"],
)
def test_a_mistake_is_one_line_and_exit_code_2(counters, arguments, slug, words):
    done = inferscope(*(part.format(counters.parent) for part in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error[{slug}]: ")
    assert words in done.stderr
