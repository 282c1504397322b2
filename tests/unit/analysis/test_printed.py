"""What print shows of a cost, a memory account and a prediction: readable, complete, nothing made up."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import inferscope
from inferscope.analysis.cost import pass_cost
from inferscope.analysis.memory import account
from inferscope.sinks.jsonl import read_records

GOOD = Path(__file__).parents[3] / "examples" / "records" / "requests.jsonl"


@pytest.fixture(scope="module")
def model():
    return read_records(GOOD)[0].model


def test_a_cost_tells_its_numbers_with_units(model):
    cost = pass_cost(model.cost, batch_size=1, q_len=1, past_len=100, logits_to_keep=1)
    text = str(cost)
    assert f"{float(f'{cost.flops / 1e6:.3g}'):g} MFLOP" in text
    assert f"{float(f'{cost.bytes.model / 1e6:.3g}'):g} MB" in text
    for group in cost.groups:
        assert f"\n  {group.group} " in text
    assert "not in the FLOPs: aten::odd" in str(replace(cost, uncounted=("aten::odd",)))
    assert "PassCost(" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_what_is_not_known_of_memory_is_said_to_be_so(model):
    known = account(model, batch_size=2, input_tokens=10, output_tokens=5)
    text = str(known)
    assert "headroom" in text
    assert text.count("not known") == 3  # of no device: its size, the room, the largest batch
    assert "out of memory" not in text
    full = replace(known, device_bytes=10**6, headroom_bytes=-(10**9), largest_batch=0)
    assert "-1 GB  out of memory" in str(full)
    assert "not known" not in str(full)


def test_a_prediction_tells_intervals_and_what_was_assumed(model):
    one = inferscope.predict(model, gpu="L40S", batch_size=8, input_tokens=512, output_tokens=1)
    text = str(one)
    assert text.splitlines()[0] == ("SmolLM2-135M-Instruct on L40S · batch 8 · 512 tokens in, 1 out · float32 · eager")
    assert "TPOT" in text
    assert "a single token" in text
    for line in (*one.provenance, *one.assumptions):
        assert line in text
    more = inferscope.predict(model, gpu="L40S", batch_size=8, input_tokens=512, output_tokens=4)
    shown = next(line for line in str(more).splitlines() if line.startswith("TPOT"))
    assert [float(part) for part in re.findall(r"([\d.]+) ms", shown)] == pytest.approx(
        [1e3 * more.tpot_s.mid, 1e3 * more.tpot_s.low, 1e3 * more.tpot_s.high], rel=0.005
    )
    assert f"% {more.phase('decode').bound}" in str(more)
