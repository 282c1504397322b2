"""Counted costs against torch's own counter on real CPU tensors: equal, not close."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import inferscope
from inferscope.analysis.cost import fit, pass_cost
from inferscope.capture.introspect import count, describe

pytestmark = pytest.mark.capture

transformers = pytest.importorskip("transformers")

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS = {
    **IDS,
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
}
GROUPED = {**WIDTHS, "num_key_value_heads": 2}
GPT2 = {**IDS, "vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 6}
SMOLLM2 = {
    **IDS,
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

CONFIGS = {
    "llama": ("LlamaConfig", GROUPED),
    "llama-tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "llama-eager": ("LlamaConfig", {**GROUPED, "attn_implementation": "eager"}),
    "smollm2": ("LlamaConfig", SMOLLM2),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}),
    "phi": ("PhiConfig", WIDTHS),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-eager": ("GPT2Config", {**GPT2, "attn_implementation": "eager"}),
    "opt": ("OPTConfig", {**WIDTHS, "ffn_dim": 80, "word_embed_proj_dim": 48}),
    "qwen2-moe": ("Qwen2MoeConfig", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 40}),
}

# (batch, new tokens, past, kept logits), none of them among the counted shapes
SHAPES = {
    "prefill": ((1, 9, 0, 1), (3, 14, 0, 14), (2, 6, 0, 1)),
    "decode": ((1, 1, 23, 1), (4, 1, 11, 1), (2, 1, 0, 1)),
    "continuation": ((1, 6, 13, 1), (3, 5, 21, 5), (1, 12, 7, 4)),
}


def config_of(name):
    kind, arguments = CONFIGS[name]
    return getattr(transformers, kind)(**arguments)


@functools.cache
def model_of(name):
    config = config_of(name)
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()


@functools.cache
def terms_of(name):
    return fit(count(model_of(name)))


def attention_flops(query, key, value, *_, out_shape=None, **__):
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[-2] * (width + value[-1])


def grouped_flops(rows, experts, *_, out_shape=None, **__):
    return 2 * rows[0] * rows[1] * experts[2]


def counted_on_cpu(model, batch_size, q_len, past_len, logits):
    """FLOPs that torch's counter sees in a real forward, with formulas for what torch 2.13 leaves out."""
    kwargs = {"use_cache": True, "past_key_values": None, "logits_to_keep": logits}
    if "position_ids" in inspect.signature(model.forward).parameters:
        kwargs["position_ids"] = torch.arange(past_len, past_len + q_len).repeat(batch_size, 1)
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    if hasattr(torch.ops.aten, "_grouped_mm"):
        mapping[torch.ops.aten._grouped_mm] = grouped_flops
    with torch.no_grad():
        if past_len:
            past = model(torch.full((batch_size, past_len), 7), use_cache=True)
            kwargs["past_key_values"] = past.past_key_values
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            model(torch.full((batch_size, q_len), 7), **kwargs)
    return counter.get_total_flops()


@pytest.mark.parametrize("regime", SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_flops_equal_those_of_a_real_forward(name, regime):
    for b, q, past, kept in SHAPES[regime]:
        cost = pass_cost(terms_of(name), batch_size=b, q_len=q, past_len=past, logits_to_keep=kept)
        assert cost.flops_full == counted_on_cpu(model_of(name), b, q, past, kept), (b, q, past, kept)
        assert cost.uncounted == ()


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_rise_from_minimum_to_executed(name):
    for b, q, past, kept in (shape for shapes in SHAPES.values() for shape in shapes):
        cost = pass_cost(terms_of(name), batch_size=b, q_len=q, past_len=past, logits_to_keep=kept)
        assert 0 < cost.bytes.minimum <= cost.bytes.model <= cost.bytes.executed, (b, q, past, kept)
        assert sum(group.bytes for group in cost.groups) == cost.bytes.model
        assert sum(group.flops for group in cost.groups) == cost.flops


@pytest.mark.parametrize("name", ["llama-tied", "smollm2"])
def test_a_tied_model_reads_all_its_weights_once_per_pass(name):
    cost = pass_cost(terms_of(name), batch_size=2, q_len=6, past_len=0)
    assert cost.weight_bytes == describe(model_of(name)).weight_bytes


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "phi"])
def test_an_untied_model_reads_its_weights_but_gathers_embedding_rows(name):
    model = model_of(name)
    table = model.get_input_embeddings().weight
    cost = pass_cost(terms_of(name), batch_size=2, q_len=6, past_len=0)
    rows_bytes = 2 * 6 * table.shape[1] * table.element_size()
    assert cost.weight_bytes == describe(model).weight_bytes - table.nbytes + rows_bytes


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("shape", [(1, 9, 0, 1), (2, 6, 13, 1), (4, 1, 11, 1)])
def test_eager_attention_costs_the_same_operations_as_sdpa(name, shape):
    b, q, past, kept = shape
    costs = [
        pass_cost(terms_of(key), batch_size=b, q_len=q, past_len=past, logits_to_keep=kept)
        for key in (name, f"{name}-eager")
    ]
    assert costs[0].flops == costs[1].flops
    assert costs[0].flops_full == costs[1].flops_full
    assert costs[0].weight_bytes == costs[1].weight_bytes
    assert costs[0].bytes.executed < costs[1].bytes.executed


@pytest.mark.parametrize(("b", "q", "past"), [(1, 9, 0), (3, 14, 0), (2, 6, 13), (4, 1, 11)])
def test_causal_attention_counts_the_pairs_that_are_looked_at(b, q, past):
    cost = pass_cost(terms_of("llama"), batch_size=b, q_len=q, past_len=past)
    attention = next(group for group in cost.groups if group.group == "attention")
    layers_heads_width = 2 * 6 * 8
    pairs = sum(past + row + 1 for row in range(q))
    assert attention.flops == 4 * b * layers_heads_width * pairs
    assert attention.flops_full == 4 * b * layers_heads_width * q * (past + q)
    assert cost.flops_full - cost.flops == attention.flops_full - attention.flops


def test_launches_equal_the_operators_of_a_real_forward():
    seen = []

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            is_view = any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns)
            if not is_view and func._overloadpacket.__name__ not in {"_unsafe_view", "empty"}:
                seen.append(str(func))
            return out

    ids, positions = torch.full((1, 9), 7), torch.arange(9).unsqueeze(0)
    with torch.no_grad(), Counter():
        model_of("llama")(ids, position_ids=positions, use_cache=True, logits_to_keep=1)
    assert pass_cost(terms_of("llama"), batch_size=1, q_len=9, past_len=0).launches == len(seen)


@functools.cache
def published(name):
    """Terms of a model of published shape: from its config alone, without its weights."""
    shapes = {
        "llama-2-7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_key_value_heads": 32},
        "llama-3-8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_key_value_heads": 8},
    }
    config = transformers.LlamaConfig(**shapes[name], num_hidden_layers=32, num_attention_heads=32)
    return fit(count(config, dtype="bfloat16"))


def group_of(cost, name):
    return next(group for group in cost.groups if group.group == name)


def test_llama_2_7b_prefill_agrees_with_published_figures():
    cost = pass_cost(published("llama-2-7b"), batch_size=1, q_len=2048, past_len=0)
    square = group_of(cost, "linear 4096x4096")
    assert square.calls == 4 * 32
    assert square.flops == 128 * 2 * 2048 * 4096 * 4096
    assert square.flops / 128 == pytest.approx(68.7e9, rel=1e-3)
    assert square.bytes / 128 == pytest.approx(67.1e6, rel=1e-3)
    assert square.flops / square.bytes == pytest.approx(1024, rel=1e-6)
    gates = group_of(cost, "linear 4096x11008")
    assert gates.flops / 64 == pytest.approx(185e9, rel=2e-3)
    assert gates.bytes / 64 == pytest.approx(152e6, rel=2e-3)
    assert gates.flops / gates.bytes == pytest.approx(1215, rel=1e-3)
    assert group_of(cost, "lm_head 4096x32000").flops == 2 * 4096 * 32000


def test_llama_2_7b_decode_agrees_with_published_figures():
    cost = pass_cost(published("llama-2-7b"), batch_size=1, q_len=1, past_len=2048)
    square = group_of(cost, "linear 4096x4096")
    assert square.flops / 128 == pytest.approx(33.6e6, rel=2e-3)
    assert square.bytes / 128 == pytest.approx(33.6e6, rel=2e-3)
    assert square.flops / square.bytes == pytest.approx(0.9995, rel=1e-4)
    assert group_of(cost, "linear 4096x11008").flops / 64 == pytest.approx(90.2e6, rel=1e-3)


def test_llama_3_8b_decode_bytes_agree_with_closed_forms():
    cost = pass_cost(published("llama-3-8b"), batch_size=1, q_len=1, past_len=2048)
    assert cost.kv_read_bytes == 2 * 8 * 128 * 32 * 2 * 2049
    assert cost.kv_write_bytes == 2 * 8 * 128 * 32 * 2
    assert cost.weight_bytes / 1e9 == pytest.approx(15.01, abs=0.005)
    assert cost.kv_read_bytes / 1e9 == pytest.approx(0.27, abs=0.005)
    assert group_of(cost, "kv-cache").executed_bytes / 1e9 == pytest.approx(0.54, abs=0.005)
    assert cost.bytes.executed - cost.bytes.model >= group_of(cost, "kv-cache").executed_bytes - cost.kv_write_bytes


def test_a_cost_of_a_config_equals_that_of_its_model():
    assert fit(count(config_of("qwen2"), dtype="float32")) == terms_of("qwen2")


def test_half_the_width_of_numbers_is_half_the_bytes():
    single = pass_cost(terms_of("llama"), batch_size=1, q_len=9, past_len=4)
    half = pass_cost(fit(count(config_of("llama"), dtype="bfloat16")), batch_size=1, q_len=9, past_len=4)
    assert half.flops == single.flops
    assert 2 * half.weight_bytes == single.weight_bytes
    assert 2 * half.kv_read_bytes == single.kv_read_bytes


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "cpu"},
        {"batch_size": 2.5},
        {"batch_size": "8"},
        {"input_tokens": -1},
        {"output_tokens": True},
    ],
)
def test_memory_names_the_argument_that_is_wrong(wrong):
    with pytest.raises(inferscope.InferscopeError, match=next(iter(wrong))):
        inferscope.memory(transformers.LlamaConfig(num_hidden_layers=1), **wrong)


def test_cost_names_the_argument_that_is_wrong():
    config = transformers.LlamaConfig(num_hidden_layers=1)
    for wrong in ({"part": "both"}, {"q_len": "5"}):
        with pytest.raises(inferscope.InferscopeError, match=next(iter(wrong))):
            inferscope.cost(config, **wrong)
    with pytest.raises(inferscope.InferscopeError, match="configuration"):
        inferscope.cost("gpt2")
