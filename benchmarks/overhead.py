"""What tracing costs: A/B interleaved in one run, the bare baseline measured twice to show the noise.

    python benchmarks/overhead.py [--rounds N]

Four copies of a model take turns: bare, bare again, with two hooks that do nothing, traced. The traced one has a class
of its own, since its class is what tracing wraps; the stop check, shared by all, costs the bare ones a fifth of a
microsecond where they are not traced. (Processes that take turns were tried: where a process happens to lie in memory
moves its times by more than all that is measured here.) The difference between the
two bare ones is what this machine cannot resolve; the empty hooks are what torch takes for calling any. `after` is the
time on the calling thread from the streamer's end to the return of generate, in requests of their own. The background
thread is drained between turns, and its time is reported by itself.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from typing import Any

import torch
import transformers

import inferscope
from inferscope.experiments.models import load
from machine import spread, write

VARIANTS = ("bare", "bare again", "empty hooks", "traced")


WARM_UP = 3


def prompt(vocabulary: int) -> torch.Tensor:
    """Sixteen random tokens."""
    return torch.randint(10, vocabulary, (1, 16))


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


def once(model: Any, ids: torch.Tensor, tokens: int, streamer: EndStamp | None = None) -> int:  # noqa: ANN401 - a model
    """Wall of one generate; with a streamer, only what follows its end. In nanoseconds."""
    started = time.perf_counter_ns()
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=streamer)
    returned = time.perf_counter_ns()
    return returned - (started if streamer is None else streamer.ended_ns)


def measure(models: dict[str, Any], ids: torch.Tensor, tokens: int, rounds: int) -> dict[str, Any]:
    """Interleave the copies of one model, of which one is traced throughout, and report medians."""
    walls: dict[str, list[int]] = {name: [] for name in VARIANTS}
    after: dict[str, list[int]] = {name: [] for name in VARIANTS}
    drained: list[float] = []
    own: list[float] = []
    plain = type(models["traced"])
    models["traced"].__class__ = type(plain.__name__, (plain,), {"__module__": plain.__module__})
    models["empty hooks"].register_forward_pre_hook(lambda _module, _args, _kwargs: None, with_kwargs=True)
    models["empty hooks"].register_forward_hook(lambda _module, _args, _output: None)
    with inferscope.trace(models["traced"], sinks=()) as session:
        once(models["traced"], ids, 2)  # the first request counts the operators: not part of the cost per request
        session.wait()
        gc.collect()
        for turn in range(rounds + WARM_UP):
            order = VARIANTS[turn % 4 :] + VARIANTS[: turn % 4]
            for name in order:
                wall = once(models[name], ids, tokens)
                started = time.perf_counter_ns()
                session.wait()
                if turn >= WARM_UP:
                    walls[name].append(wall)
                    if name == "traced":
                        drained.append((time.perf_counter_ns() - started) / 1e3)
                        own.append(session.last.record.ledger.self_ns / tokens / 1e3)
        for turn in range(max(rounds // 2, 10)):
            for name in VARIANTS[turn % 4 :] + VARIANTS[: turn % 4]:
                after[name].append(once(models[name], ids, 8, EndStamp()))
                session.wait()
    return report(walls, after, drained, own, tokens)


def report(
    walls: dict[str, list[int]], after: dict[str, list[int]], drained: list[float], own: list[float], tokens: int
) -> dict[str, Any]:
    """Medians, and paired differences per round, so that a slow minute of the machine hits all variants."""

    def paired(name: str) -> list[float]:
        return [(a - b) / tokens / 1e3 for a, b in zip(walls[name], walls["bare"], strict=True)]

    bare_ns = statistics.median(walls["bare"])
    added = {name: spread(paired(name)) for name in VARIANTS[1:]}
    return {
        "tokens_per_request": tokens,
        "bare_us_per_pass": bare_ns / tokens / 1e3,
        "added_us_per_pass": added,
        "added_share": added["traced"]["median"] * tokens * 1e3 / bare_ns,
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
        tiny = measure({name: tiny_llama() for name in VARIANTS}, prompt(1000), 256, options.rounds)
        weights = load(None).model
        smollm2 = {name: weights if name == "traced" else copy.deepcopy(weights) for name in VARIANTS}
        real = measure(smollm2, prompt(40_000), 24, max(options.rounds // 4, 8))
    for name, result in (("tiny Llama", tiny), ("SmolLM2-135M", real)):
        added = ", ".join(f"{key} {value['median']:+.1f}" for key, value in result["added_us_per_pass"].items())
        after = ", ".join(f"{key} {value['median']:.0f}" for key, value in result["after_last_token_us"].items())
        print(f"{name}: bare {result['bare_us_per_pass']:.1f} us/pass; {added}; after the last token, us: {after}")
    write(options.out, {"tiny_llama": tiny, "smollm2": real})


if __name__ == "__main__":
    main()
