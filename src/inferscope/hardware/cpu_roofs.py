"""How fast this processor multiplies and moves data: the readings behind a CPU's ceilings.

All run with the threads torch is set to use, since that is what a model gets. All take their memory before the
first reading, so that no page is handed out by the kernel while the clock runs.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from inferscope.hardware.stability import Outcome, collect
from inferscope.hardware.stopwatch import quiet_seconds, shortest_seconds
from inferscope.specs import Ceiling

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RejectedError", "cache_copy", "ceiling", "copy", "gemm", "gemv"]

# (M, N, K): squares, and the two products of a feed-forward layer at several numbers of tokens.
GEMM_SHAPES = (
    (256, 256, 256),
    (512, 512, 512),
    (64, 4096, 1024),
    (64, 1024, 4096),
    (1024, 1024, 1024),
    (256, 4096, 1024),
    (256, 1024, 4096),
    (1024, 4096, 1024),
    (1024, 1024, 4096),
    (2048, 2048, 2048),
    (4096, 4096, 4096),
)
GEMV_SHAPES = ((2048, 2048), (4096, 4096))

_READING_S = 0.005  # short, so that many fall between two interruptions
_LONGEST_READING_SHARE = 1 / 40  # a shape whose readings would take longer leaves too few of them
_SCAN_SHARE = 0.3
_FINALISTS = 2
_COPY_CACHES = 8
_WEIGHT_CACHES = 4
_LEAST_ARRAY_BYTES = 64 << 20
_CACHE_SHARE = 4
_MEMORY_SHARE = 4
_FALLBACK_MEMORY_BYTES = 1 << 30


class RejectedError(Exception):
    """A ceiling that could not be had; the message is the rest of a sentence beginning with its name."""


def ceiling(outcome: Outcome, what: str) -> Ceiling:
    """The ceiling that a series of readings came to.

    Raises:
        RejectedError: It has no stable window.
    """
    if outcome.window is None:
        raise RejectedError(outcome.reason)
    note = f"{what}; median of the best stable window of {outcome.readings} readings"
    return Ceiling(value=outcome.window.value, source="measured", spread=outcome.window.spread, note=note)


def gemm(dtype: torch.dtype, budget_s: float) -> Ceiling:
    """Most floating-point operations per second in a matrix product, over shapes a model has and squares.

    Inputs are normally distributed, weights are stored as `nn.Linear` stores them. A short look at every shape
    chooses the two that are measured.

    Args:
        dtype: Of inputs and result.
        budget_s: Seconds to spend, the choice included.

    Raises:
        RejectedError: No shape gave stable readings.
    """
    begin = time.perf_counter()
    generator = torch.Generator("cpu").manual_seed(0)
    seen = _scan(dtype, budget_s, generator)
    if not seen:
        raise RejectedError("not one product ran undisturbed, other work is taking the processors")
    finalists = [shape for _, shape in sorted(seen, reverse=True)[:_FINALISTS]]
    roofs: list[Ceiling] = []
    reasons: list[str] = []
    for number, shape in enumerate(finalists):
        left_s = max(begin + budget_s - time.perf_counter(), 0.0) / (len(finalists) - number)
        read = _rate(_product(shape, dtype, generator), 2.0 * math.prod(shape))
        outcome = collect(read, budget_s=left_s, highest=True)
        try:
            roofs.append(ceiling(outcome, f"M x N x K = {' x '.join(map(str, shape))}, best of {len(seen)}"))
        except RejectedError as error:
            reasons.append(str(error))
    if not roofs:
        raise RejectedError(reasons[0])
    return max(roofs, key=lambda roof: roof.value)


def copy(cache_bytes: int | None, available_bytes: int | None, budget_s: float) -> Ceiling:
    """Bytes per second of a copy past the last-level cache, read plus written.

    Each of the two arrays is at least eight times the cache. The line that a store fetches before it overwrites
    it is not counted: the number is what a program gets, the memory bus may carry up to half as much again.

    Args:
        cache_bytes: Size of the last-level cache; None where it is unknown.
        available_bytes: Memory that may be used; None where it is unknown.
        budget_s: Seconds to spend.

    Raises:
        RejectedError: The readings were not stable, or the arrays do not fit into a quarter of the memory.
    """
    size = _past_cache(cache_bytes, _COPY_CACHES)
    _check_memory(2 * size, available_bytes)
    outcome = collect(_copy_rate(size), budget_s=budget_s, highest=True)
    return ceiling(outcome, f"copy between two arrays of {size >> 20} MiB, read + written bytes")


def cache_copy(cache_bytes: int | None, budget_s: float) -> Ceiling:
    """Bytes per second of a copy whose two arrays together take half of the last-level cache, read plus written.

    Raises:
        RejectedError: The cache's size is unknown, or the readings were not stable.
    """
    if cache_bytes is None:
        raise RejectedError("the size of the last-level cache is not known")
    size = max(cache_bytes // _CACHE_SHARE, 1 << 12)
    outcome = collect(_copy_rate(size), budget_s=budget_s, highest=True)
    return ceiling(outcome, f"copy between two arrays of {size >> 10} KiB, read + written bytes")


def gemv(dtype: torch.dtype, cache_bytes: int | None, available_bytes: int | None, budget_s: float) -> Ceiling:
    """Weight bytes per second of `F.linear` for one token, each weight long out of the cache when its turn comes.

    Torch's product of a matrix and a vector does not reach the bandwidth of a copy on every processor, so decode
    gets a ceiling of its own.

    Args:
        dtype: Of weights and input.
        cache_bytes: Size of the last-level cache; None where it is unknown.
        available_bytes: Memory that may be used; None where it is unknown.
        budget_s: Seconds to spend, over all weight shapes.

    Raises:
        RejectedError: No shape gave stable readings, or the weights do not fit into a quarter of the memory.
    """
    size = _past_cache(cache_bytes, _WEIGHT_CACHES)
    _check_memory(size, available_bytes)
    generator = torch.Generator("cpu").manual_seed(0)
    begin = time.perf_counter()
    roofs: list[Ceiling] = []
    reasons: list[str] = []
    for number, shape in enumerate(GEMV_SHAPES):
        left_s = max(begin + budget_s - time.perf_counter(), 0.0) / (len(GEMV_SHAPES) - number)
        run, weight_bytes = _rotation(shape, dtype, size, generator)
        run()
        outcome = collect(_rate(run, float(weight_bytes)), budget_s=left_s, highest=True)
        what = f"F.linear of one token over {weight_bytes >> 20} MiB of {shape[0]} x {shape[1]} weights in turn"
        try:
            roofs.append(ceiling(outcome, what))
        except RejectedError as error:
            reasons.append(str(error))
    if not roofs:
        raise RejectedError(reasons[0])
    return max(roofs, key=lambda roof: roof.value)


def _scan(dtype: torch.dtype, budget_s: float, generator: torch.Generator) -> list[tuple[float, tuple[int, int, int]]]:
    """Operations per second of each shape that fits the budget, from a few undisturbed runs of each."""
    seen: list[tuple[float, tuple[int, int, int]]] = []
    end = time.perf_counter() + budget_s * _SCAN_SHARE
    for shape in GEMM_SHAPES:
        flops = 2.0 * math.prod(shape)
        if seen and flops / max(seen)[0] > budget_s * _LONGEST_READING_SHARE:
            continue
        patience_s = max((end - time.perf_counter()) / 2, 0.0)
        seconds = shortest_seconds(_product(shape, dtype, generator), 3, patience_s)
        if seconds is not None:
            seen.append((flops / max(seconds, 1e-9), shape))
        if time.perf_counter() > end:
            break
    return seen


def _past_cache(cache_bytes: int | None, times: int) -> int:
    # Where the cache's size is not readable, 64 MiB is more than all but the largest servers have.
    return max((cache_bytes or _LEAST_ARRAY_BYTES) * times, _LEAST_ARRAY_BYTES)


def _check_memory(needed_bytes: int, available_bytes: int | None) -> None:
    # A container that runs out of memory is killed: three quarters of what is free stay the user's.
    allowed = _FALLBACK_MEMORY_BYTES if available_bytes is None else available_bytes // _MEMORY_SHARE
    if needed_bytes > allowed:
        raise RejectedError(
            f"arrays past the cache take {needed_bytes >> 20} MiB, more than a quarter of the memory left"
            f" ({allowed >> 20} MiB)"
        )


def _product(shape: tuple[int, int, int], dtype: torch.dtype, generator: torch.Generator) -> Callable[[], object]:
    m, n, k = shape
    x = _normal((m, k), dtype, generator)
    weight = _normal((n, k), dtype, generator).t()
    out = torch.zeros((m, n), dtype=dtype, device="cpu")  # given, or each result would fault its pages in anew

    def run() -> object:
        return torch.mm(x, weight, out=out)

    run()
    return run


def _rotation(
    shape: tuple[int, int], dtype: torch.dtype, size_bytes: int, generator: torch.Generator
) -> tuple[Callable[[], None], int]:
    one = _normal(shape, dtype, generator)
    one_bytes = one.numel() * one.element_size()
    weights = [one, *(one.clone() for _ in range(-(-size_bytes // one_bytes) - 1))]
    x = _normal((1, 1, shape[1]), dtype, generator)

    def run() -> None:
        for weight in weights:
            functional.linear(x, weight)

    return run, one_bytes * len(weights)


def _copy_rate(size_bytes: int) -> Callable[[], float]:
    source = torch.ones(size_bytes // 4, dtype=torch.float32, device="cpu")
    target = torch.zeros_like(source)
    return _rate(lambda: target.copy_(source), 2.0 * source.numel() * 4)


def _rate(run: Callable[[], object], amount: float) -> Callable[[], float]:
    """A reading of `amount` per second over as many runs as a reading needs, NaN where it was disturbed."""
    once_s = shortest_seconds(run, 3, _READING_S)
    repeats = 1 if once_s is None else max(1, round(_READING_S / max(once_s, 1e-7)))

    def read() -> float:
        seconds = quiet_seconds(run, repeats)
        return amount * repeats / seconds if seconds > 0 else math.nan

    return read


def _normal(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
