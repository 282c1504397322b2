from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from inferscope.report.plain import bar, phase_labels
from inferscope.report.summary import KINDS, Segment, bar_cells, facts, finding_texts, latencies, segments
from inferscope.report.units import UNKNOWN
from inferscope.testing import make_record, make_result

PARTS = st.lists(
    st.builds(
        Segment,
        phase=st.sampled_from(["", "prefill", "decode"]),
        kind=st.sampled_from(sorted(KINDS)),
        time_ns=st.one_of(st.none(), st.integers(-10, 10**12)),
        share=st.none(),
    ),
    max_size=20,
)


@given(PARTS, st.integers(1, 200))
def test_the_bar_fills_its_width_in_proportion(parts, width):
    cells = bar_cells(parts, width)
    sizes = [max(part.time_ns or 0, 0) for part in parts]
    assert len(cells) == len(parts)
    assert sum(cells) == (width if sum(sizes) else 0)
    for size, cell in zip(sizes, cells, strict=True):
        # Each border is rounded to the nearest cell: a stretch is off by less than one.
        assert cell >= 0
        assert not sum(sizes) or abs(cell - width * size / sum(sizes)) <= 1 + 1e-9


@given(PARTS, st.integers(1, 200))
def test_labels_are_as_wide_as_the_bar(parts, width):
    assert len(phase_labels(parts, width)) == sum(size for _, size in bar(parts, width))


def test_the_segments_are_the_whole_request():
    record = make_record()
    assert sum(part.time_ns or 0 for part in segments(record)) == record.wall_ns


def test_padding_and_accepted_drafts_are_said_where_there_are_any():
    plain, record = make_record(), make_record(padding_tokens=5, drafted_tokens=12, accepted_tokens=9)
    assert "padding" not in facts(plain)
    assert "accepted" not in {name for name, *_ in latencies(plain)}
    assert "32 tokens in + 5 padding" in facts(record)
    assert latencies(record)[-1] == ("accepted", "9 of 12, 75.0 %", "measured, of the tokens drafted")
    unknown = make_record(drafted_tokens=12)
    assert latencies(unknown)[-1][1] == f"{UNKNOWN} of 12, {UNKNOWN}"


def test_findings_on_the_same_time_are_not_to_be_added_up():
    first, second = make_result().findings
    texts = finding_texts((replace(first, overlaps=(second.code,)), second))
    said = [dict(text.lines).get("overlaps", "") for text in texts]
    assert second.code in said[0]
    assert "not to be added up" in said[0]
    assert not said[1]
