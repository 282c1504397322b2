"""Passes that requests share: every request's ledger closes, and what all are charged adds up to what was spent."""

from __future__ import annotations

import weakref
from array import array
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_receiver import MODEL, Module, Receiver

from inferscope.capture.passes import PassFacts, Slot, name_pass, name_slot
from inferscope.capture.shares import SHARED_NOTE, UNSAMPLED_NOTE, SharedCycle, SharedRequest

MODULE = Module()


def request(number, *, entered_ns=0, prompt_len=8, own_ns=0, receiver=None):
    made = SharedRequest(
        entered_ns=entered_ns,
        started_unix_ns=1_790_000_000_000_000_000,
        prompt_len=prompt_len,
        module=weakref.ref(MODULE),
        number=number,
        request_id=f"{number:016x}",
        begun=((receiver or Receiver(), None),),
    )
    made.own_ns = own_ns
    return made


def cycle(*slots, start_ns, end_ns, **times):
    """A cycle of which all is the forward, where nothing else is said."""
    known = {
        "scheduled_ns": start_ns,
        "pass_ns": start_ns,
        "forward_ns": start_ns,
        "issue_ns": end_ns - start_ns,
        **times,
    }
    return SharedCycle(start_ns=start_ns, end_ns=end_ns, slots=slots, **known)


def recorded(made, cycles, at_ns, *, log=None):
    made.logs.append(log if log is not None else logged(cycles))
    made.finish(at_ns)
    return made.record(MODEL)


def logged(cycles):
    log = array("q")
    for each in cycles:
        log.extend(each.row())
    return log


times = st.integers(0, 10**9)


@st.composite
def loops(draw):
    """Cycles of a loop in time order, with requests numbered from 0 that join and leave as they like."""
    now = draw(times)
    cycles, past = [], {}
    settled = 0
    for _ in range(draw(st.integers(1, 8))):
        own_gap = draw(st.integers(0, 10**5))
        scheduled = now + own_gap + draw(times)
        own_setup = draw(st.integers(0, 10**6))
        began = scheduled + own_setup + draw(times)
        own = draw(st.integers(0, 10**6))
        issue, wait = draw(times), draw(times)
        now = began + own + issue + wait + draw(times)
        numbers = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True))
        slots = []
        for number in numbers:
            tokens = draw(st.integers(1, 9)) if past.get(number, 0) < 8 else 1
            slots.append(Slot(past.get(number, 0), 8, tokens, number, int(past.get(number, 0) + tokens >= 8)))
            past[number] = past.get(number, 0) + tokens
        cycles.append(
            SharedCycle(
                scheduled_ns=scheduled,
                pass_ns=began,
                start_ns=settled,
                end_ns=now,
                forward_ns=began + own,
                issue_ns=issue,
                wait_ns=wait,
                own_gap_ns=own_gap,
                own_setup_ns=own_setup,
                own_ns=own,
                offcpu_ns=draw(times),
                gc_ns=draw(times),
                failed=int(draw(st.booleans())),
                slots=tuple(slots),
            )
        )
        settled = now
    return cycles


@given(loops(), st.integers(0, 10**9), st.integers(0, 10**5), st.integers(0, 10**9))
def test_every_request_has_a_closed_ledger(cycles, entered_ns, own_ns, tail_ns):
    log = logged(cycles)
    end_ns = cycles[-1].end_ns + tail_ns
    for number in range(5):
        record = recorded(request(number, entered_ns=entered_ns, own_ns=own_ns), cycles, end_ns, log=log)
        ledger = record.ledger
        assert ledger.total_ns == record.wall_ns == max(0, end_ns - entered_ns)
        assert ledger.residual_ns == 0
        assert min(ledger.queue_ns, ledger.setup_ns, ledger.tail_ns, ledger.self_ns) >= 0
        passes = [each for each in cycles if number in {slot.number for slot in each.slots}]
        assert sum(phase.passes for phase in record.phases) == len(passes) == len(record.pass_samples)
        for phase in record.phases:
            parts = phase.ledger
            assert parts.total_ns == phase.wall_ns
            assert min(parts.issue_ns, parts.select_ns, parts.wait_ns, parts.shared_ns) >= 0
            assert parts.offcpu_ns >= 0
            assert 0 <= phase.start_ns <= phase.end_ns
        if not passes:
            assert ledger.queue_ns + ledger.self_ns == record.wall_ns


@given(loops())
def test_what_is_charged_for_forwards_adds_up_to_the_forwards(cycles):
    log = logged(cycles)
    charged = 0
    for number in range(5):
        record = recorded(request(number), cycles, cycles[-1].end_ns, log=log)
        charged += sum(phase.ledger.issue_ns for phase in record.phases)
    assert charged == sum(each.issue_ns for each in cycles)


@given(loops(), st.integers(0, 8))
def test_reading_early_changes_nothing(cycles, at):
    late, early = request(0), request(0)
    whole = recorded(late, cycles, cycles[-1].end_ns)
    early.logs = [logged(cycles[:at]), logged(cycles[at:])]
    early.fold()
    early.finish(cycles[-1].end_ns)
    assert early.record(MODEL) == whole


def test_a_lone_request_shares_with_nobody():
    cycles = [
        cycle(Slot(0, 8, 8, 0, 1), start_ns=100, end_ns=300),
        cycle(Slot(8, 8, 1, 0, 1), start_ns=300, end_ns=400, issue_ns=60, wait_ns=30),
    ]
    record = recorded(request(0), cycles, 400)
    assert record.ledger.queue_ns == 100
    assert (record.ttft_ns, record.tpot_ns, record.output_tokens) == (300, 100.0, 2)
    decode = record.phase("decode").ledger
    assert (decode.issue_ns, decode.select_ns, decode.wait_ns, decode.shared_ns) == (60, 10, 30, 0)
    assert record.notes == (SHARED_NOTE,)


@pytest.mark.parametrize("asked", [{"deep_every": 1000}, {"counters": True}])
def test_what_was_asked_for_and_cannot_be_told_of_a_shared_pass_is_said(asked):
    receiver = Receiver()
    vars(receiver).update(asked)
    record = recorded(request(0, receiver=receiver), [cycle(Slot(0, 8, 8, 0, 1), start_ns=0, end_ns=50)], 50)
    assert record.notes == (SHARED_NOTE, UNSAMPLED_NOTE)


def test_a_prefill_beside_a_decode_is_charged_by_tokens():
    decoding, prefilling = Slot(8, 8, 1, 0, 1), Slot(0, 9, 9, 1, 1)
    cycles = [
        cycle(Slot(0, 8, 8, 0, 1), start_ns=0, end_ns=80),
        cycle(decoding, prefilling, start_ns=80, end_ns=1080),
    ]
    log = logged(cycles)
    first = recorded(request(0), cycles, 1080, log=log)
    second = recorded(request(1, prompt_len=9), cycles, 1080, log=log)
    assert first.phase("decode").ledger.issue_ns == 100
    assert first.phase("decode").ledger.shared_ns == 900
    assert first.phase("decode").mixed_passes == 1
    assert first.phase("prefill").mixed_passes == 0
    assert second.phase("prefill").ledger.issue_ns == 900
    assert second.phase("prefill").ledger.shared_ns == 100
    assert [sample.name for sample in first.pass_samples] == ["prefill", "decode/mixed"]
    assert [(s.name, s.q_len, s.pass_tokens, s.batch_size) for s in second.pass_samples] == [
        ("prefill/mixed", 9, 10, 2)
    ]


def test_passes_without_a_request_that_has_begun_are_shared_not_queue():
    cycles = [
        cycle(Slot(0, 8, 4, 0), start_ns=0, end_ns=50),
        cycle(Slot(0, 4, 4, 1, 1), start_ns=50, end_ns=950),
        cycle(Slot(4, 8, 4, 0, 1), start_ns=950, end_ns=1000),
    ]
    record = recorded(request(0), cycles, 1000)
    assert record.ledger.queue_ns == 0
    assert record.phase("prefill").ledger.shared_ns == 900
    assert record.phase("prefill").worst[0].cause == "shared"


def test_tokens_of_a_failed_pass_are_none():
    passed = cycle(Slot(0, 8, 8, 0, 1), start_ns=0, end_ns=50)
    failed = replace(cycle(Slot(8, 8, 1, 0, 1), start_ns=50, end_ns=90), failed=1)
    made = request(0)
    made.error_type = "OutOfMemoryError"
    record = recorded(made, [passed, failed], 100)
    assert (record.status, record.error_type, record.output_tokens) == ("aborted", "OutOfMemoryError", 1)
    assert record.phase("decode").passes == 1
    assert record.ledger.tail_ns == 10
    assert record.finish_reasons is None


def test_a_prompt_that_grew_is_computed_again_and_said_so():
    cycles = [
        cycle(Slot(0, 8, 8, 0, 1), start_ns=0, end_ns=50),
        cycle(Slot(0, 9, 9, 0, 1), start_ns=50, end_ns=90),
    ]
    record = recorded(request(0), cycles, 90)
    assert [phase.name for phase in record.phases] == ["prefill"]
    assert record.input_tokens == 8
    assert any("given up 1 times" in note for note in record.notes)


def test_what_was_cached_before_is_said():
    record = recorded(request(0), [cycle(Slot(6, 8, 2, 0, 1), start_ns=0, end_ns=50)], 50)
    assert [sample.name for sample in record.pass_samples] == ["prefill"]
    assert record.phase("prefill").tokens == 2
    assert any(note.startswith("6 prompt tokens") for note in record.notes)


@pytest.mark.parametrize(
    ("slot", "others", "first", "expected"),
    [
        (Slot(0, 9), (), True, "prefill"),
        (Slot(4, 9), (), False, "prefill/chunk"),
        (Slot(0, 9), (Slot(12, 8),), True, "prefill/mixed"),
        (Slot(4, 9), (Slot(12, 8),), False, "prefill/chunk/mixed"),
        (Slot(9, 9), (), False, "decode"),
        (Slot(9, 9), (Slot(12, 8),), False, "decode"),
        (Slot(9, 9), (Slot(0, 8),), False, "decode/mixed"),
    ],
)
def test_what_a_pass_is_to_one_of_its_requests(slot, others, first, expected):
    whole = name_pass(PassFacts(q=None, past=None, slots=(slot, *others)))
    assert name_slot(slot, whole, first=first).name == expected
