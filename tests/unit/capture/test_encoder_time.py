"""Encoders before and inside a pass: every nanosecond in one place, whatever the course."""

from __future__ import annotations

import weakref
from array import array

from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture.calls import hold
from inferscope.capture.frames import UNREADABLE, Flag, Request, Row
from inferscope.capture.requests import RawRequest
from inferscope.specs import ModelSpec

OWN = 3


class Model:
    """Stands for a module that is gone."""


class Course:
    """A request written down as durations."""

    def __init__(self):
        self.now = 1_000
        self.request = Request(entered_ns=1_000, started_unix_ns=1)
        self.raw = RawRequest(self.request, hold((), {}), weakref.ref(Model()))
        self.raw.keep_samples = True
        self.rows = array("q")

    def spend(self, duration):
        started, self.now = self.now, self.now + duration
        return started

    def write(self, entered, started, ended, flags):
        self.rows.extend((entered, started, ended, self.now, 4, 0, 1, 4, flags, UNREADABLE, 0, 0, 0, 0))

    def forward(self, duration, flags, encoders=()):
        entered = self.spend(OWN)
        started = self.now
        for before, encoding in encoders:
            self.spend(before)
            self.forward(encoding, Flag.ENCODE | Flag.NESTED)
        self.spend(duration)
        ended = self.spend(OWN)
        self.write(entered, started, ended, flags)

    def finish(self):
        self.request.chunks = [self.rows]
        self.request.row = 0
        self.request.returned_ns = self.request.left_ns = self.now
        assert len(self.rows) % Row.WIDTH == 0
        return self.raw.record(ModelSpec(name="model", model_class="Model"))


DURATIONS = st.integers(0, 10_000)
ENCODERS = st.lists(st.tuples(DURATIONS, DURATIONS), max_size=4)


@given(
    setup=DURATIONS,
    before=st.lists(st.tuples(DURATIONS, DURATIONS), max_size=3),
    inside=ENCODERS,
    prefill=DURATIONS,
    decode=st.lists(st.tuples(DURATIONS, DURATIONS), min_size=1, max_size=4),
    tail=DURATIONS,
)
def test_encoders_have_their_own_time_and_nothing_is_counted_twice(setup, before, inside, prefill, decode, tail):
    course = Course()
    course.spend(setup)
    for encoding, prepared in before:
        course.forward(encoding, Flag.ENCODE)
        course.spend(prepared)
    course.forward(prefill, Flag.FIRST, encoders=inside)
    for selecting, duration in decode:
        course.spend(selecting)
        course.forward(duration, Flag.HAS_CACHE | Flag.FRAME_CACHE | Flag.SAME_CACHE | Flag.ASSISTED)
    course.spend(tail)
    record = course.finish()
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.residual_ns == 0
    encoding = [duration for duration, _ in before] + [duration for _, duration in inside]
    encode, first = record.phase("encode"), record.phase("prefill")
    assert (encode.passes if encode else 0) == len(encoding)
    assert (encode.ledger.issue_ns if encode else 0) == sum(encoding)
    assert first.ledger.issue_ns == prefill + sum(waiting for waiting, _ in inside)
    assert first.pass_ns.sum_ns == first.ledger.issue_ns
    assert record.ledger.setup_ns == setup + sum(prepared for _, prepared in before)
    assert record.ledger.self_ns == 2 * OWN * (len(encoding) + 1 + len(decode))
    assert sum(phase.passes for phase in record.phases) == len(record.pass_samples)
