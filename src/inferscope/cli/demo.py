"""`inferscope demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inferscope.errors import SettingError

__all__ = ["EXAMPLES", "demo"]

EXAMPLES = """\b
Examples:
  inferscope demo
  inferscope demo --prompt "Name three rivers." --max-new-tokens 128
  inferscope demo --dtype bfloat16 --batch-size 8
  inferscope demo --model ./my-model --endpoint http://localhost:4317
  inferscope demo --tour
  inferscope demo --tour --only gc-storm --only gpu-starved --json
"""


def demo(  # noqa: PLR0913 - one option each
    *,
    model: Annotated[
        str | None, typer.Option(help="Folder, .gguf file or hub id. Default: SmolLM2-135M-Instruct.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "What is the capital of France?",
    max_new_tokens: Annotated[int, typer.Option(help="Limit on new tokens, at least 1.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Ask it so many times at once, at least 1.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    endpoint: Annotated[
        str | None, typer.Option(help="Send the spans there too, such as http://localhost:4317.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for records and spans.")] = Path("inferscope-out"),
    tour: Annotated[
        bool, typer.Option("--tour", help="Walk through workloads with one planted cause each instead.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="With --tour: this exhibit; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --tour: print JSON, for programs.")] = False,
) -> None:
    """Ask a small model one question and say where the time went."""
    if tour:
        from inferscope.experiments.zoo.tour import run_tour  # noqa: PLC0415 - loads torch

        status = Console(stderr=True, highlight=False)
        run_tour(only or (), as_json=as_json, console=Console(highlight=False), status=status)
        return
    if only or as_json:
        raise SettingError("--only and --json belong to --tour")
    from inferscope.experiments.demo import DemoOptions, run_demo  # noqa: PLC0415 - loads torch

    options = DemoOptions(
        model=model,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        dtype=dtype,
        endpoint=endpoint,
        out=out,
    )
    run_demo(options, console=Console(highlight=False), status=Console(stderr=True, highlight=False))
