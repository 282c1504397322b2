"""What tracing costs: A/B interleaved in one run, the bare baseline measured twice to show the noise.

    python benchmarks/overhead.py [--rounds N]

Three variants take turns on the same model: bare, bare again, traced. The difference between the two bare ones is
what this machine cannot resolve. `after` is the time on the calling thread from the streamer's end to the return of
generate. The background thread is drained between rounds, and its time is reported by itself.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
import transformers

import inferscope
from inferscope.experiments.models import load
from machine import spread, write

if TYPE_CHECKING:
    from collections.abc import Callable

VARIANTS = ("bare", "bare again", "traced")


class EndStamp:
    """A streamer that notes when generation ended."""

    ended_ns = 0

    def put(self, value: torch.Tensor) -> None:
        """Take a token."""

    def end(self) -> None:
        """Note the time."""
        self.ended_ns = time.perf_counter_ns()


def tiny_llama() -> Any:  # noqa: ANN401 - a transformers model
    """Two layers, hidden 64: the worst case, since its passes are the shortest."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def once(model: Any, ids: torch.Tensor, tokens: int) -> tuple[int, int]:  # noqa: ANN401 - a transformers model
    """Wall of one generate and its time after the streamer's end, both in nanoseconds."""
    stamp = EndStamp()
    started = time.perf_counter_ns()
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=stamp)
    returned = time.perf_counter_ns()
    return returned - started, returned - stamp.ended_ns


def measure(model: Any, ids: torch.Tensor, tokens: int, rounds: int) -> dict[str, Any]:  # noqa: ANN401 - as above
    """Interleave the variants and report medians, per pass and per request."""
    walls: dict[str, list[int]] = {name: [] for name in VARIANTS}
    after: dict[str, list[int]] = {name: [] for name in VARIANTS}
    drained: list[float] = []
    own: list[float] = []
    session = inferscope.trace(model, sinks=())
    with session:  # the first request counts the operators: not part of the cost per request
        once(model, ids, 2)
    session.wait()

    def traced() -> tuple[int, int]:
        with session:
            times = once(model, ids, tokens)
        started = time.perf_counter_ns()
        session.wait()
        drained.append((time.perf_counter_ns() - started) / 1e3)
        own.append(session.last.record.ledger.self_ns / tokens / 1e3)
        return times

    runs: dict[str, Callable[[], tuple[int, int]]] = {name: lambda: once(model, ids, tokens) for name in VARIANTS}
    runs["traced"] = traced
    gc.collect()
    for turn in range(rounds + 3):
        order = VARIANTS[turn % 3 :] + VARIANTS[: turn % 3]
        for name in order:
            wall, rest = runs[name]()
            if turn >= 3:
                walls[name].append(wall)
                after[name].append(rest)
    return report(walls, after, drained, own, tokens)


def report(
    walls: dict[str, list[int]], after: dict[str, list[int]], drained: list[float], own: list[float], tokens: int
) -> dict[str, Any]:
    """Paired differences per round, so that a slow minute of the machine hits all variants."""

    def paired(name: str) -> list[float]:
        return [(a - b) / tokens / 1e3 for a, b in zip(walls[name], walls["bare"], strict=True)]

    bare_pass_us = statistics.median(walls["bare"]) / tokens / 1e3
    added = statistics.median(walls["traced"]) - statistics.median(walls["bare"])
    noise = statistics.median(walls["bare again"]) - statistics.median(walls["bare"])
    return {
        "tokens_per_request": tokens,
        "bare_us_per_pass": bare_pass_us,
        "added_us_per_pass": added / tokens / 1e3,
        "added_us_per_pass_paired": spread(paired("traced")),
        "noise_us_per_pass": noise / tokens / 1e3,
        "noise_us_per_pass_paired": spread(paired("bare again")),
        "added_share": added / statistics.median(walls["bare"]),
        "noise_share": noise / statistics.median(walls["bare"]),
        "self_us_per_pass": spread(own),
        "after_last_token_us": {name: spread([value / 1e3 for value in values]) for name, values in after.items()},
        "background_us_per_request": spread(drained),
    }


def main() -> None:
    """Run both models and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--out", default="overhead-cpu")
    options = parser.parse_args()
    with torch.inference_mode():
        tiny = measure(tiny_llama(), torch.randint(1, 1000, (1, 16)), 64, options.rounds)
        smollm2 = load(None).model
        real = measure(smollm2, torch.randint(10, 1000, (1, 16)), 24, max(options.rounds // 6, 8))
    for name, result in (("tiny Llama", tiny), ("SmolLM2-135M", real)):
        print(
            f"{name}: bare {result['bare_us_per_pass']:.1f} us/pass, traced {result['added_us_per_pass']:+.2f} us/pass "
            f"({100 * result['added_share']:+.2f} %), bare again {result['noise_us_per_pass']:+.2f} us/pass; after the "
            f"last token {result['after_last_token_us']['traced']['median']:.0f} us traced, "
            f"{result['after_last_token_us']['bare']['median']:.0f} us bare"
        )
    write(options.out, {"tiny_llama": tiny, "smollm2": real})


if __name__ == "__main__":
    main()
