import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from inferscope.records import DeviceTime, PassSample
from inferscope.report import trace_events as module
from inferscope.report.trace_events import trace_events
from inferscope.testing import make_record


def _events(records):
    return json.loads("".join(trace_events(records)), parse_constant=lambda name: 1 / 0)


def _record(index, start_ns):
    record = make_record(request_id=f"{index:016x}")
    return replace(record, started_unix_ns=1_790_000_000_000_000_000 + start_ns)


@given(st.lists(st.integers(0, 3 * 10**9), min_size=1, max_size=20))
def test_requests_never_overlap_within_a_track(starts_ns):
    records = [_record(i, start_ns) for i, start_ns in enumerate(sorted(starts_ns))]
    events = [each for each in _events(records)["traceEvents"] if each.get("cat") == "request"]
    assert [each["args"]["request_id"] for each in events] == [record.request_id for record in records]
    tracks = {}
    for each in events:
        assert each["ts"] >= tracks.get(each["pid"], 0) - 1e-3
        tracks[each["pid"]] = each["ts"] + each["dur"]


def test_times_are_microseconds_and_every_track_has_a_name():
    device = DeviceTime(low_ns=1, high_ns=2, provenance="bound", start_ns=5_000, end_ns=9_000)
    sample = PassSample(
        name="decode", start_ns=4_000, host_ns=2_000, q_len=1, past_len=None, batch_size=1, device=device
    )
    document = _events([replace(_record(0, 0), pass_samples=(sample,))])
    events = {each["cat"]: each for each in document["traceEvents"] if each["ph"] == "X"}
    assert (events["pass"]["ts"], events["pass"]["dur"]) == (4.0, 2.0)
    assert (events["device"]["ts"], events["device"]["dur"]) == (5.0, 4.0)
    assert "past_len" not in events["pass"]["args"]  # unknown is absent, never null or NaN
    assert events["request"]["dur"] * 1000 == make_record().wall_ns
    named = {(each["pid"], each["tid"]) for each in document["traceEvents"] if each["name"] == "thread_name"}
    assert {(each["pid"], each["tid"]) for each in events.values()} <= named


def test_what_is_left_out_is_counted(monkeypatch):
    monkeypatch.setattr(module, "EVENTS", 3)
    sample = PassSample(name="decode", start_ns=4_000, host_ns=2_000, q_len=1, past_len=1, batch_size=1)
    records = [replace(_record(i, i * 10**10), pass_samples=(sample,) * 2) for i in range(3)]
    document = _events(records)
    assert sum(each.get("cat") == "pass" for each in document["traceEvents"]) == 2
    assert document["metadata"]["passes_left_out"] == 4
    assert sum(each.get("cat") == "request" for each in document["traceEvents"]) == 3


def test_no_records_are_a_file_that_opens():
    assert _events([])["traceEvents"] == []
