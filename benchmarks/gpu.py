"""What device time costs and how true it is, on a CUDA device: writes benchmarks/results/<device>.json.

    python benchmarks/gpu.py [--rounds N]

Costs of an event (recording, asking, reading), passes bare and traced in turns at two shapes with random weights, and
the interval of device time held against the union of the kernels that the profiler saw. No hardware has run it yet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import inferscope
from machine import spread, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "gpu"))
from test_device_time_on_cuda import ask, kernels_ns, llama

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {
    "small": {"hidden": 256, "layers": 4},
    "1B": {"hidden": 2048, "layers": 16},
    "8B": {"hidden": 4096, "layers": 32},
}
TOKENS = 64


def per_call_ns(call: Callable[[], object], calls: int = 1_000) -> dict[str, Any]:
    """What one call takes the host, over seven rounds."""
    rounds = []
    for _ in range(7):
        torch.cuda.synchronize()
        started = time.perf_counter_ns()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter_ns() - started) / calls)
    return spread(rounds)


def events() -> dict[str, Any]:
    """The calls that a pass makes, and how far two events in a row lie apart."""
    stream = torch.cuda.current_stream()
    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record(stream)
    second.record(stream)
    torch.cuda.synchronize()
    apart_ns = first.elapsed_time(second) * 1e6
    return {
        "record_ns": per_call_ns(lambda: second.record(stream)),
        "query_ns": per_call_ns(first.query),
        "elapsed_ns": per_call_ns(lambda: first.elapsed_time(first)),
        "capturing_ns": per_call_ns(torch.cuda.is_current_stream_capturing),
        "current_stream_ns": per_call_ns(torch.cuda.current_stream),
        "apart_ns": apart_ns,
    }


def wall_us_per_pass(model: Any) -> float:  # noqa: ANN401 - a model
    """One request's wall per token."""
    torch.cuda.synchronize()
    started = time.perf_counter_ns()
    ask(model, tokens=TOKENS)
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - started) / TOKENS / 1e3


def shape(rounds: int, **size: int) -> dict[str, Any]:
    """Passes bare, bare again, traced and plugged in turns; and device time against the kernels."""
    model = llama(**size)
    ask(model, tokens=4)
    walls: dict[str, list[float]] = {"bare": [], "bare again": [], "traced": [], "plug_every=50": []}
    device: dict[str, Any] = {}
    for _ in range(rounds):
        for name, times in walls.items():
            if name.startswith("bare"):
                times.append(wall_us_per_pass(model))
                continue
            with inferscope.trace(model, sinks=(), plug_every=50 if "plug" in name else 0) as session:
                times.append(wall_us_per_pass(model))
                found = session.last.record.phase("decode").device
            device[name] = {
                key: getattr(found, key) for key in ("low_ns", "high_ns", "provenance", "lag_share", "passes")
            }
    whole, first = kernels_ns(model, tokens=TOKENS), kernels_ns(model, tokens=1)
    bare = statistics.median(walls["bare"])
    return {
        "bare_us_per_pass": bare,
        "added_us_per_pass": {
            name: spread([a - b for a, b in zip(times, walls["bare"], strict=True)])
            for name, times in walls.items()
            if name != "bare"
        },
        "device": device,
        "kernel_union_of_decode_ns": whole - first,
    }


def main() -> None:
    """Run everything that fits the device's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing was measured")
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    results: dict[str, Any] = {"events": events()}
    for label, size in SHAPES.items():
        try:
            results[label] = shape(options.rounds, **size)
        except torch.cuda.OutOfMemoryError:
            results[label] = None
        torch.cuda.empty_cache()
    write(name, results)


if __name__ == "__main__":
    main()
