"""Sums of a timeline from what Nsight Systems writes: tables known by their headers, one error for what is wrong."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nsight_files import CALLS, COPIES, KERNELS, LAUNCHES, OS_CALLS, PROJECTED, RANGES

from inferscope.errors import RecordFormatError
from inferscope.integrations import nsys
from inferscope.integrations.nsys import read_nsys

ALL = (KERNELS, CALLS, COPIES, RANGES, PROJECTED, LAUNCHES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nsys")


def read(folder, *texts):
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"table{number}.csv")
        paths[-1].write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return read_nsys(paths)


def check(report):
    assert [(one.name, one.total_ns, one.count) for one in report.kernels] == [
        ("gemv<bf16>(int, float *)", 9e6, 20),
        ("rms_norm", 1e6, 40),
    ]
    assert report.sync_ns == 6e6
    assert [(one.name, one.count) for one in report.copies] == [("[CUDA memcpy Device-to-Host]", 10)]
    ranges = {one.name: (one.domain, one.phase, one.instances, one.host_ns, one.device_ns) for one in report.ranges}
    assert ranges == {
        "decode": ("inferscope", "decode", 19, 3e6, 8e6),
        "prefill": ("inferscope", "prefill", 1, 7e6, None),
        "mine: step": ("", None, 1, 2000, 1000),
    }
    assert [(one.kernel, one.count, one.queue_ns) for one in report.launches] == [
        ("rms_norm", 40, 10_000),
        ("gemv<bf16>(int, float *)", 20, None),
    ]


def test_tables_are_known_by_their_headers_in_any_order(folder):
    check(read(folder, *ALL))
    check(read(folder, *reversed(ALL)))


def test_several_tables_in_one_file_with_titles_and_other_words_between(folder):
    noise = "Generating SQLite file run.sqlite\nProcessing [run.sqlite] with [cuda_api_sum.py]...\n\n"
    titled = [f" ** A title (cuda_gpu_kern_sum):\n\n{text}\n" for text in ALL]
    report = read(
        folder, noise + "".join(titled) + "SKIPPED: run.sqlite does not contain OpenMP event data.\n" + OS_CALLS
    )
    check(report)
    assert report.notes[0].startswith("SKIPPED: run.sqlite")
    assert report.notes[1].endswith("a table that is not used here")


def test_what_was_not_exported_is_unknown_and_not_empty(folder):
    report = read(folder, KERNELS)
    assert (report.calls, report.ranges, report.launches, report.sync_ns) == (None, None, None, None)


def test_calls_of_the_operating_system_are_not_those_of_cuda(folder):
    assert read(folder, KERNELS, OS_CALLS).calls is None


def test_other_units_and_quoted_headers(folder):
    quoted = '"Time (%)","Total Time (ms)","Instances","Name"\n"100.0","1,234.5","3","k"\n'
    assert read(folder, quoted).kernels[0].total_ns == pytest.approx(1234.5e6)
    rows_by_grid = KERNELS + '1.0,500,2,1,1,1,1,1,"rms_norm"\n'
    assert {one.name: one.count for one in read(folder, rows_by_grid).kernels}["rms_norm"] == 42


def test_what_is_wrong_is_one_line_with_the_place(folder):
    for texts, words in (
        ((KERNELS, KERNELS), "table1.csv, line 1: a second table of kernels, after that of"),
        ((KERNELS.replace("9000000", "many"),), "table0.csv, line 2: expected a number, not 'many'"),
        ((KERNELS.replace("9000000", "-9"),), "line 2: total time is negative"),
        ((KERNELS.replace("9000000", "N/A"),), "line 2: total time is missing"),
        ((KERNELS.replace("(ns)", "(furlong)"),), "which is no unit of time"),
        ((KERNELS[:-4].rsplit(",", 2)[0],), "the last row is cut off"),
        ((OS_CALLS,), "no table that is known"),
        (("",), "no header found"),
        ((b"SQLite format 3\x00",), "binary data"),
    ):
        with pytest.raises(RecordFormatError) as caught:
            read(folder, *texts)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(RecordFormatError, match="no file"):
        read_nsys([])


def test_a_trace_is_not_taken_for_a_summary(folder, monkeypatch):
    monkeypatch.setattr(nsys, "ROWS_KEPT", 1)
    with pytest.raises(RecordFormatError, match="line 3: more than 1 rows"):
        read(folder, KERNELS)


@st.composite
def damaged(draw):
    data = bytearray("".join(draw(st.permutations(ALL))).encode())
    for _ in range(draw(st.integers(1, 6))):
        place, length = draw(st.integers(0, len(data) - 1)), draw(st.integers(0, 20))
        pieces = st.sampled_from([b'"', b",", b"\n", b"nan", b"1e999", b"-5", b"\xff", b"Name (ns),Range,\n"])
        data[place : place + length] = draw(st.one_of(st.binary(max_size=8), pieces)) or b" "
    return bytes(data)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: text.encode()), damaged()))
def test_no_file_raises_anything_else(folder, data):
    try:
        report = read(folder, data)
    except RecordFormatError:
        return
    assert any(
        part is not None for part in (report.kernels, report.calls, report.copies, report.ranges, report.launches)
    )
