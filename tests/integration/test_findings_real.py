"""Real requests: what was planted is found, what was not is not said, and records carry the facts for it."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

import inferscope
from inferscope.analysis.findings import CODES
from inferscope.sinks.jsonl import JsonlSink
from inferscope.specs import Ceiling, DeviceSpec

ABOUT_THIS_MACHINE = {
    "cpu-contention",
    "decode-weight-bound",
    "gc-pauses",
    "kernel-inefficient",
    "overhead-bound-passes",
    "prefill-below-ridge",
    "prefill-compute-bound",
    "python-between-passes",
    "tail-passes",
    "thread-oversubscription",
}
"""What may be true of any request here, however it was made: how fast it ran beside whatever else there is."""


def measured(value):
    return Ceiling(value=value, source="measured", spread=0.02)


# Ceilings are made up: findings must not depend on a calibration while other tests run.
DEVICE = DeviceSpec(
    name="made",
    kind="cpu",
    compute_flops_per_s={"float32": measured(100e9)},
    copy_bytes_per_s=measured(15e9),
    dispatch_ns=measured(1_500.0),
    module_op_ns=measured(3_000.0),
)


class Collecting(LogitsProcessor):
    """Calls the garbage collector after every pass."""

    def __call__(self, input_ids, scores):
        gc.collect()
        return scores


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def traced(model, *, length=24, batch=1, new=10, device=DEVICE, **options):
    ids = torch.randint(3, 2000, (batch, length))
    options = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0, "do_sample": False, **options}
    with inferscope.trace(model, device=device) as session:
        model.generate(ids, **options)
    return session.last


def above_info(result):
    return {each.code for each in result.findings if each.severity in {"OPT", "WARN"}}


@pytest.mark.parametrize(
    "options",
    [{}, {"batch": 4}, {"do_sample": True}, {"cache_implementation": "static"}],
    ids=["plain", "batch", "sampled", "static"],
)
def test_nothing_is_said_above_info_that_was_not_planted(model, options):
    result = traced(model, **options)
    assert above_info(result) <= ABOUT_THIS_MACHINE
    assert {each.code for each in result.findings} <= set(CODES)


def test_a_request_without_a_cache_is_found(model):
    result = traced(model, use_cache=False, length=48)
    finding = next(each for each in result.findings if each.code == "recompute-without-cache")
    assert (finding.severity, finding.phase) == ("WARN", "decode")


def test_padding_is_found_and_counted(model):
    mask = torch.ones(4, 64, dtype=torch.long)
    mask[1:, :60] = 0
    result = traced(model, batch=4, length=64, attention_mask=mask)
    finding = next(each for each in result.findings if each.code == "padding-waste")
    assert {row.metric: row.value for row in finding.evidence}["padding_tokens"] == 180


def test_beams_are_found_and_are_not_the_processors_fault(model):
    codes = {each.code for each in traced(model, num_beams=4).findings}
    assert "beams-multiply-work" in codes
    assert "python-between-passes" not in codes


def test_a_collecting_processor_is_found_and_named(model):
    result = traced(model, logits_processor=LogitsProcessorList([Collecting()]))
    assert result.record.options.processors == ("Collecting",)
    codes = above_info(result)
    assert {"gc-pauses", "python-between-passes"} <= codes
    between = next(each for each in result.findings if each.code == "python-between-passes")
    assert "Collecting" in between.claim
    assert "gc-pauses" in between.overlaps


def test_eager_attention_is_found_on_a_long_prompt(model):
    model.set_attn_implementation("eager")
    slow_memory = replace(DEVICE, copy_bytes_per_s=measured(3e9))  # so that their traffic matters on a loaded machine
    try:
        result = traced(model, length=1000, new=2, device=slow_memory)
    finally:
        model.set_attn_implementation("sdpa")
    finding = next(each for each in result.findings if each.code == "attention-unfused")
    assert finding.phase == "prefill"


def test_what_findings_need_survives_a_file(model, tmp_path):
    """A stored record, judged elsewhere, gives the same findings."""
    result = traced(model, logits_processor=LogitsProcessorList([Collecting()]), num_beams=2)
    JsonlSink(tmp_path / "records.jsonl")(result)
    (record,) = inferscope.read_records(tmp_path / "records.jsonl")
    assert record == result.record
    assert inferscope.diagnose(record, device=DEVICE).findings == result.findings


def test_records_say_what_the_process_was_set_to_and_which_cache_was_brought(model):
    record = traced(model).record
    assert record.process.intra_op_threads == torch.get_num_threads()
    assert record.process.usable_cpus >= 1
    assert record.process.compiled_graphs in {0, None}
    assert (record.options.cache, record.options.processors, record.model.offloaded_bytes) == (None, (), 0)
    assert traced(model, cache_implementation="static").record.options.cache == "static"
    brought = DynamicCache(config=model.config)
    assert traced(model, past_key_values=brought).record.options.cache == "DynamicCache"
