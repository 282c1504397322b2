"""`inferscope import-nsys`."""

from __future__ import annotations

import dataclasses
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer
from rich.console import Console

from inferscope.cli.documents import headed, show
from inferscope.errors import SettingError

__all__ = ["EXAMPLES", "import_nsys"]

EXAMPLES = """\b
Examples:
  nsys stats --report cuda_gpu_kern_sum,cuda_api_sum,nvtx_gpu_proj_sum --format csv --output out run.nsys-rep
  inferscope import-nsys out_*.csv
  inferscope import-nsys out_*.csv --json > timeline.json
"""


def import_nsys(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.csv...", help="What `nsys stats --format csv` wrote.")],
    *,
    rows: Annotated[int, typer.Option(help="How many rows of each table to show, at least 1.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Read the sums of a timeline that Nsight Systems has exported as CSV; tables are known by their headers.

    All files are of one profile. Ranges are put to the phases where the profile was made with INFERSCOPE_NVTX=1.
    """
    if rows < 1:
        raise SettingError(f"--rows {rows}: expected a whole number of at least 1")
    from inferscope.integrations.nsys import read_nsys  # noqa: PLC0415 - not for --help
    from inferscope.report.progress import progress  # noqa: PLC0415 - beside it
    from inferscope.report.systems import system_tables  # noqa: PLC0415 - beside it

    with progress(Console(stderr=True, highlight=False), lines=False) as tell:
        tell("reading tables", None)
        report = read_nsys(files)
    if as_json:
        show(headed("timeline", {**dataclasses.asdict(report), "sync_ns": report.sync_ns}))
        return
    console = Console(highlight=False)
    for part in system_tables(report, shown=rows):
        console.print(part)
