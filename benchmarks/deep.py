"""What recording operators costs: the same requests with and without, in turns, and each recording by itself.

    python benchmarks/deep.py [--requests N]

Requests of one model take turns: traced, traced again, and traced with `deep_every=1`, where nothing but the budget
holds recordings apart. What is reported is how much longer the requests of the last kind took, over the time of all:
the budget is a share of the process's time, and what all three kinds earn is spent in one of them. Means, since
recordings are rare, each with its 95 % interval; the difference between the first two is what this machine cannot
resolve. The first requests are left out, since a model's first recordings are not waited for. Of the recordings it
says what starting and stopping took, what their pass took against the others of its phase, and the closure.

`injected`: time put into a layer's forward in Python, by what it really was, and what a recorded pass's Python gained
over passes without, the least of each: load only adds.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from typing import Any

import torch

import inferscope
from inferscope.experiments.models import load
from inferscope.meters.budget import BUDGET
from machine import spread, write
from overhead import prompt, tiny_llama

VARIANTS = {"traced": 0, "traced again": 0, "recorded": 1}
WARM_UP = 30
INJECTED_NS = (600_000, 1_200_000, 3_600_000)
_Z = 1.96


def turn(model: Any, ids: torch.Tensor, every: int, tokens: int) -> tuple[float, list[Any]]:  # noqa: ANN401 - a model
    """Seconds of a request, and the phases of which passes were recorded."""
    with inferscope.trace(model, sinks=(), deep_every=every) as session:
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        elapsed = time.perf_counter() - started
        session.wait()
    return elapsed, [phase for phase in session.last.record.phases if phase.deep is not None]


def measure(model: Any, ids: torch.Tensor, tokens: int, requests: int) -> dict[str, Any]:  # noqa: ANN401 - a model
    """Let the variants take turns."""
    walls_s: dict[str, list[float]] = {name: [] for name in VARIANTS}
    recorded: list[Any] = []
    names = list(VARIANTS)
    gc.collect()
    for number in range(requests + WARM_UP):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            elapsed, phases = turn(model, ids, VARIANTS[name], tokens)
            if number >= WARM_UP:
                walls_s[name].append(elapsed)
                recorded += phases
    return {
        "tokens_per_request": tokens,
        "requests": requests,
        "traced_ms": spread([1e3 * wall for wall in walls_s["traced"]]),
        "amortised_percent": {name: amortised(walls_s, name) for name in names[1:]},
        "recordings": sum(phase.deep.passes for phase in recorded),
        "start_and_stop_us": spread([phase.deep.cost_ns / phase.deep.passes / 1e3 for phase in recorded]),
        "pass_against_median": spread(
            [
                phase.deep.wall_ns / phase.deep.passes / phase.pass_ns.p50
                for phase in recorded
                if phase.name == "decode" and phase.pass_ns.p50
            ]
        ),
        "closure_percent": spread([100 * abs(phase.deep.closure_ns) / phase.deep.wall_ns for phase in recorded]),
    }


def amortised(walls_s: dict[str, list[float]], name: str) -> dict[str, float]:
    """How much longer requests took than their traced neighbours, in per cent of the time of all."""
    longer = [a - b for a, b in zip(walls_s[name], walls_s["traced"], strict=True)]
    whole = sum(map(sum, walls_s.values()))
    reach = _Z * statistics.stdev(longer) * math.sqrt(len(longer))
    return {
        "value": 100 * sum(longer) / whole,
        "low": 100 * (sum(longer) - reach) / whole,
        "high": 100 * (sum(longer) + reach) / whole,
    }


def injected(model: Any, ids: torch.Tensor, rounds: int) -> dict[str, dict[str, float]]:  # noqa: ANN401 - a model
    """Nanoseconds asked for: the error of what was recovered, in per cent of it."""
    wanted_ns = put_in_ns = 0

    def busy(*_: object) -> None:
        nonlocal put_in_ns
        began_ns = time.perf_counter_ns()
        while time.perf_counter_ns() - began_ns < wanted_ns:
            pass
        put_in_ns = time.perf_counter_ns() - began_ns

    hook = model.model.layers[0].register_forward_hook(busy)
    beside_ns = dict.fromkeys((0, *INJECTED_NS), math.inf)
    allows, BUDGET.allows = BUDGET.allows, lambda: True  # type: ignore[method-assign]  # each pass is to be recorded
    try:
        for _ in range(rounds):
            for each in beside_ns:
                wanted_ns = each
                with inferscope.trace(model, sinks=(), deep_every=1) as session:
                    model.generate(ids, max_new_tokens=2, min_new_tokens=2, do_sample=False)
                phase = session.last.record.phase("decode")
                if phase.deep is not None:
                    beside_ns[each] = min(beside_ns[each], phase.deep.python_ns - put_in_ns)
    finally:
        BUDGET.allows = allows  # type: ignore[method-assign]
        hook.remove()
    least_ns = beside_ns.pop(0)
    return {
        str(each): {"error_percent": 100 * (found - least_ns) / each, "beside_us": least_ns / 1e3}
        for each, found in beside_ns.items()
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="of the tiny model in each variant")
    parser.add_argument("--tiny", action="store_true", help="the tiny model alone")
    parser.add_argument("--injected", action="store_true", help="time put into a layer alone; writes deep-injected-cpu")
    parser.add_argument("--out", default="deep-cpu")
    options = parser.parse_args()
    if options.injected:
        with torch.inference_mode():
            errors = injected(tiny_llama(), prompt(1000), max(options.requests // 10, 1))
        for asked, one in errors.items():
            print(f"{int(asked) / 1e3:.0f} us put in: recovered with an error of {one['error_percent']:+.1f} %")
        write("deep-injected-cpu", {"tiny_llama": errors})
        return
    with torch.inference_mode():
        found = {"tiny_llama": measure(tiny_llama(), prompt(1000), 64, options.requests)}
        if not options.tiny:
            found["smollm2"] = measure(load(None).model, prompt(1000), 8, max(options.requests // 15, 2))
    for name, result in found.items():
        said = ", ".join(
            f"{variant} {one['value']:+.2f} % ({one['low']:+.2f} to {one['high']:+.2f})"
            for variant, one in result["amortised_percent"].items()
        )
        print(f"{name}: longer than traced by {said}; {result['recordings']} recordings")
    write(options.out, found)


if __name__ == "__main__":
    main()
