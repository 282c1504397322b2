"""Counters from what Nsight Compute prints: numbers, phases, and one error for whatever is wrong."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nsight_files import (
    COUNTERS,
    DETAILS_ROWS,
    GEMV,
    NORM,
    PUSH_POP,
    details_page,
    line,
    raw_page,
    stack,
)

from inferscope.analysis.counters import OUTSIDE
from inferscope.errors import RecordFormatError
from inferscope.integrations import ncu, nsight_csv
from inferscope.integrations.ncu import BETWEEN, nvtx_place, read_ncu

DECODE = stack("request", "decode", payload=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ncu")


def read(folder, text):
    path = folder / "counters.csv"
    path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return read_ncu(path)


def refused(folder, text):
    with pytest.raises(RecordFormatError) as caught:
        read(folder, text)
    assert str(caught.value).startswith(str(folder / "counters.csv"))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(folder / "counters.csv"))


def test_the_raw_page_gives_each_number_in_its_unit_and_their_sums(folder):
    report = read(folder, raw_page([("gemv", DECODE, GEMV), ("norm", DECODE, NORM)]))
    assert (report.page, report.number_style, report.style_seen) == ("raw", "1,234.5", True)
    sums = report.phase("decode").sums
    assert sums.launches == 2
    assert sums.duration_ns == pytest.approx(500_000)
    assert sums.dram_read_bytes == pytest.approx(1202e6)
    assert sums.dram_write_bytes == pytest.approx(1.5e6)
    assert sums.dram_bytes == pytest.approx(1203.5e6)
    assert sums.dram_bytes_per_s == pytest.approx(1203.5e6 / 500e-6)
    assert sums.compute_share == pytest.approx(0.1 * 0.8 + 0.02 * 0.2)
    assert sums.memory_share == pytest.approx(0.9 * 0.8 + 0.1 * 0.2)
    assert sums.tensor_share == pytest.approx(0.04 * 0.8)
    assert sums.bytes_per_sector == pytest.approx(24)
    # Of each: 1000 multiply-adds, 100 adds, and 10 multiply-adds of pairs.
    assert dict(sums.flops) == {"tensor bf16": 2e6, "fp32": 2 * 2100, "fp16": 2 * 40, "fp64": 0}
    assert sums.total_flops == pytest.approx(2e6 + 4200 + 80)
    assert [kernel.kernel for kernel in report.kernels] == ["gemv", "norm"]
    assert report.phase("decode").passes == 1
    assert report.notes == ()


def test_a_number_that_one_launch_lacks_is_in_no_sum(folder):
    lacking = {**NORM, "dram__bytes_write.sum": "n/a", "smsp__sass_thread_inst_executed_op_hmul_pred_on.sum": "N/A"}
    report = read(folder, raw_page([("gemv", DECODE, GEMV), ("norm", DECODE, lacking)]))
    sums = report.phase("decode").sums
    assert (sums.dram_bytes, sums.dram_write_bytes, sums.total_flops) == (None, None, None)
    assert "fp16" not in dict(sums.flops)
    assert sums.dram_read_bytes == pytest.approx(1202e6)
    assert report.kernels[0].sums.dram_bytes == pytest.approx(1200.5e6)


def test_double_precision_matrix_products_alone_say_nothing_of_the_tensor_pipe(folder):
    text = raw_page([("gemv", DECODE, GEMV)]).replace("sm__inst_executed_pipe_tensor.", "sm__something_else.")
    assert read(folder, text).total.tensor_share is None


@pytest.mark.parametrize(
    ("names", "total"),
    [
        (("src_fp16", "src_fp16_dst_fp32"), 5),
        (("src_fp16_dst_fp16", "src_fp16_dst_fp32"), 12),
        (("src_fp16_dst_fp32", "src_fp16_dst_fp32_sparsity_off"), 5),
        (("src_fp16_dst_fp32_sparsity_on", "src_fp16_dst_fp32_sparsity_off"), 12),
        (("src_fp8", "src_fp4_fp6_fp8_dst_fp32"), 5),
        (("src_bf16_dst_fp32", "src_tf32_dst_fp32"), 12),
        (("src_bf16_dst_fp32", "src_int8"), 5),
    ],
)
def test_operations_that_one_counter_contains_are_not_counted_twice(folder, names, total):
    header = ["ID", "Kernel Name", *(f"sm__ops_path_tensor_{name}.sum" for name in names)]
    text = line(header) + line(["", "", "", ""]) + line([0, "k", 5, 7])
    assert read(folder, text).total.tensor_flops == total


def test_a_european_machine_means_the_same(folder):
    def turned(values):
        return {name: text.translate(str.maketrans(",.", ".,")) for name, text in values.items()}

    american = read(folder, raw_page([("gemv", DECODE, GEMV), ("norm", DECODE, NORM)]))
    european = read(folder, raw_page([("gemv", DECODE, turned(GEMV)), ("norm", DECODE, turned(NORM))]))
    assert european.number_style == "1.234,5"
    assert european.total == american.total


def test_a_style_that_no_number_shows_is_assumed_and_says_so(folder):
    text = line(["ID", "Kernel Name", "dram__bytes.sum"]) + line(["", "", "byte"]) + line([0, "k", "1,234"])
    report = read(folder, text)
    assert (report.total.dram_bytes, report.style_seen) == (1234, False)


def test_units_of_other_versions_and_what_has_none(folder):
    short = {**COUNTERS, "dram__bytes_read.sum": "MB", "gpu__time_duration.sum": "us", "dram__bytes_write.sum": "KiB"}
    total = read(folder, raw_page([("gemv", DECODE, GEMV)], units=short)).total
    assert (total.dram_read_bytes, total.duration_ns) == pytest.approx((1200e6, 400_000))
    assert total.dram_write_bytes == 500 * 1024
    strange = {**COUNTERS, "dram__bytes_read.sum": "furlong"}
    report = read(folder, raw_page([("gemv", DECODE, GEMV)], units=strange))
    assert (report.total.dram_read_bytes, report.total.dram_bytes) == (None, None)
    assert report.notes == ("dram_read_bytes stands there in 'furlong', not in one of byte: left out",)
    report = read(folder, raw_page([("gemv", DECODE, GEMV)], units=False))
    assert report.total.duration_ns is None
    assert any("duration_ns stands there in no unit" in note for note in report.notes)
    inside = line(["ID", "Kernel Name", "gpu__time_duration.sum (ms)"]) + line([0, "k", "1.5"])
    assert read(folder, inside).total.duration_ns == pytest.approx(1.5e6)


def test_the_details_page_gives_labels_rates_and_rules(folder):
    report = read(folder, details_page([("gemv", DECODE, DETAILS_ROWS), ("gemv", DECODE, DETAILS_ROWS)]))
    assert report.page == "details"
    sums = report.total
    assert (sums.launches, sums.duration_ns) == (2, pytest.approx(800_000))
    assert (sums.compute_share, sums.memory_share, sums.dram_share) == pytest.approx((0.1, 0.9, 0.85))
    assert sums.dram_bytes == pytest.approx(2 * 3000e9 * 400e-6)
    assert sums.dram_read_bytes is None
    (rule,) = report.rules
    assert (rule.name, rule.kind, rule.times, rule.phase) == ("SOLRule", "OPT", 2, "decode")
    assert rule.speedup_share == pytest.approx(0.135)


def test_one_metric_per_row_with_full_names_and_without_rules(folder):
    rows = [("Command line profiler metrics", name, unit, GEMV[name]) for name, unit in COUNTERS.items()]
    tall = read(folder, details_page([("gemv", DECODE, rows)], rules=False))
    assert tall.total == read(folder, raw_page([("gemv", DECODE, GEMV)])).total


@pytest.mark.parametrize(
    ("cell", "phase", "pass_id"),
    [
        ("", OUTSIDE, None),
        (stack("request", "decode", payload=3), "decode", "1234/3"),
        (stack("request", "prefill"), "prefill", None),
        (stack("request"), BETWEEN, None),
        (stack("decode", domain="<default domain>"), "decode", None),
        (stack("other: with colons"), OUTSIDE, None),
        (stack("decode", domain="somebody else's"), OUTSIDE, None),
        (stack("prefill", domain="<default domain>") + "  " + stack("request", "decode"), "decode", None),
        ("0:<default domain>:decode:none:none:none:none:none:none", "decode", None),
        ("inferscope:verify", "verify", None),
        ('"', OUTSIDE, None),
    ],
)
def test_the_innermost_of_our_ranges_is_the_phase(cell, phase, pass_id):
    assert nvtx_place([cell]) == (phase, pass_id)


def test_passes_are_counted_only_where_every_launch_carries_its_number(folder):
    numbered = [("k", stack("decode", payload=number), GEMV) for number in (1, 1, 2)]
    assert read(folder, raw_page(numbered)).phase("decode").passes == 2
    assert read(folder, raw_page([*numbered, ("k", stack("decode"), GEMV)])).phase("decode").passes is None


def test_two_processes_have_launches_of_their_own(folder):
    first = raw_page([("k", DECODE, GEMV)], process=1, noise=False)
    second = raw_page([("k", DECODE, GEMV)], process=2, noise=False)
    report = read(folder, first + second)
    assert report.total.launches == 2
    assert report.phase("decode").passes == 2
    assert "counted twice" in refused(folder, first + first)


def test_what_is_wrong_is_one_line_with_the_place(folder):
    good = raw_page([("gemv", DECODE, GEMV), ("norm", DECODE, NORM)])
    assert refused(folder, "") == (
        ", line 1: no header found up to here: this is no CSV of ncu or nsys, or none that is known"
    )
    cut = good.rindex('"16.00"')
    for end in (cut, cut + 3):  # between two cells, and within one
        assert refused(folder, good[:end]).endswith("the last row is cut off: its writer was interrupted")
    assert refused(folder, good.replace('"1,200.00"', '"many"')).startswith(", line 5: expected a number, not 'many'")
    assert "it cannot be negative" in refused(folder, good.replace('"1,200.00"', '"-1.00"'))
    assert "columns, the header has" in refused(folder, good.replace('"1,200.00",', ""))
    assert "numbers in another style than on line 5" in refused(folder, good.replace('"2.00"', '"1.234.567,5"'))
    assert "binary data" in refused(folder, good.encode() + b"\x00\n")
    assert "UTF-16" in refused(folder, good.encode("utf-16"))
    assert "nothing was profiled" in refused(folder, line(["ID", "Kernel Name", "dram__bytes.sum"]))
    assert "--print-summary" in refused(folder, line(["Kernel Name", "Invocations", "Metric Name", "Average"]))
    assert "never closed" in refused(folder, good + '"\n' + ("x" * 1023 + "\n") * (nsight_csv.ROW_LIMIT_BYTES >> 10))
    with pytest.raises(RecordFormatError, match="not a file"):
        read_ncu(folder)
    with pytest.raises(RecordFormatError, match="no such file"):
        read_ncu(folder / "nothing.csv")


def test_a_line_of_200_megabytes_is_refused_without_being_read(folder):
    path = folder / "wide.csv"
    with path.open("wb") as file:
        file.truncate(200_000_000)  # holes: nothing is written, and nothing but zeros would be read
    with pytest.raises(RecordFormatError, match="line 1: longer than 4 MiB"):
        read_ncu(path)


def test_kernels_beyond_those_kept_are_summed_together(folder, monkeypatch):
    monkeypatch.setattr(ncu, "KERNELS_KEPT", 2)
    report = read(folder, raw_page([(f"kernel {number}", DECODE, GEMV) for number in range(5)]))
    assert {one.kernel: one.sums.launches for one in report.kernels} == {"kernel 0": 1, "kernel 1": 1, ncu.OTHERS: 3}
    assert report.total.launches == 5
    monkeypatch.setattr(ncu, "LAUNCH_LIMIT", 3)
    assert "more than 3 launches" in refused(folder, raw_page([("k", DECODE, GEMV)] * 4))


GOOD = (raw_page([("gemv", DECODE, GEMV), ("norm", DECODE, NORM)]), details_page([("gemv", DECODE, DETAILS_ROWS)]))


@st.composite
def damaged(draw):
    """A good file with some of its bytes changed, doubled or lost."""
    data = bytearray(draw(st.sampled_from(GOOD)).encode())
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(0, 30))
        piece = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from(
                    [b'"', b",", b"\n", b'""', b"nan", b"1e999", b"-5", b"\xff", b"1.234,5", PUSH_POP.encode()]
                ),
            )
        )
        data[place : place + length] = piece
        if not data:
            break
    return bytes(data)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: text.encode()), damaged()))
def test_no_file_raises_anything_else(folder, data):
    try:
        report = read(folder, data)
    except RecordFormatError:
        return
    assert report.total.launches >= 1
    assert sum(phase.sums.launches for phase in report.phases) == report.total.launches
