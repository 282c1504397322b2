"""`inferscope demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from inferscope.cli import completion
from inferscope.cli.documents import headed, show
from inferscope.cli.interruption import resumable
from inferscope.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["EXAMPLES", "demo"]

EXAMPLES = """\b
Examples:
  inferscope demo
  inferscope demo --prompt "Name three rivers." --max-new-tokens 128
  inferscope demo --dtype bfloat16 --batch-size 8
  inferscope demo --model ./my-model --endpoint http://localhost:4317
  inferscope demo --json > demo.json
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
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16.", autocompletion=completion.dtypes)
    ] = "float32",
    endpoint: Annotated[
        str | None, typer.Option(help="Send the spans there too, such as http://localhost:4317.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for records and spans.")] = Path("inferscope-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs, without the answer.")] = False,
    tour: Annotated[
        bool, typer.Option("--tour", help="Walk through workloads with one planted cause each instead.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="With --tour: this exhibit; may be given several times.")
    ] = None,
) -> None:
    """Ask a small model one question and say where the time went."""
    if tour:
        _tour(only or (), as_json=as_json)
        return
    if only:
        raise SettingError("--only belongs to --tour")
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
    status = Console(stderr=True, highlight=False)
    records = out / "records.jsonl"
    with resumable(lambda: _left(records)):
        result = run_demo(options, console=Console(highlight=False, quiet=as_json), status=status)
    if as_json:
        parts = {"record": result.record, "diagnosis": result.diagnosis, "findings": result.findings}
        show(headed("demo", {"records": str(records), **msgspec.to_builtins(parts)}))


def _left(records: Path) -> str:
    if not records.exists():
        return "nothing was recorded; the same command begins anew"
    return f"{records} holds the requests up to here, the one that was cut off as aborted; the same command adds one"


def _tour(only: Iterable[str], *, as_json: bool) -> None:
    from inferscope.experiments.zoo.tour import as_data, run_tour  # noqa: PLC0415 - loads torch

    console = None if as_json else Console(highlight=False)
    visits = run_tour(only, console=console, status=Console(stderr=True, highlight=False))
    if as_json:
        show(headed("tour", {"exhibits": [as_data(visit) for visit in visits]}))
