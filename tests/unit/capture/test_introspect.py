"""Reading a model without touching it, counting on its twin, and keeping costs on disk."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import threading

import pytest
import torch

from inferscope import notices
from inferscope.analysis.cost import fit, pass_cost
from inferscope.capture.introspect import count, describe, load_cost, store_cost
from inferscope.errors import CostUnavailableError
from inferscope.specs import columns_of, regime_of

transformers = pytest.importorskip("transformers")

TINY = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(**more):
    return transformers.LlamaConfig(**{**TINY, **more})


def tiny(**more):
    return transformers.LlamaForCausalLM(tiny_config(**more)).eval()


@pytest.fixture(scope="module")
def terms():
    return fit(count(tiny_config()))


class TestDescribe:
    def test_a_model_says_what_it_is(self):
        model = tiny().to(torch.bfloat16)
        spec = describe(model)
        assert (spec.model_class, spec.name, spec.model_type) == ("LlamaForCausalLM", "LlamaForCausalLM", "llama")
        assert (spec.dtype, spec.device, spec.attention) == ("bfloat16", "cpu", "sdpa")
        assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert spec.weight_bytes == 2 * spec.parameters
        assert spec.cost is None

    def test_the_name_is_the_hub_id_where_there_is_one(self):
        model = tiny()
        model.config._name_or_path = "org/model"
        assert describe(model).name == "org/model"

    def test_a_tied_head_counts_once(self):
        tied, untied = describe(tiny(tie_word_embeddings=True)), describe(tiny())
        assert untied.weight_bytes - tied.weight_bytes == 4 * 101 * 48

    def test_parameters_sharing_one_storage_count_by_what_they_cover(self):
        model = torch.nn.Module()
        whole = torch.zeros(1000)
        model.first = torch.nn.Parameter(whole[:300])
        model.second = torch.nn.Parameter(whole[300:700])
        model.again = torch.nn.Parameter(whole[:300])
        assert describe(model).weight_bytes == 4 * 700

    def test_different_widths_are_mixed(self):
        model = tiny()
        model.lm_head.to(torch.float16)
        assert describe(model).dtype == "mixed"

    def test_the_digest_is_the_same_for_the_same_model(self):
        first, second = tiny(), tiny()
        second.config._name_or_path = "/elsewhere/on/disk"
        second.config.transformers_version = "0.0"
        assert describe(first).digest == describe(second).digest
        assert len(describe(first).digest) == 64

    @pytest.mark.parametrize(
        "other",
        [
            lambda: tiny(intermediate_size=96),
            lambda: tiny(rope_theta=1234.0),
            lambda: tiny(attn_implementation="eager"),
            lambda: tiny().to(torch.bfloat16),
        ],
    )
    def test_the_digest_differs_for_another_model(self, other):
        assert describe(tiny()).digest != describe(other()).digest

    def test_an_adapted_model_has_another_digest_than_its_base(self):
        model = tiny()
        base = describe(model).digest
        model.model.layers[0].mlp.extra = torch.nn.Linear(4, 4)
        assert describe(model).digest != base

    def test_a_plain_module_has_what_it_has(self):
        spec = describe(torch.nn.Linear(3, 4))
        assert (spec.name, spec.model_type, spec.attention, spec.parameters) == ("Linear", None, None, 16)

    def test_a_module_without_parameters_has_none(self):
        spec = describe(torch.nn.ReLU())
        assert (spec.parameters, spec.weight_bytes, spec.dtype, spec.device) == (None, None, None, None)

    def test_hostile_attributes_do_not_get_out(self):
        class Hostile(torch.nn.Module):
            @property
            def config(self):
                raise RuntimeError("no")

            def named_parameters(self, *args, **kwargs):
                raise ValueError("neither")

        spec = describe(Hostile())
        assert (spec.name, spec.parameters, spec.weight_bytes, spec.attention) == ("Hostile", None, None, None)

    def test_uninitialised_parameters_are_unknown(self):
        assert describe(torch.nn.LazyLinear(4)).weight_bytes is None


class TestCountLeavesTheHostAlone:
    def test_random_numbers_and_defaults_stay(self):
        torch.manual_seed(11)
        before = torch.get_rng_state()
        count(tiny_config(), dtype="bfloat16")
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_default_dtype() == torch.float32
        assert torch.empty(1).device.type == "cpu"
        assert torch.is_grad_enabled()

    def test_the_model_stays(self):
        model = tiny()
        model.train()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        places = {name: value.data_ptr() for name, value in model.named_parameters()}
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        config = copy.deepcopy(model.config.to_dict())
        pad = model.config.pad_token_id
        count(model)
        assert model.training
        assert {name: value.data_ptr() for name, value in model.named_parameters()} == places
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
        assert model.config.to_dict() == config
        assert model.config.pad_token_id == pad == 0
        assert model.config._attn_implementation == "sdpa"

    def test_the_models_hooks_do_not_fire(self):
        model, fired = tiny(), []
        model.register_forward_hook(lambda *_: fired.append(1))
        count(model)
        assert not fired

    def test_idle_is_asked_before_every_forward(self):
        asked = []
        table = count(tiny_config(), idle=lambda: asked.append(1))
        assert len(asked) > len(table.shapes) + len(table.lives)


class TestCount:
    def test_every_regime_has_more_shapes_than_unknowns(self):
        table = count(tiny_config())
        regimes = [regime_of(shape.q_len, shape.past_len) for shape in table.shapes]
        for regime in ("prefill", "decode", "continuation"):
            assert regimes.count(regime) >= len(columns_of(table.structure, regime, "")) + 4
        longest = max(shape.past_len + shape.q_len for shape in table.shapes)
        assert table.counted_tokens == longest > 1_000_000

    def test_groups_are_named_by_what_they_do(self, terms):
        cost = pass_cost(terms, batch_size=1, q_len=5, past_len=3)
        assert {group.group for group in cost.groups} == {
            "linear 48x48", "linear 48x16", "linear 48x80", "linear 80x48", "lm_head 48x101", "attention",
            "kv-cache", "embedding", "norm/elementwise", "other", "mask", "kv-repeat",
        }  # fmt: skip

    def test_biases_are_read_with_their_layer(self):
        groups = {
            bias: {group.group: group for group in pass_cost(costs, batch_size=1, q_len=5, past_len=3).groups}
            for bias, costs in ((bias, fit(count(tiny_config(attention_bias=bias)))) for bias in (False, True))
        }
        extra = groups[True]["linear 48x16"].bytes - groups[False]["linear 48x16"].bytes
        assert extra == 2 * 2 * 16 * 4  # layers, keys and values, outputs, bytes

    def test_a_compiled_model_is_counted_as_what_it_wraps(self, terms):
        assert fit(count(torch.compile(tiny()))) == terms

    def test_a_model_is_counted_with_its_own_widths(self, terms):
        model = tiny()
        model.lm_head.to(torch.float64)
        groups = {
            group.group: group for group in pass_cost(fit(count(model)), batch_size=1, q_len=5, past_len=3).groups
        }
        single = {group.group: group for group in pass_cost(terms, batch_size=1, q_len=5, past_len=3).groups}
        extra = groups["lm_head 48x101"].bytes - single["lm_head 48x101"].bytes
        assert extra >= 4 * 48 * 101
        assert groups["linear 48x80"] == single["linear 48x80"]

    def test_flash_attention_is_counted_as_sdpa_and_says_so(self, terms):
        config = tiny_config()
        config._attn_implementation_internal = "flex_attention"
        flex = fit(count(config))
        assert flex.notes == ("attention counted as sdpa in place of flex_attention",)
        assert flex.operators == terms.operators

    @pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
    def test_as_many_experts_are_read_as_tokens_are_expected_to_reach(self, implementation):
        config = transformers.MixtralConfig(**TINY, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
        config._experts_implementation_internal = implementation
        costs = fit(count(config))
        assert any("choose uniformly" in note for note in costs.notes)
        expert_bytes = 2 * 3 * 48 * 80 * 4  # layers, matrices
        base = pass_cost(costs, batch_size=1, q_len=1, past_len=9).weight_bytes - 2 * expert_bytes
        for tokens in (1, 2, 7, 400):
            distinct = 4 * (1 - 0.5**tokens)
            cost = pass_cost(costs, batch_size=tokens, q_len=1, past_len=9)
            assert cost.weight_bytes == pytest.approx(
                base + (tokens - 1) * 48 * 4 + distinct * expert_bytes, abs=1
            )  # and one row of the embedding for each token

    def test_layers_of_the_users_own_are_counted_as_they_are(self, terms):
        model = tiny()
        model.model.layers[1].mlp.up_proj = torch.nn.Sequential(torch.nn.Linear(48, 4), torch.nn.Linear(4, 80))
        own, plain = (pass_cost(each, batch_size=2, q_len=5, past_len=0) for each in (fit(count(model)), terms))
        assert own.flops - plain.flops == 2 * 2 * 5 * (48 * 4 + 4 * 80 - 48 * 80)
        assert own.weight_bytes - plain.weight_bytes == 4 * (48 * 4 + 4 + 4 * 80 + 80 - 48 * 80)

    def test_weights_of_whole_numbers_are_read_as_stored(self, terms):
        model = tiny()
        weight = model.model.layers[0].mlp.up_proj.weight
        model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
        stored, plain = (pass_cost(each, batch_size=2, q_len=5, past_len=0) for each in (fit(count(model)), terms))
        assert stored.flops == plain.flops
        assert plain.weight_bytes - stored.weight_bytes == (4 - 1) * 48 * 80

    def test_a_class_that_its_config_alone_does_not_build_is_copied(self, terms):
        class Needy(transformers.LlamaForCausalLM):
            def __init__(self, config, tokenizer):
                super().__init__(config)
                self.tokenizer = tokenizer

        assert fit(count(Needy(tiny_config(), tokenizer="any"))).operators == terms.operators

    def test_arithmetic_without_a_formula_is_listed(self):
        costs = fit(count(_with_fourier()))
        assert costs.uncounted == ("_fft_c2c",)


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (transformers.ViTConfig, "no causal language model"),
            (lambda: torch.nn.Linear(3, 4), "no transformers config"),
            (object, "no causal language model"),
        ],
    )
    def test_what_cannot_be_counted_is_refused_with_the_reason(self, make, reason):
        with pytest.raises(CostUnavailableError, match=reason):
            count(make())

    @pytest.mark.parametrize("dtype", ["int8", "nonsense", "nn"])
    def test_a_dtype_that_is_none(self, dtype):
        with pytest.raises(CostUnavailableError, match=f"dtype='{dtype}'"):
            count(tiny_config(), dtype=dtype)

    def test_a_model_that_can_be_neither_built_nor_copied(self):
        class Needy(transformers.LlamaForCausalLM):
            def __init__(self, config, lock):
                super().__init__(config)
                self.lock = lock

        with pytest.raises(CostUnavailableError, match=r"Needy .* cannot be copied: .*lock"):
            count(Needy(tiny_config(), threading.Lock()))

    def test_a_forward_that_reads_values(self):
        class Reader(transformers.LlamaForCausalLM):
            def forward(self, input_ids=None, **kwargs):
                return super().forward(input_ids=input_ids, **kwargs) if input_ids.sum().item() else None

        with pytest.raises(CostUnavailableError, match="cannot be run on shapes alone"):
            count(Reader(tiny_config()))


class TestCostFiles:
    @pytest.mark.usefixtures("notices_reset")
    def test_what_was_kept_comes_back(self, terms, tmp_path):
        folder = tmp_path / "made" / "when needed"
        assert load_cost("ab12", folder) is None
        assert store_cost("ab12", terms, folder)
        assert load_cost("ab12", folder) == terms
        assert [path.name for path in folder.iterdir()] == ["ab12.json"]
        assert notices.warn("cost-cache-unusable", "nothing had been said")

    @pytest.mark.usefixtures("notices_reset")
    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "",
            lambda text: "[1, 2]",
            lambda text: re.sub('"schema":[0-9]+', '"schema":1', text),
            lambda text: text.replace('"digest":"ab12"', '"digest":"cd34"'),
            lambda text: text.replace('"bqq"', '"qqq"'),
            lambda text: _edited(text, lambda cost: cost["operators"][0]["flops"].pop()),
            lambda text: _edited(text, lambda cost: cost["operators"][0]["flops"].__setitem__(0, "many")),
            lambda text: _edited(text, lambda cost: cost["operators"][0].update(regime="sometimes")),
        ],
    )
    def test_a_damaged_file_is_ignored_and_said_once(self, terms, tmp_path, damage):
        store_cost("ab12", terms, tmp_path)
        path = tmp_path / "ab12.json"
        path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
        assert load_cost("ab12", tmp_path) is None
        assert not notices.warn("cost-cache-unusable", "it has been said")

    @pytest.mark.usefixtures("notices_reset")
    def test_an_unwritable_folder_is_said_once(self, terms, tmp_path):
        (tmp_path / "file").write_text("in the way", encoding="utf-8")
        assert not store_cost("ab12", terms, tmp_path / "file" / "folder")
        assert not notices.warn("cache-unwritable", "it has been said")

    @pytest.mark.parametrize("digest", ["", "../escape", "a/b"])
    def test_a_digest_is_no_path(self, terms, tmp_path, digest):
        assert not store_cost(digest, terms, tmp_path)
        assert load_cost(digest, tmp_path) is None
        assert not list(tmp_path.parent.rglob("*escape*"))

    def test_a_stored_file_replaces_the_one_before(self, terms, tmp_path):
        store_cost("ab12", terms, tmp_path)
        other = dataclasses.replace(terms, notes=("newer",))
        store_cost("ab12", other, tmp_path)
        assert load_cost("ab12", tmp_path) == other


def _edited(text, change):
    content = json.loads(text)
    change(content["cost"])
    return json.dumps(content)


def _with_fourier():
    class Fourier(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, past_key_values=None, use_cache=None, logits_to_keep=0):
            output = super().forward(
                input_ids=input_ids,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            )
            output.logits = torch.fft.fft(output.logits.to(torch.complex64)).real
            return output

    return Fourier(tiny_config())
