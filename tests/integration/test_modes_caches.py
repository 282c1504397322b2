"""Caches of every kind, and forwards that transformers compiles by itself."""

from __future__ import annotations

import mode_models
import pytest
import torch
from mode_truth import Forward, checked, decodes, last_chunk, observed, passes_of, prompt

from inferscope.capture.lengths import UNREADABLE, cached_tokens, expect_length, remember_length

pytestmark = pytest.mark.capture

PLAIN = [Forward("prefill", 9, 0, 1), *decodes(9, 4)]


def quantised(backend):
    pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[backend], reason=f"{backend} is not installed")
    axis = 0 if backend == "quanto" else 1
    config = {"backend": backend, "nbits": 4, "q_group_size": 8, "residual_length": 4}
    return {"cache_implementation": "quantized", "cache_config": {**config, "axis_key": axis, "axis_value": axis}}


@pytest.mark.parametrize("name", ["llama", "mistral, window", "gemma3, windows"])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_cache_that_generate_makes(name, kind):
    model = mode_models.decoder(name)
    _, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=5, cache_implementation=kind))
    assert seen == PLAIN


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_quantised_cache(backend):
    model = mode_models.decoder("llama")
    _, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=5, **quantised(backend)))
    assert seen == PLAIN


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache(kind):
    model = mode_models.decoder("llama")
    try:
        model.generate(prompt(), max_new_tokens=2, cache_implementation=kind)
    except (AssertionError, RuntimeError) as error:
        pytest.skip(f"transformers offloads to a CUDA device only: {error}")
    _, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=5, cache_implementation=kind))
    assert seen == PLAIN


def test_chunks_into_a_static_cache():
    model = mode_models.decoder("llama")
    options = {"cache_implementation": "static", "prefill_chunk_size": 4}
    _, seen = checked(model, lambda: model.generate(prompt(), max_new_tokens=3, **options))
    chunks = [Forward("prefill", 4, 0, 1), Forward("prefill/chunk", 4, 4, 1), last_chunk(1, 8)]
    assert seen == [*chunks, *decodes(9, 2)]


def test_a_static_cache_of_the_callers_own_over_several_turns_and_after_a_reset(transformers):
    model = mode_models.decoder("llama")
    cache = transformers.StaticCache(config=model.config, max_cache_len=40)
    with observed(model) as taken:
        first = model.generate(prompt(), past_key_values=cache, max_new_tokens=3)
        more = torch.cat([first, prompt(5, seed=3)], dim=1)
        model.generate(more, past_key_values=cache, max_new_tokens=2)
        cache.reset()
        model.generate(prompt(), past_key_values=cache, max_new_tokens=2)
    turns = [passes_of(record) for record in taken.records]
    assert turns[0] == [Forward("prefill", 9, 0, 1), *decodes(9, 2)]
    assert turns[1] == [Forward("prefill", 6, 11, 1), Forward("decode", 1, 17, 1)]
    assert turns[2] == [Forward("prefill", 9, 0, 1), Forward("decode", 1, 9, 1)]


def compiled_options(transformers, **options):
    config = transformers.CompileConfig(backend="eager", **options)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


@pytest.mark.parametrize("compiled_before", [False, True])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_forwards_that_transformers_compiles(transformers, compiled_before, fullgraph):
    model = mode_models.decoder("llama")
    options = compiled_options(transformers, fullgraph=fullgraph)
    bare = mode_models.decoder("llama").generate(prompt(), max_new_tokens=5, **options)
    if compiled_before:
        model.generate(prompt(), max_new_tokens=5, **options)
        assert model._compiled_call is not None
    chosen = []

    class Counting:
        """A processor runs once after each pass that yields a token: the truth about a graph that runs by itself."""

        def __call__(self, ids, scores):
            chosen.append(ids.shape[1])
            return scores

    with observed(model) as taken:
        result = model.generate(prompt(), max_new_tokens=5, logits_processor=[Counting()], **options)
        again = model.generate(prompt(), max_new_tokens=5, **options)
    assert torch.equal(result, bare)
    assert torch.equal(again, bare)
    assert chosen == [9, 10, 11, 12, 13]
    for record in taken.records:
        assert passes_of(record) == PLAIN
        assert record.ledger.total_ns == record.wall_ns
    assert torch.equal(model.generate(prompt(), max_new_tokens=5, **options), bare)  # after tracing, too


def test_a_compiled_decoder_behind_an_encoder(transformers):
    model = mode_models.t5()
    options = compiled_options(transformers, fullgraph=False)
    bare = model.generate(prompt(), max_new_tokens=4, **options)
    with observed(model) as taken:
        assert torch.equal(model.generate(prompt(), max_new_tokens=4, **options), bare)
    (record,) = taken.records
    assert passes_of(record) == [Forward("encode", 9, 0, 1), Forward("prefill", 1, 0, 1), *decodes(1, 3)]


class _DeviceCounter:
    """Stands for a counter on a device: to read it is a fault."""

    class device:  # noqa: N801 - as torch has it
        type = "cuda"

    def __init__(self, version):
        self._version = version

    def __int__(self):
        raise AssertionError("reading a device tensor is a sync")

    __index__ = __bool__ = __int__


class _Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


class _Fresh:
    """A cache that works its length out anew whenever it is asked, as static ones before 5.x do."""

    def get_seq_length(self):
        return _DeviceCounter(0)


def test_a_length_that_is_no_counter_says_nothing():
    assert cached_tokens(_Fresh()) == UNREADABLE


def test_an_empty_cache_of_attention_and_states_holds_no_tokens():
    cache = _Cache(3)
    cache.key_cache = [torch.zeros(3, 0), torch.zeros(3, 0)]  # before 5.2: it would count its rows
    assert cached_tokens(cache) == 0
    cache.key_cache[1] = torch.zeros(3, 2, 3, 8)
    assert cached_tokens(cache) == 3


def test_a_counter_on_a_device_is_never_read():
    fresh, used = _Cache(_DeviceCounter(0)), _Cache(_DeviceCounter(4))
    assert cached_tokens(fresh) == 0
    assert cached_tokens(used) == UNREADABLE
    remember_length(used, 12)
    assert cached_tokens(used) == 12
    used.length._version = 5  # something was put in, or it was reset, while nobody looked
    assert cached_tokens(used) == UNREADABLE


def test_a_counter_on_the_cpu_is_read():
    assert cached_tokens(_Cache(torch.tensor([7]))) == 7
    assert cached_tokens(_Cache(7)) == 7
    assert cached_tokens(object()) == UNREADABLE


def test_a_counter_that_changes_once_is_as_expected():
    cache = _Cache(0)
    expect_length(cache, 0, 9)
    cache.length = _DeviceCounter(1)  # made by the first forward, and added to once
    assert cached_tokens(cache) == 9
    expect_length(cache, 9, 1)
    cache.length._version = 2
    assert cached_tokens(cache) == 10
    cache.length._version = 4
    assert cached_tokens(cache) == UNREADABLE


def test_the_counter_of_a_static_cache_changes_once_per_forward(transformers):
    model = mode_models.decoder("llama")
    cache = transformers.StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        versions = []
        for length in (9, 1, 4):
            model(prompt(length), past_key_values=cache)
            versions.append(cache.get_seq_length()._version)
    if cache.get_seq_length() is not cache.get_seq_length():
        pytest.skip("in this version of transformers a static cache keeps no counter")
    assert versions == [1, 2, 3]
    assert cached_tokens(cache) == 14
    cache.reset()
    assert cache.get_seq_length()._version > 3
