"""Device time from events and stamps, held against a device whose truth is known: random courses of host and device."""

from __future__ import annotations

import math
import random
import weakref

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from inferscope.analysis.device_verdict import STARVED
from inferscope.capture.busy import TIGHT, BusyTable, Kind, busy_of
from inferscope.meters.device import PENDING_KEPT, DeviceMeter
from inferscope.testing import DeviceTwin, FakeClock, TwinEvents
from inferscope.testing import TwinRequest as Course
from inferscope.testing.twin import TwinEvent
from inferscope.testing.twin_request import TwinModel as Model

US = 1_000
STAMPS_NS = 10 * US
"""What recording events and their submission take in the twin: nothing finer can be told from outside."""


def issued(issue_ns, work_ns, count):
    return [(issue_ns, work_ns)] * count


launch = st.tuples(st.integers(1 * US, 30 * US), st.integers(500, 200 * US))
passes = st.lists(st.lists(launch, min_size=1, max_size=30), min_size=1, max_size=12)
# Launches by the dozen, from a seed: drawing each would take longer than the twin does.
forward = st.tuples(
    st.sampled_from(["eager"] * 7 + ["capture"]),
    st.lists(st.sampled_from(["stream", "stream", "other stream", "graph", "sync"]), max_size=4),
    st.booleans(),
    st.integers(0, 2**32),
)


def launches_of(rng, least=0):
    """Host-bound, device-bound, or in between."""
    work_ns = int(10 ** rng.uniform(2.7, 5.3))
    return [
        (rng.randrange(1 * US, 30 * US), rng.randrange(work_ns // 4, work_ns)) for _ in range(rng.randrange(least, 30))
    ]


def issue_parts(run, other, parts):
    """One forward: plain launches, some on another stream, graphs, and waits, in any order."""
    for what, course in parts:
        if what == "stream":
            run.issue(course)
        elif what == "graph" and course:
            run.twin.replay([work_ns for _, work_ns in course], issue_ns=course[0][0])
        elif what == "sync":
            run.twin.synchronize()
        elif what == "other stream":
            run.twin.join(other, run.twin.stream)
            run.issue(course, stream=other)
            run.twin.join(run.twin.stream, other)


@settings(max_examples=2000, deadline=None)
@given(st.lists(forward, min_size=1, max_size=10), st.sampled_from([2, 4, 8, 16, 64, 1024]))
def test_the_interval_holds_the_truth_for_any_course(course, queue_limit):
    """With and without waits, graphs, a full queue, a second stream, host-bound to device-bound; the ledger closes."""
    run = Course(queue_limit=queue_limit)
    other = type(run.twin.stream)()
    captured = set()
    for index, (mode, kinds, waits, seed) in enumerate(course):
        rng = random.Random(seed)
        first = launches_of(rng, least=1)
        if mode == "capture":
            captured.add(index)
            with run.twin.capture():
                run.forward(lambda first=first: run.issue(first))
        else:
            parts = [("stream", first), *((kind, launches_of(rng)) for kind in kinds)]
            run.forward(lambda parts=parts: issue_parts(run, other, parts))
        run.select(launches_of(rng)[:3], synced=waits)
    record = run.record()
    assert record.ledger.residual_ns == 0
    truths = [run.twin.busy_ns(index) for index in range(len(course))]
    for index, sample in enumerate(record.pass_samples):
        assert (sample.device is None) == (index in captured)
        if sample.device is not None:
            held_to_the_truth(sample.device, truths[index])
    for phase in record.phases:
        of_it = [i for i, sample in enumerate(record.pass_samples) if sample.name.partition("/")[0] == phase.name]
        timed = [index for index in of_it if index not in captured]
        if not timed:
            assert phase.device is None
            continue
        assert phase.device.passes == len(timed)
        held_to_the_truth(phase.device, sum(truths[index] for index in timed))


def held_to_the_truth(device, truth):
    assert device.low_ns <= truth <= device.high_ns
    if device.provenance == "saturated":
        assert device.high_ns * TIGHT <= truth


@settings(max_examples=1000, deadline=None)
@given(st.integers(20, 120), st.integers(5 * US, 40 * US), st.floats(-3, 5.5).map(math.exp), st.integers(2, 6))
def test_starved_and_saturated_are_told_apart(count, issue_ns, ratio, steps):
    """By what the device lagged behind the host at the end of its passes, over their time: the twin knows both."""
    run = Course()
    lag_ns = device_ns = 0

    def body():
        nonlocal lag_ns, device_ns
        began_ns = max(run.clock.now_ns(), run.twin.stream.free_ns)
        run.issue(issued(issue_ns, int(issue_ns * ratio), count))
        ended_ns = run.twin.last_interval[1]
        lag_ns += max(0, ended_ns - run.clock.now_ns())
        device_ns += ended_ns - began_ns

    run.forward(lambda: run.issue(issued(issue_ns, int(issue_ns * ratio), count)), q=8)
    run.select()
    for _ in range(steps):
        run.forward(body)
        run.select()
    decode = run.record().phase("decode").device
    true_share = lag_ns / device_ns
    event(f"truly {'starved' if true_share < 0.02 else 'behind' if true_share > 0.06 else 'between'}")
    if true_share < 0.02:
        assert decode.lag_share <= STARVED
    elif true_share > 0.06:
        assert decode.lag_share > STARVED
    if ratio > 60:
        assert decode.provenance == "saturated"
        assert decode.high_ns * TIGHT <= sum(run.twin.busy_ns(index) for index in range(1, steps + 1))


@settings(max_examples=800, deadline=None)
@given(passes, st.integers(2, 4))
def test_a_plugged_pass_shows_the_work_alone(course, plug_every):
    run = Course(plug_every=plug_every)
    for launches in course:
        run.forward(lambda launches=launches: run.issue(launches))
        run.select()
    for index, plugged in plugged_passes(run):
        truth = run.twin.busy_ns(index)
        assert truth <= plugged.high_ns <= truth + STAMPS_NS


@settings(max_examples=400, deadline=None)
@given(st.integers(40, 200), st.integers(5 * US, 40 * US), st.floats(-3, 3).map(math.exp), st.integers(2, 4))
def test_a_plug_is_within_two_per_cent(count, issue_ns, ratio, plug_every):
    """Of passes that are alike, so that each plug lasts until its pass has been issued."""
    run = Course(plug_every=plug_every)
    for _ in range(2 * plug_every):
        run.forward(lambda: run.issue(issued(issue_ns, int(issue_ns * ratio), count)))
        run.select()
    found = list(plugged_passes(run))
    assert found
    for index, plugged in found:
        truth = run.twin.busy_ns(index)
        assert truth <= plugged.high_ns <= 1.02 * truth


def plugged_passes(run):
    """Those whose events show the work alone."""
    for index, sample in enumerate(run.record().pass_samples):
        if sample.device.low_ns == sample.device.high_ns:
            yield index, sample.device


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


def test_a_model_on_two_devices_is_timed_from_the_first_beginning_to_the_last_end(monkeypatch):
    """And no event is ever held against one of another device."""
    elapsed = TwinEvent.elapsed_time

    def on_one_device(start, end):
        assert start._twin is end._twin
        return elapsed(start, end)

    monkeypatch.setattr(TwinEvent, "elapsed_time", on_one_device)
    clock = FakeClock()
    first, second = DeviceTwin(clock), DeviceTwin(clock)
    meter = DeviceMeter([TwinEvents(first), TwinEvents(second)], clock.now_ns)
    done, truths = [], []
    for index in range(5):
        meter.begin(synced=index % 2 == 0)
        first.launch(40 * US, issue_ns=5 * US)
        second.launch((300 if index else 3) * US, issue_ns=5 * US)
        done += meter.end(index)
        truths.append((first.last_interval[0], max(first.last_interval[1], second.last_interval[1])))
        first.synchronize()
        second.synchronize()
    done += meter.close()
    assert [one.token for one in done] == list(range(5))
    for one, (began_ns, ended_ns) in zip(done, truths, strict=True):
        assert began_ns - STAMPS_NS <= one.started_ns <= began_ns
        assert abs(one.started_ns + one.elapsed_ns - ended_ns) <= STAMPS_NS
