"""Device time from events and stamps, held against a device whose truth is known: random courses of host and device."""

from __future__ import annotations

import random
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscope.capture.busy import TIGHT, BusyTable, Kind, busy_of
from inferscope.meters.device import PENDING_KEPT, DeviceMeter
from inferscope.testing import DeviceTwin, FakeClock, TwinEvents
from inferscope.testing import TwinRequest as Course
from inferscope.testing.twin_request import TwinModel as Model

US = 1_000
STAMPS_NS = 10 * US
"""What recording events and their submission take in the twin: nothing finer can be told from outside."""


def issued(issue_ns, work_ns, count):
    return [(issue_ns, work_ns)] * count


launch = st.tuples(st.integers(1 * US, 30 * US), st.integers(500, 200 * US))
passes = st.lists(st.lists(launch, min_size=1, max_size=30), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(passes, st.lists(st.booleans(), min_size=12, max_size=12), st.integers(4, 64), st.lists(launch, max_size=3))
def test_the_interval_holds_the_truth_for_any_course(course, synced, queue_limit, selection):
    run = Course(queue_limit=queue_limit)
    for launches, waits in zip(course, synced, strict=False):
        run.forward(lambda launches=launches: run.issue(launches))
        run.select(selection, synced=waits)
    record = run.record()
    for index, sample in enumerate(record.pass_samples):
        truth = run.twin.busy_ns(index)
        assert sample.device.low_ns <= truth <= sample.device.high_ns
        if sample.device.provenance == "saturated":
            assert sample.device.high_ns * TIGHT <= truth
    for phase in record.phases:
        assert phase.device.low_ns <= sum(
            run.twin.busy_ns(index)
            for index, sample in enumerate(record.pass_samples)
            if sample.name.partition("/")[0] == phase.name
        )
        assert phase.device.passes == phase.passes


@settings(max_examples=200, deadline=None)
@given(st.integers(20, 120), st.integers(5 * US, 40 * US), st.floats(0.05, 20), st.integers(2, 12))
def test_starved_and_saturated_are_told_apart(count, issue_ns, ratio, steps):
    """Layers alike: what the device lags behind at the end, over its time, says who waits for whom."""
    run = Course()
    run.forward(lambda: run.issue(issued(issue_ns, int(issue_ns * ratio), count)), q=8)
    run.select()
    for _ in range(steps):
        run.forward(lambda: run.issue(issued(issue_ns, int(issue_ns * ratio), count)))
        run.select()
    decode = run.record().phase("decode").device
    host_ns, work_ns = count * issue_ns, run.twin.busy_ns(1)
    true_share = max(0.0, 1 - host_ns / max(host_ns, work_ns))
    if true_share < 0.02:
        assert decode.lag_share < 0.04 + (STAMPS_NS + issue_ns * ratio) / host_ns
    elif true_share > 0.06:
        assert decode.lag_share > 0.04 - STAMPS_NS / host_ns
    if ratio > 60:
        assert decode.provenance == "saturated"


@settings(max_examples=200, deadline=None)
@given(passes, st.integers(2, 4))
def test_a_plugged_pass_shows_the_work_alone(course, plug_every):
    model = Model()
    run = Course(plug_every=plug_every, model=model)
    for launches in course:
        run.forward(lambda launches=launches: run.issue(launches))
        run.select()
    record = run.record()
    plugged = [
        index for index, sample in enumerate(record.pass_samples) if sample.device.low_ns == sample.device.high_ns
    ]
    for index in plugged:
        truth = run.twin.busy_ns(index)
        assert truth <= record.pass_samples[index].device.high_ns <= truth + STAMPS_NS


def decoding(run, steps, *, issue_ns, work_ns, count, prompt=8):
    run.forward(lambda: run.issue(issued(issue_ns, work_ns, count)), q=prompt)
    run.select()
    for _ in range(steps):
        run.forward(lambda: run.issue(issued(issue_ns, work_ns, count)))
        run.select()


def test_a_plug_tells_of_the_passes_around_it():
    run = Course(plug_every=2)
    decoding(run, 40, issue_ns=10 * US, work_ns=3 * US, count=100)
    record = run.record()
    decode = record.phase("decode").device
    truth = sum(run.twin.busy_ns(index) for index in range(1, 41))
    assert decode.provenance in {"plug", "bound"}  # nothing bounds the last pass from above
    assert decode.low_ns <= truth <= decode.high_ns
    assert decode.high_ns - decode.low_ns < 0.12 * truth
    assert decode.events_ns > 2 * truth  # what the events span is not what the device worked
    second = Course(model=run.model)
    decoding(second, 12, issue_ns=10 * US, work_ns=3 * US, count=100, prompt=14)
    device = second.record().phase("decode").device
    assert device.provenance == "plug"
    assert device.low_ns == pytest.approx(12 * 300 * US, rel=0.03)
    assert device.high_ns == pytest.approx(12 * 300 * US, rel=0.04)


def test_an_unsteady_probe_is_no_probe():
    """A wait inside the forward empties the queue: the device has begun before all was issued."""
    run = Course(plug_every=2)

    def waits():
        run.issue(issued(10 * US, 3 * US, 50))
        run.twin.synchronize()
        run.issue(issued(10 * US, 3 * US, 50))

    for _ in range(6):
        run.forward(waits)
        run.select()
    decode = run.record().phase("decode").device
    assert decode.provenance == "bound"
    assert decode.low_ns < decode.high_ns


def test_without_waiting_the_device_is_still_placed_on_the_host_s_clock():
    """No stop check that waits: the host runs ahead by whole passes, and the lag shows it."""
    run = Course(queue_limit=10_000)
    for _ in range(20):
        run.forward(lambda: run.issue(issued(2 * US, 20 * US, 50)))
        run.select(synced=False)
    decode = run.record().phase("decode").device
    assert decode.provenance == "saturated"
    assert decode.lag_share == 1.0
    assert decode.low_ns == pytest.approx(19 * 1_000 * US, rel=0.02)


def test_a_graph_is_timed_and_its_capture_left_alone():
    run = Course()
    run.forward(lambda: run.issue(issued(10 * US, 3 * US, 50)), q=4)
    run.select()
    with run.twin.capture() as graph:
        run.forward(lambda: run.issue(issued(10 * US, 3 * US, 50)))
    for _ in range(5):
        run.forward(lambda: run.twin.replay(graph, issue_ns=8 * US))
        run.select()
    record = run.record()
    decode = record.phase("decode")
    assert (decode.passes, decode.device.passes) == (6, 5)
    assert decode.device.low_ns <= 5 * (150 * US + 50 * 300) <= decode.device.high_ns


def test_two_streams_lie_within_the_events_of_one_that_waits_for_the_other():
    run = Course()
    other = type(run.twin.stream)()

    def forward():
        run.twin.join(other, run.twin.stream)
        run.issue(issued(5 * US, 30 * US, 10), stream=other)
        run.issue(issued(5 * US, 10 * US, 10))
        run.twin.join(run.twin.stream, other)

    for _ in range(4):
        run.forward(forward)
        run.select()
    for index, sample in enumerate(run.record().pass_samples):
        assert sample.device.low_ns <= run.twin.busy_ns(index) <= sample.device.high_ns


def test_events_are_reused_and_none_twice():
    run = Course()
    decoding(run, 200, issue_ns=10 * US, work_ns=30 * US, count=5)
    run.record()
    assert run.events.made <= 8


def test_without_waiting_pending_passes_are_bounded():
    clock = FakeClock()
    twin = DeviceTwin(clock, queue_limit=100_000)
    events = TwinEvents(twin)
    meter = DeviceMeter([events], clock.now_ns)
    for index in range(3 * PENDING_KEPT):
        meter.begin(synced=False)
        twin.launch(10_000_000, issue_ns=1_000)
        meter.end(index)
    assert events.made <= 2 * PENDING_KEPT + 2
    twin.synchronize()
    assert [one.token for one in meter.close()] == list(range(PENDING_KEPT))


def test_clocks_that_drift_do_not_turn_a_starved_device_into_an_early_one():
    """An event cannot have happened before it was recorded: where the sum says so, the anchor moves."""
    run = Course()
    run.forward(lambda: run.issue(issued(10 * US, 3 * US, 50)), q=4)
    run.select(synced=False)
    for _ in range(10):
        run.clock.advance(1_000 * US)
        run.request.meter._meter._lanes[0].anchor.host_ns -= 500 * US
        run.forward(lambda: run.issue(issued(10 * US, 3 * US, 50)))
        run.select(synced=False)
    for sample in run.record().pass_samples:
        assert sample.device.lag_ns < STAMPS_NS
        assert sample.device.start_ns >= sample.start_ns - STAMPS_NS


def test_long_requests_are_folded_with_their_device_times():
    run = Course()
    decoding(run, 5_000, issue_ns=2 * US, work_ns=20 * US, count=3)
    decode = run.record().phase("decode")
    assert decode.passes == 5_000
    assert decode.device.passes == 4_999  # one was still running when rows were folded
    assert decode.device.low_ns <= 4_999 * 60 * US <= decode.device.high_ns


def test_what_was_measured_bounds_what_lies_between():
    table = BusyTable()
    kind = Kind("decode", 1, 1)
    assert table.between(kind, 10, 10) is None
    table.add(kind, 100, 1_000, "deep")
    table.add(kind, 200, 1_500, "plug")
    assert table.between(kind, 120, 130) == (980, 1_530, "plug")
    assert table.between(kind, 250, 300) == (1_470, None, "plug")
    assert table.between(kind, 10, 20) == (0, 1_020, "deep")
    for context in range(1_000):
        table.add(kind, context, context, "plug")
    assert len(table._samples[kind]) <= 64


def test_a_table_goes_with_its_model():
    model = Model()
    busy_of(model).add(Kind("decode", 1, 1), 5, 7, "plug")
    assert busy_of(model).between(Kind("decode", 1, 1), 5, 5)
    gone = weakref.ref(model)
    del model
    assert gone() is None


def test_a_row_without_events_has_no_device_time():
    run = Course()
    run.request.meter = run.frame.meter = None
    run.forward(lambda: run.issue(issued(10 * US, 3 * US, 5)))
    assert run.record().phases[0].device is None


def test_random_long_course_closes():
    rng = random.Random(3)
    run = Course(plug_every=5, queue_limit=32)
    for _ in range(400):
        run.forward(lambda: run.issue([(rng.randrange(1, 20) * US, rng.randrange(1, 60) * US) for _ in range(12)]))
        run.select(synced=rng.random() < 0.7)
    record = run.record()
    for index, sample in enumerate(record.pass_samples):
        assert sample.device.low_ns <= run.twin.busy_ns(index) + STAMPS_NS
        assert run.twin.busy_ns(index) <= sample.device.high_ns
