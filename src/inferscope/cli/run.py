"""`inferscope run`."""

from __future__ import annotations

import os
from collections.abc import Callable  # noqa: TC003 - typer reads the annotations
from pathlib import Path
from typing import Annotated

import typer

from inferscope.errors import MissingExtraError
from inferscope.settings import Settings

__all__ = ["CONTEXT", "EXAMPLES", "run"]

# What follows the program's name is the program's, options too.
CONTEXT = {"allow_interspersed_args": False}
EXAMPLES = """\b
Examples:
  inferscope run serve.py --port 8000
  inferscope run --out records.jsonl generate.py
  inferscope run --endpoint http://localhost:4317 -m my_package.serve

Exit code, output and signals are the program's own; the report goes to standard error.
"""


def run(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python file; with -m, a module.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Of the program.")] = None,
    *,
    module: Annotated[bool, typer.Option("-m", "--module", help="SCRIPT is the name of a module.")] = False,
    out: Annotated[Path | None, typer.Option(help="Append a record of each request to this file (.jsonl).")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Send spans there, such as http://localhost:4317; sets the tracer provider.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report one JSON line, for programs.")] = False,
) -> Callable[[], int]:
    """Run a Python program with every transformers model in it observed, and say where the time went."""
    from inferscope.cli import program  # noqa: PLC0415 - beside the others

    Settings.from_environment()  # a mistake there is told now, not amid the program
    try:
        from inferscope.integrations.auto import EveryModel  # noqa: PLC0415 - needs an extra
    except MissingExtraError as error:
        raise MissingExtraError(f"inferscope run: {error}") from error
    started = program.Program(script, arguments or [], module=module)
    if endpoint is not None:
        from inferscope.sinks.setup import setup  # noqa: PLC0415 - loads the exporters

        named = os.environ.get("OTEL_SERVICE_NAME")
        setup(endpoint=endpoint, service_name=named or Path(script).stem)
    report = program.FinalReport(out, as_json=as_json)
    every = EveryModel(report.session)
    report.every = every
    every.start()
    return started
