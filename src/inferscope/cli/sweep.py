"""`inferscope sweep`."""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from inferscope.cli.documents import headed, show
from inferscope.cli.interruption import resumable
from inferscope.errors import SettingError
from inferscope.report.progress import progress

if TYPE_CHECKING:
    from inferscope.analysis.sweep_summary import Sweep
    from inferscope.experiments.sweep import Executor, SweepOptions
    from inferscope.report.progress import Tell

__all__ = ["EXAMPLES", "sweep"]

EXAMPLES = """\b
Examples:
  inferscope sweep --batch 1,2,4,8 --objective "ttft<=500ms,tpot<=100ms"
  inferscope sweep ./my-model --dtype float32,bfloat16 --attention sdpa,eager
  inferscope sweep config.json --batch 1,16 --input-tokens 64 --memory-limit 8GB --json
  inferscope sweep ./my-model --out runs/sweep.jsonl --resume

Exit codes: 0 measured (out of memory is a result), 2 a mistake in what was asked, 3 the records cannot be written,
130 Ctrl-C; what was measured is kept.
"""
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_MOST_VALUES = 64


def sweep(  # noqa: PLR0913 - each one is measured over, or says how
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Folder, .gguf file, hub id, or a config.json (random weights). Default: SmolLM2-135M-Instruct.",
        ),
    ] = None,
    *,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,2,4,8,16",
    input_tokens: Annotated[str, typer.Option(help="Prompt lengths, separated by commas.")] = "16,64,256",
    output_tokens: Annotated[int, typer.Option(help="New tokens of each sequence.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16: one or several.")] = "float32",
    attention: Annotated[str, typer.Option(help="Attention implementations, such as eager,sdpa.")] = "sdpa",
    cache: Annotated[str, typer.Option(help="dynamic, static: one or both.")] = "dynamic",
    objective: Annotated[
        str | None, typer.Option(help='Limits to meet with most tokens/s, such as "ttft<=200ms,tpot<=50ms".')
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each point is measured.")] = 5,
    adaptive: Annotated[int, typer.Option(help="How often points are added between those given; 0 for never.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the records go (.jsonl), one line each, as they come.")] = Path(
        "runs/sweep.jsonl"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out: what is there is not measured again.")] = (
        False
    ),
    device: Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1.")] = "cpu",
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Requests counted to need more are not run (8GB, 500MiB). Default on a CPU: most of the rest."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order, of the prompts, and of random weights.")] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="Spread the points over a Ray cluster (RAY_ADDRESS).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Measure a model over batch, prompt length and settings, and say where its times bend and what fits.

    Every request is a record in --out, which `inferscope report` and `inferscope compare` read.
    """
    sizes = {"--batch": _numbers("--batch", batch), "--input-tokens": _numbers("--input-tokens", input_tokens)}
    names = {name: _words(name, text) for name, text in (("--dtype", dtype), ("--attention", attention))}
    limit_bytes = None if memory_limit is None else _bytes(memory_limit)
    caches = _words("--cache", cache)
    from inferscope.experiments.sweep import SweepOptions  # noqa: PLC0415 - loads torch

    options = SweepOptions(
        model=model,
        batch=sizes["--batch"],
        input_tokens=sizes["--input-tokens"],
        output_tokens=output_tokens,
        dtype=names["--dtype"],
        attention=names["--attention"],
        cache=caches,
        rounds=rounds,
        adaptive=adaptive,
        objective=objective,
        device=device,
        memory_limit_bytes=limit_bytes,
        seed=seed,
    )
    options.check(here=not ray)
    found = _run(options, out, resume=resume, ray=ray)
    _show(found, out, as_json=as_json)


def _run(options: SweepOptions, out: Path, *, resume: bool, ray: bool) -> Sweep:
    from inferscope.experiments import sweep as experiment  # noqa: PLC0415 - loads torch

    records = experiment.known_records(options, out, resume=resume)
    limit_bytes = experiment.memory_limit_bytes(options, records)

    def left() -> str:
        return f"what was measured is in {out}; to go on: {experiment.resume_command(options, out, ray=ray)}"

    console = Console(stderr=True, highlight=False)
    with resumable(left), progress(console) as tell, contextlib.ExitStack() as held:
        executor = _executor(options, limit_bytes, tell, held if ray else None)
        return experiment.run_sweep(options, out, executor, records=records, limit_bytes=limit_bytes, tell=tell)


def _executor(
    options: SweepOptions, limit_bytes: int | None, tell: Tell, cluster: contextlib.ExitStack | None
) -> Executor:
    from inferscope.experiments.sweep import LocalExecutor, sweep_labels  # noqa: PLC0415 - loads torch
    from inferscope.experiments.sweep_bench import Bench, load_model  # noqa: PLC0415 - beside it

    labels = sweep_labels(options, limit_bytes)
    if cluster is not None:
        from inferscope.experiments.sweep_ray import RayExecutor  # noqa: PLC0415 - an extra

        tell("joining the Ray cluster", None)
        return cluster.enter_context(RayExecutor(options, labels=labels, limit_bytes=limit_bytes))
    load = functools.partial(load_model, options.model, device=options.device, seed=options.seed, tell=tell)
    return LocalExecutor(Bench(load, labels=labels, memory_limit_bytes=limit_bytes, seed=options.seed))


def _show(found: Sweep, out: Path, *, as_json: bool) -> None:
    from inferscope.report.sweep import SweepView  # noqa: PLC0415 - not for --help

    if as_json:
        show(headed("sweep", asdict(found)))
        return
    console = Console(highlight=False)
    console.print(SweepView(found))
    console.print(f"records: {out}", markup=False, soft_wrap=True)


def _words(name: str, text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(words) or len(words) > _MOST_VALUES:
        raise SettingError(f"{name} {text}: expected names, separated by commas")
    return words


def _numbers(name: str, text: str) -> tuple[int, ...]:
    words = _words(name, text)
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):  # noqa: PLR2004 - an int32
        raise SettingError(f"{name} {text}: expected whole numbers, such as 1,4,16")
    return tuple(sorted({int(word) for word in words}))


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise SettingError(f"--memory-limit {text}: expected a size, such as 8GB or 500MiB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** "kmgt".find(found[2].lower()) * base) if found[2] else int(float(found[1]))
