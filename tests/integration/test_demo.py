import io
import json

import pytest
from rich.console import Console

from inferscope.experiments.demo import DemoOptions, run_demo
from inferscope.sinks.jsonl import read_records

pytestmark = pytest.mark.smollm2

SECTIONS = [
    "Device and ceilings",
    "SmolLM2-135M-Instruct answers",
    "What inferscope saw",
    "Phases",
    "Verdict",
    "Ledger",
    "Latency",
    "inferscope's own time",
    "Findings",
    "Files",
]


def _demo(tmp_path, **options):
    shown, status = io.StringIO(), io.StringIO()
    result = run_demo(
        DemoOptions(out=tmp_path / "out", **options),
        console=Console(file=shown, width=80, highlight=False),
        status=Console(file=status, width=80, highlight=False),
    )
    return result, shown.getvalue(), status.getvalue()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, *_demo(folder, max_new_tokens=12)


def test_it_answers_and_shows_every_part_in_order(one):
    _, _, shown, status = one
    assert "The capital of France is Paris." in shown
    places = [shown.index(f"{section} ─") for section in SECTIONS if section != "Findings"]
    assert places == sorted(places)
    assert "Findings" in shown
    assert "is not traced" in status
    assert "warmed up with one untraced generate" in shown
    assert "\x1b" not in shown + status


def test_the_numbers_are_those_of_the_request(one):
    _, result, shown, _ = one
    record = result.record
    assert record.model.name == "SmolLM2-135M-Instruct"
    assert record.status == "ok"
    assert record.finish_reasons == ("stop",)
    assert [phase.name for phase in record.phases] == ["prefill", "decode"]
    assert record.ledger.total_ns == record.wall_ns
    assert f"{record.input_tokens} tokens in · {record.output_tokens} out" in shown
    assert result.diagnosis.device is not None
    assert all(phase.cost is not None and phase.cost.flops > 0 for phase in result.diagnosis.phases)


def test_the_files_are_there_and_readable(one):
    folder, result, shown, _ = one
    records = read_records(folder / "out" / "records.jsonl")
    assert records == [result.record]
    spans = json.loads((folder / "out" / "spans.json").read_text(encoding="utf-8"))
    names = [
        span["name"]
        for resource in spans["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert sorted(names) == ["decode", "prefill", "text_completion SmolLM2-135M-Instruct"]
    assert "records.jsonl" in shown
    assert "spans.json" in shown


def test_neither_prompt_nor_answer_is_in_the_files(one):
    folder, *_ = one
    for path in (folder / "out").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "Paris" not in text
        assert "capital of France" not in text


def test_a_batch_shows_the_first_answer(tmp_path):
    result, shown, _ = _demo(tmp_path, max_new_tokens=10, batch_size=2)
    assert "Paris" in shown
    assert "the first of 2 equal sequences" in shown
    assert result.record.batch_size == 2
