"""The compiler's books before and after a request, and parameters that stand elsewhere."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
import torch

from inferscope.capture.introspect import describe
from inferscope.capture.process import Standing, compiled_so_far, process_state, standing


def books(graphs, spent_ns, whole="entire_frame_compile"):
    counters = defaultdict(Counter)
    if graphs:
        counters["stats"]["unique_graphs"] = graphs
    return SimpleNamespace(counters=counters, cumulative_time_spent_ns={whole: spent_ns, "gc": 7.0})


def test_what_the_compiler_did_meanwhile_is_the_difference(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", books(2, 1e9))
    before = standing()
    assert before.compiled == (2, 10**9)
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", books(5, 4e9))
    state = process_state(before, compiled_so_far())
    assert (state.compiled_graphs, state.compile_ns) == (3, 3 * 10**9)
    assert state.intra_op_threads == torch.get_num_threads()


def test_the_compiler_s_books_are_as_this_torch_keeps_them(monkeypatch):
    """Real compilations: graphs, and the time they took."""
    import torch._dynamo  # noqa: PLC0415 - takes a second

    before = standing()
    torch.compile(lambda x: x * 2 + 1, backend="eager")(torch.ones(3))
    state = process_state(before, compiled_so_far())
    assert state.compiled_graphs == 1
    assert state.compile_ns > 0
    torch._dynamo.reset()


def test_older_books_are_read_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", books(2, 1e9, whole="_compile.compile_inner"))
    assert compiled_so_far() == (2, 10**9)


def test_nothing_is_written_into_the_compilers_books(monkeypatch):
    empty = books(0, 0.0)
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", empty)
    assert compiled_so_far() == (0, 0)
    assert not empty.counters


@pytest.mark.parametrize("after", [SimpleNamespace(), books(1, 0.0)], ids=["other books", "reset meanwhile"])
def test_what_cannot_be_told_is_none(monkeypatch, after):
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", after)
    state = process_state(Standing(1, 1, (2, 10**9)), compiled_so_far())
    assert state.compiled_graphs is state.compile_ns is None


def test_without_the_compiler_nothing_is_known_of_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    assert compiled_so_far() is None
    assert process_state(standing(), compiled_so_far()).compiled_graphs is None


def test_a_compiler_that_is_loaded_meanwhile_counts_from_nothing():
    assert process_state(Standing(1, 1, None), (3, 5)).compiled_graphs == 3


def test_parameters_on_the_meta_device_wait_elsewhere():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 8, bias=False, device="meta"))
    assert describe(model).offloaded_bytes == 4 * 8 * 4
    assert describe(model[0]).offloaded_bytes == 0
