import pytest

from inferscope.cli.interruption import hint, resumable


def test_only_an_interruption_leaves_a_hint_and_it_is_told_once():
    with resumable(lambda: "not this"):
        pass
    with pytest.raises(ValueError, match="theirs"), resumable(lambda: "not this"):
        raise ValueError("theirs")
    assert hint() == ""
    with pytest.raises(KeyboardInterrupt), resumable(lambda: "3 of 40 points are in sweep.jsonl"):
        raise KeyboardInterrupt
    assert hint() == ": 3 of 40 points are in sweep.jsonl"
    assert hint() == ""
