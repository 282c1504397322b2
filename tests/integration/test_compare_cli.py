"""`inferscope compare` as a process: what it prints, what it exits with, and what it never loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from inferscope.sinks.jsonl import JsonlSink
from inferscope.testing import make_record, make_result

PROGRAM = """
import sys
from inferscope.cli.main import main
code = main()
sys.exit(99 if "torch" in sys.modules else code)
"""


def compare(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "compare", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "110"},
        timeout=300,
        check=False,
    )


def written(path, number, factor=1.0, **overrides):
    sink = JsonlSink(path)
    for index in range(number):
        wall_ns = round(factor * (10**9 + 10**6 * (index % 5)))
        sink(make_result(record=make_record(wall_ns=wall_ns, **overrides)))
    sink.close()
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {
        "before": written(folder / "before.jsonl", 12),
        "after": written(folder / "after.jsonl", 12, 1.2),
        "few": written(folder / "few.jsonl", 2),
        "elsewhere": written(folder / "elsewhere.jsonl", 12, 3.0, device_key="cpu:another"),
    }


def test_a_table_conditions_and_exit_code_0(files):
    done = compare(
        files["before"], files["after"], "--fail-if", "tpot>1.5", "--fail-if", "syncs_per_token > 1", "--strict"
    )
    assert done.returncode == 0, done.stderr
    assert "baseline 12 requests; candidate 12 requests" in done.stdout
    assert "slower" in done.stdout
    assert "held         syncs_per_token > 1: 1 per token" in done.stdout
    assert "output tokens" in done.stdout.lower()
    assert not done.stderr


def test_a_condition_that_holds_exits_4_after_the_report(files):
    done = compare(files["before"], files["after"], "--fail-if", "wall>1.1", "--json")
    assert done.returncode == 4
    assert done.stderr.startswith("error[limit-exceeded]: wall>1.1: ratio 1.200 (1.1")
    report = json.loads(done.stdout)
    assert report["gates"][0]["outcome"] == "failed"
    assert report["matching"] == "stratified"
    wall = next(change for change in report["changes"] if change["metric"] == "wall")
    assert wall["ratio"]["low"] < 1.2 < wall["ratio"]["high"]


def test_a_condition_on_what_is_not_the_same_work_never_passes(files):
    refused = compare(files["before"], files["elsewhere"], "--fail-if", "tpot>1.05")
    assert refused.returncode == 5
    assert "--accept device" in refused.stderr
    assert compare(files["before"], files["elsewhere"], "--fail-if", "wall>1.05", "--accept", "device").returncode == 4


def test_what_cannot_be_told_exits_5_only_if_strict(files):
    lenient = compare(files["before"], files["few"], "--fail-if", "decode.verify>1", "--fail-if", "wall>1.1")
    assert lenient.returncode == 2  # there is no such part of a phase
    lenient = compare(files["few"], files["few"], "--fail-if", "wall>1.1")
    assert lenient.returncode == 0, lenient.stderr
    assert "cannot tell" in lenient.stdout
    strict = compare(files["few"], files["few"], "--fail-if", "wall>1.1", "--strict")
    assert strict.returncode == 5
    assert strict.stderr.startswith("error[cannot-tell]: wall>1.1: ratio 1.000; too few: 2 more requests of each")


@pytest.mark.parametrize(
    ("content", "slug", "said"),
    [
        (None, "record-format", "no such file"),
        ("folder", "record-format", "not a file"),
        (b"", "nothing-to-compare", "no records in this file, given as the candidate"),
        (b"\0\1\2\n", "record-format", "line 1: binary data"),
        (b'{"schema": 99}\n', "record-format", "line 1: schema 99"),
        ("torn", "record-format", "line 2: the last line is cut off"),
        ("encode", "nothing-to-compare", "no phase in common: the baseline has prefill, decode, the candidate encode"),
    ],
)
def test_a_mistake_is_one_line_and_exits_2(files, tmp_path, content, slug, said):
    path = tmp_path / "candidate.jsonl"
    if content == "folder":
        path.mkdir()
    elif content == "torn":
        whole = files["few"].read_bytes().splitlines(keepends=True)
        path.write_bytes(whole[0] + whole[1][:200])
    elif content == "encode":
        written(path, 1, phases=(replace(make_record().phases[0], name="encode"),))
    elif content is not None:
        path.write_bytes(content)
    done = compare(files["before"], path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error[{slug}]: ")
    assert said in done.stderr


def test_help_and_a_wrong_condition(files):
    done = compare("--help")
    assert 'inferscope compare before.jsonl after.jsonl --fail-if "tpot>1.05"' in done.stdout
    assert "Exit codes" in done.stdout
    done = compare(files["before"], files["after"], "--fail-if", "tpot>>1")
    assert done.returncode == 2
    assert done.stderr.startswith("error[bad-setting]: 'tpot>>1': expected a number at position 6, found '>'")
