"""How long a model's own operators take on this processor: its matrices at several numbers of rows, its attention.

A roof is the best of all shapes. A matrix of 576 x 192 at eight rows is far from it, and by how much depends on the
library, so it is measured: each product of the model at a dozen sizes, with weights that have left the cache by the
time their turn comes again, if they would in the model.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from inferscope.analysis.cost import pass_cost
from inferscope.analysis.kernels import KernelPoint, KernelTimes, Kind, product_shape
from inferscope.errors import PredictionError, SettingError
from inferscope.hardware import probe
from inferscope.hardware.stopwatch import quiet_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inferscope.specs import ModelSpec

__all__ = ["measure_kernels"]

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
HEAD_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)
PREFILLS = (8, 32, 64, 128, 256, 512, 1024)
DECODES = tuple((batch, kv_len) for batch in (1, 8) for kv_len in (16, 64, 256, 1024))
_READINGS = 7
_ROTATION_CACHES = 4
_LEAST_ROTATION_BYTES = 16 << 20
_MOST_BUFFER_BYTES = 512 << 20
_MOST_COPIES = 256
_MEMORY_SHARE = 8
_SHORTEST_READING_S = 0.0005


def measure_kernels(
    spec: ModelSpec,
    *,
    heads: tuple[int, int, int] | None = None,
    longest: int = 1024,
    budget_s: float = 30.0,
    progress: Callable[[str, float], None] | None = None,
) -> KernelTimes:
    """Times of a model's operators on this processor, from which unseen sizes are interpolated.

    Weights and inputs are random: the model itself is not needed. Torch's threads, random state and defaults stay as
    they are. A size whose readings were all disturbed is left out, and so is a matrix of more than an eighth of the
    memory that is free: the roofs stand for it.

    Args:
        spec: With the counted operators and the dtype.
        heads: Query heads, key-value heads and their width; None leaves attention to the roofs.
        longest: Rows and tokens beyond which nothing is tried.
        budget_s: Seconds after which nothing more is begun.
        progress: Called before each group with its name and the share done so far (0..1).

    Raises:
        SettingError: The spec has no counted operators, or no dtype that torch computes in.
        PredictionError: Not one product could be measured.
    """
    dtype = getattr(torch, spec.dtype or "", None)
    if spec.cost is None or not isinstance(dtype, torch.dtype):
        raise SettingError(f"{spec.name} has no counted operators, or no one dtype ({spec.dtype})")
    identity = probe.identify("cpu")
    end = time.perf_counter() + budget_s
    points: list[KernelPoint] = []
    bench = _Bench(dtype, _apart_bytes(spec, identity.cache_bytes))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for number, (label, measures) in enumerate(parts := _parts(spec, bench, heads, longest)):
            if progress is not None:
                progress(label, number / len(parts))
            for measure in measures:
                if time.perf_counter() > end:
                    break
                point = measure()
                if point is not None:
                    points.append(point)
    if not any(point.kind == "product" for point in points):
        raise PredictionError("not one product ran undisturbed, other work is taking the processors")
    return KernelTimes(device_key=identity.key, dtype=spec.dtype or "", points=tuple(points))


def _parts(
    spec: ModelSpec, bench: _Bench, heads: tuple[int, int, int] | None, longest: int
) -> list[tuple[str, list[Callable[[], KernelPoint | None]]]]:
    """What is measured, by group."""
    parts: list[tuple[str, list[Callable[[], KernelPoint | None]]]] = []
    widths = []
    room_bytes = (probe.available_memory_bytes() or 8 * _MOST_BUFFER_BYTES) // _MEMORY_SHARE
    for group in _products(spec):
        inputs, outputs = product_shape(group) or (0, 0)
        if 4 * inputs * outputs > room_bytes:  # made in float32 first; its roof has to do
            continue
        widths.append(inputs)
        rows = HEAD_ROWS if group.startswith("lm_head") else [row for row in ROWS if row <= longest]
        parts.append((group, [functools.partial(bench.product, group, inputs, outputs, row) for row in rows]))
    hidden = statistics.mode(widths) if widths else 0
    sizes = [row for row in (1, 4, 16, 64, 256, 1024) if row <= longest]
    if hidden:
        parts.append(("elementwise", [functools.partial(bench.elementwise, hidden, row) for row in sizes]))
        pairs, width = heads[1:] if heads is not None else (4, max(hidden // 4, 1))
        caches = [(1, 16), (8, 16), (8, 64), (8, 256), (8, 1024)]
        copies: list[Callable[[], KernelPoint | None]] = [
            functools.partial(bench.copy, (b, pairs, k, width)) for b, k in caches if k <= longest
        ]
        parts.append(("copies", copies))
    if heads is not None:
        prefills = [(1, q, q) for q in PREFILLS if q <= longest]
        decodes = [(b, 1, k) for b, k in DECODES if k <= longest]
        parts.append(("attention", [functools.partial(bench.attention, heads, *size) for size in prefills + decodes]))
    return parts


def _products(spec: ModelSpec) -> Iterator[str]:
    names = {entry.group for entry in spec.cost.operators} if spec.cost is not None else set()
    return (name for name in sorted(names) if product_shape(name) is not None)


def _apart_bytes(spec: ModelSpec, cache_bytes: int | None) -> int:
    """How far apart a weight's turns are: by the whole model, or by as much as empties the cache."""
    past_cache = max((cache_bytes or 0) * _ROTATION_CACHES, _LEAST_ROTATION_BYTES)
    whole = spec.weight_bytes or past_cache
    if spec.cost is not None:
        whole = pass_cost(spec.cost, batch_size=1, q_len=1, past_len=1).weight_bytes or whole
    return min(past_cache, whole, _MOST_BUFFER_BYTES)


class _Bench:
    """Runs one operator at a time on random data."""

    def __init__(self, dtype: torch.dtype, apart_bytes: int) -> None:
        self._dtype = dtype
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._apart_bytes = apart_bytes
        self._kept: tuple[tuple[int, int], list[torch.Tensor]] = ((0, 0), [])

    def product(self, group: str, inputs: int, outputs: int, rows: int) -> KernelPoint | None:
        """A linear layer at so many rows, its weights in turn."""
        x = self._normal(1, rows, inputs)
        weights = itertools.cycle(self._weights(outputs, inputs))
        return self._point("product", float(rows), lambda: functional.linear(x, next(weights)), group)

    def attention(self, heads: tuple[int, int, int], batch: int, q: int, k: int) -> KernelPoint | None:
        """Fused attention as transformers calls it; behind a cache, on what was just joined to it.

        The time of joining is taken off again: it has its own points.
        """
        queries, pairs, width = heads
        query = self._normal(batch, q, queries, width).transpose(1, 2)
        grouped: dict[str, Any] = {"enable_gqa": True} if queries != pairs else {}

        def attend(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=q > 1, **grouped)

        size = float(k)
        if q > 1:
            key, value = self._normal(batch, pairs, k, width), self._normal(batch, pairs, k, width)
            return self._point("prefill attention", size, lambda: attend(key, value), batch_size=batch)
        new = self._normal(batch, pairs, 1, width)
        pasts = itertools.cycle(self._pasts((batch, pairs, k - 1, width)))

        def join() -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat((next(pasts), new), dim=2), torch.cat((next(pasts), new), dim=2)

        joined = self._point("copy", size, join)
        both = self._point("decode attention", size, lambda: attend(*join()), batch_size=batch)
        if joined is None or both is None or both.call_ns <= joined.call_ns:
            return None
        return replace(both, call_ns=both.call_ns - joined.call_ns)

    def elementwise(self, hidden: int, rows: int) -> KernelPoint | None:
        """A norm, a gate and a residual as transformers writes them, per kernel."""
        x, wide, weight = self._normal(1, rows, hidden), self._normal(1, rows, 3 * hidden), self._normal(hidden)

        def run() -> None:
            y = x.to(torch.float32)
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            torch.add(x, weight * y.to(x.dtype))
            torch.mul(functional.silu(wide), wide)

        casts = 0 if x.dtype == torch.float32 else 2
        plain, single, row = x.numel() * x.element_size(), x.numel() * 4, rows * 4
        moved = 2 * single + (single + row) + 2 * row + 2 * row + (2 * single + row)
        moved += 2 * plain + weight.numel() * x.element_size() + 3 * plain + 5 * 3 * plain
        moved += casts * (plain + single)
        launches = 9 + casts
        return self._point("elementwise", moved / launches, run, calls=launches)

    def copy(self, shape: tuple[int, int, int, int]) -> KernelPoint | None:
        """A cache of that shape grown by concatenation."""
        new = self._normal(shape[0], shape[1], 1, shape[3])
        pasts = itertools.cycle(self._pasts(shape))
        moved = 2.0 * new.numel() * (shape[2] + 1) * new.element_size()
        return self._point("copy", moved, lambda: torch.cat((next(pasts), new), dim=2))

    def _weights(self, outputs: int, inputs: int) -> list[torch.Tensor]:
        """Weights enough to have left the cache when their turn comes again; those of the last shape are kept."""
        if self._kept[0] != (outputs, inputs):
            self._kept = ((0, 0), [])
            self._kept = ((outputs, inputs), self._copies((outputs, inputs), self._apart_bytes))
        return self._kept[1]

    def _pasts(self, shape: tuple[int, ...]) -> list[torch.Tensor]:
        return self._copies(shape, self._apart_bytes // 2, least=2)

    def _copies(self, shape: tuple[int, ...], size_bytes: int, least: int = 1) -> list[torch.Tensor]:
        one = self._normal(*shape)
        count = max(least, min(_MOST_COPIES, size_bytes // max(one.numel() * one.element_size(), 1)))
        return [one, *(one.clone() for _ in range(count - 1))]

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float32).to(self._dtype)

    def _point(
        self,
        kind: Kind,
        size: float,
        run: Callable[[], object],
        group: str = "",
        calls: int = 1,
        batch_size: int = 1,
    ) -> KernelPoint | None:
        run()
        once_s = quiet_seconds(run)
        repeats = max(1, round(_SHORTEST_READING_S / max(once_s, 1e-7))) if once_s == once_s else 1  # noqa: PLR0124
        readings = [quiet_seconds(run, repeats) for _ in range(_READINGS)]
        good = [seconds for seconds in readings if seconds > 0]  # a disturbed one is not a number
        if not good:
            return None
        call_ns = 1e9 * statistics.median(good) / repeats / calls
        return KernelPoint(kind=kind, group=group, size=size, call_ns=call_ns, batch_size=batch_size)
