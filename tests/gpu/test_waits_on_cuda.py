"""The table of operators that wait, one by one: that a call reaches each (anywhere), and that it waits (on CUDA)."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inferscope.meters.placement import Side
from inferscope.meters.waits import WAITING, reason

ATEN = torch.ops.aten


class Inputs:
    """Tensors on one device; made before anything is watched."""

    def __init__(self, device):
        torch.manual_seed(0)
        self.x = torch.randn(8, device=device)
        self.m = torch.randn(4, 4, device=device)
        self.whole = self.m @ self.m.T + 4 * torch.eye(4, device=device)
        self.i = torch.randint(0, 4, (8,), device=device)
        self.mask = torch.tensor([True, False] * 4, device=device)
        self.four = torch.ones(4, device=device)
        self.host = torch.empty(8)
        self.host_index = torch.tensor([0, 2, 4, 6])
        at = torch.tensor([[0, 0], [1, 1]], device=device)
        self.sparse = torch.sparse_coo_tensor(at, torch.ones(2, device=device), (2, 2), check_invariants=False)
        self.deviation = torch.ones(8, device=device)


CALLS = {
    "_local_scalar_dense": lambda t: t.x[0].item(),
    "equal": lambda t: torch.equal(t.x, t.x + 1),
    "allclose": lambda t: torch.allclose(t.x, t.x + 1),
    "nonzero": lambda t: torch.nonzero(t.x),
    "masked_select": lambda t: t.x.masked_select(t.mask),
    "_unique": lambda t: ATEN._unique(t.i),
    "_unique2": lambda t: torch.unique(t.i),
    "unique_dim": lambda t: torch.unique(t.m, dim=0),
    "unique_consecutive": lambda t: torch.unique_consecutive(t.i),
    "unique_dim_consecutive": lambda t: ATEN.unique_dim_consecutive(t.m, 0),
    "bincount": lambda t: torch.bincount(t.i),
    "_coalesce": lambda t: t.sparse.coalesce(),
    "_to_sparse": lambda t: t.m.to_sparse(),
    "_linalg_check_errors": lambda t: torch.linalg.cholesky(t.whole),
    "_linalg_eigh": lambda t: torch.linalg.eigh(t.whole),
    "_linalg_svd": lambda t: torch.linalg.svd(t.m),
    "index": lambda t: t.x[t.mask],
    "_unsafe_index": lambda t: ATEN._unsafe_index(t.x, [t.host_index]),
    "index_put": lambda t: ATEN.index_put(t.x, [t.mask], t.four),
    "index_put_": lambda t: ATEN.index_put_(t.x, [t.mask], t.four),
    "_index_put_impl_": lambda t: ATEN._index_put_impl_(t.x, [t.mask], t.four),
    "_unsafe_index_put": lambda t: ATEN._unsafe_index_put(t.x, [t.host_index], t.four),
    "copy_": lambda t: t.host.copy_(t.x),
    "_to_copy": lambda t: t.x.to("cpu", copy=True),
    "repeat_interleave": lambda t: torch.repeat_interleave(t.x, t.i),
    "histc": lambda t: torch.histc(t.x, bins=4),
    "normal": lambda t: torch.normal(t.x, t.deviation),
}
MAY_WAIT = {"multinomial"}
"""Of versions before 2.13, and then not certainly."""


class Dispatched(TorchDispatchMode):
    """The operators that were reached, each with what the table says of it where tensors are the device's."""

    def __init__(self, inputs):
        super().__init__()
        self.hosts = (inputs.host, inputs.host_index)
        self.reasons = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        self.reasons[name] = reason(name, args, kwargs or {}, self.side)
        return func(*args, **(kwargs or {}))

    def side(self, tensor):
        return Side.HOST if any(tensor is host for host in self.hosts) else Side.DEVICE


def test_every_operator_of_the_table_has_its_call():
    assert CALLS.keys() | MAY_WAIT == WAITING


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_call_reaches_its_operator_and_the_table_says_that_it_waits(name):
    inputs = Inputs("cpu")
    with Dispatched(inputs) as seen:
        CALLS[name](inputs)
    assert name in seen.reasons
    if name != "_to_copy":  # it looks at real devices, of which there is one here
        assert seen.reasons[name] is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here has been confirmed on one")
@pytest.mark.parametrize("name", sorted(CALLS))
def test_it_waits(name):
    inputs = Inputs("cuda")
    CALLS[name](inputs)  # what is only made once is made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            CALLS[name](inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
