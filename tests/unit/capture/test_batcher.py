"""A loop as it is observed: passes queued ahead, replayed graphs, long requests, threads, and what is let go of."""

from __future__ import annotations

import gc
import time
import weakref
from itertools import pairwise

import pytest
from made_receiver import MODEL, Module, Receiver

from inferscope.capture import batcher
from inferscope.capture.batcher import CHILD, Batcher, Batchers, muted
from inferscope.capture.frames import Mark
from inferscope.capture.shares import SharedRequest


@pytest.fixture
def module():
    return Module()


@pytest.fixture
def receiver():
    return Receiver()


@pytest.fixture
def loop(module):
    return Batcher(module, set())


def add(loop, receiver, key, *, prompt_len=4):
    request = SharedRequest(
        entered_ns=time.perf_counter_ns(),
        started_unix_ns=time.time_ns(),
        prompt_len=prompt_len,
        module=loop.module,
        request_id=key,
        begun=((receiver, None),),
    )
    loop.add(key, request)
    return request


def prepare(loop, place, module, slots):
    loop.schedule()
    loop.begin_pass(place, module, slots, tuple(slot[0] for slot in slots))
    loop.end_pass(failed=False)


def take_in(loop, place, ends=()):
    loop.begin_update(place)
    loop.settle(ends)


def closed(request):
    record = request.record(MODEL)
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.residual_ns == 0
    return record


def test_a_replayed_graph_is_issue_though_no_forward_was_called(loop, module, receiver):
    request = add(loop, receiver, "a")
    prepare(loop, 1, module, [("a", 0, 4, 4, 1)])
    take_in(loop, 1, [("a", 1, "length")])
    record = closed(request)
    assert record.phase("prefill").ledger.issue_ns > 0
    assert record.finish_reasons == ("length",)


def test_passes_that_are_queued_ahead_are_each_taken_in_once(loop, module, receiver):
    request = add(loop, receiver, "a")
    prepare(loop, 0, module, [("a", 0, 4, 4, 1)])
    for past, (ready, ahead) in enumerate(pairwise([0, 1, 0, 1]), start=4):
        prepare(loop, ahead, module, [("a", past, 4, 1, 1)])
        take_in(loop, ready)
    take_in(loop, 1, [("a", 4, "length")])
    take_in(loop, 1)
    record = closed(request)
    assert [(s.name, s.past_len) for s in record.pass_samples] == [
        ("prefill", 0),
        ("decode", 4),
        ("decode", 5),
        ("decode", 6),
    ]
    assert record.itl_ns.count == 3


def test_a_collection_in_a_pass_is_an_overlay_of_it(loop, module, receiver):
    request = add(loop, receiver, "a")
    loop.schedule()
    loop.begin_pass(0, module, [("a", 0, 4, 4, 1)], ("a",))
    now = time.perf_counter_ns()
    loop.frame.request.marks.append((Mark.GC, now - 500, now))
    time.sleep(0.001)
    loop.end_pass(failed=False)
    take_in(loop, 0, [("a", 1, "stop")])
    assert closed(request).phase("prefill").ledger.gc_ns == 500


def test_a_long_request_is_read_as_it_goes(loop, module, receiver, monkeypatch):
    monkeypatch.setattr(batcher, "LOG_LENGTH", 200)
    monkeypatch.setattr(batcher, "LOGS_KEPT", 3)
    request, bystander = add(loop, receiver, "a"), add(loop, receiver, "waiting")
    prepare(loop, 0, module, [("a", 0, 4, 4, 1)])
    take_in(loop, 0)
    for past in range(4, 204):
        prepare(loop, 0, module, [("a", past, 4, 1, 1), ("stranger", past, 4, 1, 1)])
        take_in(loop, 0)
        assert len(request.logs) <= 3
    assert bystander.logs == []
    loop.leave()
    record = closed(request)
    assert (record.phase("decode").passes, record.output_tokens) == (200, 201)
    assert record.phase("decode").ledger.shared_ns > 0
    assert closed(bystander).phases == ()


def test_what_has_ended_is_let_go_of(loop, module, receiver):
    for index in range(300):
        request = add(loop, receiver, f"request {index}")
        prepare(loop, 0, module, [(f"request {index}", 0, 4, 4, 1)])
        take_in(loop, 0, [(f"request {index}", 1, "length")])
    assert len(receiver.taken) == 300
    assert loop.requests == {}
    gone = weakref.ref(receiver.taken.pop(0))
    gc.collect()
    assert gone() is None
    assert request.held_bytes <= 8 * (batcher.LOG_LENGTH + 100)


def test_copies_that_have_not_begun_end_with_their_first(loop, module, receiver):
    first, begun, waiting = (add(loop, receiver, key) for key in ("a", f"a{CHILD}0", f"a{CHILD}1"))
    prepare(loop, 0, module, [("a", 0, 4, 4, 1), (f"a{CHILD}0", 3, 4, 1, 1)])
    take_in(loop, 0)
    loop.abort("a", "OutOfMemoryError")
    assert receiver.taken == [first, waiting]
    assert list(loop.requests.values()) == [begun]
    assert {closed(request).error_type for request in receiver.taken} == {"OutOfMemoryError"}


def test_a_key_that_is_used_again_ends_its_first_owner(loop, receiver):
    first, second = add(loop, receiver, "a"), add(loop, receiver, "a")
    assert receiver.taken == [first]
    assert closed(first).error_type == "replaced"
    assert loop.requests == {"a": second}


def test_whoever_is_left_when_the_loop_is_over_is_aborted(loop, module, receiver):
    running, waiting = add(loop, receiver, "a"), add(loop, receiver, "b")
    prepare(loop, 0, module, [("a", 0, 4, 4, 1)])
    loop.end("stopped")
    take_in(loop, 0)
    assert [closed(request).error_type for request in (running, waiting)] == ["stopped", "stopped"]
    assert running.record(MODEL).output_tokens == 0


def test_after_a_fault_nothing_is_recorded_and_everybody_is_told(loop, receiver, monkeypatch):
    add(loop, receiver, "a")

    def broken():
        raise ValueError("ours")

    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    loop.safely(broken)
    assert loop.closed
    add(loop, receiver, "b")
    assert receiver.abandoned == ["a", "b"]
    assert receiver.taken == []


def test_loops_are_found_by_their_owner_and_go_with_it(module, receiver):
    class Owner:
        pass

    loops, owner, other = Batchers(), Owner(), Owner()
    loop = loops.made(owner, module)
    assert loops.made(owner, module) is loop is loops.get(owner)
    assert loops.get(other) is None
    request = add(loop, receiver, "a")
    assert loops.active()
    loops.forget(Module())
    assert loops.get(owner) is loop
    loops.forget(module)
    assert loops.get(owner) is None
    assert not loops.active()
    assert receiver.taken == [request]
    assert "the trace ended before" in closed(request).notes[-1]
    loops.made(other, module)
    del other
    gc.collect()
    assert list(loops._by_owner) == []


def test_a_forked_child_begins_without_loops(module, receiver):
    loops, owner = Batchers(), Module()
    add(loops.made(owner, module), receiver, "a")
    loops.after_fork()
    assert not loops.active()
    assert loops.get(owner) is None


def test_a_muted_frame_keeps_nothing():
    frame = muted()
    for _ in range(10):
        frame.request.marks.append((Mark.GC, 1, 2))
    assert list(frame.request.marks) == []
    assert frame.request.dead
