"""What is counted or predicted, as plain text: what `print` shows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.memory import MemoryAccount
    from inferscope.analysis.prediction import Estimate, PhasePrediction, Prediction

__all__ = ["cost_text", "memory_text", "prediction_text"]

_UNKNOWN = "not known"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def cost_text(cost: PassCost) -> str:
    """Operations, bytes, operators, and each group's part, most FLOPs first."""
    intensity = cost.arithmetic_intensity
    rows = [
        ("FLOPs", _scaled(cost.flops, "FLOP"), f"causal; {_scaled(cost.flops_full, 'FLOP')} as torch counts"),
        ("bytes", _scaled(cost.bytes.model, "B"), _between(cost)),
        ("  weights", _scaled(cost.weight_bytes, "B"), ""),
        ("  cache read", _scaled(cost.kv_read_bytes, "B"), ""),
        ("  cache written", _scaled(cost.kv_write_bytes, "B"), ""),
        ("  activations", _scaled(cost.activation_bytes, "B"), ""),
        ("FLOP per byte", _UNKNOWN if intensity is None else f"{intensity:.3g}", ""),
        ("operators", f"{cost.calls:,}", f"{cost.launches:,} of them launch a kernel"),
        *(
            (f"  {one.group}", _scaled(one.flops, "FLOP"), f"{_scaled(one.bytes, 'B')}, {_calls(one.calls)}")
            for one in cost.groups
        ),
    ]
    missing = [f"without a formula, not in the FLOPs: {', '.join(cost.uncounted)}"] if cost.uncounted else []
    return _sheet("Operations and bytes, counted from the operators' shapes", rows, (*missing, *cost.notes))


def _calls(number: int) -> str:
    return f"{number:,} call{'' if number == 1 else 's'}"


def _between(cost: PassCost) -> str:
    return f"{_scaled(cost.bytes.minimum, 'B')} at least, {_scaled(cost.bytes.executed, 'B')} where nothing is fused"


def memory_text(account: MemoryAccount) -> str:
    """Where the memory goes, and how many sequences fit."""
    room, grows = account.headroom_bytes, _scaled(account.kv_bytes_per_token, "B")
    rows = (
        ("weights", _scaled(account.weight_bytes, "B"), "as stored"),
        (
            "cache",
            _scaled(account.kv_bytes, "B"),
            f"in the end; each token adds {grows}",
        ),
        ("beyond them", _scaled(account.activation_bytes, "B"), "at the highest moment"),
        ("highest moment", _scaled(account.peak_bytes, "B"), f"in {account.peak_phase}" if account.peak_phase else ""),
        ("device", _scaled(account.device_bytes, "B"), ""),
        ("headroom", _scaled(room, "B"), "out of memory" if room is not None and room < 0 else ""),
        ("largest batch", _UNKNOWN if account.largest_batch is None else f"{account.largest_batch:,}", ""),
    )
    title = f"Memory of batch {account.batch_size:,}, {account.kv_len:,} tokens each in the end, from counts"
    return _sheet(title, rows, account.notes)


def prediction_text(one: Prediction) -> str:
    """Times with their intervals, what holds each phase back, and what was assumed."""
    stored = (f" · weights {one.quantization}" if one.quantization else "") + (
        f" · cache {one.kv_dtype}" if one.kv_dtype != one.dtype else ""
    )
    rows = [
        ("TTFT", *_interval(one.ttft_s)),
        ("TPOT", *(("none", "a single token") if one.tpot_s is None else _interval(one.tpot_s))),
        ("tokens/s", _figures(one.tokens_per_s.mid), _ends(one.tokens_per_s, _figures)),
        *((phase.name, *_phase(phase)) for phase in one.phases),
        ("memory", _scaled(one.memory.total_bytes, "B"), one.memory.verdict),
    ]
    notes = (
        *one.provenance,
        *(f"assumed: {line}" for line in one.assumptions),
    )
    title = (
        f"{one.model} on {one.device} · batch {one.batch_size:,} · {one.input_tokens:,} tokens in, "
        f"{one.output_tokens:,} out · {one.dtype}{stored} · {one.execution}"
    )
    return _sheet(title, rows, notes)


def _phase(phase: PhasePrediction) -> tuple[str, str]:
    value, ends = _interval(phase.time_s)
    return value, f"{ends}; {100 * phase.shares[phase.bound]:.0f} % {phase.bound}"


def _interval(value: Estimate) -> tuple[str, str]:
    return _seconds(value.mid), _ends(value, _seconds)


def _ends(value: Estimate, words: Callable[[float], str]) -> str:
    return f"{words(value.low)} to {words(value.high)}"


def _seconds(value: float) -> str:
    size, unit = next((one for one in _TIMES if value >= one[0]), _TIMES[-1])
    return f"{_figures(value / size)} {unit}"


def _scaled(value: float | None, unit: str) -> str:
    if value is None:
        return _UNKNOWN
    size, prefix = next((one for one in _PREFIXES if abs(value) >= one[0]), (1.0, ""))
    return f"{_figures(value / size)} {prefix}{unit}"


def _figures(value: float) -> str:
    """Three figures, without an exponent."""
    return f"{float(f'{value:.3g}'):,g}"


def _sheet(title: str, rows: Iterable[tuple[str, str, str]], notes: Iterable[str]) -> str:
    rows = tuple(rows)
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:<{first}}  {value:>{second}}  {said}".rstrip() for name, value, said in rows]
    return "\n".join([title, *lines, *notes])
