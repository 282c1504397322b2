"""Operators of a pass, and what group each belongs to: the one table of names, and the union of what ran.

Names alone decide, since shapes are not recorded: that would double the cost of recording. A concatenation is therefore
a copy, also where it is how a cache grows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from inferscope.meters.deep_ledger import DeviceSplit, DeviceWork, HostSplit, split_device, split_host, unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferscope.meters.deep_ledger import DriverCall

__all__ = ["GROUPS", "MeasuredPass", "OperatorSpan", "OperatorSum", "group_of", "is_operator", "measure"]

GROUPS = ("attention", "linear", "norm/elementwise", "moe", "kv-cache", "copy", "sampling", "communication", "other")

# fmt: off
_NAMES: dict[str, frozenset[str]] = {
    "attention": frozenset({
        "bmm", "baddbmm", "softmax", "_softmax", "_safe_softmax", "flash_attention", "flex_attention",
        "tril", "triu", "masked_fill", "masked_fill_",
    }),
    "linear": frozenset({
        "linear", "mm", "addmm", "addmv", "mv", "dot", "conv1d", "conv2d", "conv3d", "convolution", "addbmm",
        "_weight_int8pack_mm", "_weight_int4pack_mm", "_scaled_mm", "_int_mm",
    }),
    "moe": frozenset({
        "_grouped_mm", "grouped_mm", "histc", "bincount", "one_hot", "index_add", "index_add_", "scatter_add",
        "scatter_add_", "nonzero", "nonzero_numpy",
    }),
    "kv-cache": frozenset({"index_copy", "index_copy_", "slice_scatter",
        "index_put", "index_put_", "_index_put_impl_",
    }),
    "copy": frozenset({
        "copy_", "clone", "contiguous", "to", "_to_copy", "cat", "concat", "stack", "repeat", "repeat_interleave",
        "roll", "flip", "embedding", "index", "index_select", "gather", "reshape", "float", "half", "type_as",
        "fill_", "zero_", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "arange",
        "split_with_sizes_copy",
    }),
    "sampling": frozenset({"sort", "topk", "argmax", "argsort", "multinomial", "exponential_", "cumsum", "kthvalue"}),
    "norm/elementwise": frozenset({
        "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "batch_norm", "add", "add_",
        "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "pow", "pow_", "rsqrt", "sqrt", "mean", "sum", "var",
        "silu", "silu_", "gelu", "relu", "relu_", "sigmoid", "tanh", "exp", "log", "neg", "sin", "cos", "max", "min",
        "amax", "amin", "clamp", "clamp_", "where", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or",
        "logical_not", "bitwise_and", "bitwise_or", "bitwise_not", "__and__", "__or__", "dropout", "abs", "square",
        "softplus", "hardswish", "all", "any", "floor_divide", "lerp", "addcmul", "erf", "isin", "maximum", "minimum",
    }),
}
# fmt: on
_GROUP = {name: group for group, names in _NAMES.items() for name in names}
_PARTS = (
    ("scaled_dot_product", "attention"), ("flash_attn", "attention"), ("attention", "attention"),
    ("nccl", "communication"), ("allreduce", "communication"), ("all_reduce", "communication"),
    ("allgather", "communication"), ("all_gather", "communication"), ("reduce_scatter", "communication"),
    ("all_to_all", "communication"), ("alltoall", "communication"),
)  # fmt: skip
_UNTOLD = frozenset({"matmul", "einsum", "__matmul__"})
"""What they call says which product it is: one of a batch of matrices is attention's, others are linear layers'."""
_GENERATED = ("triton_", "cpp_fused", "inductor")


class OperatorSpan(NamedTuple):
    """One operator as the profiler saw it, in nanoseconds of its clock."""

    name: str
    start_ns: int
    end_ns: int
    link: int = 0  # what device work that it started refers to
    launch: int = 0  # of device work: the number of the driver's call that started it


@dataclass(slots=True)
class OperatorSum:
    """Operators of one name, summed."""

    group: str
    time_ns: int = 0
    calls: int = 0
    launches: int = 0


@dataclass(slots=True)
class MeasuredPass:
    """What was recorded of passes; several add up.

    Attributes:
        operators_ns: Union of the outermost operators' intervals on the host.
        python_ns: Of the gaps between them, and before the first and after the last.
        gaps: How many of those are longer than 0.
        operators: By name. Their time is the host's where no device has worked for them, else the device's.
        device_busy_ns: Union of the device's intervals; None where there was none, or some were lost.
        host: The host's side; None where no call into a driver was seen.
        device: The device's side; None as `device_busy_ns`.
        lost: Launches whose work had not ended when the recording did; the passes' device side is then unknown.
        launches: Kernels that the host launched, in one pass: this and the next two are not added up. None where the
            host computes.
        graph_launches: Graphs that it launched.
        syncs: Waits for the device.
    """

    operators_ns: int = 0
    python_ns: int = 0
    gaps: int = 0
    operators: dict[str, OperatorSum] = field(default_factory=dict)
    device_busy_ns: int | None = None
    host: HostSplit | None = None
    device: DeviceSplit | None = None
    lost: int = 0
    launches: int | None = None
    graph_launches: int | None = None
    syncs: int | None = None

    @property
    def calls(self) -> int:
        """Outermost operators."""
        return sum(each.calls for each in self.operators.values())

    def add(self, other: MeasuredPass) -> None:
        """Take another pass."""
        self.operators_ns += other.operators_ns
        self.python_ns += other.python_ns
        self.gaps += other.gaps
        if other.device_busy_ns is not None:
            self.device_busy_ns = (self.device_busy_ns or 0) + other.device_busy_ns
        if other.host is not None:
            self.host = self.host or HostSplit()
            self.host.add(other.host)
        if other.device is not None:
            self.device = self.device or DeviceSplit()
            self.device.add(other.device)
        self.lost += other.lost
        for name, each in other.operators.items():
            held = self.operators.setdefault(name, OperatorSum(each.group))
            held.time_ns += each.time_ns
            held.calls += each.calls
            held.launches += each.launches


def is_operator(name: str) -> bool:
    """Whether an event is an operator, and not a region that somebody has named: such a region holds Python, too."""
    return ("::" in name and not name.startswith("profiler::")) or any(part in name for part in _GENERATED)


def group_of(name: str, inner: Iterable[str] = ()) -> str:
    """The group of an operator, one of `GROUPS`.

    Args:
        name: As the profiler gives it ("aten::linear").
        inner: Names of what it called, which decide where its own does not.
    """
    short = name.rpartition("::")[2]
    if short in _UNTOLD:
        return next((found for found in map(group_of, inner) if found in {"attention", "linear"}), "linear")
    known = _GROUP.get(short)
    return known or next((group for part, group in _PARTS if part in short), "other")


def measure(
    start_ns: int,
    end_ns: int,
    spans: Sequence[OperatorSpan],
    kernels: Sequence[OperatorSpan],
    calls: Sequence[DriverCall] = (),
) -> MeasuredPass:
    """What ran in one pass.

    Args:
        start_ns: Its beginning on the profiler's clock.
        end_ns: Its end.
        spans: Operators of its thread, those that others called included, in any order.
        kernels: Work of the device; `link` is that of the operator which started it, 0 where none is known.
        calls: Into the driver, by its thread, in any order.
    """
    measured = MeasuredPass()
    outermost: list[tuple[OperatorSpan, list[str]]] = []
    outer_of: dict[int, int] = {}
    for span in sorted(spans, key=lambda each: (each.start_ns, -each.end_ns)):
        if outermost and span.start_ns < outermost[-1][0].end_ns:
            outermost[-1][1].append(span.name)
        else:
            outermost.append((span, []))
        outer_of[span.link] = len(outermost) - 1
    reached_ns = start_ns
    for span, _ in outermost:
        measured.operators_ns += span.end_ns - span.start_ns
        measured.gaps += span.start_ns > reached_ns
        measured.python_ns += max(0, span.start_ns - reached_ns)
        reached_ns = span.end_ns
    measured.gaps += end_ns > reached_ns
    measured.python_ns += max(0, end_ns - reached_ns)
    if calls:
        bounds = [(span.start_ns, span.end_ns) for span, _ in outermost]
        measured.host = split_host(start_ns, end_ns, bounds, calls)
        measured.lost = unfinished(calls, {each.launch for each in kernels})
    work = _sum_up(measured, outermost, kernels, outer_of)
    if work and not measured.lost:
        measured.device = split_device(start_ns, end_ns, work, calls)
        measured.device_busy_ns = sum(measured.device.busy_ns.values())
    return measured


def _sum_up(
    measured: MeasuredPass,
    outermost: Sequence[tuple[OperatorSpan, list[str]]],
    kernels: Sequence[OperatorSpan],
    outer_of: dict[int, int],
) -> list[DeviceWork]:
    """Sum operators by name, and give the device's work with the group of what started it."""
    sums = []
    for span, inner in outermost:
        group = group_of(span.name, inner)
        name = f"{span.name} ({group})" if span.name.rpartition("::")[2] in _UNTOLD else span.name
        held = measured.operators.setdefault(name, OperatorSum(group))
        held.calls += 1
        if not kernels and not measured.lost:
            held.time_ns += span.end_ns - span.start_ns
        sums.append(held)
    work = []
    for kernel in kernels:
        index = outer_of.get(kernel.link) if kernel.link else None
        if index is None:
            held = measured.operators.setdefault(kernel.name, OperatorSum(group_of(kernel.name)))
        else:
            held = sums[index]
        held.time_ns += kernel.end_ns - kernel.start_ns
        held.launches += 1
        work.append(DeviceWork(held.group, kernel.start_ns, kernel.end_ns, kernel.launch))
    return work
