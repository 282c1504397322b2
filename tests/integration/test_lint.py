"""The sync lint: what would wait on CUDA is found with its line, and nothing else is."""

from __future__ import annotations

import copy
import inspect
import json
import random
from pathlib import Path

import msgspec
import pytest
import torch
from planted import Planted, expected
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import inferscope
from conftest import build_llama
from inferscope.errors import LintError, NotAModelError, SettingError
from inferscope.syncs import LintReport

HERE = Path(__file__).name
PLANTS = ["scalars", "copies", "python", "sizes", "indices", "host", "makers", "unsure", "depends"]


def build_planted(transformers, plant):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100
    )
    model = Planted(config, plant).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def per_token(report, file):
    """Line: how often for each token, and how sure."""
    found = {}
    for point in report.sync_points:
        if point.file.endswith(file):
            found[point.line] = (found.get(point.line, (0.0, ""))[0] + point.per_token, point.certainty)
    return found


def stop_check_line(transformers):
    """Line of the read in transformers' own stop check."""
    lines, start = inspect.getsourcelines(transformers.generation.utils.StopCheck.__call__)
    return start + next(i for i, line in enumerate(lines) if "bool(" in line)


def test_plain_greedy_decoding_waits_once_per_token_in_the_stop_check(transformers, llama, prompt):
    report = inferscope.lint(llama, input_ids=prompt)
    each = [point for point in report.sync_points if point.per_token]
    assert [(point.file, point.line, point.per_token, point.operator) for point in each] == [
        ("transformers/generation/utils.py", stop_check_line(transformers), 1.0, "Tensor.__bool__")
    ]
    assert (report.syncs_per_token, report.possible_syncs_per_token) == (1.0, 0.0)
    assert report.syncs_per_request == sum(point.per_request for point in report.sync_points) >= 1
    assert all(point.file.startswith("transformers/") for point in report.sync_points)
    assert (report.unit, report.batch_size, report.counted_tokens) == ("token", 1, (2, 8))


@pytest.mark.parametrize("plant", PLANTS)
def test_each_planted_read_is_found_with_its_line_and_none_is_invented(transformers, plant):
    report = inferscope.lint(build_planted(transformers, plant), input_ids=torch.randint(1, 100, (1, 5)))
    assert per_token(report, "planted.py") == expected(plant)
    elsewhere = [point for point in report.sync_points if point.per_token and not point.file.endswith("planted.py")]
    assert [point.line for point in elsewhere] == [stop_check_line(transformers)]
    assert all(point.why for point in report.sync_points)


def test_a_read_in_a_function_that_the_forward_calls_is_found_there(transformers):
    report = inferscope.lint(build_planted(transformers, "through"), input_ids=torch.randint(1, 100, (1, 5)))
    assert expected("read")
    assert per_token(report, "planted.py") == expected("read")


def test_the_caller_is_named_where_a_package_holds_the_line(transformers, llama, prompt):
    class Calling(type(llama)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            transformers.generation.utils.StopCheck()(output.logits.argmax(-1), None, 1)
            return output

    llama.__class__ = Calling
    report = inferscope.lint(llama, input_ids=prompt)
    called = [point for point in report.sync_points if point.caller_file and point.caller_file.endswith(HERE)]
    assert len(called) == 1
    lines = inspect.getsourcelines(Calling.forward)
    assert called[0].caller_line == lines[1] + next(i for i, line in enumerate(lines[0]) if "StopCheck" in line)
    assert called[0].line == stop_check_line(transformers)
    assert report.syncs_per_token == 2.0


def test_two_runs_are_equal(llama, prompt):
    first = inferscope.lint(llama, input_ids=prompt)
    assert inferscope.lint(llama, input_ids=prompt) == first
    assert inferscope.lint(llama, input_ids=prompt, new_tokens=20).launches_per_token == first.launches_per_token
    assert inferscope.lint(llama, input_ids=prompt, max_new_tokens=5).counted_tokens == (2, 5)


def test_launches_per_token_grow_with_the_layers_and_views_are_none_of_them(transformers, prompt):
    def launches(layers):
        return inferscope.lint(build_llama(transformers, num_hidden_layers=layers), input_ids=prompt)

    one, two, three = (launches(layers) for layers in (1, 2, 3))
    grown = two.launches_per_token - one.launches_per_token
    assert grown == three.launches_per_token - two.launches_per_token > 20
    assert one.launches_per_token == sum(rate.per_token for _, rate in one.launches)
    per_layer = {name: rate.per_token for name, rate in two.launches}
    assert per_layer["aten::mm"] == 2 * 7 + 1
    assert per_layer["torch.scaled_dot_product_attention"] == 2
    assert not {"aten::view", "aten::transpose", "aten::t", "aten::slice", "aten::expand"} & per_layer.keys()
    assert any("lower bound" in note for note in one.notes)


def test_a_forward_alone_is_counted_by_hand():
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x):
            y = self.linear(x).relu().view(-1)[2:]
            torch.empty(4, device=x.device)
            torch.zeros(0, device=x.device)
            host = torch.ones(3) + 1
            return torch.cat([y, y]), host

    report = inferscope.lint(Small().eval(), x=torch.rand(2, 4))
    assert dict(report.launches).keys() == {"aten::addmm", "aten::relu", "aten::cat"}
    assert (report.launches_per_token, report.launches_per_request) == (3.0, 0.0)
    assert (report.unit, report.counted_tokens, report.sync_points) == ("pass", None, ())


class Streamer:
    """Takes tokens, as transformers' streamers do."""

    def __init__(self):
        self.puts = self.ends = 0

    def put(self, value):
        self.puts += len(value.tolist())

    def end(self):
        self.ends += 1


@pytest.mark.parametrize(
    ("options", "each", "further"),
    [
        ({"prefill_chunk_size": 4}, 1.0, {}),
        ({"cache_implementation": "static"}, 1.0, {}),
        ({"do_sample": True, "top_p": 0.9, "temperature": 0.7}, 1.0, {}),
        ({"num_beams": 3}, 1.0, {}),
        ({"return_dict_in_generate": True, "output_scores": True}, 1.0, {}),
        ({"max_length": 50, "min_new_tokens": 40}, 1.0, {}),
        ({"use_cache": False}, 2.0, {"transformers/masking_utils.py": 1.0}),
    ],
)
def test_every_way_of_generating_is_counted(llama, prompt, options, each, further):
    report = inferscope.lint(llama, input_ids=prompt, **options)
    assert report.syncs_per_token == each
    for file, count in further.items():
        assert sum(point.per_token for point in report.sync_points if point.file == file) == count
    assert inferscope.lint(llama, input_ids=prompt, **options) == report


def test_a_streamer_is_one_more_copy_per_token_and_its_own_reads_are_free(llama, prompt):
    streamer = Streamer()
    report = inferscope.lint(llama, input_ids=prompt, streamer=streamer)
    copies = [point for point in report.sync_points if point.operator == "Tensor.cpu" and point.per_token]
    assert [(point.file, point.per_token) for point in copies] == [("transformers/generation/utils.py", 1.0)]
    assert report.syncs_per_token == 2.0
    assert streamer.ends == 3
    assert not any(point.file.endswith(HERE) for point in report.sync_points)


def test_padding_in_a_batch_is_read_for_each_token(llama):
    ids = torch.randint(1, 1000, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    report = inferscope.lint(llama, input_ids=ids, attention_mask=mask)
    each = {point.file: point.per_token for point in report.sync_points if point.per_token}
    assert each == {"transformers/generation/utils.py": 1.0, "transformers/masking_utils.py": 1.0}
    assert report.batch_size == 2


def test_experts_that_are_called_one_by_one_wait_for_each(transformers):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=100,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    inputs = {"input_ids": torch.randint(1, 100, (1, 5)), "pad_token_id": 0}
    assert inferscope.lint(model, **inputs).syncs_per_token == 1.0
    model.set_experts_implementation("eager")
    assert inferscope.lint(model, **inputs).syncs_per_token == 1.0 + 22.0  # 11 for each layer, two experts a token


def test_an_assistant_s_weights_are_on_the_device_too(transformers, llama, prompt):
    report = inferscope.lint(llama, input_ids=prompt, assistant_model=build_llama(transformers))
    assert report.possible_syncs_per_token == report.possible_syncs_per_request == 0
    assert report.syncs_per_token > 1


def test_a_model_that_ends_by_itself_is_counted_as_if_it_did_not(llama, prompt):
    plain = inferscope.lint(llama, input_ids=prompt)
    output = llama.generate(prompt, max_new_tokens=6, do_sample=False)
    for position in (0, 1, 3):
        llama.generation_config.eos_token_id = int(output[0, prompt.shape[1] + position])
        report = inferscope.lint(llama, input_ids=prompt)
        assert (report.syncs_per_token, report.counted_tokens) == (1.0, (2, 8))
        assert report.launches_per_token > plain.launches_per_token
        assert any("ended by itself" in note for note in report.notes)


def test_requests_that_something_else_stops_cannot_be_told_apart(llama, prompt):
    def stop(input_ids, _scores, **_options):
        return torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    with pytest.raises(LintError, match="stopping_criteria"):
        inferscope.lint(llama, input_ids=prompt, stopping_criteria=[stop])


def test_the_model_its_inputs_and_the_process_are_as_before(transformers, prompt):
    model = build_planted(transformers, "depends")
    model.register_forward_pre_hook(lambda module, _args: setattr(module, "last_seen", object()))
    cache = transformers.DynamicCache()
    inputs = {"input_ids": prompt % 100, "past_key_values": cache, "do_sample": True}
    given = copy.deepcopy(inputs["input_ids"])
    torch.manual_seed(5)
    random.seed(5)
    drawn, pythons = torch.random.get_rng_state(), random.getstate()
    attributes = [dict(vars(module)) for module in model.modules()]
    parameters = [(parameter, parameter.clone()) for parameter in model.parameters()]
    before = model.generate(given, max_new_tokens=6, do_sample=False)
    model.steps.zero_()
    torch.manual_seed(5)
    grad = torch.is_grad_enabled()
    inferscope.lint(model, **inputs)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert random.getstate() == pythons
    assert torch.is_grad_enabled() == grad
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()
    assert int(model.steps) == 0
    assert cache.get_seq_length() == 0
    assert torch.equal(inputs["input_ids"], given)
    assert [vars(module).keys() - {"last_seen"} for module in model.modules()] == [
        known.keys() - {"last_seen"} for known in attributes
    ]
    assert all(torch.equal(now, then) for now, then in parameters)
    assert torch.equal(model.generate(given, max_new_tokens=6, do_sample=False), before)


def test_a_static_cache_made_while_linting_does_not_stay(llama, prompt):
    inferscope.lint(llama, input_ids=prompt, cache_implementation="static")
    assert not hasattr(llama, "_cache")


def test_modes_go_when_the_model_fails(llama, prompt):
    def fail(*_args, **_options):
        raise KeyError("the model's own")

    llama.lm_head.register_forward_hook(fail)
    with pytest.raises(KeyError, match="the model's own"):
        inferscope.lint(llama, input_ids=prompt)
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()


def test_it_can_be_linted_while_it_is_traced(llama, prompt):
    plain = inferscope.lint(llama, input_ids=prompt)
    with inferscope.trace(llama) as session:
        assert inferscope.lint(llama, input_ids=prompt) == plain
        session.wait()


def test_a_compiled_model_is_linted_as_it_is_written(transformers, llama, prompt):
    assert inferscope.lint(torch.compile(build_llama(transformers)), input_ids=prompt) == inferscope.lint(
        llama, input_ids=prompt
    )


def test_a_hand_written_loop_is_a_pass(llama, prompt):
    def loop(ids):
        for _ in range(3):
            ids = torch.cat([ids, llama(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == 5:
                break
        return ids.tolist()

    report = inferscope.lint(loop, ids=prompt)
    start = loop.__code__.co_firstlineno
    assert {(point.operator, point.line - start, point.per_token) for point in report.sync_points} == {
        ("Tensor.__bool__", 3, 3.0),
        ("Tensor.tolist", 5, 1.0),
    }
    assert report.unit == "pass"
    assert report.possible_syncs_per_token == 0
    assert any("one pass" in note for note in report.notes)


def test_what_a_function_hides_is_possible_at_most():
    report = inferscope.lint(functional(torch.ones(3)))
    assert [point.certainty for point in report.sync_points] == ["possible"]
    assert (report.syncs_per_token, report.possible_syncs_per_token) == (0.0, 1.0)


def functional(hidden):
    return lambda: hidden.sum().item()


def test_one_pass_on_the_meta_device(transformers, prompt):
    with torch.device("meta"):
        model = build_llama(transformers)
    report = inferscope.lint(model.forward, input_ids=prompt.to("meta"))
    assert (report.device, report.syncs_per_token) == ("meta", 0.0)
    assert report.launches_per_token > 80


def test_reads_on_the_meta_device_are_explained(transformers, prompt):
    with torch.device("meta"):
        model = build_llama(transformers)
    with pytest.raises(LintError, match=r"transformers/generation/utils\.py:\d+ reads values .* meta device"):
        inferscope.lint(model, input_ids=prompt.to("meta"))


@pytest.mark.parametrize(
    ("subject", "inputs", "error", "said"),
    [
        ("llama", {}, LintError, "inputs are missing"),
        ("llama", {"max_new_tokens": 8}, LintError, "inputs are missing"),
        ("llama", {"input_ids": torch.ones(1, 2, dtype=torch.long), "new_tokens": 2}, SettingError, "new_tokens=2"),
        ("llama", {"input_ids": torch.ones(1, 2, dtype=torch.long), "max_new_tokens": 1}, SettingError, "at least 3"),
        ("linear", {}, LintError, "inputs are missing"),
        ("linear", {"wrong": torch.ones(1)}, LintError, "do not fit Linear"),
        ("text", {}, NotAModelError, "not a str"),
        ("class", {}, NotAModelError, "the class Linear"),
    ],
)
def test_mistakes_are_said_at_once(llama, subject, inputs, error, said):
    subjects = {"llama": llama, "linear": torch.nn.Linear(1, 1), "text": "llama", "class": torch.nn.Linear}
    with pytest.raises(error, match=said):
        inferscope.lint(subjects[subject], **inputs)


def test_an_operator_that_is_not_torch_s_is_named(llama, prompt):
    library = torch.library.Library("inferscope_lint_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")

    class Foreign(type(llama)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            torch.ops.inferscope_lint_test.twice(output.logits).sum().item()
            return output

    llama.__class__ = Foreign
    report = inferscope.lint(llama, input_ids=prompt)
    assert any("inferscope_lint_test::twice" in note for note in report.notes)
    assert dict(report.launches)["inferscope_lint_test::twice"].per_token == 1
    assert report.syncs_per_token == 2.0


def test_training_mode_is_noted(llama, prompt):
    assert not any("training" in note for note in inferscope.lint(llama, input_ids=prompt).notes)
    assert any("training" in note for note in inferscope.lint(llama.train(), input_ids=prompt).notes)


def test_the_report_survives_json_and_prints_its_lines(llama, prompt):
    report = inferscope.lint(llama, input_ids=prompt)
    assert msgspec.json.decode(report.to_json(), type=inferscope.LintReport) == report
    assert json.loads(report.to_json())["sync_points"][0]["certainty"] == "certain"
    assert isinstance(report, LintReport)
    text = str(report)
    assert all(f"{point.file}:{point.line}" in text for point in report.sync_points)
