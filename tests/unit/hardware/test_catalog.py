import math
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.errors import RecordFormatError, UnknownDeviceError
from inferscope.hardware import catalog as module
from inferscope.hardware.catalog import catalog, lookup, match_cuda_name, parse

TEXT = resources.files("inferscope.hardware").joinpath("gpus.csv").read_text(encoding="utf-8")
HEADER = TEXT.splitlines()[0]
COLUMNS = HEADER.split(",")
GIB = 1 << 30
DTYPES = {"float32", "tf32", "float16", "bfloat16", "float8", "int8", "float4"}


def row(**changes):
    values = dict.fromkeys(COLUMNS, "") | {"name": "X1", "certainty": "high", "sources": "a sheet", "mem_bw_gbs": "900"}
    return ",".join({**values, **changes}[column] for column in COLUMNS)


def file_of(*rows):
    return "\n".join((HEADER, *rows)) + "\n"


@pytest.mark.parametrize(
    ("name", "bfloat16", "bandwidth", "ridge"),
    [("H100-SXM5-80GB", 989.4e12, 3352e9, 295), ("A100-SXM4-80GB", 312e12, 2039e9, 153)],
)
def test_dense_peaks_and_ridge_points(name, bfloat16, bandwidth, ridge):
    spec = lookup(name)
    assert spec.compute_flops_per_s["bfloat16"].value == pytest.approx(bfloat16)
    assert spec.copy_bytes_per_s.value == pytest.approx(bandwidth)
    assert round(bfloat16 / spec.copy_bytes_per_s.value) == ridge


def test_every_row_carries_its_source_and_certainty():
    assert len(catalog()) == TEXT.count("\n") - 1
    for name, spec in catalog().items():
        roofs = [*spec.compute_flops_per_s.values(), spec.copy_bytes_per_s]
        assert spec.name == name
        assert spec.certainty in {"high", "medium", "low"}
        assert spec.key == ""
        assert spec.measured_unix_ns is None
        assert set(spec.compute_flops_per_s) <= DTYPES
        assert all(roof.source == "datasheet" and roof.note and roof.spread is None for roof in roofs)
    assert lookup("B100-SXM").certainty == "low"


def test_what_a_sheet_does_not_say_is_absent():
    assert "bfloat16" not in lookup("V100-SXM2-16GB").compute_flops_per_s
    assert "int8" not in lookup("B300-SXM").compute_flops_per_s
    assert lookup("H100-SXM5-80GB").dispatch_ns is None


def test_sizes_are_binary_and_the_outermost_cache_counts():
    assert lookup("H100-SXM5-80GB").memory_bytes == 80 * GIB
    assert lookup("H100-SXM5-80GB").cache_bytes == 50 << 20
    assert lookup("MI300X").cache_bytes == 256 << 20


def test_a_card_of_two_devices_is_listed_as_one_of_them():
    spec = lookup("MI250X")
    assert spec.compute_flops_per_s["bfloat16"].value == pytest.approx(191.5e12)
    assert spec.copy_bytes_per_s.value == pytest.approx(1638.4e9)
    assert spec.memory_bytes == 64 * GIB
    assert "one of 2 dies" in spec.copy_bytes_per_s.note


def test_notes_travel():
    note = lookup("H100-SXM5-80GB").copy_bytes_per_s.note
    assert "H100 datasheet" in note
    assert "max boost 1980 MHz" in note


def test_lookup_does_not_mind_the_case():
    assert lookup(" h100-sxm5-80gb ") is lookup("H100-SXM5-80GB")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("H100", "H100-SXM5-80GB"), ("A100-SXM4-80", "A100-SXM4-80GB"), ("RTX4090", "RTX-4090"), ("banana", "V100")],
)
def test_an_unknown_name_is_answered_with_close_ones(name, expected):
    with pytest.raises(UnknownDeviceError, match=expected) as raised:
        lookup(name)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "gib", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "H100-SXM5-80GB"),
        ("NVIDIA H100 PCIe", 79.1, "H100-PCIE-80GB"),
        ("NVIDIA H100 NVL", 93.1, "H100-NVL-94GB"),
        ("NVIDIA H200", 139.8, "H200-SXM-141GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-SXM4-40GB"),
        ("NVIDIA A100-PCIe-40GB", 39.4, "A100-PCIE-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.2, "A100-PCIE-80GB"),
        ("Tesla V100-SXM2-16GB", 15.8, "V100-SXM2-16GB"),
        ("Tesla T4", 14.6, "T4"),
        ("NVIDIA A10G", 22.1, "A10G"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX-4090"),
        ("NVIDIA RTX A6000", 47.4, "RTX-A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, "RTX-6000-Ada"),
        ("NVIDIA GH200 480GB", 94.6, "GH200-96GB"),
        ("NVIDIA B200", 178.4, "B200-SXM-180GB"),
        ("AMD Instinct MI300X", 191.7, "MI300X"),
        ("AMD Instinct MI250X", 64.0, "MI250X"),
    ],
)
def test_names_of_the_driver_find_their_row(name, gib, expected):
    assert match_cuda_name(name, int(gib * GIB)).name == expected


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("NVIDIA H100", 79.1),  # PCIe, SXM and NVL cards are all called so by some drivers
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.75),
        ("NVIDIA A100-SXM4-40GB", 4.75),
        ("NVIDIA GH200 480GB", 140.0),
        ("NVIDIA H100 80GB HBM3", 0.0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7),
        ("NVIDIA GeForce RTX 3090 Ti", 23.6),
        ("AMD Radeon Graphics", 191.7),
        ("AMD Instinct MI250X", 128.0),
        ("Graphics Device", 79.1),
        ("", 79.1),
    ],
)
def test_no_row_rather_than_a_guess(name, gib):
    assert match_cuda_name(name, int(gib * GIB)) is None


def test_every_known_driver_name_leads_to_a_row():
    assert set(module._CUDA_NAMES.values()) == set(catalog())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mem_bw_gbs": "fast"}, "mem_bw_gbs is 'fast'"),
        ({"bf16_tflops_dense": "nan"}, "bf16_tflops_dense is 'nan'"),
        ({"bf16_tflops_dense": "inf"}, "bf16_tflops_dense is 'inf'"),
        ({"bf16_tflops_dense": "-1"}, "bf16_tflops_dense is '-1'"),
        ({"bf16_tflops_dense": "0"}, "which no device has"),
        ({"mem_gb": "9" * 400}, "which no device has"),
        ({"l2_mb": "1_0"}, "l2_mb is '1_0'"),
        ({"name": " "}, "name is empty"),
        ({"name": "t4"}, "t4 is there twice"),
        ({"certainty": "sure"}, "certainty is 'sure'"),
        ({"note": "one,too many"}, "not as many values as columns"),
        ({"note": '"never closed'}, "unexpected end of data"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(changes, reason):
    text = file_of(row(name="T4"), row(**changes))
    with pytest.raises(RecordFormatError) as raised:
        parse(text, "my.csv")
    assert str(raised.value).startswith("my.csv, line 3")
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "columns are missing"),
        ("name,certainty\nX,high\n", "columns are missing: bf16_tflops_dense"),
        (HEADER + ",name\n", "a column is there twice"),
        (file_of("X1,NVIDIA"), "not as many values"),
    ],
)
def test_a_bad_layout_is_named(text, reason):
    with pytest.raises(RecordFormatError, match=reason):
        parse(text, "my.csv")


def read_or_refused(text):
    """Either every number in it is a number, or the refusal says where."""
    refusal = "fuzz, line "
    specs = {}
    try:
        specs = parse(text, "fuzz")
    except RecordFormatError as error:
        refusal = str(error)
    assert refusal.startswith("fuzz, line ")
    for spec in specs.values():
        roofs = [*spec.compute_flops_per_s.values(), *filter(None, [spec.copy_bytes_per_s])]
        assert all(math.isfinite(roof.value) and roof.value > 0 for roof in roofs)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    read_or_refused(text)
    read_or_refused(HEADER + "\n" + text)


@given(st.integers(0, len(TEXT)), st.integers(0, 8), st.text(alphabet=st.characters(), max_size=8))
def test_any_damage_to_the_catalogue_is_read_or_refused(position, removed, inserted):
    read_or_refused(TEXT[:position] + inserted + TEXT[position + removed :])
