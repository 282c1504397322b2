"""Matrix sizes that tensor cores do not take whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.savings import Change
from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Case
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_MULTIPLE = 8
_WORTH_SAYING = 0.05
_DTYPES = {"bfloat16", "float16"}
_TWO = 2


def look(case: Case) -> Finding | None:
    """Fires on a GPU where a sizeable part of the arithmetic is in matrices whose sizes are no multiples of 8."""
    cost = case.cost
    if case.on_cpu or cost is None or not cost.flops or case.record.model.dtype not in _DTYPES:
        return None
    odd = [entry for entry in cost.groups if any(size % _MULTIPLE for size in _sizes(entry.group))]
    share = sum(entry.flops for entry in odd) / cost.flops
    if share < _WORTH_SAYING:
        return None
    return case.finding(
        "matrix-shapes-odd",
        "INFO",
        f"{share:.0%} of {case.phase.name}'s arithmetic is in matrices whose sizes are no multiples of {_MULTIPLE}: "
        f"{', '.join(entry.group for entry in odd[:3])}. Tensor cores take them padded, or not at all.",
        Evidence(metric="odd_flops_share", value=share, threshold=_WORTH_SAYING, source="analytic"),
        saving=case.saving(
            "that up to 30 % of what kernels lose is lost to this (assumed)", Change("kernels", 0.0, 0.3)
        ),
        action="Pad the vocabulary or the inner size to a multiple of 64 "
        "(`resize_token_embeddings(pad_to_multiple_of=64)`). Precondition: the extra rows are never chosen.",
        not_helping="A larger batch: the odd side is the weights'.",
        verify="run the same request with padded sizes; prefill's wall falls.",
    )


def _sizes(group: str) -> tuple[int, ...]:
    """Both sides of a group's weight matrix, from its name ("linear 576x1536"); none where it has none."""
    sides = group.rpartition(" ")[2].split("x")
    return tuple(int(side) for side in sides) if len(sides) == _TWO and all(map(str.isdigit, sides)) else ()
