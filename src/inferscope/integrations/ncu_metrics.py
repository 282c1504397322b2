"""What the columns of Nsight Compute mean: names of counters and labels of its pages, in its several versions.

Source: Nsight Compute's Kernel Profiling Guide (metrics, roofline charts) and its CLI's output. Which counters a device
offers differs by generation; none of them has been read from a device of ours.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inferscope.analysis.counters import Launch

__all__ = ["Meaning", "filled", "label_meaning", "meaning"]

_S_TO_NS = 1e9
_PERCENT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a column holds.

    Attributes:
        name: Ours: a field of `Launch`, or a part that `filled` makes one of.
        unit: The unit it is wanted in, for `nsight_csv.scale_of`.
        factor: From that unit to the field's.
        rank: Where several columns hold the same, the smallest is taken.
    """

    name: str
    unit: str
    factor: float = 1.0
    rank: int = 0


def _share(name: str, rank: int = 0) -> Meaning:
    return Meaning(name=name, unit="%", factor=_PERCENT, rank=rank)


_ELAPSED = "avg.pct_of_peak_sustained_elapsed"
_ACTIVE = "avg.pct_of_peak_sustained_active"
_NAMED = {
    f"sm__throughput.{_ELAPSED}": _share("compute_share"),
    f"gpu__compute_memory_throughput.{_ELAPSED}": _share("memory_share"),
    f"gpu__compute_memory_access_throughput.{_ELAPSED}": _share("memory_share", 1),
    f"gpu__dram_throughput.{_ELAPSED}": _share("dram_share"),
    f"dram__throughput.{_ELAPSED}": _share("dram_share", 1),
    "gpu__time_duration.sum": Meaning(name="duration_ns", unit="second", factor=_S_TO_NS),
    "gpu__time_duration.avg": Meaning(name="duration_ns", unit="second", factor=_S_TO_NS, rank=1),
    "dram__bytes.sum": Meaning(name="dram_bytes", unit="byte"),
    "dram__bytes_read.sum": Meaning(name="dram_read_bytes", unit="byte"),
    "dram__bytes_write.sum": Meaning(name="dram_write_bytes", unit="byte"),
    "dram__bytes.sum.per_second": Meaning(name="dram_rate", unit="byte/second"),
    "smsp__sass_average_data_bytes_per_sector_mem_global_op_ld.ratio": Meaning(name="sector_ratio", unit="byte/sector"),
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": Meaning(name="sectors", unit="sector"),
    "sm__inst_executed_pipe_tensor.sum": Meaning(name="tensor_instructions", unit="inst"),
    f"sm__pipe_tensor_cycles_active.{_ELAPSED}": _share("tensor_share"),
    f"sm__inst_executed_pipe_tensor.{_ELAPSED}": _share("tensor_share", 2),
    f"sm__pipe_tensor_cycles_active.{_ACTIVE}": _share("tensor_share", 3),
    f"sm__inst_executed_pipe_tensor.{_ACTIVE}": _share("tensor_share", 4),
}
# fp16 and bf16 matrix products; dmma is fp64, imma whole numbers, and neither says what a language model's products do.
_HMMA = re.compile(
    r"sm__(?:pipe_tensor_op_(?:hmma|gmma)_cycles_active|inst_executed_pipe_tensor_op_(?:hmma|gmma))(?:_v2)?"
    r"\.avg\.pct_of_peak_sustained_(elapsed|active)"
)
_TENSOR_V2 = re.compile(r"sm__pipe_tensor_cycles_active_v2\.avg\.pct_of_peak_sustained_(elapsed|active)")
_SASS = re.compile(r"(smsp|sm)__sass_thread_inst_executed_op_([dfh])(add|mul|fma)_pred_on\.sum")
_TENSOR = re.compile(r"sm__ops_path_tensor_src_([a-z0-9_]+?)(?:_dst_([a-z0-9]+))?(?:_sparsity_(on|off))?\.sum")
_LABELS = {
    "compute (sm) throughput": "compute_share",
    "sm throughput": "compute_share",
    "sm [%]": "compute_share",
    "sol sm": "compute_share",
    "memory throughput": "memory_share",
    "memory [%]": "memory_share",
    "sol memory": "memory_share",
    "dram throughput": "dram_share",
}


@functools.lru_cache(maxsize=8192)
def meaning(metric: str) -> Meaning | None:
    """What a counter is to us; None for the many that are nothing.

    Args:
        metric: Its full name, as the raw page and `--metrics` have it.
    """
    name = metric.strip().lower()
    found = _NAMED.get(name)
    if found is not None:
        return found
    if match := _TENSOR_V2.fullmatch(name):
        return _share("tensor_share", 1 if match[1] == "elapsed" else 3)
    if match := _HMMA.fullmatch(name):
        return _share("tensor_share", 5 if match[1] == "elapsed" else 6)
    if match := _SASS.fullmatch(name):
        return Meaning(name=f"sass {match[2]}{match[3]}", unit="inst", rank=0 if match[1] == "smsp" else 1)
    if match := _TENSOR.fullmatch(name):
        return Meaning(name=f"tensor {match[1]} {match[2] or '*'} {match[3] or '*'}", unit="op")
    return None


def label_meaning(label: str, unit: str) -> Meaning | None:
    """What a metric of the details page is to us, by its label or, with `--metrics`, by its full name.

    Args:
        label: Its name there.
        unit: Its unit there: "Memory Throughput" stands twice, once in percent and once in byte per second.
    """
    name = label.strip().lower()
    if name == "duration":
        return _NAMED["gpu__time_duration.sum"]
    share = _LABELS.get(name)
    if share is not None and unit.strip() == "%":
        return _share(share)
    if name == "memory throughput":
        return _NAMED["dram__bytes.sum.per_second"]
    return meaning(label)


_KINDS = {"d": "fp64", "f": "fp32", "h": "fp16"}
_OPERATIONS = {"add": 1, "mul": 1, "fma": 2}
_PAIR = 2
"""Half-precision instructions work on two numbers at once; Nsight Compute's own roofline counts them so, too."""


def filled(launch: Launch, values: Mapping[str, float]) -> Launch:
    """A launch with what its counters say.

    Args:
        launch: Without them.
        values: By `Meaning.name`, in the field's unit.
    """
    read, write = values.get("dram_read_bytes"), values.get("dram_write_bytes")
    total, duration_ns = values.get("dram_bytes"), values.get("duration_ns")
    if total is None and read is not None and write is not None:
        total = read + write
    if total is None and duration_ns is not None and (rate := values.get("dram_rate")) is not None:
        total = rate * duration_ns / _S_TO_NS
    sectors, ratio = values.get("sectors"), values.get("sector_ratio")
    return replace(
        launch,
        duration_ns=duration_ns,
        compute_share=values.get("compute_share"),
        memory_share=values.get("memory_share"),
        dram_share=values.get("dram_share"),
        tensor_share=values.get("tensor_share"),
        dram_read_bytes=read,
        dram_write_bytes=write,
        dram_bytes=total,
        sector_bytes=None if sectors is None or ratio is None else sectors * ratio,
        sectors=sectors,
        flops=(*_sass_flops(values).items(), *_tensor_flops(values).items()),
        tensor_instructions=values.get("tensor_instructions"),
    )


def _sass_flops(values: Mapping[str, float]) -> dict[str, float]:
    """By type; a type of which only some instructions were counted is left out."""
    found = {}
    for letter, kind in _KINDS.items():
        counts = [(values.get(f"sass {letter}{name}"), factor) for name, factor in _OPERATIONS.items()]
        if all(count is not None for count, _ in counts):
            pair = _PAIR if letter == "h" else 1
            found[kind] = sum((count or 0.0) * factor * pair for count, factor in counts)
    return found


def _tensor_flops(values: Mapping[str, float]) -> dict[str, float]:
    """By source type. A counter that contains others is taken instead of them, never beside them."""
    by_source: dict[str, dict[tuple[str, str], float]] = {}
    for name, value in values.items():
        if name.startswith("tensor ") and name.count(" ") == 3:  # noqa: PLR2004 - tensor, source, destination, sparsity
            _, source, target, sparsity = name.split(" ")
            by_source.setdefault(source, {})[target, sparsity] = value
    # "fp4_fp6_fp8" contains what the single ones of these count.
    for joined in [source for source in by_source if "_" in source]:
        if any(part in by_source for part in joined.split("_")):
            del by_source[joined]
    return {f"tensor {source}": _whole(parts) for source, parts in sorted(by_source.items())}


def _whole(parts: Mapping[tuple[str, str], float]) -> float:
    targets = ["*"] if any(target == "*" for target, _ in parts) else sorted({target for target, _ in parts})
    total = 0.0
    for wanted in targets:
        both = parts.get((wanted, "*"))
        split = sum(value for (target, sparsity), value in parts.items() if target == wanted and sparsity != "*")
        total += split if both is None else both
    return total
