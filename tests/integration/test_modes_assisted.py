"""Assisted decoding: who drafts, who verifies, and how much of it was accepted."""

from __future__ import annotations

import itertools

import mode_models
import pytest
import torch
from mode_truth import Forward, checked, observed, passes_of, prompt, true_forwards

pytestmark = pytest.mark.capture

PHASES = {"draft/prefill": "draft", "draft": "draft", "prefill": "prefill", "verify": "verify"}


def model_and_assistant(*, alike):
    """Two models of one vocabulary; alike ones agree often, since the second is the first with some noise."""
    model = mode_models.decoder("llama")
    assistant = mode_models.decoder("llama", seed=0 if alike else 7)
    if alike:
        torch.manual_seed(3)
        with torch.no_grad():
            for weight in assistant.parameters():
                weight.add_(torch.randn_like(weight) * 0.002)
    return model, assistant


def accepted_by(truth):
    """Drafted and accepted tokens, from what was put to the model and where its cache stood afterwards."""
    own = [each for each in truth if each.name in {"prefill", "verify"}]
    drafted = own[0].q - 9 + sum(each.q - 1 for each in own[1:])
    accepted = own[1].past - 9 if len(own) > 1 else 0
    accepted += sum(after.past - before.past - 1 for before, after in itertools.pairwise(own[1:]))
    return drafted, accepted, own[-1]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_an_assistant_that_is_not_traced_itself_drafts(alike, options):
    model, assistant = model_and_assistant(alike=alike)
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0

    def run():
        return model.generate(prompt(), max_new_tokens=12, assistant_model=assistant, **options)

    record, seen = checked(model, run, draft=assistant)
    assert seen[:2] == [Forward("draft/prefill", 9, 0, 1), Forward("draft", 1, 9, 1)]
    assert next(each for each in seen if each.name == "prefill") == Forward("prefill", 12, 0, 1)
    assert {phase.name for phase in record.phases} == {"draft", "prefill", "verify"}
    drafted, accepted, last = accepted_by(seen)
    assert record.drafted_tokens == drafted
    assert accepted <= record.accepted_tokens <= accepted + last.q - 1
    assert record.accepted_tokens == 12 - sum(each.name in {"prefill", "verify"} for each in seen)
    assert record.output_tokens == 12
    assert record.acceptance_share == record.accepted_tokens / drafted
    assert (record.acceptance_share > 0.4) is alike
    assert record.phase("draft").work == ()  # of another model


def test_the_exact_course_of_one_assisted_request():
    model, assistant = model_and_assistant(alike=False)
    assistant.generation_config.num_assistant_tokens = 2
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    record, seen = checked(
        model, lambda: model.generate(prompt(), max_new_tokens=3, assistant_model=assistant), draft=assistant
    )
    assert seen == [
        Forward("draft/prefill", 9, 0, 1),
        Forward("draft", 1, 9, 1),
        Forward("prefill", 11, 0, 1),
        Forward("draft", 2, 8, 1),
        Forward("verify", 2, 9, 1),
        Forward("verify", 1, 10, 1),
    ]
    assert (record.drafted_tokens, record.accepted_tokens) == (3, 0)
    assert record.ttft_method == "next_pass"


def test_the_time_to_the_first_token_ends_after_the_first_pass_of_the_model_itself():
    model, assistant = model_and_assistant(alike=False)
    with observed(model) as taken:
        model.generate(prompt(), max_new_tokens=5, assistant_model=assistant)
    (record,) = taken.records
    first = next(each for each in record.pass_samples if each.name == "prefill")
    after = next(each for each in record.pass_samples if each.start_ns > first.start_ns)
    assert first.start_ns + first.host_ns <= record.ttft_ns <= after.start_ns


def test_an_assistant_that_is_traced_too_belongs_to_the_request_it_drafts_for():
    model, assistant = model_and_assistant(alike=True)
    with observed(model) as taken, observed(assistant) as own, true_forwards(model=model, draft=assistant) as truth:
        model.generate(prompt(), max_new_tokens=8, assistant_model=assistant)
        of_model = list(truth)
        assistant.generate(prompt(), max_new_tokens=2)
    (record,), (alone,) = taken.records, own.records
    assert passes_of(record) == of_model
    assert [each.name for each in alone.pass_samples] == ["prefill", "decode"]


def test_an_assistant_is_left_as_it_was_and_generates_alone_unseen():
    model, assistant = model_and_assistant(alike=True)
    with observed(model) as taken:
        model.generate(prompt(), max_new_tokens=4, assistant_model=assistant)
        assistant.generate(prompt(), max_new_tokens=4)
    assert len(taken.records) == 1
    assert "watched" not in str(vars(type(assistant)).get("__call__"))


def test_looking_up_in_the_prompt():
    model = mode_models.decoder("llama")
    model.generation_config.eos_token_id = 100  # no token of it; without one, some versions cannot look up
    ids = prompt(6).repeat(1, 3)
    record, seen = checked(model, lambda: model.generate(ids, max_new_tokens=12, prompt_lookup_num_tokens=3))
    assert seen[0] == Forward("prefill", 18 + 3, 0, 1)
    assert {each.name for each in seen[1:]} == {"verify"}
    assert record.phase("draft") is None  # looking up is no forward
    assert record.drafted_tokens == 3 + sum(each.q - 1 for each in seen[1:])
    assert record.accepted_tokens == 12 - len(seen)


def test_looking_up_as_the_models_own_default():
    model = mode_models.decoder("llama")
    model.generation_config.prompt_lookup_num_tokens = 3
    model.generation_config.eos_token_id = 100
    _, seen = checked(model, lambda: model.generate(prompt(6).repeat(1, 3), max_new_tokens=6))
    assert {each.name for each in seen[1:]} == {"verify"}


def test_the_same_model_drafts_by_leaving_early():
    model = mode_models.decoder("llama")
    record, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=8, assistant_early_exit=1))
    assert seen[0] == Forward("draft/prefill", 9, 0, 1)
    assert {PHASES[each.name] for each in seen} == {"draft", "prefill", "verify"}
    assert record.accepted_tokens == 8 - sum(each.name in {"prefill", "verify"} for each in seen)
    assert record.phase("draft").work == ()  # of fewer layers


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_an_assistant_with_another_tokenizer(options):
    words = [f"w{index}" for index in range(100)]
    model, assistant = mode_models.decoder("llama"), mode_models.decoder("llama", seed=7, vocab_size=90)
    own = mode_models.tokenizer(words)
    other = mode_models.tokenizer([*words[:85], *(f"x{index}" for index in range(5))])
    generator = {"assistant_model": assistant, "tokenizer": own, "assistant_tokenizer": other}
    with observed(model) as taken, true_forwards(model=model, draft=assistant) as truth:
        torch.manual_seed(2)
        model.generate(prompt(), max_new_tokens=6, **generator, **options)
    (record,) = taken.records
    assert passes_of(record) == truth
    assert {PHASES[each.name] for each in truth} == {"draft", "prefill", "verify"}
    own_passes = [each for each in truth if each.name in {"prefill", "verify"}]
    assert record.drafted_tokens == own_passes[0].q - 9 + sum(each.q - 1 for each in own_passes[1:])
    assert record.accepted_tokens == record.output_tokens - len(own_passes)


def test_an_encoder_decoder_with_an_assistant_of_its_own():
    model, assistant = mode_models.t5(), mode_models.t5(seed=5)
    record, seen = checked(
        model,
        lambda: model.generate(prompt(), max_new_tokens=5, assistant_model=assistant),
        encoders=(model.encoder, assistant.encoder),
        draft=assistant,
    )
    assert [each.name for each in seen[:2]] == ["encode", "encode"]
    assert {PHASES[each.name] for each in seen[2:]} == {"draft", "prefill", "verify"}
    own = [each for each in seen if each.name in {"prefill", "verify"}]
    assert record.drafted_tokens == sum(each.q - 1 for each in own)
    assert record.accepted_tokens == 5 - len(own)


def test_a_request_that_breaks_off_says_what_was_drafted_and_not_what_was_accepted():
    model, assistant = model_and_assistant(alike=True)
    calls = []

    class Strike:
        def __call__(self, _ids, scores):
            calls.append(1)
            if len(calls) > 20:
                raise ValueError("enough")
            return scores

    with observed(model) as taken, pytest.raises(ValueError, match="enough"):
        model.generate(prompt(), max_new_tokens=40, assistant_model=assistant, logits_processor=[Strike()])
    (record,) = taken.records
    assert record.status == "aborted"
    assert record.drafted_tokens > 0
    assert (record.accepted_tokens, record.acceptance_share) == (None, None)


def test_a_model_that_drafts_with_layers_of_its_own(monkeypatch):
    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this version of transformers does not draft with a model's own layers")
    model = mode_models.decoder("deepseek v3", num_nextn_predict_layers=1)
    drafter = {}

    def untrained(main_model, **_options):
        drafter["model"] = layers.MtpModel(main_model, 1).eval()
        return drafter["model"]

    monkeypatch.setattr(layers.MtpModel, "from_pretrained", untrained)
    with observed(model) as taken, true_forwards(model=model) as truth:
        model.generate(prompt(), max_new_tokens=5, use_mtp=True)
    (record,) = taken.records
    seen = passes_of(record)
    assert [each for each in seen if each.name in {"prefill", "verify"}] == truth
    assert seen[0] == Forward("prefill", 9, 0, 1)
    assert seen[1] == Forward("draft/prefill", 9, 0, 1)
    assert {each.name for each in seen[2:]} == {"draft", "verify"}
    assert all(each.past is None for each in seen[2:] if each.name == "draft")
    assert record.drafted_tokens == sum(each.q - 1 for each in truth[1:])
    assert record.accepted_tokens == 5 - len(truth)
