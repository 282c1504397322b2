"""Forwards without `generate`: hand-written loops have the same records."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

import inferscope
from inferscope.capture import registry

pytestmark = pytest.mark.capture

PROMPT = 9


@pytest.fixture
def loop(transformers):
    def run(model, ids, new_tokens, *, named=False):
        """A greedy loop as people write it, with a cache handed on."""
        cache = transformers.DynamicCache()
        tokens, fed = [], ids
        for index in range(new_tokens):
            name = "decode" if index else "prefill"
            if named:
                with inferscope.phase(name):
                    logits = model(fed, past_key_values=cache, use_cache=True).logits
            else:
                logits = model(fed, past_key_values=cache, use_cache=True).logits
            fed = logits[:, -1:].argmax(-1)
            tokens.append(fed)
        return torch.cat([ids, *tokens], dim=1)

    return run


def names(record):
    return [(entry.name, entry.q_len, entry.past_len, entry.batch_size) for entry in record.pass_samples]


@torch.no_grad()
def test_bare_calls_are_a_request_with_prefill_and_decode(llama, prompt, loop):
    with inferscope.trace(llama, sinks=(), detail="passes") as session:
        tokens = loop(llama, prompt, 5)
        record = session.last.record
    assert torch.equal(tokens, llama.generate(prompt, max_new_tokens=5))
    assert names(record) == [("prefill", 9, 0, 1), *(("decode", 1, past, 1) for past in range(9, 13))]
    assert (record.batch_size, record.input_tokens, record.output_tokens, record.output_len) == (1, 9, 5, 5)
    assert record.ttft_method == "next_pass"
    assert record.tpot_ns == (record.wall_ns - record.ttft_ns) / 4
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.residual_ns == 0
    assert any("hand-written loop" in note for note in record.notes)
    assert session.last.diagnosis.phase("decode").cost is not None


@torch.no_grad()
def test_each_new_prompt_is_a_new_request(llama, prompt, loop):
    with inferscope.trace(llama, sinks=()) as session:
        for count in (3, 4):
            loop(llama, prompt, count)
    assert [result.record.output_len for result in session.results] == [3, 4]


@torch.no_grad()
def test_named_phases_and_the_borders_of_a_request(llama, prompt, loop):
    with inferscope.trace(llama, sinks=(), detail="passes") as session:
        with session.request():
            loop(llama, prompt, 3, named=True)
            loop(llama, prompt, 2, named=True)
        loop(llama, prompt, 2, named=True)
    both, single = (result.record for result in session.results)
    assert [name for name, *_ in names(both)] == ["prefill", "decode", "decode", "prefill", "decode"]
    assert [name for name, *_ in names(single)] == ["prefill", "decode"]
    assert both.ledger.total_ns == both.wall_ns


class Opaque(torch.nn.Module):
    """A model in the manner of gpt-fast: the cache is inside, the position is an argument, there is no generate."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 8)
        self.head = torch.nn.Linear(8, 100)

    def forward(self, x, input_pos):
        return self.head(self.embedding(x) + input_pos[-1])


@torch.no_grad()
def test_a_model_whose_cache_is_inside_is_named_by_its_author(notices_reset, capfd):
    model, ids = Opaque().eval(), torch.arange(6)[None]
    with inferscope.trace(model, sinks=(), detail="passes") as session:
        for _ in range(2):
            with inferscope.phase("prefill"):
                logits = model(ids, torch.arange(6))
            for position in range(6, 9):
                with inferscope.phase("decode"):
                    logits = model(logits[:, -1:].argmax(-1), torch.tensor([position]))
    assert "no-generate" in capfd.readouterr().err
    assert [names(result.record) for result in session.results] == [
        [("prefill", 6, None, 1), *[("decode", 1, None, 1)] * 3],
    ] * 2


@torch.no_grad()
def test_without_names_what_cannot_be_seen_is_unknown(notices_reset):
    model, ids = Opaque().eval(), torch.arange(6)[None]
    with inferscope.trace(model, sinks=(), detail="passes") as session:
        model(ids, torch.arange(6))
        model(ids[:, :1], torch.tensor([6]))
        record = session.last.record
    assert [name for name, *_ in names(record)] == ["unknown", "unknown"]
    assert record.output_tokens is None


def test_a_block_without_forwards_is_itself_a_pass(llama):
    with inferscope.trace(llama, sinks=(), detail="passes") as session:
        with inferscope.phase("prefill", batch_size=2, tokens=7):
            pass
        for _ in range(3):
            with inferscope.phase("decode", batch_size=2, tokens=1):
                pass
        record = session.last.record
    assert names(record) == [("prefill", 7, None, 2), *[("decode", 1, None, 2)] * 3]
    assert (record.input_tokens, record.output_tokens) == (14, 8)
    assert record.ledger.total_ns == record.wall_ns


@torch.no_grad()
def test_loops_of_threads_do_not_mix(llama, prompt, loop):
    with inferscope.trace(llama, sinks=(), detail="passes") as session:
        threads = [threading.Thread(target=loop, args=(llama, prompt, 3 + number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(result.record.output_len for result in session.results) == [3, 4, 5, 6]


@torch.no_grad()
def test_generate_within_a_request_belongs_to_it(llama, prompt):
    with inferscope.trace(llama, sinks=(), detail="passes") as session, session.request():
        llama.generate(prompt, max_new_tokens=2)
        llama.generate(prompt, max_new_tokens=2)
    assert [name for name, *_ in names(session.last.record)] == ["prefill", "decode"] * 2


@torch.no_grad()
def test_an_exception_in_a_loop_passes_and_leaves_an_aborted_record(llama, prompt, loop):
    def failing(session):
        with session.request():
            loop(llama, prompt, 2)
            raise ZeroDivisionError

    with inferscope.trace(llama, sinks=()) as session, pytest.raises(ZeroDivisionError):
        failing(session)
    assert (session.last.record.status, session.last.record.error_type) == ("aborted", "ZeroDivisionError")


def test_phase_without_a_trace_does_nothing_and_misuse_is_said():
    with inferscope.phase("decode"):
        pass
    with pytest.raises(inferscope.InferscopeError, match="expected one of encode"):
        inferscope.phase("decoding")
    with pytest.raises(inferscope.InferscopeError, match="tokens=0"):
        inferscope.phase("decode", tokens=0)


@torch.no_grad()
def test_an_unsampled_loop_leaves_nothing(llama, prompt, loop):
    with inferscope.trace(llama, sinks=(), sample_rate=0) as session:
        loop(llama, prompt, 4)
    assert session.last is None


@torch.no_grad()
def test_a_generate_that_is_left_out_is_no_part_of_an_open_loop(llama, prompt, loop, monkeypatch):
    draws = iter((0.1, 0.9, 0.9))  # the loop is observed; `generate` is not, and not compared either
    monkeypatch.setattr(registry, "_CHANCE", SimpleNamespace(random=draws.__next__))
    with inferscope.trace(llama, sinks=(), detail="passes", sample_rate=0.5) as session:
        with torch.no_grad():
            first = llama(prompt, use_cache=True)
        llama.generate(prompt, max_new_tokens=4)
        llama(first.logits[:, -1:].argmax(-1), past_key_values=first.past_key_values)
    assert next(draws, None) is None
    (result,) = session.results
    assert names(result.record) == [("prefill", 9, 0, 1), ("decode", 1, 9, 1)]


def test_several_calls_in_one_request_do_not_claim_to_know_how_many_tokens_came(llama, prompt):
    with inferscope.trace(llama, sinks=()) as session, session.request():
        llama.generate(prompt, max_new_tokens=3)
        llama.generate(prompt, max_new_tokens=3)
    record = session.last.record
    assert record.phase("prefill").passes == 2
    assert record.output_tokens is None
    assert record.tpot_ns is None
