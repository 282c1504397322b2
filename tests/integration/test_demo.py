"""The demonstration in a process of its own: it sets the process's tracer provider."""

import json
import os
import re
import subprocess
import sys

import pytest

from inferscope import diagnose
from inferscope.sinks.jsonl import read_records

pytestmark = pytest.mark.smollm2

PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"
SECTIONS = [
    "Device and ceilings",
    "SmolLM2-135M-Instruct answers",
    "What inferscope saw",
    "Phases",
    "Verdict",
    "Ledger",
    "Latency",
    "inferscope's own time",
    "Findings, largest saving first; they overlap",
    "Files",
]


def _demo(folder, *options, columns=80):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "demo", "--out", "out", *options],
        cwd=folder,
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": str(columns)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = _demo(folder, "--max-new-tokens", "12")
    assert done.returncode == 0, done.stderr
    return folder / "out", done


@pytest.fixture(scope="module")
def record(one):
    (only,) = read_records(one[0] / "records.jsonl")
    return only


def test_it_answers_and_shows_every_part_in_order(one):
    _, done = one
    assert "\n> What is the capital of France?\nThe capital of France is Paris.\n" in done.stdout
    titles = re.findall(r"^(\S.*?) ─+$", done.stdout, re.MULTILINE)
    assert [title for title in titles if title in SECTIONS] == SECTIONS
    assert "\x1b" not in done.stdout + done.stderr


def test_the_warm_up_is_admitted(one):
    _, done = one
    assert "warmed up with one untraced generate" in done.stdout
    assert "not traced" in done.stderr


def test_the_request_is_recorded_whole(one, record):
    _, done = one
    assert record.model.name == "SmolLM2-135M-Instruct"
    assert (record.status, record.finish_reasons) == ("ok", ("stop",))
    assert [phase.name for phase in record.phases] == ["prefill", "decode"]
    assert record.ledger.total_ns == record.wall_ns
    assert f"{record.input_tokens} tokens in · {record.output_tokens} out" in done.stdout


def test_its_cost_is_counted_and_its_ceilings_are_used(one, record):
    _, done = one
    again = diagnose(record)
    assert all(phase.cost is not None and phase.cost.flops > 0 for phase in again.diagnosis.phases)
    assert again.diagnosis.device is not None
    assert f"held against {again.diagnosis.device.name}" in done.stdout


def test_the_spans_can_be_read(one):
    spans = json.loads((one[0] / "spans.json").read_text(encoding="utf-8"))
    names = [
        span["name"]
        for resource in spans["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert sorted(names) == ["decode", "prefill", "text_completion SmolLM2-135M-Instruct"]


def test_the_files_are_named(one):
    folder, done = one
    for path in folder.iterdir():
        assert f"\nout/{path.name}: " in done.stdout


def test_neither_prompt_nor_answer_is_in_the_files(one):
    for path in one[0].iterdir():
        text = path.read_text(encoding="utf-8")
        assert "Paris" not in text
        assert "capital of France" not in text


def test_a_batch_shows_the_first_answer_on_a_narrow_terminal(tmp_path):
    done = _demo(tmp_path, "--max-new-tokens", "10", "--batch-size", "2", columns=60)
    assert done.returncode == 0, done.stderr
    assert "The capital of France is Paris." in done.stdout
    assert "(the first of 2 equal sequences)" in done.stdout
    (kept,) = read_records(tmp_path / "out" / "records.jsonl")
    assert kept.batch_size == 2
    report = done.stdout.split("What inferscope saw")[1].split("Files ")[0]
    assert max(len(line) for line in report.splitlines()) <= 60
