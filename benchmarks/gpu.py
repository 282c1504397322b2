"""What inferscope costs and how true it is on a CUDA device: writes benchmarks/results/<device>.json.

    python benchmarks/gpu.py [--rounds N] [--only SECTION]...
    python benchmarks/gpu.py --dry

Sections: `events` (recording, asking, reading one), `launches` (bare, counted at the driver, recorded), `twin` (the
device twin against the device, on kernels of known length), `gpm` (activities of known loads), and one for each shape
with random weights: passes bare and under each tier in turns, and device time against the union of the kernels that the
profiler saw. A shape that does not fit into the memory that is free is left out. `--dry` runs the half of the twin
that needs no device. No hardware has run it yet.
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
from inferscope.hardware import nvml
from inferscope.meters import counters
from inferscope.testing import DeviceTwin, FakeClock, TwinEvents
from machine import spread, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "gpu"))
from cuda_models import ask, kernels_ns, llama

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {
    "small": {"hidden": 256, "layers": 4},
    "1B": {"hidden": 2048, "layers": 16},
    "8B": {"hidden": 4096, "layers": 32},
}
TIERS: dict[str, dict[str, Any]] = {
    "traced": {},
    "plug_every=50": {"plug_every": 50},
    "counters": {"counters": "native"},
    "deep_every=50": {"deep_every": 50},
    "nvtx": {"nvtx": True},
}
"""What is added to a traced request; the budget lets all of it happen."""
TOKENS = 64
KERNELS = 200
SLEEPS_CYCLES = (1_000, 10_000, 100_000)
LOAD_S = 3.0


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


def launches() -> dict[str, Any]:
    """One launch of a tiny kernel, by itself, counted at the driver, and under torch's profiler."""
    x = torch.ones(1, device="cuda")

    def launch() -> None:
        torch.neg(x)

    found: dict[str, Any] = {"bare_ns": per_call_ns(launch, calls=400)}
    counter = counters.native()
    if counter is None or not counter.open():
        found["counted_ns"] = None
        found["not_counted"] = counters.missing() if counter is None else counter.reason
    else:
        before = counter.counts()
        found["counted_ns"] = per_call_ns(launch, calls=400)
        found["counted"] = counter.counts().since(before)._asdict()
        found["expected_launches"] = 7 * 400
        found["read_ns"] = per_call_ns(counter.counts)
        counter.close()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
        found["recorded_ns"] = per_call_ns(launch, calls=400)
    found["after_recording_ns"] = per_call_ns(launch, calls=400)
    return found


def twin_ns(work_ns: float, issue_ns: float, latency_ns: float) -> dict[str, float]:
    """What a twin says of a row of kernels, from event to event: its time, and what lay behind the host."""
    clock = FakeClock()
    twin = DeviceTwin(clock, latency_ns=round(latency_ns))
    source = TwinEvents(twin)
    first, last = source.take(), source.take()
    first.record(source.stream)
    began_ns = clock.now_ns()
    for _ in range(KERNELS):
        twin.launch(round(work_ns), issue_ns=round(issue_ns))
    host_ns = clock.now_ns() - began_ns
    last.record(source.stream)
    twin.synchronize()
    return {"events_ns": first.elapsed_time(last) * 1e6, "host_ns": host_ns, "busy_ns": twin.busy_ns()}


def real_ns(cycles: int) -> dict[str, float]:
    """The same of the device: a row of kernels that do nothing for so many cycles."""
    stream = torch.cuda.current_stream()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record(stream)
    began_ns = time.perf_counter_ns()
    for _ in range(KERNELS):
        torch.cuda._sleep(cycles)  # noqa: SLF001 - torch's own benchmarks use it
    host_ns = time.perf_counter_ns() - began_ns
    last.record(stream)
    torch.cuda.synchronize()
    return {"events_ns": first.elapsed_time(last) * 1e6, "host_ns": float(host_ns)}


def twin(rounds: int) -> list[dict[str, Any]]:
    """Rows of kernels from starved to saturated: what the twin foretells against what the device takes."""
    rows = []
    for cycles in SLEEPS_CYCLES:
        real_ns(cycles)
        # Of a long kernel its launch is no part to speak of: 1,000 times as long, so that a cycle's time is known.
        long_ns = real_ns(cycles * 1_000)["events_ns"] / KERNELS / 1_000 if cycles == SLEEPS_CYCLES[0] else None
        cycle_ns = long_ns / cycles if long_ns is not None else rows[0]["cycle_ns"]
        seen = [real_ns(cycles) for _ in range(rounds)]
        events_ns = statistics.median(one["events_ns"] for one in seen)
        issue_ns = statistics.median(one["host_ns"] for one in seen) / KERNELS
        foretold = twin_ns(cycle_ns * cycles, issue_ns, latency_ns=2_000)
        rows.append(
            {
                "cycles": cycles,
                "cycle_ns": cycle_ns,
                "issue_ns": issue_ns,
                "events_ns": events_ns,
                "foretold": foretold,
                "ratio": foretold["events_ns"] / events_ns,
            }
        )
    return rows


def gpm() -> dict[str, Any]:
    """Activities that the device's own counters show of an idle device, of products and of copies."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    big = torch.empty(1 << 28, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(big)
    loads: dict[str, Callable[[], object]] = {
        "idle": lambda: time.sleep(0.1),
        "products": lambda: torch.mm(a, a),
        "copies": lambda: other.copy_(big),
    }
    found: dict[str, Any] = {}
    for name, load in loads.items():
        source = nvml.Nvml()
        source.read()
        until = time.monotonic() + LOAD_S
        while time.monotonic() < until:
            load()
            torch.cuda.synchronize()
        reading = source.read()
        source.close()
        fields = (
            "window_s",
            "sm_activity",
            "sm_occupancy",
            "tensor_activity",
            "dram_activity",
            "time_share",
            "missing",
        )
        found[name] = [{field: getattr(gpu, field) for field in fields} for gpu in reading.gpus] or reading.missing
    return found


def wall_us_per_pass(model: Any) -> float:  # noqa: ANN401 - a model
    """One request's wall per token."""
    torch.cuda.synchronize()
    started = time.perf_counter_ns()
    ask(model, tokens=TOKENS)
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - started) / TOKENS / 1e3


def fits(hidden: int, layers: int) -> bool:
    """Whether bfloat16 weights of such a model, and as much again, go into the memory that is free."""
    weights = 2 * (layers * (3 * 4 + 3) * hidden * hidden + 2 * 32_000 * hidden)
    return 1.5 * weights < torch.cuda.mem_get_info()[0]


def shape(rounds: int, **size: int) -> dict[str, Any]:
    """Passes bare, bare again and under each tier in turns; and device time against the kernels."""
    model = llama(**size)
    ask(model, tokens=4)
    walls: dict[str, list[float]] = {"bare": [], "bare again": [], **{name: [] for name in TIERS}}
    device: dict[str, Any] = {}
    for _ in range(rounds):
        for name, times in walls.items():
            if name not in TIERS:
                times.append(wall_us_per_pass(model))
                continue
            with inferscope.trace(model, sinks=(), overhead_budget=1, **TIERS[name]) as session:
                times.append(wall_us_per_pass(model))
                device[name] = facts_of(session.last.record.phase("decode"))
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


def facts_of(phase: Any) -> dict[str, Any]:  # noqa: ANN401 - a phase of a record
    """Device time and counts of a phase, with how they are known."""
    found = phase.device
    keys = ("low_ns", "high_ns", "provenance", "lag_share", "passes")
    return {
        **{key: None if found is None else getattr(found, key) for key in keys},
        "launches": phase.launches,
        "launches_source": phase.launches_source,
        "recorded_passes": None if phase.deep is None else phase.deep.passes,
        "recorded_busy_ns": None if phase.deep is None else phase.deep.device_busy_ns,
    }


def sections(rounds: int) -> dict[str, Callable[[], Any]]:
    """All of them, by name."""
    found: dict[str, Callable[[], Any]] = {
        "events": events,
        "launches": launches,
        "twin": lambda: twin(rounds),
        "gpm": gpm,
    }
    for label, size in SHAPES.items():
        found[label] = lambda size=size: shape(rounds, **size) if fits(**size) else None
    return found


def main() -> None:
    """Run everything that fits the device's memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", action="append", metavar="SECTION", help="one section; may be given more than once")
    parser.add_argument("--dry", action="store_true", help="the twin alone, without a device")
    options = parser.parse_args()
    every = sections(options.rounds)
    unknown = sorted(set(options.only or ()) - every.keys())
    if unknown:
        parser.error(f"no section {unknown[0]!r}: {', '.join(every)}")
    if options.dry:
        for work_ns in (500, 5_000, 50_000):
            print(work_ns, twin_ns(work_ns, issue_ns=5_000, latency_ns=2_000))
        return
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing was measured")
    results: dict[str, Any] = {}
    for name in options.only or every:
        try:
            results[name] = every[name]()
        except torch.cuda.OutOfMemoryError:
            results[name] = None
        torch.cuda.empty_cache()
    write(torch.cuda.get_device_name().lower().replace(" ", "-"), results)


if __name__ == "__main__":
    main()
