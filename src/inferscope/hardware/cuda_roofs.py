"""How fast this GPU multiplies and moves data. Written from the documentation: not yet confirmed on hardware.

Each reading is the time between two events on one stream with nothing else in it. The host queues the work of a
reading faster than the device does it, since each lasts a millisecond or more, so the time between the events
is the device's. A reading while heat or hardware holds the clocks down is none of what the device can do, and is left
out; the clocks and the power that the others were taken at stand in the ceiling's note.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from inferscope.hardware.cpu_roofs import RejectedError, ceiling
from inferscope.hardware.stability import collect

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.hardware.conditions import Conditions
    from inferscope.hardware.stability import Outcome
    from inferscope.specs import Ceiling, DeviceSpec

__all__ = ["CudaRoofs", "within_datasheet"]

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
_OWN_ROWS = (1024, 4096)
_NODES = 200


class CudaRoofs:
    """Measures one GPU."""

    def __init__(self, device: torch.device, cache_bytes: int | None, conditions: Conditions) -> None:
        """Measure nothing yet.

        Args:
            device: Which GPU.
            cache_bytes: Size of its last-level cache; None where it is unknown.
            conditions: Looked at after each reading.
        """
        self._device = device
        self._cache_bytes = cache_bytes
        self._conditions = conditions

    def gemm(
        self, dtype: torch.dtype, budget_s: float, shapes: tuple[tuple[int, int, int], ...] = GEMM_SHAPES
    ) -> Ceiling:
        """Most floating-point operations per second in a matrix product, last-level cache emptied in between.

        Inputs are normally distributed: constant ones draw less power, and the clock would be higher than in use.

        Args:
            dtype: Of inputs and result.
            budget_s: Seconds to spend.
            shapes: (M, N, K) of the products of which the best counts.

        Raises:
            RejectedError: No shape gave stable readings.
        """
        evict = torch.zeros(self._past(_EVICTED_CACHES), dtype=torch.uint8, device=self._device)
        generator = self._generator()
        roofs: list[Ceiling] = []
        reasons: list[str] = []
        for m, n, k in shapes:
            x, weight = self._normal((m, k), dtype, generator), self._normal((n, k), dtype, generator).t()
            out = torch.zeros((m, n), device=self._device, dtype=dtype)
            seconds = self._seconds(functools.partial(torch.mm, x, weight, out=out), evict)
            rate = _per_second(seconds, 2.0 * m * n * k)
            self._try(rate, f"M x N x K = {m} x {n} x {k}", budget_s / len(shapes), roofs, reasons)
        return _best(roofs, reasons)

    def product(self, dtype: torch.dtype, inputs: int, outputs: int, budget_s: float) -> Ceiling:
        """The same for one linear layer of a model, over many tokens.

        Args:
            dtype: Of inputs and result.
            inputs: Width of what goes in.
            outputs: Width of what comes out.
            budget_s: Seconds to spend.

        Raises:
            RejectedError: No number of tokens gave stable readings.
        """
        return self.gemm(dtype, budget_s, tuple((rows, outputs, inputs) for rows in _OWN_ROWS))

    def gemv(self, dtype: torch.dtype, budget_s: float) -> Ceiling:
        """Weight bytes per second of `F.linear` for one token, over weights of four caches in turn: a reading roof.

        Raises:
            RejectedError: No shape gave stable readings.
        """
        generator, size = self._generator(), self._past(_WEIGHT_CACHES)
        roofs: list[Ceiling] = []
        reasons: list[str] = []
        for n, k in GEMV_SHAPES:
            one = self._normal((n, k), dtype, generator)
            one_bytes = one.numel() * one.element_size()
            weights = [one, *(one.clone() for _ in range(-(-size // one_bytes) - 1))]
            x = self._normal((1, 1, k), dtype, generator)

            def run(weights: list[torch.Tensor] = weights, x: torch.Tensor = x) -> None:
                for weight in weights:
                    functional.linear(x, weight)

            rate = _per_second(self._seconds(run), float(one_bytes * len(weights)))
            what = f"F.linear of one token over {one_bytes * len(weights) >> 20} MiB of {n} x {k} weights in turn"
            self._try(rate, what, budget_s / len(GEMV_SHAPES), roofs, reasons)
        return _best(roofs, reasons)

    def copy(self, budget_s: float) -> Ceiling:
        """Bytes per second of a copy past the last-level cache, read plus written.

        Raises:
            RejectedError: The readings were not stable.
        """
        return self._copy(self._past(_COPY_CACHES), budget_s)

    def cache_copy(self, budget_s: float) -> Ceiling:
        """Bytes per second of a copy whose two arrays take half of the last-level cache, read plus written.

        Raises:
            RejectedError: The cache's size is unknown, or the readings were not stable.
        """
        if self._cache_bytes is None:
            raise RejectedError("the size of the last-level cache is not known")
        return self._copy(self._cache_bytes // _CACHE_SHARE, budget_s)

    def triad(self, budget_s: float) -> Ceiling:
        """Bytes per second of a = b + 3 c past the last-level cache, read plus written: two parts reading, one writing.

        Raises:
            RejectedError: The readings were not stable.
        """
        size = self._past(_COPY_CACHES)
        first, second = self._array(size), self._array(size)
        out = torch.zeros_like(first)
        run = functools.partial(torch.add, first, second, alpha=3.0, out=out)
        rate = _per_second(self._seconds(run), 3.0 * first.numel() * 4)
        return self._roof(rate, f"a = b + 3 c over three arrays of {size >> 20} MiB, read + written bytes", budget_s)

    def fill(self, budget_s: float) -> Ceiling:
        """Bytes per second of writing one number everywhere, past the last-level cache: nothing is read.

        Raises:
            RejectedError: The readings were not stable.
        """
        size = self._past(_COPY_CACHES)
        target = self._array(size)
        rate = _per_second(self._seconds(functools.partial(target.fill_, 1.0)), float(target.numel() * 4))
        return self._roof(rate, f"fill of an array of {size >> 20} MiB, written bytes", budget_s)

    def graph_node_ns(self, budget_s: float) -> Ceiling:
        """Device nanoseconds of one node of a replayed CUDA graph: what a kernel costs that does next to nothing.

        Each node adds to the same element, so that none begins before the one before has ended. The host takes no
        part but for one call for all of them.

        Raises:
            RejectedError: The readings were not stable.
        """
        seconds = self._seconds(_chain(self._device))
        outcome = self._collect(lambda: 1e9 * seconds() / _NODES, budget_s, highest=False)
        return self._ceiling(outcome, f"replay of a graph of {_NODES} additions to one element, one after another")

    def _copy(self, size_bytes: int, budget_s: float) -> Ceiling:
        source = self._array(size_bytes)
        target = torch.zeros_like(source)
        rate = _per_second(self._seconds(functools.partial(target.copy_, source)), 2.0 * source.numel() * 4)
        return self._roof(rate, f"copy between two arrays of {size_bytes >> 20} MiB, read + written bytes", budget_s)

    def _roof(self, rate: Callable[[], float], what: str, budget_s: float) -> Ceiling:
        return self._ceiling(self._collect(rate, budget_s, highest=True), what)

    def _try(
        self, rate: Callable[[], float], what: str, budget_s: float, roofs: list[Ceiling], reasons: list[str]
    ) -> None:
        try:
            roofs.append(self._roof(rate, what, budget_s))
        except RejectedError as error:
            reasons.append(str(error))

    def _collect(self, read: Callable[[], float], budget_s: float, *, highest: bool) -> Outcome:
        self._conditions.begin()

        def checked() -> float:
            value = read()
            return value if self._conditions.undisturbed() else math.nan

        return collect(checked, budget_s=budget_s, highest=highest, least_readings=_READINGS)

    def _ceiling(self, outcome: Outcome, what: str) -> Ceiling:
        if outcome.window is None and self._conditions.slowed:
            held = ", ".join(self._conditions.slowed)
            raise RejectedError(f"clocks were held down meanwhile ({held}): {outcome.reason}")
        roof = ceiling(outcome, what)
        return replace(roof, note=f"{roof.note}; {self._conditions.words()}")

    def _seconds(self, run: Callable[[], object], evict: torch.Tensor | None = None) -> Callable[[], float]:
        """A reading of the device's seconds per run, after warm-ups that also settle the clocks."""
        end = time.perf_counter() + _WARM_UP_S
        for _ in range(_WARM_UPS):
            run()
            torch.cuda.synchronize(self._device)
            if time.perf_counter() > end:  # a slow card has settled by then
                break
        once_s = _event_s(run, 1, self._device, evict)
        repeats = 1 if evict is not None else max(1, math.ceil(_READING_S / max(once_s, 1e-7)))
        return lambda: _event_s(run, repeats, self._device, evict) / repeats

    def _past(self, times: int) -> int:
        return max((self._cache_bytes or 0) * times, _LEAST_ARRAY_BYTES)

    def _array(self, size_bytes: int) -> torch.Tensor:
        return self._normal((size_bytes // 4,), torch.float32, self._generator())

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=self._device, dtype=torch.float32).to(dtype)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self._device).manual_seed(0)


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


def _best(roofs: list[Ceiling], reasons: list[str]) -> Ceiling:
    if not roofs:
        raise RejectedError(reasons[0])
    return max(roofs, key=lambda roof: roof.value)


def _per_second(seconds: Callable[[], float], amount: float) -> Callable[[], float]:
    def read() -> float:
        passed_s = seconds()
        return amount / passed_s if passed_s > 0 else math.nan

    return read


def _chain(device: torch.device) -> Callable[[], None]:
    """Replays a graph of additions to one element.

    Other threads may use CUDA while it is captured: only this one's calls become part of it.
    """
    with torch.cuda.device(device):
        one = torch.zeros(1, dtype=torch.float32, device=device)
        one.add_(1.0)  # loads the kernel, which may not happen while capturing
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(_NODES):
                one.add_(1.0)
    return functools.partial(_replay, graph, one)


def _replay(graph: torch.cuda.CUDAGraph, _element: torch.Tensor) -> None:
    graph.replay()  # the graph works on the element's memory, which is kept alive with it


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
