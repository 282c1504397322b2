"""Counted costs of every class of architecture against real tensors on a CPU: equal, not close."""

from __future__ import annotations

import functools
import inspect
import weakref

import mode_models
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import inferscope
from inferscope.analysis.cost import encoder_cost, fit, pass_cost
from inferscope.analysis.memory import cache_bytes, peak_bytes
from inferscope.capture.introspect import count, describe

transformers = pytest.importorskip("transformers")

WINDOW, CHUNK = 16, 16
WIDTHS = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
MAMBA2 = {"mamba_n_heads": 12, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": CHUNK}
SHALLOW = {**WIDTHS, "num_hidden_layers": 2}
WINDOWS = ["sliding_attention", "full_attention"]
CONFIGS = {
    "mqa": lambda t: t.GPTBigCodeConfig(vocab_size=101, n_embd=48, n_layer=2, n_head=6, multi_query=True),
    "mistral, window": lambda t: t.MistralConfig(**WIDTHS, sliding_window=WINDOW),
    "gemma2, windows": lambda t: t.Gemma2Config(**SHALLOW, head_dim=8, sliding_window=WINDOW, layer_types=WINDOWS),
    "gemma3, windows": lambda t: t.Gemma3TextConfig(**SHALLOW, head_dim=8, sliding_window=WINDOW, layer_types=WINDOWS),
    "gpt neo, masks as tables": lambda t: t.GPTNeoConfig(
        vocab_size=101,
        hidden_size=48,
        num_layers=2,
        num_heads=6,
        attention_types=[[["local", "global"], 1]],
        window_size=WINDOW,
        max_position_embeddings=128,
    ),
    "gpt oss, experts with biases": lambda t: t.GptOssConfig(
        **SHALLOW,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
    ),
    "mixtral": lambda t: t.MixtralConfig(**WIDTHS, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2 moe": lambda t: t.Qwen2MoeConfig(
        **WIDTHS,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=40,
    ),
    "deepseek v3": mode_models.CONFIGS["deepseek v3"],
    "mamba": lambda t: t.MambaConfig(vocab_size=101, hidden_size=48, num_hidden_layers=2, state_size=8),
    "jamba": mode_models.CONFIGS["jamba"],
    "bamba": lambda t: t.BambaConfig(**SHALLOW, attn_layer_indices=[1], **MAMBA2),
    "t5": lambda t: mode_models.t5().config,
    "bart": lambda t: mode_models.bart().config,
    "whisper": lambda t: t.WhisperConfig(**{**mode_models.whisper().config.to_dict(), "max_target_positions": 64}),
}
ENCODERS = {"t5": 11, "bart": 11, "whisper": 20}
NOT_ALL_READ = {"gpt oss, experts with biases", "mixtral", "qwen2 moe", "deepseek v3", "jamba"}
NO_EMBEDDING = {
    "mqa": 0,
    "gpt neo, masks as tables": 0,
    "gemma2, windows": 0,
    "gemma3, windows": 0,
    "mamba": 0,
}  # tied: read whole by the head
UNFUSED = {"gemma2, windows", "gpt neo, masks as tables", "gpt oss, experts with biases"}
WHOLE_CACHE = {"gpt neo, masks as tables"}  # layers with a window are given all keys and mask those outside
SHAPES = [(2, 9, 0, 1), (1, 40, 0, 40), (3, 1, 5, 1), (2, 1, 33, 1), (1, 1, 0, 1), (2, 6, 13, 1), (1, 12, 30, 12)]


@functools.cache
def model_of(name):
    torch.manual_seed(0)
    config = CONFIGS[name](transformers)
    registry = "MODEL_FOR_CAUSAL_LM_MAPPING"
    if name in ENCODERS:
        registry = (
            "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING" if name == "whisper" else "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"
        )
    return getattr(transformers, registry)[type(config)](config).eval()


@functools.cache
def terms_of(name):
    return fit(count(model_of(name)))


class Masks(TorchFunctionMode):
    """FLOPs of fused attention that its mask removes, from the mask's own values."""

    def __init__(self):
        super().__init__()
        self.masked_flops = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = args[:3]
            mask, rows, kv_len = kwargs.get("attn_mask"), query.shape[-2], key.shape[-2]
            if mask is None:
                mask = torch.ones(rows, kv_len, dtype=torch.bool)
                mask = mask.tril() if kwargs.get("is_causal") else mask
            seen = mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min / 2
            removed = (~seen).expand(*query.shape[:-1], kv_len).sum()
            self.masked_flops += 2 * int(removed) * (query.shape[-1] + value.shape[-1])
        return func(*args, **kwargs)


def attention_flops(query, key, value, *_, out_shape=None, **__):
    return 2 * query[0] * query[1] * query[2] * key[-2] * (query[3] + value[-1])


def grouped_flops(rows, experts, *_, out_shape=None, **__):
    return 2 * rows[0] * rows[1] * experts[2]


MISSING = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._grouped_mm: grouped_flops,
}


def counted(run):
    """(full, causal) FLOPs of a real call, by torch's counter and the formulas that it lacks, and what it returned."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=MISSING) as counter, Masks() as masks:
        output = run()
    return counter.get_total_flops(), counter.get_total_flops() - masks.masked_flops, output


def unfused_masked_flops(b, q, past, *, whole_cache):
    """Of a layer with a window and one without, 6 heads of width 8: pairs of a query and a key it must not see."""
    places = [(row, key) for row in range(past, past + q) for key in range(past + q)]
    kept = past + q if whole_cache else min(past, WINDOW - 1) + q  # keys that a layer with a window is given
    seen = sum(key <= row for row, key in places)
    near = sum(row - WINDOW < key <= row for row, key in places)
    return 4 * 6 * 8 * b * ((q * (past + q) - seen) + (q * kept - near))


def cache_in(output):
    return getattr(output, "past_key_values", None) or output.cache_params


def arguments(model, shape, cache, encoded):
    b, q, past, kept = shape
    positions = torch.arange(past, past + q).repeat(b, 1)
    ids = torch.full((b, q), 7)
    known = {
        "position_ids": positions,
        "past_key_values": cache,
        "cache_params": cache,
        "logits_to_keep": kept,
        "encoder_outputs": encoded,
        "decoder_input_ids" if encoded is not None else "input_ids": ids,
        "use_cache": True,
    }
    accepted = inspect.signature(model.forward).parameters
    return {key: value for key, value in known.items() if key in accepted and value is not None}


def encoder_input(name, b):
    if name == "whisper":
        return torch.randn(b, 8, 40)
    return torch.full((b, ENCODERS[name]), 7)


def forward(name, b, q, past, kept):
    model = model_of(name)
    with torch.no_grad():
        encoded = model.get_encoder()(encoder_input(name, b)) if name in ENCODERS else None
        cache = None
        if past:
            cache = cache_in(model(**arguments(model, (b, past, 0, 1), None, encoded)))
    return counted(lambda: model(**arguments(model, (b, q, past, kept), cache, encoded)))


def storage_bytes(tensors):
    """Bytes of the memory behind some tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


def tensors_in(value):
    """Every tensor that a transformers cache holds, of whatever layers."""
    if isinstance(value, torch.Tensor):
        return [value] if value.dim() > 1 else []
    inside = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else None
    if inside is None:
        inside = vars(value).values() if type(value).__module__.startswith("transformers.cache") else ()
    return [tensor for each in inside for tensor in tensors_in(each)]


def weights_of(model):
    saved = model.state_dict(keep_vars=True)
    return [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in saved)]


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_and_cache_equal_those_of_real_forwards(name):
    terms = terms_of(name)
    length = ENCODERS.get(name)
    for b, q, past, kept in SHAPES:
        full, causal, output = forward(name, b, q, past, kept)
        if name in UNFUSED:
            causal -= unfused_masked_flops(b, q, past, whole_cache=name in WHOLE_CACHE)
        cost = pass_cost(terms, batch_size=b, q_len=q, past_len=past, logits_to_keep=kept, encoder_len=length)
        shape = (b, q, past, kept)
        assert (cost.flops_full, cost.flops, cost.uncounted) == (full, causal, ()), shape
        stored = cache_bytes(terms, batch_size=b, q_len=q, past_len=past, encoder_len=length)
        assert stored == storage_bytes(tensors_in(cache_in(output))), shape
        assert cost.bytes.minimum <= cost.bytes.model, shape
        assert sum(extra.bytes for extra in cost.extras) == cost.bytes.executed - cost.bytes.model, shape


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_equal_what_is_stored(name):
    model, terms = model_of(name), terms_of(name)
    stored = storage_bytes(weights_of(model))
    assert terms.stored_bytes == describe(model).weight_bytes == stored
    cost = pass_cost(terms, batch_size=2, q_len=9, past_len=0, encoder_len=ENCODERS.get(name))
    if name in NOT_ALL_READ or name in ENCODERS:
        assert cost.weight_bytes < stored
    elif name in NO_EMBEDDING:
        positions = model.transformer.wpe.weight if hasattr(model, "transformer") else None
        unread = 0 if positions is None else positions.nbytes - 2 * 9 * 48 * 4
        assert cost.weight_bytes == stored - unread
    else:
        table = model.get_input_embeddings().weight
        assert cost.weight_bytes == stored - table.nbytes + 2 * 9 * 48 * 4


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_costed_by_themselves(name):
    encoder = model_of(name).get_encoder()
    for b in (1, 3):
        full, _, _ = counted(lambda b=b: encoder(encoder_input(name, b)))
        assert encoder_cost(terms_of(name), batch_size=b, q_len=ENCODERS[name]).flops == full


def test_an_image_is_costed_with_the_forward_that_takes_it_in():
    model = mode_models.llava()
    terms = fit(count(model))
    ids = torch.cat([torch.full((1, 5), mode_models.IMAGE_TOKEN), torch.full((1, 9), 7)], dim=1)
    pixels = torch.randn(1, 3, 16, 16)
    full, _, _ = counted(lambda: model(input_ids=ids, pixel_values=pixels, logits_to_keep=1))
    seen = pass_cost(terms, batch_size=1, q_len=14, past_len=0, images=1)
    text = pass_cost(terms, batch_size=1, q_len=14, past_len=0)
    assert seen.flops_full == full
    assert seen.flops - text.flops == encoder_cost(terms, batch_size=1).flops > 0


def test_experts_read_lie_between_the_least_and_all_and_are_those_expected():
    terms, model = terms_of("mixtral"), model_of("mixtral")
    expert_bytes = 3 * 48 * 80 * 4
    layers, experts, chosen = 4, 4, 2
    rest = pass_cost(terms, batch_size=1, q_len=1, past_len=9).weight_bytes - layers * chosen * expert_bytes
    gates = [layer.mlp.gate for layer in model.model.layers]
    reached = []
    hooks = [
        gate.register_forward_hook(lambda _, __, out: reached.append(len(torch.unique(out[-1])))) for gate in gates
    ]
    try:
        for tokens in (1, 3, 9):
            reached.clear()
            forward("mixtral", 1, tokens, 0, 1)
            cost = pass_cost(terms, batch_size=1, q_len=tokens, past_len=0)
            read = (cost.weight_bytes - rest - (tokens - 1) * 48 * 4) / expert_bytes / layers
            assert chosen <= read <= experts
            assert read == pytest.approx(experts * (1 - 0.5**tokens), abs=1e-4)
            assert len(reached) == layers
            assert all(chosen <= distinct <= min(experts, chosen * tokens) for distinct in reached)
            if tokens == 1:
                assert set(reached) == {round(read)}
    finally:
        for hook in hooks:
            hook.remove()


def test_adapters_are_part_of_the_model():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = mode_models.decoder("llama")
    plain = pass_cost(fit(count(base)), batch_size=2, q_len=9, past_len=0)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()
    full, _, _ = counted(lambda: model(input_ids=torch.full((2, 9), 7), logits_to_keep=1))
    cost = pass_cost(fit(count(model)), batch_size=2, q_len=9, past_len=0)
    assert cost.flops_full == full
    assert cost.weight_bytes - plain.weight_bytes == 2 * 4 * (32 + 32 + 32 + 16) * 4  # layers, rank, widths, bytes


@pytest.mark.parametrize("kind", ["qint8", "qint4"])
def test_quantised_weights_are_read_as_stored(kind):
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    sizes = {**mode_models.SMALL, "hidden_size": 128, "intermediate_size": 256}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    plain = pass_cost(fit(count(model)), batch_size=2, q_len=9, past_len=0)
    quanto.quantize(model, weights=getattr(quanto, kind), exclude="lm_head")
    quanto.freeze(model)
    held = []
    for module in model.modules():
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            held += leaves(value)
    table, rotary = model.get_input_embeddings().weight, model.model.rotary_emb
    stored = storage_bytes(held) - storage_bytes(rotary.buffers())
    assert describe(model).weight_bytes == stored
    cost = pass_cost(fit(count(model)), batch_size=2, q_len=9, past_len=0)
    assert cost.flops == plain.flops
    scales = 2 * 4 * sum(name.endswith("_scale") for name, _ in model.named_buffers()) // 2  # of inputs and outputs
    assert stored - table.nbytes + 2 * 9 * 128 * 4 - cost.weight_bytes in {0, scales}
    assert cost.weight_bytes < plain.weight_bytes / (1.5 if kind == "qint8" else 2.5)


def leaves(tensor):
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [leaf for name in tensor.__tensor_flatten__()[0] for leaf in leaves(getattr(tensor, name))]


class Live(TorchDispatchMode):
    """The most bytes alive at once, weights left out, from the storages of real tensors."""

    def __init__(self, weights, held):
        super().__init__()
        self.peak_bytes = self.now_bytes = 0
        self.left_out = {tensor.untyped_storage()._cdata for tensor in weights}
        self.known = {}
        for tensor in held:
            self.meet(tensor)

    def meet(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.left_out or key in self.known or not size:
            return

        def freed(_):
            self.now_bytes -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, freed)
        self.now_bytes += size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.meet(tensor)
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        return out


def measured_peak_bytes(name, b, q, past):
    """Behind `past` tokens that were generated one by one, as they are in a request."""
    model = model_of(name)
    with torch.no_grad():
        cache = None
        for place in range(past):
            cache = cache_in(model(**arguments(model, (b, 1, place, 1), cache, None)))
        with Live([*model.parameters(), *model.buffers()], tensors_in(cache)) as live:
            model(**arguments(model, (b, q, past, 1), cache, None))
    return live.peak_bytes


@pytest.mark.parametrize("name", ["mqa", "mistral, window", "gemma3, windows", "mixtral", "bamba"])
def test_the_highest_moment_is_that_of_a_real_forward(name):
    for b, q, past in ((2, 9, 0), (2, 40, 0), (3, 90, 0), (2, 1, 5), (3, 1, 33)):
        counted_bytes = peak_bytes(terms_of(name), batch_size=b, q_len=q, past_len=past)
        assert counted_bytes == measured_peak_bytes(name, b, q, past), (b, q, past)


def test_no_peak_is_claimed_where_layers_loop_over_tokens():
    found = inferscope.memory(model_of("mamba"), batch_size=2, input_tokens=9, output_tokens=4)
    assert (found.peak_bytes, found.activation_bytes, found.largest_batch) == (None, None, None)
    assert found.kv_bytes > 0 == found.kv_bytes_per_token


def test_a_memory_account_is_public_and_says_where_one_more_runs_out():
    model = model_of("gemma3, windows")
    stored = storage_bytes(weights_of(model))
    lengths = {"input_tokens": 20, "output_tokens": 5}
    base = inferscope.memory(model, batch_size=1, **lengths)
    assert (base.headroom_bytes, base.largest_batch, base.device_bytes) == (None, None, None)
    device = inferscope.DeviceSpec(name="small", kind="cpu", memory_bytes=stored + 400_000)
    most = inferscope.memory(model, device=device, **lengths).largest_batch
    assert most is not None
    assert most > 1
    fits, fails = (inferscope.memory(model, device=device, batch_size=b, **lengths) for b in (most, most + 1))
    assert fits.headroom_bytes >= 0 > fails.headroom_bytes
    assert fits.peak_bytes + fits.headroom_bytes == device.memory_bytes
    assert fits.weight_bytes == stored
