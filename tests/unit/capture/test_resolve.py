"""Marks become records: the ledger closes for any marks, memory is bounded, causes are named."""

from __future__ import annotations

import weakref
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.capture.calls import Call, Kept, Outcome
from inferscope.capture.frames import BUFFERED_ROWS, CHUNK_ROWS, Flag, Mark, Request, Row
from inferscope.capture.phases import WORST_KEPT
from inferscope.capture.requests import RawRequest, Where
from inferscope.capture.resolve import SAMPLES_KEPT, Resolver
from inferscope.records import RequestOptions
from inferscope.specs import ModelSpec

MODEL = ModelSpec(name="model", model_class="Model")
CALL = Call(
    batch_size=1,
    input_tokens=9,
    prefix_len=9,
    options=RequestOptions(),
    eos_ids=frozenset(),
    pad_id=None,
    max_new_tokens=None,
)


class Script:
    """A request written down as durations; the clock is the sum of what was written."""

    def __init__(self, *, keep_samples=False, entered=1_000):
        self.now = entered
        self.resolver = Resolver(entered, keep_samples=keep_samples)
        self.request = Request(entered_ns=entered, started_unix_ns=1, clock=self)
        self.request.fold = self.resolver.feed
        self.past = 0
        self.away = self.away_before = 0

    def now_ns(self):
        return self.now

    def thread_cpu_ns(self):
        return self.now

    def spend(self, duration):
        started, self.now = self.now, self.now + duration
        return started

    def begin(self, duration=0):
        self.spend(duration)
        self.resolver.begin(self.now)

    def forward(self, duration, *, q=1, own=2, first=False, away=0, batch=1):
        entered = self.spend(own)
        self.away += away
        cpu, self.away_before = entered - self.away_before, self.away
        started = self.spend(duration)
        ended = self.spend(own)
        row = (entered, started, ended, self.now, q, self.past, batch, 1, self.flags(first=first), cpu, 0, 0, 0, 0)
        request = self.request
        request.rows[request.row : request.row + Row.WIDTH] = array("q", row)
        request.row += Row.WIDTH
        if request.row == len(request.rows):
            request.next_chunk()
        self.past += q

    def flags(self, *, first):
        return Flag.HAS_CACHE | Flag.FRAME_CACHE | Flag.SAME_CACHE | (Flag.FIRST if first else 0)

    def stop(self, duration, *, put=0):
        started = self.spend(duration)
        if put:
            put_started = self.spend(put)
            self.request.marks.append((Mark.PUT, put_started, self.now))
        rows, row = self.request.rows, self.request.row
        if row and not rows[row - 1]:
            rows[row - 2], rows[row - 1] = started, self.now
        else:
            self.request.marks.append((Mark.STOP, started, self.now))

    def put(self, duration):
        started = self.spend(duration)
        self.request.marks.append((Mark.PUT, started, self.now))

    def collect(self, duration):
        self.request.marks.append((Mark.GC, self.now, self.now + duration))

    def finish(self, *, tail=0, own=0, outcome=None, error_type=None, call=CALL):
        self.spend(tail)
        self.request.returned_ns = self.now
        self.request.cpu_ns = self.now - self.away
        self.spend(own)
        self.request.left_ns = self.now
        raw = RawRequest(self.request, None, weakref.ref(self))
        raw.error_type = error_type
        return self.resolver.finish(raw, call, outcome or Outcome(), MODEL, Where())


def parts(record, phase):
    ledger = record.phase(phase).ledger
    return ledger.issue_ns, ledger.select_ns, ledger.wait_ns, ledger.deliver_ns


def test_a_plain_request_is_placed_to_the_nanosecond():
    script = Script()
    script.begin(5)
    script.spend(100)
    script.forward(1_000, q=9, first=True)
    script.spend(30)
    script.stop(7)
    for _ in range(3):
        script.spend(11)
        script.forward(200)
        script.spend(20)
        script.stop(3, put=4)
    record = script.finish(tail=50, own=6, outcome=Outcome(output_len=4, rows=1))
    assert parts(record, "prefill") == (1_000, 30, 7, 0)
    assert parts(record, "decode") == (600, 93, 9, 12)
    assert record.ledger.setup_ns == 100
    assert record.ledger.tail_ns == 50
    assert record.ledger.self_ns == 5 + 4 * 4 + 6
    assert record.ledger.residual_ns == 0
    assert record.ledger.total_ns == record.wall_ns
    assert record.ttft_ns == 5 + 100 + 1_004 + 37
    assert record.ttft_method == "stop_check"
    assert record.tpot_ns == (record.wall_ns - record.ttft_ns) / 3
    assert record.itl_ns.count == 3
    assert record.phase("decode").syncs == 3


def test_with_a_streamer_the_first_token_is_there_when_it_is_handed_over():
    script = Script()
    script.put(40)  # the prompt, before the first forward: setup
    script.forward(1_000, q=9, first=True)
    script.stop(7, put=500)
    record = script.finish(call=Call(**{**_fields(CALL), "options": RequestOptions(streaming=True)}))
    assert record.ttft_method == "streamer"
    assert record.ttft_ns == 40 + 1_004 + 7
    assert record.ledger.setup_ns == 40
    assert parts(record, "prefill") == (1_000, 0, 7, 500)


def _fields(call):
    return {name: getattr(call, name) for name in Call.__slots__}


def test_without_stop_marks_the_wait_is_unknown_and_said_so():
    script = Script()
    script.forward(1_000, q=9, first=True)
    script.spend(70)
    script.forward(200)
    record = script.finish(tail=33)
    assert parts(record, "prefill") == (1_000, 70, None, 0)
    assert record.ledger.tail_ns == 33
    assert record.ttft_method == "next_pass"
    assert record.itl_ns is None
    assert "tokens are not marked" in record.notes[0]


def test_a_request_without_forwards_is_all_setup():
    script = Script()
    record = script.finish(tail=77, error_type="ValueError")
    assert record.ledger.setup_ns == 77
    assert record.phases == ()
    assert (record.status, record.error_type, record.ttft_ns) == ("aborted", "ValueError", None)


@pytest.mark.parametrize(
    ("disturb", "cause"),
    [
        (lambda script: (script.collect(4_000), script.forward(4_200)), "gc"),
        (lambda script: script.forward(9_200, away=9_000), "offcpu"),
        (lambda script: script.forward(9_200), "issue"),
        (lambda script: (script.spend(9_000), script.forward(200)), "select"),
    ],
)
def test_the_slowest_pass_says_what_made_it_slow(disturb, cause):
    script = Script()
    script.forward(1_000, q=9, first=True)
    script.stop(1)
    for index in range(40):
        if index == 17:
            disturb(script)
        else:
            script.forward(200)
        script.stop(1)
    worst = script.finish().phase("decode").worst
    assert (worst[0].index, worst[0].cause) == (17, cause)
    assert worst[0].excess_ns > 3_000
    assert len(worst) == 1  # the other 39 are alike: none of them is slow


def test_at_most_a_few_slow_passes_are_kept_slowest_first():
    script = Script()
    script.forward(1_000, q=9, first=True)
    script.stop(1)
    for index in range(60):
        script.forward(200 + 100 * index)
        script.stop(1)
    worst = script.finish().phase("decode").worst
    assert [entry.index for entry in worst] == list(range(59, 59 - WORST_KEPT, -1))
    assert all(entry.excess_ns > 0 for entry in worst)


def test_a_request_of_any_length_takes_bounded_memory():
    script = Script(keep_samples=True)
    script.forward(1_000, q=9, first=True)
    script.stop(1)
    longest = 0
    for _ in range(3 * BUFFERED_ROWS):
        script.forward(200)
        script.stop(1)
        longest = max(longest, len(script.request.chunks) * CHUNK_ROWS + len(script.request.marks))
    record = script.finish()
    assert longest <= BUFFERED_ROWS + BUFFERED_ROWS // CHUNK_ROWS  # a stop check at the end of a chunk is a mark
    assert record.phase("decode").passes == 3 * BUFFERED_ROWS
    assert record.phase("decode").work[0].passes == 3 * BUFFERED_ROWS
    assert len(record.phase("decode").pass_ns.buckets) < 10
    assert len(record.pass_samples) == SAMPLES_KEPT
    assert record.pass_samples_dropped == 3 * BUFFERED_ROWS + 1 - SAMPLES_KEPT
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.residual_ns == 0


durations = st.integers(0, 10**9)
steps = st.lists(
    st.tuples(
        st.sampled_from(["forward", "stop", "put", "spend", "collect"]),
        durations,
        st.integers(0, 10**6),
        st.integers(1, 64),
    ),
    max_size=60,
)


@given(steps=steps, setup=durations, tail=durations, own=durations, cut=st.integers(0, 60))
def test_the_ledger_closes_for_any_course_of_a_request(steps, setup, tail, own, cut):
    script = Script()
    script.begin(own)
    script.spend(setup)
    for index, (kind, duration, other, q) in enumerate(steps):
        if kind == "forward":
            script.forward(duration, q=q, own=other, first=script.past == 0, away=other)
        elif kind == "stop":
            script.stop(duration, put=other)
        else:
            getattr(script, kind)(duration)
        if index == cut:  # folding early must change nothing
            script.resolver.feed(*script.request.gathered())
            script.request.marks.clear()
            script.request.chunks.clear()
            script.request.rows, script.request.row = array("q", bytes(8 * len(script.request.rows))), 0
    record = script.finish(tail=tail, own=own)
    assert record.ledger.total_ns == record.wall_ns
    assert record.ledger.residual_ns == 0
    assert sum(phase.passes for phase in record.phases) == sum(kind == "forward" for kind, *_ in steps)
    for phase in record.phases:
        assert phase.wall_ns == phase.ledger.total_ns
        assert 0 <= phase.start_ns <= phase.end_ns <= record.wall_ns
    assert record.ttft_ns is None or 0 <= record.ttft_ns <= record.wall_ns


@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=5),
    eos=st.sets(st.integers(0, 5), max_size=2),
    pad=st.none() | st.integers(0, 5),
    limit=st.none() | st.integers(1, 6),
)
def test_counted_tokens_never_exceed_the_result_and_stop_at_the_first_eos(rows, eos, pad, limit):
    torch = pytest.importorskip("torch")
    call = Call(**{**_fields(CALL), "eos_ids": frozenset(eos), "pad_id": pad, "max_new_tokens": limit})
    tokens, reasons = Outcome(output_len=4, rows=len(rows), sequences=Kept(torch.tensor(rows))).count(call)
    assert 0 <= tokens <= 4 * len(rows)
    for row in rows:
        first = next((index for index, token in enumerate(row) if token in eos), None)
        if first is not None and len(rows) == 1:
            assert (tokens, reasons) == (first + 1, ("stop",))
