"""What tracing costs: A/B interleaved in one run, the bare baseline measured twice to show the noise.

    python benchmarks/overhead.py [--sets N] [--rounds N]

Four copies of a model take turns: bare, bare again, with two hooks that do nothing, traced. Where a copy happens to lie
in memory moves its passes by more than what is measured here, so the copies are made anew many times, in random order
and behind random other objects, and what is reported is the median over these sets of each set's median difference to
its first bare copy. Each copy has a class of its own: tracing wraps it, and the interpreter specialises itself to
classes. The difference between the two bare ones is what this machine cannot resolve; the empty hooks are what torch
takes for calling any. `after` is the time on the calling thread from the streamer's end to the return of generate, in
requests of their own. The background thread is drained between turns, and its time is reported by itself. `unsampled`
is what a request pays that sampling leaves out, always or all but one in ten thousand: a generate that does nothing, so
that nothing else of it takes time.
The small model is measured once more by a process without the C extension.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
import transformers

import inferscope
from inferscope.capture.forward import IMPLEMENTATION
from inferscope.experiments.models import load
from machine import spread, write

if TYPE_CHECKING:
    from collections.abc import Callable

VARIANTS = ("bare", "bare again", "empty hooks", "traced")
WARM_UP = 2


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


class Times:
    """What the turns of one set took, in nanoseconds per request."""

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self.walls: dict[str, list[int]] = {name: [] for name in VARIANTS}
        self.after: dict[str, list[int]] = {name: [] for name in VARIANTS}
        self.own: list[int] = []
        self.drained: list[int] = []

    def added_us(self, name: str, tokens: int) -> float:
        """Median of the differences to the bare copy, per pass."""
        pairs = zip(self.walls[name], self.walls["bare"], strict=True)
        return statistics.median((a - b) / tokens / 1e3 for a, b in pairs)


def copies(make: Callable[[], Any]) -> dict[str, Any]:
    """A copy for each variant, made in random order behind random other objects."""
    order = random.sample(VARIANTS, len(VARIANTS))
    between = [bytes(random.randrange(64, 20_000)) for _ in range(random.randrange(2_000))]
    made = {name: make() for name in order}
    del between
    for model in made.values():
        plain = type(model)
        model.__class__ = type(plain.__name__, (plain,), {"__module__": plain.__module__})
    hooked = made["empty hooks"]
    hooked.register_forward_pre_hook(lambda _module, _args, _kwargs: None, with_kwargs=True)
    hooked.register_forward_hook(lambda _module, _args, _output: None)
    return made


def one_set(make: Callable[[], Any], ids: torch.Tensor, tokens: int, rounds: int) -> Times:
    """Let the copies of one set take turns."""
    models, times = copies(make), Times()
    with inferscope.trace(models["traced"], sinks=()) as session:
        for model in models.values():
            once(model, ids, min(tokens, 64))
        session.wait()
        gc.collect()
        for turn in range(rounds + WARM_UP):
            for name in VARIANTS[turn % 4 :] + VARIANTS[: turn % 4]:
                wall = once(models[name], ids, tokens)
                started = time.perf_counter_ns()
                session.wait()
                drained = time.perf_counter_ns() - started
                own = session.last.record.ledger.self_ns if name == "traced" else 0
                ended = once(models[name], ids, 8, EndStamp())
                session.wait()
                if turn < WARM_UP:
                    continue
                times.walls[name].append(wall)
                times.after[name].append(ended)
                if name == "traced":
                    times.own.append(own)
                    times.drained.append(drained)
    return times


def measure(make: Callable[[], Any], ids: torch.Tensor, tokens: int, sets: int, rounds: int) -> dict[str, Any]:
    """Measure many sets, and report medians over them."""
    measured = [one_set(make, ids, tokens, rounds) for _ in range(sets)]

    def middle(of: Callable[[Times], list[int]], scale: float) -> dict[str, float]:
        return spread([statistics.median(of(one)) / scale for one in measured])

    bare_us = statistics.median(statistics.median(one.walls["bare"]) for one in measured) / tokens / 1e3
    added = {name: spread([one.added_us(name, tokens) for one in measured]) for name in VARIANTS[1:]}
    return {
        "implementation": IMPLEMENTATION.name,
        "tokens_per_request": tokens,
        "sets": sets,
        "rounds": rounds,
        "bare_us_per_pass": bare_us,
        "added_us_per_pass": added,
        "added_share": added["traced"]["median"] / bare_us,
        "self_us_per_pass": middle(lambda one: one.own, tokens * 1e3),
        "after_last_token_us": {name: middle(lambda one, name=name: one.after[name], 1e3) for name in VARIANTS},  # type: ignore[misc]
        "background_us_per_request": middle(lambda one: one.drained, 1e3),
        "unsampled_us_per_request": unsampled(make()),
    }


LEFT_OUT = {"bare": None, "bare again": None, "never sampled": 0.0, "one in 10,000": 1e-4}
CALLS = 500


def unsampled(model: Any) -> dict[str, Any]:  # noqa: ANN401 - a model
    """What a generate that sampling leaves out takes more than a bare one: the median of means over turns."""
    ids, answer = prompt(1000), torch.zeros(1, 20, dtype=torch.long)

    def answered(*_args: object, **_kwargs: object) -> torch.Tensor:
        return answer

    plain = type(model)
    means: dict[str, list[float]] = {name: [] for name in LEFT_OUT}
    model.__class__ = type(plain.__name__, (plain,), {"generate": answered})
    try:
        for _ in range(20):
            for name, rate in LEFT_OUT.items():
                tracing = None if rate is None else inferscope.trace(model, sinks=(), sample_rate=rate)
                with tracing or contextlib.nullcontext():
                    means[name].append(_mean_us(model, ids))
    finally:
        model.__class__ = plain
    bare = statistics.median(means["bare"])
    return {name: statistics.median(times) - bare for name, times in means.items() if name != "bare"}


def _mean_us(model: Any, ids: torch.Tensor) -> float:  # noqa: ANN401 - a model
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        model.generate(ids, max_new_tokens=4)
    return (time.perf_counter_ns() - started) / CALLS / 1e3


def tiny(sets: int, rounds: int) -> dict[str, Any]:
    """The worst case."""
    with torch.inference_mode():
        return measure(tiny_llama, prompt(1000), 256, sets, rounds)


def tiny_in_python(sets: int, rounds: int) -> dict[str, Any]:
    """The same in a process without the C extension."""
    command = [sys.executable, __file__, "--tiny", "--sets", str(sets), "--rounds", str(rounds)]
    environment = {**os.environ, "INFERSCOPE_NATIVE": "0"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def smollm2(sets: int, rounds: int) -> dict[str, Any]:
    """A real model."""
    weights = load(None).model
    with torch.inference_mode():
        return measure(lambda: copy.deepcopy(weights), prompt(40_000), 24, sets, rounds)


def main() -> None:
    """Run both models and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", default="overhead-cpu")
    parser.add_argument("--tiny", action="store_true", help="the small model alone, as JSON")
    options = parser.parse_args()
    if options.tiny:
        print(json.dumps(tiny(options.sets, options.rounds)))
        return
    found = {
        "tiny_llama": tiny(options.sets, options.rounds),
        "tiny_llama_python": tiny_in_python(max(options.sets // 2, 2), options.rounds),
        "smollm2": smollm2(max(options.sets // 10, 2), options.rounds),
    }
    for name, result in found.items():
        added = ", ".join(f"{key} {value['median']:+.1f}" for key, value in result["added_us_per_pass"].items())
        after = ", ".join(f"{key} {value['median']:.0f}" for key, value in result["after_last_token_us"].items())
        left_out = ", ".join(f"{key} {value:+.1f}" for key, value in result["unsampled_us_per_request"].items())
        print(f"{name} ({result['implementation']}): bare {result['bare_us_per_pass']:.1f} us/pass; {added}")
        print(f"    after the last token, us: {after}; a request left out, us: {left_out}")
    write(options.out, found)


if __name__ == "__main__":
    main()
