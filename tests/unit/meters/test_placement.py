import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inferscope.meters.placement import ActualPlacement, Side, TrackedPlacement, tensors_in

sides = st.sampled_from(list(Side))


def test_views_live_where_their_storage_does():
    placement, tensor = TrackedPlacement(), torch.zeros(4, 4)
    placement.mark(tensor, Side.DEVICE)
    assert placement.of(tensor.t()[1:]) is Side.DEVICE
    assert placement.of(tensor.clone()) is Side.UNKNOWN


def test_what_was_never_seen_is_unknown():
    assert TrackedPlacement().of(torch.zeros(1)) is Side.UNKNOWN


def test_nothing_is_kept_alive_and_no_address_is_taken_for_another_s():
    placement = TrackedPlacement()
    for _ in range(10_000):
        placement.mark(torch.zeros(1), Side.DEVICE)
        assert placement.of(torch.zeros(1)) is Side.UNKNOWN
    gc.collect()
    assert len(placement._sides) < 5000


def test_parts_of_a_quantised_tensor_count():
    placement, tensor = TrackedPlacement(), torch.zeros(2)
    sparse = torch.zeros(2, 2).to_sparse()
    placement.mark(sparse, Side.DEVICE)
    assert placement.of(sparse) is Side.UNKNOWN
    placement.mark(torch.nn.Parameter(tensor), Side.DEVICE)
    assert placement.of(tensor) is Side.DEVICE


def test_off_the_cpu_a_tensor_lives_where_it_says():
    placement = ActualPlacement()
    assert placement.of(torch.zeros(1)) is Side.HOST
    assert placement.of(torch.zeros(1, device="meta")) is Side.DEVICE


@given(st.lists(sides))
def test_one_input_on_the_device_is_enough(found):
    joint = Side.joint(found)
    assert (joint is Side.DEVICE) == (Side.DEVICE in found)
    if Side.DEVICE not in found:
        assert (joint is Side.UNKNOWN) == (Side.UNKNOWN in found)


class Holder:
    def __init__(self, value):
        self.value = value
        self.itself = self


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (torch.zeros(1), 1),
        ([torch.zeros(1), (torch.zeros(1), {"a": torch.zeros(1)})], 3),
        ("text", 0),
        (None, 0),
        (torch.nn.Linear(1, 1), 0),
    ],
)
def test_tensors_are_found_in_containers(value, count):
    assert len(list(tensors_in(value))) == count


def test_a_cycle_ends():
    assert any(True for _ in tensors_in(Holder(torch.zeros(1))))
