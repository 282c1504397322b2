"""Which operators make the host wait for a CUDA device, and which launch nothing: the table behind the sync lint.

Source: ATen's CUDA kernels (`memcpy_and_sync` in `_local_scalar_dense`, `nonzero` and blocking copies; sizes that
depend on values) and torch's own test of them, `test_sync_warning` in test/test_torch.py. An operator that waits
inside its kernel and is not here is not seen: what is found is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferscope.meters.placement import Side

__all__ = ["COPIES", "WAITING", "Reason", "launches", "reason"]

READS = "the host reads a value: it is copied from the device, after everything queued before it is done"
TO_HOST = "copies from the device to the host, and the host waits for it"
TO_DEVICE = "copies pageable host memory to the device, and the host waits until it has arrived"
SIZE = "the size of the result depends on values on the device: the host waits to learn it"
MASK = "a boolean mask as index: the host waits to learn how many elements are true"
HOST_INDEX = "the index lies on the host: it is copied to the device, and the host waits for that"
CHECK = "the values are checked on the host"
BOUNDS = "without bounds the host reads the smallest and the largest value"
PINNED = "a non-blocking copy to the host still waits, unless the memory it goes to is pinned"
DRAWS = "torch before 2.13 may check the probabilities on the host"

COPIES = frozenset({"copy_", "_to_copy"})
"""Operators that move data between host and device where their two ends differ: no kernel then."""

_LAUNCH_NOTHING = frozenset(
    {
        *("_local_scalar_dense", "lift_fresh", "lift", "alias", "detach", "_unsafe_view", "_reshape_alias", "view"),
        *(
            "empty",
            "empty_like",
            "empty_strided",
            "new_empty",
            "new_empty_strided",
            "empty_permuted",
            "resize_",
            "set_",
        ),
        # Written as a scalar in Python, it often stays one on the host.
        *("scalar_tensor", "record_stream", "is_same_size", "is_pinned", "set_data"),
    }
)
_ASYNC_DRAWS_SINCE = (2, 13)

Of = Callable[[torch.Tensor], Side]
_Rule = Callable[[Sequence[Any], Mapping[str, Any], Of], "Reason | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why the host would wait.

    Attributes:
        why: In words.
        side: Where the tensor lives that it waits for: UNKNOWN makes the wait a possible one.
    """

    why: str
    side: Side


def reason(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    """Why this operator would make the host wait; None where it would not.

    Args:
        name: The operator without namespace and overload, such as "nonzero".
        args: Its positional arguments.
        kwargs: Its other arguments.
        of: Where tensors live.
    """
    rule = _RULES.get(name)
    found = None if rule is None else rule(args, kwargs, of)
    return None if found is None or found.side is Side.HOST else found


def launches(operator: torch._ops.OpOverload, name: str, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether an operator that runs on the device starts at least one kernel, fill or copy there.

    Args:
        operator: As it was dispatched.
        name: Without namespace and overload.
        outputs: The tensors it returned.
    """
    if name in _LAUNCH_NOTHING:
        return False
    if name in _RULES and name not in COPIES:
        return True  # whatever they return: `equal` returns no tensor, `nonzero` perhaps an empty one
    if not any(tensor.numel() for tensor in outputs):
        return False
    returned = operator._schema.returns  # noqa: SLF001 - torch's own tools read views from it
    return not any(value.alias_info is not None and not value.alias_info.is_write for value in returned)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str) -> Any:  # noqa: ANN401 - any argument
    return args[index] if len(args) > index else kwargs.get(name)


def _of_first(why: str) -> _Rule:
    def rule(args: Sequence[Any], _kwargs: Mapping[str, Any], of: Of) -> Reason:
        return Reason(why=why, side=Side.joint(of(value) for value in args if isinstance(value, torch.Tensor)))

    return rule


def _index(args: Sequence[Any], _kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    indices = [index for index in args[1] if index is not None]
    masks = [of(index) for index in indices if _is_mask(index)]
    if masks and (side := Side.joint(masks)) is not Side.HOST:
        return Reason(why=MASK, side=side)
    # Of a mask on the host the elements are found there and sent without waiting.
    if any(of(index) is Side.HOST and not _is_mask(index) and index.numel() for index in indices):
        return Reason(why=HOST_INDEX, side=of(args[0]))
    unsure = any(of(index) is Side.UNKNOWN and not _is_mask(index) for index in indices)
    return Reason(why=HOST_INDEX, side=Side.UNKNOWN) if unsure and of(args[0]) is not Side.HOST else None


def _index_put(args: Sequence[Any], kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    values = _argument(args, kwargs, 2, "values")
    one_from_host = values.numel() == 1 and of(values) is Side.HOST
    if (
        one_from_host
        and not _argument(args, kwargs, 3, "accumulate")
        and all(index is None or _is_mask(index) for index in args[1])
    ):
        return None  # torch fills under the mask instead
    return _index(args, kwargs, of)


def _is_mask(index: torch.Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _copy(args: Sequence[Any], kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    target, source = of(args[0]), of(args[1])
    if target is source or not args[1].numel():
        return None
    non_blocking = bool(_argument(args, kwargs, 2, "non_blocking"))
    if Side.UNKNOWN in (target, source):
        return None if non_blocking else Reason(why=TO_HOST if target is Side.HOST else TO_DEVICE, side=Side.UNKNOWN)
    if target is Side.DEVICE:
        return None if non_blocking else Reason(why=TO_DEVICE, side=Side.DEVICE)
    return Reason(why=PINNED, side=Side.UNKNOWN) if non_blocking else Reason(why=TO_HOST, side=Side.DEVICE)


def _to_copy(args: Sequence[Any], kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    """A move between real devices; on a tracked CPU moves never come this far."""
    device = kwargs.get("device")
    if device is None or kwargs.get("non_blocking") or not args[0].numel():
        return None
    source = of(args[0])
    target = Side.HOST if torch.device(device).type == "cpu" else Side.DEVICE
    if target is source or args[0].device.type == device.type:
        return None
    return Reason(why=TO_HOST if target is Side.HOST else TO_DEVICE, side=Side.DEVICE)


def _repeat_interleave(args: Sequence[Any], kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    return Reason(why=SIZE, side=of(args[0])) if kwargs.get("output_size") is None else None


def _histc(args: Sequence[Any], kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    low, high = _argument(args, kwargs, 2, "min") or 0, _argument(args, kwargs, 3, "max") or 0
    return Reason(why=BOUNDS, side=of(args[0])) if low == high else None


def _multinomial(args: Sequence[Any], kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    with_replacement = bool(_argument(args, kwargs, 2, "replacement")) and args[1] != 1
    if version >= _ASYNC_DRAWS_SINCE or with_replacement or of(args[0]) is Side.HOST:
        return None
    return Reason(why=DRAWS, side=Side.UNKNOWN)


def _normal(args: Sequence[Any], _kwargs: Mapping[str, Any], of: Of) -> Reason | None:
    deviation = args[1] if len(args) > 1 else None
    return Reason(why=CHECK, side=of(deviation)) if isinstance(deviation, torch.Tensor) else None


_RULES: dict[str, _Rule] = {
    "_local_scalar_dense": _of_first(READS),
    "equal": _of_first(READS),
    "allclose": _of_first(READS),
    **dict.fromkeys(
        (
            *("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
            *("unique_dim_consecutive", "bincount", "_coalesce", "_to_sparse"),
        ),
        _of_first(SIZE),
    ),
    **dict.fromkeys(("_linalg_check_errors", "_linalg_eigh", "_linalg_svd"), _of_first(CHECK)),
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"), _index_put),
    "copy_": _copy,
    "_to_copy": _to_copy,
    "repeat_interleave": _repeat_interleave,
    "histc": _histc,
    "multinomial": _multinomial,
    "normal": _normal,
}

WAITING = frozenset(_RULES)
"""Operators that may make the host wait, without namespace and overload."""
