"""How fast this GPU multiplies and moves data. Written from the documentation: not yet confirmed on hardware.

Each reading is the time between two events on one stream with nothing else in it. The host queues the work of a
reading faster than the device does it, since each lasts a millisecond or more, so the time between the events
is the device's.
"""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from inferscope.hardware.cpu_roofs import RejectedError, ceiling
from inferscope.hardware.stability import collect

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.specs import Ceiling, DeviceSpec

__all__ = ["cache_copy", "copy", "gemm", "gemv", "within_datasheet"]

# (M, N, K): large squares, and the two products of an 8B model's feed-forward layer.
GEMM_SHAPES = (
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (1024, 14336, 4096),
    (4096, 14336, 4096),
    (4096, 4096, 14336),
)
GEMV_SHAPES = ((4096, 4096), (14336, 4096))

_WARM_UPS = 50
_WARM_UP_S = 0.5
_READINGS = 100
_READING_S = 0.001
_COPY_CACHES = 8
_WEIGHT_CACHES = 4
_EVICTED_CACHES = 2
_LEAST_ARRAY_BYTES = 256 << 20
_CACHE_SHARE = 4
_OVER_DATASHEET = 1.05


def gemm(dtype: torch.dtype, device: torch.device, cache_bytes: int | None, budget_s: float) -> Ceiling:
    """Most floating-point operations per second in a matrix product, last-level cache emptied in between.

    Inputs are normally distributed: constant ones draw less power, and the clock would be higher than in use.

    Raises:
        RejectedError: No shape gave stable readings.
    """
    generator = torch.Generator(device).manual_seed(0)
    evict = torch.zeros(_past(cache_bytes, _EVICTED_CACHES), dtype=torch.uint8, device=device)
    roofs: list[Ceiling] = []
    reasons: list[str] = []
    for m, n, k in GEMM_SHAPES:
        x = torch.randn((m, k), generator=generator, device=device, dtype=torch.float32).to(dtype)
        weight = torch.randn((n, k), generator=generator, device=device, dtype=torch.float32).to(dtype).t()
        out = torch.zeros((m, n), device=device, dtype=dtype)
        run = functools.partial(torch.mm, x, weight, out=out)
        read = _rate(run, 2.0 * m * n * k, device, evict)
        _try(read, f"M x N x K = {m} x {n} x {k}", budget_s / len(GEMM_SHAPES), roofs, reasons)
    return _best(roofs, reasons)


def copy(device: torch.device, cache_bytes: int | None, budget_s: float) -> Ceiling:
    """Bytes per second of a copy past the last-level cache, read plus written.

    Raises:
        RejectedError: The readings were not stable.
    """
    return _copy(device, _past(cache_bytes, _COPY_CACHES), budget_s)


def cache_copy(device: torch.device, cache_bytes: int | None, budget_s: float) -> Ceiling:
    """Bytes per second of a copy whose two arrays take half of the last-level cache, read plus written.

    Raises:
        RejectedError: The cache's size is unknown, or the readings were not stable.
    """
    if cache_bytes is None:
        raise RejectedError("the size of the last-level cache is not known")
    return _copy(device, cache_bytes // _CACHE_SHARE, budget_s)


def gemv(dtype: torch.dtype, device: torch.device, cache_bytes: int | None, budget_s: float) -> Ceiling:
    """Weight bytes per second of `F.linear` for one token, over weights of four caches in turn: a reading roof.

    Raises:
        RejectedError: No shape gave stable readings.
    """
    generator = torch.Generator(device).manual_seed(0)
    size = _past(cache_bytes, _WEIGHT_CACHES)
    roofs: list[Ceiling] = []
    reasons: list[str] = []
    for n, k in GEMV_SHAPES:
        one = torch.randn((n, k), generator=generator, device=device, dtype=torch.float32).to(dtype)
        one_bytes = one.numel() * one.element_size()
        weights = [one, *(one.clone() for _ in range(-(-size // one_bytes) - 1))]
        x = torch.randn((1, 1, k), generator=generator, device=device, dtype=torch.float32).to(dtype)

        def run(weights: list[torch.Tensor] = weights, x: torch.Tensor = x) -> None:
            for weight in weights:
                functional.linear(x, weight)

        read = _rate(run, float(one_bytes * len(weights)), device, None)
        what = f"F.linear of one token over {one_bytes * len(weights) >> 20} MiB of {n} x {k} weights in turn"
        _try(read, what, budget_s / len(GEMV_SHAPES), roofs, reasons)
    return _best(roofs, reasons)


def within_datasheet(roof: Ceiling, row: DeviceSpec | None, published: Ceiling | None) -> Ceiling:
    """The ceiling, unless it exceeds what the maker publishes by more than 5 %: then the clock was wrong.

    Raises:
        RejectedError: It does.
    """
    if row is not None and published is not None and roof.value > published.value * _OVER_DATASHEET:
        raise RejectedError(
            f"{roof.value:.3g} per second is {roof.value / published.value:.0%} of the {published.value:.3g} that"
            f" the datasheet of {row.name} (certainty {row.certainty}) gives: not believed"
        )
    return roof


def _copy(device: torch.device, size_bytes: int, budget_s: float) -> Ceiling:
    generator = torch.Generator(device).manual_seed(0)
    source = torch.randn(size_bytes // 4, generator=generator, device=device, dtype=torch.float32)
    target = torch.zeros_like(source)
    read = _rate(lambda: target.copy_(source), 2.0 * source.numel() * 4, device, None)
    outcome = collect(read, budget_s=budget_s, highest=True, least_readings=_READINGS)
    return ceiling(outcome, f"copy between two arrays of {size_bytes >> 20} MiB, read + written bytes")


def _past(cache_bytes: int | None, times: int) -> int:
    return max((cache_bytes or 0) * times, _LEAST_ARRAY_BYTES)


def _try(read: Callable[[], float], what: str, budget_s: float, roofs: list[Ceiling], reasons: list[str]) -> None:
    outcome = collect(read, budget_s=budget_s, highest=True, least_readings=_READINGS)
    try:
        roofs.append(ceiling(outcome, what))
    except RejectedError as error:
        reasons.append(str(error))


def _best(roofs: list[Ceiling], reasons: list[str]) -> Ceiling:
    if not roofs:
        raise RejectedError(reasons[0])
    return max(roofs, key=lambda roof: roof.value)


def _rate(
    run: Callable[[], object], amount: float, device: torch.device, evict: torch.Tensor | None
) -> Callable[[], float]:
    """A reading of `amount` per second of device time, after warm-ups that also settle the clocks."""
    end = time.perf_counter() + _WARM_UP_S
    for _ in range(_WARM_UPS):
        run()
        torch.cuda.synchronize(device)
        if time.perf_counter() > end:  # a slow card has settled by then
            break
    once_s = _event_s(run, 1, device, evict)
    repeats = 1 if evict is not None else max(1, math.ceil(_READING_S / max(once_s, 1e-7)))

    def read() -> float:
        seconds = _event_s(run, repeats, device, evict)
        return amount * repeats / seconds if seconds > 0 else 0.0

    return read


def _event_s(run: Callable[[], object], repeats: int, device: torch.device, evict: torch.Tensor | None) -> float:
    # A stream belongs to a device: without the guard the events would be recorded on the current one.
    with torch.cuda.device(device):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        if evict is not None:
            evict.zero_()
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
