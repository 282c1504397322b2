"""Whether predictions hold where the truth can be measured: TTFT and TPOT of four models on this CPU.

    python benchmarks/prediction.py            on an otherwise idle machine: about fifteen minutes
    python benchmarks/prediction.py --quick    one round of two models at two shapes, to see that it runs

Each round measures the operators of a model, takes one trace of it at a batch and a prompt length that no other
request has, and then requests at unseen ones; the predictions of a round are made from that round's measurements
alone. Three ways are held against the same truth: from the calibration alone ("roofs"), from the calibration and the
model's own operators ("kernels"), and from those and the one trace ("anchored").
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

import inferscope
from inferscope.experiments.models import load
from inferscope.hardware.kernel_times import measure_kernels
from machine import write

if TYPE_CHECKING:
    from inferscope import DeviceSpec, GenerationRecord, ModelSpec, Prediction

SHAPES = ((1, 24), (1, 200), (1, 700), (2, 90), (3, 300), (6, 40), (10, 20))
ANCHOR = (2, 60)
TOKENS = 17
ROUNDS = 5
TRIES = 4
MOST_AWAY = 0.03
METHODS = ("roofs", "kernels", "anchored")


@dataclass(frozen=True)
class Subject:
    """A model and what is needed to predict it."""

    name: str
    model: Any
    spec: ModelSpec
    heads: tuple[int, int, int]
    vocabulary: int


def subject(name: str, model: Any) -> Subject:  # noqa: ANN401 - a transformers model
    """A model with its counted operators."""
    config = model.config
    queries = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    spec = inferscope.model_spec(model)
    return Subject(name, model.eval(), spec, (queries, pairs, width), config.vocab_size)


def subjects(*, quick: bool) -> list[Subject]:
    """SmolLM2 and three models with random weights: grouped-query, multi-head and wide."""
    torch.manual_seed(0)
    kinds = (
        ("Qwen2, 8 layers of 896", transformers.Qwen2Config, (896, 4864, 8, 14, 2, 32_000)),
        ("Llama, 12 layers of 512", transformers.LlamaConfig, (512, 1408, 12, 8, 8, 8_000)),
        ("Mistral, 3 layers of 2048", transformers.MistralConfig, (2048, 5632, 3, 16, 4, 16_000)),
    )
    found = []
    for name, kind, (hidden, inner, layers, queries, pairs, vocabulary) in kinds[1:2] if quick else kinds:
        config = kind(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=queries,
            num_key_value_heads=pairs,
            vocab_size=vocabulary,
            max_position_embeddings=2048,
        )
        found.append(subject(name, transformers.AutoModelForCausalLM.from_config(config)))
    return [subject("SmolLM2-135M", load(None).model), *found]


def request(one: Subject, device: DeviceSpec, size: tuple[int, int]) -> GenerationRecord | None:
    """A traced request; None where other work took the processor in every try."""
    ids = torch.randint(5, one.vocabulary, size)
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    for _ in range(TRIES):
        with torch.inference_mode(), inferscope.trace(one.model, device=device, sinks=()) as session:
            one.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        record = session.last.record
        away = sum(phase.ledger.offcpu_ns or 0 for phase in record.phases)
        if away <= MOST_AWAY * record.wall_ns:
            return record
    return None


def one_round(one: Subject, device: DeviceSpec, shapes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """Measure, predict, and hold against the truth."""
    kernels = measure_kernels(one.spec, heads=one.heads, budget_s=60)
    request(one, device, (1, 8))
    rows = []
    anchor = request(one, device, ANCHOR)
    given = {"roofs": {}, "kernels": {"kernels": kernels}}
    if anchor is not None:
        given["anchored"] = {"kernels": kernels, "record": anchor}
    for batch, prompt in shapes:
        truth = request(one, device, (batch, prompt))
        if truth is None or truth.ttft_ns is None or truth.tpot_ns is None:
            continue
        asked = {"device": device, "batch_size": batch, "input_tokens": prompt, "output_tokens": TOKENS}
        for method, options in given.items():
            guess = inferscope.predict(one.spec, **asked, **options)
            rows.append(row(one, (batch, prompt), method, truth, guess))
    return rows


def row(
    one: Subject, shape: tuple[int, int], method: str, truth: GenerationRecord, guess: Prediction
) -> dict[str, Any]:
    """One prediction beside one measurement, in milliseconds."""
    measured = {"ttft": truth.ttft_ns / 1e6, "tpot": truth.tpot_ns / 1e6}
    guessed = {"ttft": guess.ttft_s, "tpot": guess.tpot_s}
    return {
        "model": one.name,
        "batch": shape[0],
        "prompt": shape[1],
        "method": method,
        "measured_ms": measured,
        "predicted_ms": {name: [1e3 * value for value in asdict(guessed[name]).values()] for name in measured},
        "error": {name: 1e3 * guessed[name].mid / measured[name] - 1 for name in measured},
        "held": {name: guessed[name].low <= measured[name] / 1e3 <= guessed[name].high for name in measured},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By method: the error of each shape is the median over its rounds; how often intervals held."""
    found = {}
    for method in METHODS:
        by_shape: dict[tuple[Any, ...], list[float]] = {}
        held = []
        for entry in (entry for entry in rows if entry["method"] == method):
            for name, error in entry["error"].items():
                by_shape.setdefault((entry["model"], entry["batch"], entry["prompt"], name), []).append(error)
                held.append(entry["held"][name])
        if not by_shape:
            continue
        errors = {key: abs(statistics.median(values)) for key, values in by_shape.items()}
        found[method] = {
            "shapes": len(errors),
            "median_error": statistics.median(errors.values()),
            "worst_error": max(errors.values()),
            "worst": " ".join(map(str, max(errors, key=lambda key: errors[key]))),
            "held_share": sum(held) / len(held),
            "claimed_rate": 0.8,
            "requests": len(held) // 2,
        }
    return found


def by_model(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summary for each model."""
    names = dict.fromkeys(entry["model"] for entry in rows)
    return [{"model": name, **summary([entry for entry in rows if entry["model"] == name])} for name in names]


def main() -> None:
    """Run the rounds and write the result file."""
    quick = "--quick" in sys.argv
    device = inferscope.calibrate(dtypes=("float32",), refresh=not quick)
    rows: list[dict[str, Any]] = []
    models = subjects(quick=quick)
    for number in range(1 if quick else ROUNDS):
        for one in models:
            rows += one_round(one, device, SHAPES[:2] + SHAPES[5:6] if quick else SHAPES)
            print(f"round {number + 1}, {one.name}: {len(rows)} rows", flush=True)
    for entry in rows:
        if quick and entry["method"] != "roofs":
            errors = ", ".join(f"{name} {100 * value:+.0f} %" for name, value in entry["error"].items())
            print(f"{entry['model']} {entry['batch']} x {entry['prompt']} {entry['method']}: {errors}")
    for method, facts in summary(rows).items():
        print(
            f"{method}: median {facts['median_error']:.1%}, worst {facts['worst_error']:.1%} ({facts['worst']}), "
            f"held {facts['held_share']:.0%} of {2 * facts['requests']}, {facts['claimed_rate']:.0%} claimed"
        )
    if not quick:
        write("prediction-cpu", {"summary": summary(rows), "models": by_model(rows), "rows": rows})


if __name__ == "__main__":
    main()
