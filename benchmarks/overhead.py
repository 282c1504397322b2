"""What tracing costs: A/B interleaved in one run, the bare baseline measured twice to show the noise.

    python benchmarks/overhead.py [--rounds N]

One model takes turns: bare, bare again, with two hooks that do nothing, traced. It is the same object throughout, since
copies lie elsewhere in memory and differ by more than what is measured here; tracing begins and ends with each turn,
outside the measured time, and leaves nothing behind when it is off. The difference between the two bare turns is what
this machine cannot resolve; the empty hooks are what torch takes for calling any. `after` is the time on the calling
thread from the streamer's end to the return of generate, in requests of their own. The background thread is drained
before a turn ends, and its time is reported by itself. `unsampled` is what a request pays that sampling leaves out: a
generate that fails at once, so that nothing else of it takes time.
"""

from __future__ import annotations

import argparse
import contextlib
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
    from collections.abc import Iterator

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


@contextlib.contextmanager
def turn_of(name: str, model: Any) -> Iterator[Any]:  # noqa: ANN401 - a model
    """The model as this variant has it, for one turn; the session where it is traced."""
    if name == "traced":
        with inferscope.trace(model, sinks=()) as session:
            yield session
            session.wait()
        return
    hooks = []
    if name == "empty hooks":
        hooks.append(model.register_forward_pre_hook(lambda _module, _args, _kwargs: None, with_kwargs=True))
        hooks.append(model.register_forward_hook(lambda _module, _args, _output: None))
    yield None
    for hook in hooks:
        hook.remove()


def measure(model: Any, ids: torch.Tensor, tokens: int, rounds: int) -> dict[str, Any]:  # noqa: ANN401 - a model
    """Let the variants of one model take turns, and report medians."""
    walls: dict[str, list[int]] = {name: [] for name in VARIANTS}
    after: dict[str, list[int]] = {name: [] for name in VARIANTS}
    drained: list[float] = []
    own: list[float] = []
    for turn in range(rounds + WARM_UP):
        for name in VARIANTS[turn % 4 :] + VARIANTS[: turn % 4]:
            gc.collect()
            with turn_of(name, model) as session:
                once(model, ids, 2)  # the first request after a change is not like the others
                wall = once(model, ids, tokens)
                ended = [once(model, ids, 8, EndStamp()) for _ in range(2)][1]
                started = time.perf_counter_ns()
                if session is not None:
                    session.wait()
            if turn >= WARM_UP:
                walls[name].append(wall)
                after[name].append(ended)
                if session is not None:
                    drained.append((time.perf_counter_ns() - started) / 1e3)
                    own.append(session.results[1].record.ledger.self_ns / tokens / 1e3)
    return {**report(walls, after, drained, own, tokens), "unsampled_us_per_request": unsampled(model)}


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
        tiny = measure(tiny_llama(), prompt(1000), 256, options.rounds)
        real = measure(load(None).model, prompt(40_000), 24, max(options.rounds // 4, 8))
    for name, result in (("tiny Llama", tiny), ("SmolLM2-135M", real)):
        added = ", ".join(f"{key} {value['median']:+.1f}" for key, value in result["added_us_per_pass"].items())
        after = ", ".join(f"{key} {value['median']:.0f}" for key, value in result["after_last_token_us"].items())
        left_out = ", ".join(f"{key} {value:+.1f}" for key, value in result["unsampled_us_per_request"].items())
        print(f"{name}: unsampled request, us: {left_out}")
        print(f"{name}: bare {result['bare_us_per_pass']:.1f} us/pass; {added}; after the last token, us: {after}")
    write(options.out, {"tiny_llama": tiny, "smollm2": real})


if __name__ == "__main__":
    main()
