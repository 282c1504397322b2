"""Prediction from models and configurations that are really counted, and `inferscope predict` as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import inferscope
from conftest import build_llama
from inferscope.hardware import probe
from inferscope.hardware.kernel_times import measure_kernels
from inferscope.sinks.model_file import read_model
from inferscope.specs import Ceiling, DeviceSpec

PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"
SAVED = Path(__file__).parents[1] / "unit" / "analysis" / "models"
LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def roof(value):
    return Ceiling(value=value, source="measured", spread=0.01)


def this_cpu():
    """This processor's name and key with made-up ceilings: nothing here depends on how fast it is."""
    found = probe.identify("cpu")
    return replace(
        found,
        compute_flops_per_s={"float32": roof(1e11)},
        copy_bytes_per_s=roof(1e10),
        dispatch_ns=roof(1_500.0),
        module_op_ns=roof(2_500.0),
    )


def predict(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "predict", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "150", "HF_HUB_OFFLINE": "1", **variables},
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def config_file(transformers, tmp_path_factory):
    path = tmp_path_factory.mktemp("llama-2-7b") / "config.json"
    path.write_text(json.dumps(LLAMA_2_7B), encoding="utf-8")
    return path


def test_the_saved_models_of_the_unit_tests_are_what_is_counted(transformers):
    config = transformers.LlamaConfig(**LLAMA_2_7B)
    counted = inferscope.model_spec(config, dtype="bfloat16")
    saved = read_model(SAVED / "llama-2-7b.json")
    assert counted.cost.operators == saved.cost.operators
    assert replace(counted, name="", cost=None) == replace(saved, name="", cost=None)
    asked = {"gpu": "A100-SXM4-80GB", "batch_size": 4}
    assert inferscope.predict(config, **asked).tpot_s == inferscope.predict(saved, **asked).tpot_s


def test_a_table_a_roofline_what_was_assumed_and_a_spec_for_later(config_file, tmp_path):
    kept = tmp_path / "spec.json"
    done = predict(
        str(config_file), "--gpu", "H100-SXM5-80GB", "--gpu", "T4", "--gpu", "B300-SXM", "--batch", "1,512",
        "--save-spec", str(kept),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "out of memory at batch" in done.stdout
    assert "989 TFLOP/s dense bfloat16, 3.35 TB/s (datasheet, certainty high), ridge 295 FLOP/B" in done.stdout
    assert "datasheet of B300-SXM: certainty " in done.stdout
    assert "matrix products reach 75% of the datasheet's dense bfloat16 peak" in done.stdout
    assert "no peak for bfloat16 is known of T4 (known: float16, float32, int8)" in done.stdout
    assert "80% of cases" in done.stdout
    again = predict(str(kept), "--gpu", "H100-SXM5-80GB", "--json", "--compiled", "--quantization", "int8")
    found = json.loads(again.stdout)["predictions"][0]
    assert (found["model"], found["quantization"]) == (config_file.parent.name, "int8")
    assert found["execution"] == "compiled"
    assert found["tpot_s"]["low"] < found["tpot_s"]["mid"] < found["tpot_s"]["high"]


@pytest.mark.parametrize(
    ("arguments", "slug", "said"),
    [
        (("{config}",), "bad-setting", "--gpu NAME"),
        (("{config}", "--gpu", "H100"), "unknown-device", "did you mean"),
        (("{config}", "--gpu", "L40S", "--batch", "1,x"), "bad-setting", "--batch 1,x"),
        (("{config}", "--gpu", "L40S", "--batch", "0"), "bad-setting", "--batch 0"),
        (("{config}", "--gpu", "L40S", "--quantization", "int3"), "prediction-unsupported", "int3"),
        (("{config}", "--gpu", "L40S", "--input-tokens", "5000"), "prediction-unsupported", "4096"),
        (("{config}", "--gpu", "L40S", "--output-tokens", "0"), "bad-setting", "output_tokens=0"),
        (("./nowhere", "--gpu", "L40S"), "model-not-found", "no such folder or file"),
        (("no-such-owner/no-such-model", "--gpu", "L40S"), "model-not-found", "Hugging Face hub"),
        (("{broken}", "--gpu", "L40S"), "model-not-found", "broken.json: not JSON"),
        (("{empty}", "--gpu", "L40S"), "model-not-found", "no model_type"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(  # noqa: PLR0917 - fixtures
    config_file, tmp_path, capsys, arguments, slug, said, monkeypatch
):
    from inferscope.cli.main import main  # noqa: PLC0415 - in this process: eleven starts would take long

    broken, empty = tmp_path / "broken.json", tmp_path / "empty.json"
    broken.write_text("{", encoding="utf-8")
    empty.write_text("{}", encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = {"config": config_file, "broken": broken, "empty": empty}
    code = main(["predict", *(part.format(**places) for part in arguments)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error[")]
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error[{slug}]: ")
    assert said in lines[0]


def test_a_trace_of_a_small_model_predicts_its_own_kind(transformers, tmp_path):
    model = build_llama(transformers)
    ids = torch.randint(1, 1000, (2, 16))
    device = this_cpu()
    with inferscope.trace(model, device=device, sinks=(f"jsonl:{tmp_path / 'traces.jsonl'}",)) as session:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    record = session.last.record
    session_end = inferscope.read_records(tmp_path / "traces.jsonl")
    assert [one.request_id for one in session_end] == [record.request_id]
    same = inferscope.predict(record, device=device, batch_size=2, input_tokens=16, output_tokens=12)
    # Anchored on itself, a trace is its own prediction, whatever its ceilings are.
    assert same.tpot_s.mid == pytest.approx(record.tpot_ns / 1e9, rel=0.25)
    decode = record.phase("decode")
    assert same.phase("decode").time_s.mid * 1e9 == pytest.approx(decode.ledger.total_ns, rel=0.02)
    assert record.model.context_tokens == 2048
    other = inferscope.predict(record, device=device, batch_size=8, input_tokens=100, output_tokens=12)
    assert other.ttft_s.mid > same.ttft_s.mid


def test_a_model_s_own_operators_can_be_measured_and_nothing_is_left_behind(transformers):
    spec = inferscope.model_spec(build_llama(transformers))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    kernels = measure_kernels(spec, heads=(4, 2, 16), longest=64)
    kinds = {point.kind for point in kernels.points}
    assert kinds >= {"product", "elementwise", "copy", "prefill attention"}
    groups = {point.group for point in kernels.points if point.kind == "product"}
    assert groups == {entry.group for entry in spec.cost.operators if entry.group.startswith(("linear", "lm_head"))}
    assert all(point.call_ns > 0 for point in kernels.points)
    found = inferscope.predict(spec, device=this_cpu(), kernels=kernels, batch_size=2, input_tokens=32)
    assert found.basis == "kernels"
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_decoder_has_an_encode_phase(transformers):
    config = transformers.T5Config(d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=500)
    found = inferscope.predict(config, gpu="L4", dtype="float16", input_tokens=40, output_tokens=5)
    assert [phase.name for phase in found.phases] == ["encode", "prefill", "decode"]
    assert found.ttft_s.mid >= found.phase("encode").time_s.mid + found.phase("prefill").time_s.mid


def test_quantised_experts_have_no_formula(transformers):
    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=500, num_local_experts=4,
    )  # fmt: skip
    plain = inferscope.predict(config, gpu="L4", dtype="bfloat16", batch_size=3)
    assert plain.phase("decode").cost.weight_bytes > 0
    with pytest.raises(inferscope.InferscopeError, match="no formula for experts"):
        inferscope.predict(config, gpu="L4", dtype="bfloat16", quantization="int8")


def test_only_the_options_of_a_device_are_needed(transformers):
    made = DeviceSpec(name="made", kind="cuda", memory_bytes=1)
    with pytest.raises(inferscope.InferscopeError, match="no peak"):
        inferscope.predict(build_llama(transformers), device=made)


def test_the_code_on_the_page_runs(transformers, capsys):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "predict-before-you-buy.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(code, str(page), "exec"), {})  # noqa: S102 - our own page
    assert "fits - decode is bound by" in capsys.readouterr().out
