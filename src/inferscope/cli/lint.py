"""`inferscope lint`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from inferscope.cli import completion
from inferscope.cli.documents import headed, show
from inferscope.errors import LimitExceededError, SettingError
from inferscope.report.progress import progress

if TYPE_CHECKING:
    from inferscope.syncs import LintReport

__all__ = ["EXAMPLES", "lint"]

EXAMPLES = """\b
Examples:
  inferscope lint
  inferscope lint ./my-model --max-syncs-per-token 1
  inferscope lint model.gguf --new-tokens 16 --json > lint.json

Exit codes: 0 within the limits, 4 a limit is exceeded, 2 a mistake in what was asked.
"""


def lint(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL_OR_GGUF]", help="Folder, .gguf file or hub id. Default: SmolLM2-135M-Instruct."),
    ] = None,
    *,
    new_tokens: Annotated[int, typer.Option(help="Length of the longer request, at least 3.")] = 8,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "What is the capital of France?",
    batch_size: Annotated[int, typer.Option(help="Ask it so many times at once, at least 1.")] = 1,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16.", autocompletion=completion.dtypes)
    ] = "float32",
    max_syncs_per_token: Annotated[
        float | None, typer.Option(help="Fail with exit code 4 above so many certain syncs per token.")
    ] = None,
    max_launches_per_token: Annotated[
        float | None, typer.Option(help="Fail with exit code 4 above so many launches per token.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Count what a model would launch on a GPU and where the host would wait for it; no GPU needed.

    The model generates greedily on the CPU. The counts are the same each time, so a CI can hold them.
    """
    _check(new_tokens, batch_size, max_syncs_per_token, max_launches_per_token)
    from inferscope.experiments import lint as experiment  # noqa: PLC0415 - loads torch
    from inferscope.experiments import models  # noqa: PLC0415 - beside it

    with progress(Console(stderr=True, highlight=False)) as tell:
        loaded = models.load(model, dtype=dtype, progress=tell)
        tell("counting: three short requests", None)
        inputs = models.inputs_for(loaded, prompt, batch_size=batch_size)
        report = experiment.lint(loaded.model, new_tokens=new_tokens, do_sample=False, **inputs)
    if as_json:
        show(headed("lint", json.loads(report.to_json())))
    else:
        typer.echo(str(report))
    _hold(report, max_syncs_per_token, max_launches_per_token)


def _check(new_tokens: int, batch_size: int, max_syncs: float | None, max_launches: float | None) -> None:
    """Refuse what cannot work before anything is loaded."""
    for name, value, least in (("--new-tokens", new_tokens, 3), ("--batch-size", batch_size, 1)):
        if value < least:
            raise SettingError(f"{name} {value}: expected a whole number of at least {least}")
    for name, limit in (("--max-syncs-per-token", max_syncs), ("--max-launches-per-token", max_launches)):
        if limit is not None and not limit >= 0:  # not-a-number too
            raise SettingError(f"{name} {limit}: expected a number of at least 0")


def _hold(report: LintReport, max_syncs: float | None, max_launches: float | None) -> None:
    counted = (("syncs", report.syncs_per_token, max_syncs), ("launches", report.launches_per_token, max_launches))
    above = [
        f"{value:g} {name} per token, at most {limit:g} allowed"
        for name, value, limit in counted
        if limit is not None and value > limit
    ]
    if above:
        raise LimitExceededError(f"{report.model}: {'; '.join(above)}")
