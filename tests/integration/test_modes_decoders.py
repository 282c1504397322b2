"""Decoder-only models in every mode: each forward named as the call stack of transformers names it."""

from __future__ import annotations

import copy

import mode_models
import pytest
import torch
from mode_truth import Forward, bare, checked, decodes, last_chunk, observed, passes_of, prompt, true_forwards

pytestmark = pytest.mark.capture

NEW = 5


MODES = {
    "greedy": ({}, [Forward("prefill", 9, 0, 1), *decodes(9, 4)]),
    "sampling": ({"do_sample": True}, [Forward("prefill", 9, 0, 1), *decodes(9, 4)]),
    "beams": ({"num_beams": 3}, [Forward("prefill", 9, 0, 3), *decodes(9, 4, batch=3)]),
    "beam sampling": ({"num_beams": 2, "do_sample": True}, [Forward("prefill", 9, 0, 2), *decodes(9, 4, batch=2)]),
    "several answers": (
        {"do_sample": True, "num_return_sequences": 3},
        [Forward("prefill", 9, 0, 3), *decodes(9, 4, batch=3)],
    ),
    "several answers of more beams": (
        {"num_beams": 4, "num_return_sequences": 2},
        [Forward("prefill", 9, 0, 4), *decodes(9, 4, batch=4)],
    ),
    "scores and cache returned": (
        {"return_dict_in_generate": True, "output_scores": True},
        [Forward("prefill", 9, 0, 1), *decodes(9, 4)],
    ),
    "without a cache": (
        {"use_cache": False},
        [Forward("prefill", 9, 0, 1), *(Forward("decode/no-cache", q, 0, 1) for q in range(10, 14))],
    ),
    "chunked prefill": (
        {"prefill_chunk_size": 4},
        [
            Forward("prefill", 4, 0, 1),
            Forward("prefill/chunk", 4, 4, 1),
            last_chunk(1, 8),
            *decodes(9, 4),
        ],
    ),
    "classifier-free guidance": (
        {"guidance_scale": 1.5},
        [
            forward
            for step in range(5)
            for forward in (
                Forward("decode", 1, 8 + step, 1) if step else Forward("prefill", 9, 0, 1),
                Forward("side", 1, step, 1),
            )
        ],
    ),
    "classifier-free guidance without a cache": (
        {"guidance_scale": 1.5, "use_cache": False},
        [
            forward
            for step in range(5)
            for forward in (
                Forward("decode/no-cache", 9 + step, 0, 1) if step else Forward("prefill", 9, 0, 1),
                Forward("side", 1 + step, 0, 1),
            )
        ],
    ),
    "classifier-free guidance with a negative prompt": (
        {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[5, 6, 7]])},
        [
            forward
            for step in range(5)
            for forward in (
                Forward("decode", 1, 8 + step, 1) if step else Forward("prefill", 9, 0, 1),
                Forward("side", 1, 2 + step, 1) if step else Forward("side", 3, 0, 1),
            )
        ],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_of_a_plain_decoder(mode):
    options, expected = MODES[mode]
    model = mode_models.decoder("llama")
    record, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=NEW, **options))
    assert seen == expected
    assert (record.input_tokens, record.padding_tokens, record.output_len) == (9, 0, NEW)
    assert record.output_tokens == NEW * options.get("num_return_sequences", 1)
    assert (record.drafted_tokens, record.accepted_tokens) == (None, None)


PLAIN = ["gpt2", "mistral, window", "gemma3, windows", "mixtral", "qwen2 moe", "deepseek v3"]
RECURRENT = ["mamba", "mamba2", "jamba", "bamba", "falcon h1", "recurrent gemma"]


@pytest.mark.parametrize("name", [*PLAIN, *RECURRENT])
def test_an_architecture(name):
    model = mode_models.decoder(name)
    record, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=NEW))
    assert seen == [Forward("prefill", 9, 0, 1), *decodes(9, 4)]
    assert record.output_tokens == NEW


def test_a_state_that_does_not_say_how_much_it_has_read():
    model = mode_models.decoder("rwkv")
    _, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=3))
    assert seen == [Forward("prefill", 9, 0, 1), Forward("decode", 1, None, 1), Forward("decode", 1, None, 1)]


def test_a_recurrent_model_goes_on_with_its_state():
    model = mode_models.decoder("mamba")
    first = model.generate(prompt(), max_new_tokens=3, return_dict_in_generate=True)
    if first.past_key_values is None:
        pytest.skip("this version of transformers gives no recurrent state back")
    with observed(model) as taken:
        model.generate(first.sequences, cache_params=first.past_key_values, max_new_tokens=2)
    (record,) = taken.records
    assert [(each.name, each.past_len) for each in record.pass_samples] == [("prefill", None), ("decode", None)]
    assert record.phase("decode").work == ()


def test_several_turns_on_one_cache(transformers):
    model, cache = mode_models.decoder("llama"), transformers.DynamicCache()
    with observed(model) as taken, true_forwards(model=model) as truth:
        first = model.generate(prompt(), past_key_values=cache, max_new_tokens=6)
        more = torch.cat([first, prompt(5, seed=3)], dim=1)
        model.generate(more, past_key_values=cache, max_new_tokens=2)
    turns = [passes_of(record) for record in taken.records]
    assert turns[1] == [Forward("prefill", 6, 14, 1), Forward("decode", 1, 20, 1)]
    assert [*turns[0], *turns[1]] == truth
    # A generated token may be the pad token: transformers takes it for padding, and so do we.
    assert [record.input_tokens + record.padding_tokens for record in taken.records] == [9, 20]
    assert [record.output_tokens for record in taken.records] == [6, 2]


def test_a_prefix_that_is_cached_but_for_one_token(transformers):
    model, cache, ids = mode_models.decoder("llama"), transformers.DynamicCache(), prompt()
    with torch.no_grad():
        model(ids[:, :8], past_key_values=cache)

    def run():
        copied = transformers.DynamicCache()
        for layer, held in enumerate(cache.layers):
            copied.update(held.keys.clone(), held.values.clone(), layer)
        return model.generate(ids, past_key_values=copied, max_new_tokens=3)

    _, seen = checked(model, run)
    assert seen == [Forward("prefill", 1, 8, 1), *decodes(9, 2)]


def test_rows_of_different_length_are_padded_and_that_is_counted():
    model = mode_models.decoder("llama")
    ids = prompt(rows=3)
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    ids[1, :1], mask[1, :1] = 0, 0
    record, seen = checked(model, lambda: model.generate(ids, attention_mask=mask, max_new_tokens=3))
    assert seen == [Forward("prefill", 9, 0, 3), *decodes(9, 2, batch=3)]
    assert (record.input_tokens, record.padding_tokens) == (22, 5)
    assert record.phase("prefill").tokens == 27
    with observed(model) as taken:
        model.generate(ids, max_new_tokens=1)  # the mask follows from the pad token
    (record,) = taken.records
    assert (record.input_tokens, record.padding_tokens) == (22, 5)


def test_a_mask_over_what_is_cached_does_not_count_it_again(transformers):
    model, cache = mode_models.decoder("llama"), transformers.DynamicCache()
    first = model.generate(prompt(), past_key_values=cache, max_new_tokens=4)

    def go_on(held):
        ids, mask = torch.cat([first[:, -1:], prompt(3)], dim=1), torch.ones(1, 12 + 4, dtype=torch.long)
        return model.generate(ids, past_key_values=held, attention_mask=mask, max_new_tokens=1)

    bare(lambda: go_on(copy.deepcopy(cache)))
    with observed(model) as taken:
        go_on(cache)
    (record,) = taken.records
    assert (record.input_tokens, record.padding_tokens, record.output_tokens) == (4, 0, 1)


def test_embeddings_instead_of_tokens():
    model = mode_models.decoder("llama")
    embeddings = model.get_input_embeddings()(prompt()).detach()
    record, seen = checked(model, lambda: model.generate(inputs_embeds=embeddings, max_new_tokens=3))
    assert seen == [Forward("prefill", 9, 0, 1), *decodes(9, 2)]
    assert (record.input_tokens, record.output_tokens) == (9, 3)


def test_a_token_that_is_also_the_pad_token_counts_where_nothing_was_padded():
    model = mode_models.decoder("llama")
    zero = type("Zero", (), {"__call__": lambda _self, _ids, scores: torch.eye(1, scores.shape[1]) * 9.0})()
    record, _ = checked(model, lambda: model.generate(prompt(), max_new_tokens=4, logits_processor=[zero]))
    assert (record.output_tokens, record.finish_reasons) == (4, ("length",))


def test_a_loop_of_the_users_own():
    model = mode_models.decoder("llama")

    def hand_made(model, input_ids, generation_config, **model_kwargs):
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        for _ in range(generation_config.max_new_tokens - 1):
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            token = outputs.logits[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=1)
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs)
        return torch.cat([input_ids, outputs.logits[:, -1].argmax(-1, keepdim=True)], dim=1)

    record, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=4, custom_generate=hand_made))
    assert seen == [Forward("prefill", 9, 0, 1), *decodes(9, 3)]
    assert record.output_tokens == 4
    assert record.ttft_method == "next_pass"


def test_a_text_generation_pipeline(transformers):
    model = mode_models.decoder("llama")
    words = mode_models.tokenizer([f"w{index:02}" for index in range(100)])
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=words, device="cpu")
    text = " ".join(f"w{index}" for index in range(10, 19))
    with observed(model) as taken, true_forwards(model=model) as truth:
        pipe(text, max_new_tokens=4, do_sample=False)
        pipe([text, "w03 w04"], max_new_tokens=3, do_sample=False, batch_size=2)
    first, second = taken.records
    assert passes_of(first) + passes_of(second) == truth
    assert passes_of(first) == [Forward("prefill", 9, 0, 1), *decodes(9, 3)]
    assert passes_of(second) == [Forward("prefill", 9, 0, 2), *decodes(9, 2, batch=2)]
    assert (first.input_tokens, first.padding_tokens, first.output_tokens) == (9, 0, 4)
    assert (second.input_tokens, second.padding_tokens, second.output_tokens) == (11, 7, 6)


def test_an_adapter(transformers):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = mode_models.decoder("llama")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    wrapped = peft.get_peft_model(base, config)
    with observed(wrapped) as taken, true_forwards(model=wrapped.get_base_model()) as truth:
        wrapped.generate(input_ids=prompt(), max_new_tokens=NEW)
    (record,) = taken.records
    assert passes_of(record) == truth == [Forward("prefill", 9, 0, 1), *decodes(9, 4)]


def test_a_model_that_nobody_observes_leaves_no_trace_in_the_request_it_runs_in():
    model, judge = mode_models.decoder("llama"), mode_models.decoder("llama", seed=9)

    class Judge:
        def __call__(self, ids, scores):
            judge.generate(ids, max_new_tokens=2)
            return scores

    record, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=3, logits_processor=[Judge()]))
    assert seen == [Forward("prefill", 9, 0, 1), *decodes(9, 2)]
    assert record.itl_ns.count == 2
