"""Timelines taken once, replayed: from marks to the verdict. `python <this file>` takes them anew."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inferscope.errors import RecordFormatError
from inferscope.testing import read_timeline, write_timeline

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit" / "capture"))

from test_device_time import US, Course, issued  # noqa: E402 - the courses are made there

from inferscope.specs import ModelSpec  # noqa: E402
from inferscope.testing import timeline_of  # noqa: E402

TWIN = ModelSpec(name="twin", model_class="Twin", dtype="bfloat16", device="cuda:0")


def course(issue_ns, work_ns, *, plug_every=0):
    """Prefill and eight tokens of a model that launches 200 kernels a pass."""
    run = Course(plug_every=plug_every)
    run.forward(lambda: run.issue(issued(issue_ns, 8 * work_ns, 200)), q=64)
    run.select()
    for _ in range(8):
        run.forward(lambda: run.issue(issued(issue_ns, work_ns, 200)))
        run.select()
    run.record()
    return timeline_of(
        run.raw, TWIN, {"source": "device twin", "note": f"{issue_ns} ns a launch, {work_ns} ns of work"}
    )


COURSES = {
    "starved": lambda: course(8 * US, 2 * US),
    "balanced": lambda: course(8 * US, 8 * US),
    "saturated": lambda: course(5 * US, 300 * US),
    "plugged": lambda: course(8 * US, 2 * US, plug_every=2),
}


@pytest.mark.parametrize("path", sorted(HERE.glob("*.json")), ids=lambda path: path.stem)
def test_every_timeline_replays_and_closes(path):
    timeline = read_timeline(path)
    record = timeline.replay()
    assert record.ledger.total_ns == record.wall_ns == timeline.left_ns - timeline.entered_ns
    assert sum(phase.passes for phase in record.phases) == len(timeline.rows)
    for phase in record.phases:
        device = phase.device
        assert device.low_ns <= device.high_ns <= device.events_ns
    if timeline.provenance["source"] == "measured":
        assert {"device", "driver", "torch", "date"} <= set(timeline.provenance)


@pytest.mark.parametrize(
    ("name", "provenance", "least", "most"),
    [("starved", "bound", 0, 0.03), ("balanced", "bound", 0, 0.10), ("saturated", "saturated", 0.9, 1)],
)
def test_twins_say_who_waits(name, provenance, least, most):
    decode = read_timeline(HERE / f"twin-{name}.json").replay().phase("decode").device
    assert decode.provenance == provenance
    assert least <= decode.lag_share <= most


def test_a_plugged_twin_tells_what_a_starved_one_cannot():
    work_ns = 8 * 200 * 2 * US
    starved = read_timeline(HERE / "twin-starved.json").replay().phase("decode").device
    plugged = read_timeline(HERE / "twin-plugged.json").replay().phase("decode").device
    assert starved.low_ns < work_ns < 0.3 * starved.high_ns
    assert plugged.low_ns <= work_ns <= plugged.high_ns
    assert plugged.high_ns - plugged.low_ns < 0.5 * (starved.high_ns - starved.low_ns)


@pytest.mark.parametrize("name", COURSES)
def test_the_twin_s_files_are_what_the_twin_does(name, tmp_path):
    write_timeline(tmp_path / "again.json", COURSES[name]())
    assert (tmp_path / "again.json").read_text() == (HERE / f"twin-{name}.json").read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', "{" * 4000])
def test_what_is_no_timeline_is_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(RecordFormatError, match=r"broken\.json"):
        read_timeline(path)


def test_a_timeline_of_another_layout_is_refused(tmp_path):
    text = (HERE / "twin-starved.json").read_text()
    for old, new in (('"ENTERED"', '"ARRIVED"'), ('"device twin"', '""'), ('"schema": 1', '"schema": 9')):
        assert old in text
        (tmp_path / "other.json").write_text(text.replace(old, new, 1))
        with pytest.raises(RecordFormatError, match=r"other\.json"):
            read_timeline(tmp_path / "other.json")


if __name__ == "__main__":
    for each, take in COURSES.items():
        write_timeline(HERE / f"twin-{each}.json", take())
