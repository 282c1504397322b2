"""What recording operators costs: the same work with and without, in turns, and each recording by itself.

    python benchmarks/deep.py [--rounds N] [--seconds S]

One model takes turns of S seconds: traced, traced again, traced with `deep_every=1000`, and with `deep_every=1`, where
nothing but the budget holds recordings apart. The difference between the first two is what this machine cannot resolve.
The first turns of each are left out of the medians, since a model's first two recordings are not waited for. Reported
are tokens per second, and of the recordings what starting and stopping took, what their pass took against the others of
its phase, and the closure.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

import torch

import inferscope
from inferscope.experiments.models import load
from machine import spread, write
from overhead import prompt, tiny_llama

VARIANTS = {"traced": 0, "traced again": 0, "one in 1000": 1000, "by the budget": 1}
NEW_TOKENS = 64


def turn(model: Any, ids: torch.Tensor, every: int, seconds: float) -> tuple[float, list[Any]]:  # noqa: ANN401 - a model
    """Tokens per second over a turn, and the phases of which passes were recorded."""
    recorded: list[Any] = []

    def keep(result: Any) -> None:  # noqa: ANN401 - a result
        recorded.extend(phase for phase in result.record.phases if phase.deep is not None)

    gc.collect()
    with inferscope.trace(model, sinks=(keep,), deep_every=every) as session:
        model.generate(ids, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        started = time.perf_counter()
        tokens = 0
        while time.perf_counter() - started < seconds:
            model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
            tokens += NEW_TOKENS
        elapsed = time.perf_counter() - started
        session.wait()
    return tokens / elapsed, recorded


def measure(model: Any, ids: torch.Tensor, rounds: int, seconds: float) -> dict[str, Any]:  # noqa: ANN401 - a model
    """Let the variants take turns, and report medians."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    recorded: list[Any] = []
    names = list(VARIANTS)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rate, phases = turn(model, ids, VARIANTS[name], seconds)
            recorded += phases
            if number:
                rates[name].append(rate)
    bare = statistics.median(rates["traced"])
    return {
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "slower_percent": {name: 100 * (1 - statistics.median(values) / bare) for name, values in rates.items()},
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


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tiny", action="store_true", help="the tiny model alone")
    parser.add_argument("--out", default="deep-cpu")
    options = parser.parse_args()
    models: dict[str, Any] = {"tiny_llama": tiny_llama()}
    if not options.tiny:
        models["smollm2"] = load(None).model
    with torch.inference_mode():
        found = {name: measure(model, prompt(1000), options.rounds, options.seconds) for name, model in models.items()}
    for name, result in found.items():
        slower = ", ".join(f"{variant} {value:+.2f} %" for variant, value in result["slower_percent"].items())
        print(f"{name}: slower by {slower}; {result['recordings']} recordings")
    write(options.out, found)


if __name__ == "__main__":
    main()
