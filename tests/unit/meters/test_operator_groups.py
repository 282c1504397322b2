"""Operators into groups, and the union that closes to the pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscope.meters.operator_groups import GROUPS, OperatorSpan, group_of, is_operator, measure


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::linear", "linear"),
        ("aten::addmm", "linear"),
        ("aten::scaled_dot_product_attention", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("flash_attn::_flash_attn_forward", "attention"),
        ("aten::bmm", "attention"),
        ("aten::softmax", "attention"),
        ("aten::_grouped_mm", "moe"),
        ("aten::rms_norm", "norm/elementwise"),
        ("aten::mul", "norm/elementwise"),
        ("aten::index_copy_", "kv-cache"),
        ("aten::cat", "copy"),
        ("aten::sort", "sampling"),
        ("aten::view", "other"),
        ("mine::anything", "other"),
    ],
)
def test_names_have_groups(name, group):
    assert group_of(name) == group
    assert group in GROUPS


def test_a_product_is_what_it_calls():
    assert group_of("aten::matmul", ["aten::expand", "aten::bmm"]) == "attention"
    assert group_of("aten::matmul", ["aten::unsqueeze_", "aten::mm"]) == "linear"
    assert group_of("aten::matmul") == "linear"


def test_regions_that_somebody_named_are_no_operators():
    assert is_operator("aten::add")
    assert is_operator("triton_poi_fused_add_0")
    assert not is_operator("my region")
    assert not is_operator("Torch-Compiled Region: 0/0")
    assert not is_operator("profiler::_record_function_enter_new")


_SPANS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 100)), max_size=30)


@given(spans=_SPANS)
def test_operators_and_gaps_are_the_pass(spans):
    """Whatever is called one after the other, and whatever those call."""
    outer, at = [], 0
    for gap, length in spans:
        at += gap
        outer.append(OperatorSpan("aten::mul", at, at + length))
        outer.append(OperatorSpan("aten::inner", at, at + length // 2))
        at += length
    measured = measure(0, at + 7, outer, [])
    assert measured.operators_ns == sum(length for _, length in spans)
    assert measured.operators_ns + measured.python_ns == at + 7
    assert measured.gaps == sum(gap > 0 for gap, _ in spans) + 1
    assert measured.device_busy_ns is None
    assert "aten::inner" not in measured.operators
    assert sum(each.time_ns for each in measured.operators.values()) == measured.operators_ns


@given(kernels=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), min_size=1, max_size=20))
def test_the_device_is_busy_for_the_union_of_its_kernels(kernels):
    spans = [OperatorSpan("aten::linear", 0, 10, 1), OperatorSpan("aten::addmm", 2, 8, 2)]
    work = [OperatorSpan("gemm", start, start + length, 2) for start, length in kernels]
    measured = measure(0, 20, spans, work)
    covered = set().union(*(range(start, start + length) for start, length in kernels))
    assert measured.device_busy_ns == len(covered)
    linear = measured.operators["aten::linear"]  # the kernel is that of the outermost
    assert (linear.calls, linear.launches) == (1, len(kernels))
    assert linear.time_ns == sum(length for _, length in kernels)


def test_kernels_that_nothing_started_stand_by_their_name():
    measured = measure(0, 20, [OperatorSpan("aten::add", 0, 5, 3)], [OperatorSpan("flash_attention_kernel", 6, 9)])
    assert measured.operators["flash_attention_kernel"].group == "attention"
    assert measured.operators["aten::add"].time_ns == 0


def test_passes_add_up():
    one = measure(0, 10, [OperatorSpan("aten::add", 2, 5)], [])
    two = measure(0, 20, [OperatorSpan("aten::add", 0, 5), OperatorSpan("aten::mm", 5, 9)], [])
    two.add(one)
    assert (two.operators_ns, two.python_ns, two.gaps) == (12, 18, 3)
    assert two.operators["aten::add"].calls == 2
