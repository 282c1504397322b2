"""What tracing costs: A/B interleaved in one run, the bare baseline measured twice to show the noise.

    python benchmarks/overhead.py [--rounds N]

Each turn is a process of its own, forked from one that has loaded the model and done nothing with it: bare, bare again,
with two hooks that do nothing, traced (with the C extension where it is there), traced by Python code. Within one
process the variants would disturb each other: where code and objects lie in memory, and what the interpreter has
specialised itself to, moves a pass by more than what is measured here. Each turn takes several requests after a warm-up
and keeps their median; differences are paired by round. The difference between the two bare ones is what this machine
cannot resolve. `after` is the time on the calling thread from the streamer's end to the return of generate, in requests
of their own. The background thread is drained between requests, and its time is reported by itself. `unsampled` is what
a request pays that sampling leaves out: a generate that fails at once, so that nothing else of it takes time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
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

VARIANTS = ("bare", "bare again", "empty hooks", "traced", "traced in Python")
REQUESTS = 5
"""Measured per turn."""
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


def turn(name: str, model: Any, ids: torch.Tensor, tokens: int) -> dict[str, float]:  # noqa: ANN401 - a model
    """One variant's medians, in nanoseconds per request. Runs in a process of its own."""
    session = None
    if name == "empty hooks":
        model.register_forward_pre_hook(lambda _module, _args, _kwargs: None, with_kwargs=True)
        model.register_forward_hook(lambda _module, _args, _output: None)
    elif name.startswith("traced"):
        session = inferscope.trace(model, sinks=())
        session.__enter__()
    walls, after, drained, own = [], [], [], []
    for number in range(WARM_UP + REQUESTS):
        wall = once(model, ids, tokens)
        started = time.perf_counter_ns()
        if session is not None:
            own.append(session.last.record.ledger.self_ns)
        drained.append(time.perf_counter_ns() - started)
        ended = once(model, ids, 8, EndStamp())
        if session is not None:
            session.wait()
        if number >= WARM_UP:
            walls.append(wall)
            after.append(ended)
    found = {"wall": walls, "after": after, "drained": drained[WARM_UP:], "own": own[WARM_UP:] or [0]}
    return {key: statistics.median(values) for key, values in found.items()}


def forked(name: str, work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `work` returns in a process of its own."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if name == "traced in Python":
                os.environ["INFERSCOPE_NATIVE"] = "0"
            os.write(writable, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    with os.fdopen(readable, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"the turn of {name!r} failed")
    return dict(json.loads(text))


def measure(model: Any, ids: torch.Tensor, tokens: int, rounds: int) -> dict[str, Any]:  # noqa: ANN401 - a model
    """Let the variants take turns, and report medians."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        for name in VARIANTS[number % 5 :] + VARIANTS[: number % 5]:
            turns[name].append(forked(name, lambda name=name: turn(name, model, ids, tokens)))  # type: ignore[misc]
    return {
        **report(turns, tokens),
        "unsampled_us_per_request": forked("unsampled", lambda: unsampled(model)),
    }


class Refused(Exception):  # noqa: N818 - nothing is wrong
    """What ends a generate before it begins."""


def unsampled(model: Any) -> dict[str, Any]:  # noqa: ANN401 - a model
    """What a generate that sampling leaves out takes more than a bare one: medians of a thousand each, in turns."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise Refused

    plain = type(model)
    walls: dict[str, list[float]] = {"bare": [], "bare again": [], "unsampled": []}
    model.__class__ = type(plain.__name__, (plain,), {"generate": refuse})
    ids = prompt(1000)
    try:
        for _ in range(20):
            for name, times in walls.items():
                tracing = inferscope.trace(model, sinks=(), sample_rate=0.0)
                with tracing if name == "unsampled" else contextlib.nullcontext():
                    times.extend(_refused_us(model, ids) for _ in range(50))
    finally:
        model.__class__ = plain
    bare = statistics.median(walls["bare"])
    return {name: statistics.median(times) - bare for name, times in walls.items() if name != "bare"}


def _refused_us(model: Any, ids: torch.Tensor) -> float:  # noqa: ANN401 - a model
    started = time.perf_counter_ns()
    with contextlib.suppress(Refused):
        model.generate(ids, max_new_tokens=1)
    return (time.perf_counter_ns() - started) / 1e3


def report(turns: dict[str, list[dict[str, float]]], tokens: int) -> dict[str, Any]:
    """Medians, and paired differences per round, so that a slow minute of the machine hits all variants."""

    def paired(name: str) -> list[float]:
        return [(a["wall"] - b["wall"]) / tokens / 1e3 for a, b in zip(turns[name], turns["bare"], strict=True)]

    bare_ns = statistics.median(one["wall"] for one in turns["bare"])
    added = {name: spread(paired(name)) for name in VARIANTS[1:]}
    traced = turns["traced"]
    return {
        "tokens_per_request": tokens,
        "bare_us_per_pass": bare_ns / tokens / 1e3,
        "added_us_per_pass": added,
        "added_share": added["traced"]["median"] * tokens * 1e3 / bare_ns,
        "self_us_per_pass": spread([one["own"] / tokens / 1e3 for one in traced]),
        "after_last_token_us": {name: spread([one["after"] / 1e3 for one in ones]) for name, ones in turns.items()},
        "background_us_per_request": spread([one["drained"] / 1e3 for one in traced]),
    }


def main() -> None:
    """Run both models and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", default="overhead-cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    with torch.inference_mode():
        tiny = measure(tiny_llama(), prompt(1000), 256, options.rounds)
        real = measure(load(None).model, prompt(40_000), 16, max(options.rounds // 4, 8))
    for name, result in (("tiny Llama", tiny), ("SmolLM2-135M", real)):
        added = ", ".join(f"{key} {value['median']:+.1f}" for key, value in result["added_us_per_pass"].items())
        after = ", ".join(f"{key} {value['median']:.0f}" for key, value in result["after_last_token_us"].items())
        left_out = ", ".join(f"{key} {value:+.1f}" for key, value in result["unsampled_us_per_request"].items())
        print(f"{name}: unsampled request, us: {left_out}")
        print(f"{name}: bare {result['bare_us_per_pass']:.1f} us/pass; {added}; after the last token, us: {after}")
    write(options.out, {"tiny_llama": tiny, "smollm2": real})


if __name__ == "__main__":
    main()
