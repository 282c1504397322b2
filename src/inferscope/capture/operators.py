"""What one forward dispatches: every operator with its FLOPs and bytes, by group.

Works on tensors of the meta device, where nothing is computed and nothing is allocated. All tensors of a forward
are kept until it has been tallied: a freed storage's identity would be given to the next one.
"""

# ruff: noqa: ANN401 - operators and their arguments have no common type in torch's dispatch protocols
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inferscope.capture.lifetimes import Lifetimes

__all__ = [
    "ATTENTION",
    "GROUPED_MM",
    "PACKED_LINEAR",
    "AttentionScope",
    "FunctionSeam",
    "Recorder",
    "Seen",
    "distinct_bytes",
    "parts_of",
    "storage_key",
]

Kind = Literal["view", "matmul", "gather", "scatter", "overwrite", "elementwise", "copy", "move", "unknown"]

GROUPED_MM = "_grouped_mm"
ATTENTION = "scaled_dot_product_attention"
PACKED_LINEAR = "packed_linear"
_VIEWS = {"_unsafe_view", "_reshape_alias", "lift_fresh", "set_"}
_ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted"}
_GATHERS = {"embedding", "index", "index_select", "gather"}
_SCATTERS = {"index_put_", "_index_put_impl_", "index_copy_", "index_add_", "scatter_", "scatter_add_"}
_OVERWRITES = {"copy_", "fill_", "zero_"}
_COPIES = {"_to_copy", "clone"}
# Arithmetic, but no matrix product: 0 FLOPs by the convention of torch's FlopCounterMode.
_REDUCTIONS = {
    "native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm", "rms_norm", "mean",
    "sum", "prod", "var", "var_mean", "std", "amax", "amin", "aminmax", "max", "min", "argmax", "argmin",
    "any", "all", "norm", "linalg_vector_norm", "_softmax", "_log_softmax", "_safe_softmax", "logsumexp",
    "cumsum", "cumprod", "cummax", "cummin", "topk", "sort", "histc", "bincount", "native_dropout",
    "floor_divide", "polar", "complex",
}  # fmt: skip
# No arithmetic at all.
_MOVES = {
    "cat", "stack", "arange", "full", "full_like", "new_full", "zeros", "zeros_like", "new_zeros", "ones",
    "ones_like", "new_ones", "scalar_tensor", "masked_fill", "masked_fill_", "where", "tril", "triu",
    "tril_", "triu_", "roll", "flip", "repeat", "constant_pad_nd", "index_put", "index_copy", "index_add",
    "scatter", "scatter_add", "slice_scatter", "select_scatter", "masked_scatter", "linspace", "eye",
    "one_hot", "repeat_interleave", "_assert_async", "_assert_tensor_metadata", "_local_scalar_dense",
}  # fmt: skip
_ASKED = "_inferscope_asked"
_ANSWERS = {"all": True, "any": False, "eq": True}
_WITH_BIAS_FIRST = {"addmm", "baddbmm", "addmv", "addbmm"}


@dataclass(frozen=True, slots=True)
class AttentionScope:
    """What the attention module that is running says about itself.

    Attributes:
        window: Tokens it attends to, itself included; None for all.
        block: Tokens of the blocks within which it attends; None for no blocks.
    """

    window: int | None = None
    block: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One dispatched operator, with its tensors kept alive.

    Attributes:
        name: Of the operator.
        kind: What it does with its tensors.
        inputs: All tensors it reads.
        outputs: All tensors it returns.
        operands: Of a matrix product or attention: what is multiplied.
        flops: By torch's formula, nothing masked out.
        causal: An attention that is masked.
        scope: The attention module inside which it ran; None outside one.
    """

    name: str
    kind: Kind
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    operands: tuple[torch.Tensor, ...] = ()
    flops: int = 0
    causal: bool = False
    scope: AttentionScope | None = None


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator dispatched while it is active in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Seen] = []
        self.muted = False
        self.scopes: list[AttentionScope] = []
        self.repeated: list[tuple[int, int]] = []
        self.lifetimes: Lifetimes | None = None
        self._made: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        answer = _answer(func, args)
        out = self._run(func, args, kwargs) if answer is None else answer
        if isinstance(out, torch.Tensor) and out.is_meta and out.dtype is torch.bool and not out.dim():
            vars(out)[_ASKED] = _classified(func)[0]
        if self.lifetimes is not None:
            self.lifetimes.step(_tensors((out,)))
        if not self.muted:
            self.seen.append(_seen(func, args, kwargs, out, self.scope))
        return out

    @property
    def scope(self) -> AttentionScope | None:
        """The attention module that is running; None where none is."""
        return self.scopes[-1] if self.scopes else None

    def times(self) -> list[int]:
        """How often each operator counts: those of a layer once more for each layer like it that was not run."""
        counts = [1] * len(self.seen)
        for start, end in self.repeated:
            for index in range(start, end):
                counts[index] += 1
        return counts

    @contextmanager
    def mute(self) -> Iterator[None]:
        """Do not write down what is dispatched meanwhile."""
        before, self.muted = self.muted, True
        try:
            yield
        finally:
            self.muted = before

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator's output; the second time round a blank of the same form.

        torch derives the form of most outputs on the meta device in Python, which takes two thirds of a forward;
        a model's layers ask for the same ones again and again.
        """
        key = (func, _form(args), _form(tuple(kwargs.items()))) if _makes_one(func) else None
        made = self._made.get(key) if key else None
        if made is not None:
            shape, stride, dtype = made
            return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        out = _grouped(*args[:2]) if _is_grouped(func, args) else func(*args, **kwargs)
        if key and isinstance(out, torch.Tensor) and out.is_meta:
            self._made[key] = (out.shape, out.stride(), out.dtype)
        return out


class FunctionSeam(TorchFunctionMode):
    """Holds still what torch takes apart in different ways.

    Scaled dot product attention becomes one operator, for its decomposition differs between devices. A linear
    layer stays one, for on a slice of several sequences torch would add its bias in a second operator, or multiply
    each sequence by itself where the weights are frozen.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is torch.nn.functional.linear and len(args) > 1 and _splits(*args):
            args = (self._blank(args[0]), *args[1:])
        return func(*args, **kwargs)

    def _blank(self, tensor: torch.Tensor) -> torch.Tensor:
        """One of the same shape without gaps; that it was made is not written down."""
        with self._recorder.mute():
            return tensor.new_empty(tensor.shape)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> torch.Tensor:
        del dropout_p
        with self._recorder.mute():
            workspace = _attention_workspace(query, attn_mask) if self._recorder.lifetimes is not None else ()
            out = _attention_output(query, value)
            del workspace
        if self._recorder.muted:
            return out
        products = query.shape[:-1].numel() * key.shape[-2]
        self._recorder.seen.append(
            Seen(
                name=ATTENTION,
                kind="matmul",
                inputs=(query, key, value) if attn_mask is None else (query, key, value, attn_mask),
                outputs=(out,),
                operands=(query, key, value),
                flops=2 * products * (query.shape[-1] + value.shape[-1]),
                causal=is_causal or attn_mask is not None,
                scope=self._recorder.scope or AttentionScope(),
            )
        )
        return out


def _splits(left: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether torch takes a linear layer on this slice apart: with a bias, or with weights that are not trained."""
    return not left.is_contiguous() and (bias is not None or not weight.requires_grad)


def _attention_workspace(query: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """What fused kernels have in memory beside their output: a sum per row, and a mask of truths as numbers."""
    sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
    if mask is None or mask.dtype is not torch.bool:
        return (sums,)
    return sums, torch.empty_like(mask, dtype=query.dtype)


def _attention_output(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if query.shape[-1] != value.shape[-1]:
        return query.new_empty(*query.shape[:-1], value.shape[-1])
    # Flash kernels write in the query's own layout, which decides whether a copy follows.
    return torch.empty_like(query)


def _seen(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, scope: AttentionScope | None) -> Seen:
    name, kind = _classified(func)
    inputs = tuple(_tensors(args)) + tuple(_tensors(kwargs.values()))
    outputs = tuple(_tensors((out,)))
    if kind != "matmul":
        return Seen(name, kind, inputs, outputs, scope=scope)
    first = 1 if name in _WITH_BIAS_FIRST else 0
    operands = tuple(_tensors(args[first : first + 2]))
    formula = _formulas()[func._overloadpacket]  # noqa: SLF001 - FlopCounterMode's own key
    return Seen(name, kind, inputs, outputs, operands, int(formula(*args, **kwargs, out_val=out)), scope=scope)


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _answer(func: Any, args: tuple[Any, ...]) -> bool | None:
    """What a model that reads a truth value is told: all are, none is any, a sum of truths is their number.

    So it is where no sequence is padded and all numbers are finite, and of that a forward is counted.
    """
    if _classified(func)[0] != "_local_scalar_dense" or not args[0].is_meta:
        return None
    return _ANSWERS.get(vars(args[0]).get(_ASKED, ""))


def _is_grouped(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether this is rows times stacked experts: torch's meta kernel refuses dtypes that its CPU kernel takes."""
    if _classified(func)[0] != GROUPED_MM:
        return False
    return args[0].is_meta and (args[0].dim(), args[1].dim()) == (2, 3)


def _grouped(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], experts.shape[2])


def _form(value: Any) -> Any:
    """Everything about an argument that decides the form of an output, as a dictionary key."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(_form(item) for item in value)
    return type(value), value  # 1, 1.0 and True are equal, and promote differently


@lru_cache(maxsize=4096)
def _makes_one(func: Any) -> bool:
    """Whether the operator's one output is a new tensor, of a form that follows from those of its inputs."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or len(schema.returns) != 1:
        return False
    return _classified(func)[1] in {"matmul", "elementwise", "copy", "move", "gather"}


@lru_cache(maxsize=4096)
def _classified(func: Any) -> tuple[str, Kind]:
    packet = getattr(func, "_overloadpacket", None)
    if packet is None:
        return str(func), "unknown"
    name = packet.__name__
    return name, "matmul" if packet in _formulas() else _kind(func, name)


def _kind(func: Any, name: str) -> Kind:
    aliases = [value.alias_info for value in func._schema.returns if value.alias_info is not None]  # noqa: SLF001
    if name in _VIEWS | _ALLOCATIONS or any(not alias.is_write for alias in aliases):
        return "view"
    named: tuple[tuple[Kind, set[str]], ...] = (
        ("gather", _GATHERS),
        ("scatter", _SCATTERS),
        ("overwrite", _OVERWRITES),
        ("copy", _COPIES),
        ("move", _MOVES),
        ("elementwise", _REDUCTIONS),
    )
    for kind, names in named:
        if name in names:
            return kind
    return "elementwise" if torch.Tag.pointwise in func.tags else "unknown"


@lru_cache(maxsize=1)
def _formulas() -> dict[Any, Callable[..., int]]:
    """Torch's registry, and what torch 2.13 lacks in it (pytorch#195460 for the CPU's attention)."""
    aten = torch.ops.aten
    ours = {
        aten.mv: _product,
        aten.dot: _product,
        aten.vdot: _product,
        aten.linear: _linear,
        aten.addmv: partial(_product, first=1),
        aten.addbmm: partial(_product, first=1),
    }
    for name in ("_int_mm", GROUPED_MM):
        if hasattr(aten, name):
            ours[getattr(aten, name)] = _product
    flash = getattr(aten, "_scaled_dot_product_flash_attention", None)
    if hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu") and flash in flop_registry:
        ours[aten._scaled_dot_product_flash_attention_for_cpu] = flop_registry[flash]  # noqa: SLF001
    return {**flop_registry, **ours}


def _product(*args: Any, first: int = 0, out_val: Any = None, **_: Any) -> int:
    """FLOPs of rows times columns: every element of the left side meets every column of the right one."""
    del out_val
    left, right = args[first], args[first + 1]
    return int(2 * left.numel() * (right.shape[-1] if right.dim() > 1 else 1))


def _linear(left: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * left.numel() * weight.shape[0]


def parts_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Tensors with storage: the local part of a sharded one, the payload and scales of a quantised one."""
    if hasattr(tensor, "to_local"):
        yield from parts_of(tensor.to_local())
    elif hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from parts_of(getattr(tensor, name))
    else:
        yield tensor


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor, while the tensor lives."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the only public identity is a data pointer, 0 on meta


def distinct_bytes(tensor: torch.Tensor) -> int:
    """Bytes that reading the tensor touches: an expanded dimension is the same memory again."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count
