"""The naming rule: every row of its table, and the (q, past) sequences that trip simpler rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture.passes import PassFacts, Slot, name_pass

PHASES = {None, "encode", "prefill", "decode", "verify", "draft", "mixed", "unknown"}


def name(**facts):
    return name_pass(PassFacts(**{"q": 1, "past": 0, **facts})).name


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"submodule": True, "first": True, "q": 80}, "encode"),
        ({"slots": (Slot(past=0, prompt_len=9),)}, "prefill"),
        ({"slots": (Slot(past=4, prompt_len=9),)}, "prefill/chunk"),
        ({"slots": (Slot(past=9, prompt_len=9), Slot(past=12, prompt_len=8))}, "decode"),
        ({"slots": (Slot(past=0, prompt_len=9), Slot(past=12, prompt_len=8))}, "mixed"),
        ({"slots": ()}, "unknown"),
        ({"assistant": True, "first": True, "q": 9, "past": 0}, "draft/prefill"),
        ({"assistant": True, "first": True, "q": 2, "past": 8}, "draft"),
        ({"assistant": True, "q": 1, "past": 9}, "draft"),
        ({"foreign": True, "q": 1, "past": 9}, "draft"),
        ({"first": True, "q": 9, "past": 0}, "prefill"),
        ({"first": True, "q": 1, "past": 0}, "prefill"),
        ({"first": True, "q": 1, "past": 40}, "prefill"),
        ({"first": True, "q": None, "past": None}, "prefill"),
        ({"in_prefill": True, "q": 4, "past": 4, "cache": 1, "frame_cache": 1}, "prefill/chunk"),
        ({"q": 1, "past": 9, "cache": 2, "frame_cache": 1}, "side"),
        ({"q": 9, "past": 0, "cache": None, "frame_cache": 1}, "side"),
        ({"assisted": True, "q": 4, "past": 9, "cache": 1, "frame_cache": 1}, "verify"),
        ({"assisted": True, "q": 1, "past": 9, "cache": 1, "frame_cache": 1}, "verify"),
        ({"q": 1, "past": 9, "cache": 1, "frame_cache": 1}, "decode"),
        ({"q": 1, "past": None, "cache": 1, "frame_cache": 1}, "decode"),
        ({"q": 10, "past": 0}, "decode/no-cache"),
        ({"q": 3, "past": 9, "cache": 1, "frame_cache": 1}, "unknown"),
        ({"q": None, "past": None}, "unknown"),
        ({"in_frame": False, "q": 9, "past": 0}, "prefill"),
        ({"in_frame": False, "q": 1, "past": 9}, "decode"),
        ({"in_frame": False, "q": 6, "past": 14}, "prefill/continuation"),
        ({"in_frame": False, "q": None, "past": 3}, "unknown"),
        ({"in_frame": False, "q": 1, "past": None}, "unknown"),
    ],
)
def test_each_row_of_the_table(facts, expected):
    assert name(**facts) == expected


def sequence(shapes, **facts):
    cache = {"cache": 1, "frame_cache": 1}
    return [name(q=q, past=past, first=index == 0, **cache, **facts) for index, (q, past) in enumerate(shapes)]


def test_chunks_of_four_of_a_prompt_of_nine():
    names = sequence([(4, 0), (4, 4), (1, 8)], in_prefill=True)
    assert names == ["prefill", "prefill/chunk", "prefill/chunk"]


@pytest.mark.parametrize("first", [(1, 40), (1, 0)], ids=["prefix cache and one token", "T5's start token"])
def test_a_prefill_of_one_token(first):
    assert sequence([first, (1, first[1] + 1)]) == ["prefill", "decode"]


def test_a_second_turn_on_a_continued_cache():
    assert sequence([(6, 14), (1, 20), (1, 21)]) == ["prefill", "decode", "decode"]


def test_assisted_decoding_names_draft_and_target():
    assert sequence([(9, 0), (1, 9)], assistant=True) == ["draft/prefill", "draft"]
    assert sequence([(2, 8)], assistant=True) == ["draft"]
    assert sequence([(10, 0), (2, 9)], assisted=True) == ["prefill", "verify"]


def test_guidance_runs_a_side_pass_per_token():
    names = [
        name(q=9, past=0, first=True, cache=1, frame_cache=1),
        name(q=9, past=0, cache=None, frame_cache=1),
        name(q=1, past=9, cache=1, frame_cache=1),
        name(q=1, past=9, cache=2, frame_cache=1),
    ]
    assert names == ["prefill", "side", "decode", "side"]


@given(
    q=st.none() | st.integers(1, 1 << 20),
    past=st.none() | st.integers(0, 1 << 20),
    bits=st.lists(st.booleans(), min_size=7, max_size=7),
    cache=st.none() | st.integers(1, 3),
    frame_cache=st.none() | st.integers(1, 3),
)
def test_every_combination_of_facts_has_exactly_one_name(q, past, bits, cache, frame_cache):
    keys = ("submodule", "in_frame", "assistant", "foreign", "first", "in_prefill", "assisted")
    named = name_pass(
        PassFacts(q=q, past=past, cache=cache, frame_cache=frame_cache, **dict(zip(keys, bits, strict=True)))
    )
    assert named.phase in PHASES
    assert named.phase is None or named.name.startswith(named.phase)
