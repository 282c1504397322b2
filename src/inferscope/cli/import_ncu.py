"""`inferscope import-ncu`."""

from __future__ import annotations

import dataclasses
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from inferscope.cli.documents import headed, show
from inferscope.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.counters import CounterReport
    from inferscope.analysis.residuals import Residual

__all__ = ["EXAMPLES", "import_ncu"]

EXAMPLES = """\b
Examples:
  ncu --import decode.ncu-rep --csv --page raw > decode.csv
  inferscope import-ncu decode.csv
  inferscope import-ncu decode.csv --record runs.jsonl --passes decode=1
  inferscope import-ncu decode.csv --json > counters.json
"""


def import_ncu(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="What `ncu --csv` printed, noise lines and all.")],
    *,
    record: Annotated[
        Path | None, typer.Option(help="Records of the profiled requests: check the cost model against the counters.")
    ] = None,
    passes: Annotated[
        list[str] | None,
        typer.Option(metavar="PHASE=N", help="Forwards of a phase that were profiled, where the ranges do not say."),
    ] = None,
    kernels: Annotated[int, typer.Option(help="How many kernels to show, at least 1.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Read hardware counters that Nsight Compute has exported as CSV: by kernel, and by phase.

    Kernels are put to the phases by NVTX ranges: profile with INFERSCOPE_NVTX=1 and `ncu --nvtx`. Nothing is run.
    """
    if kernels < 1:
        raise SettingError(f"--kernels {kernels}: expected a whole number of at least 1")
    told = _passes(passes or ())
    from inferscope.analysis.residuals import residuals  # noqa: PLC0415 - not for --help
    from inferscope.integrations.ncu import read_ncu  # noqa: PLC0415 - beside it
    from inferscope.report.counters import counter_tables  # noqa: PLC0415 - beside it
    from inferscope.report.progress import progress  # noqa: PLC0415 - beside it
    from inferscope.sinks.jsonl import iter_records  # noqa: PLC0415 - beside it

    with progress(Console(stderr=True, highlight=False), lines=False) as tell:
        tell(f"reading {file}", None)
        report = read_ncu(file)
    found = () if record is None else residuals(report, iter_records(record), told)
    if as_json:
        show(headed("counters", _as_json(report, found)))
        return
    console = Console(highlight=False)
    for part in counter_tables(report, found, kernels=kernels):
        console.print(part)


def _passes(given: Sequence[str]) -> dict[str, int]:
    """Forwards by phase, from `--passes decode=1`."""
    told = {}
    for text in given:
        phase, _, number = text.partition("=")
        if not phase or not (number.isascii() and number.isdigit() and int(number[:9]) > 0):
            raise SettingError(f"--passes {text}: expected a phase and a whole number, such as decode=1")
        told[phase.strip()] = int(number[:9])
    return told


def _as_json(report: CounterReport, found: Sequence[Residual]) -> dict[str, object]:
    made = dataclasses.asdict(report)
    for entry, sums in (
        (made["total"], report.total),
        *((part["sums"], one.sums) for part, one in zip(made["phases"], report.phases, strict=True)),
        *((part["sums"], one.sums) for part, one in zip(made["kernels"], report.kernels, strict=True)),
    ):
        entry["flops"] = dict(sums.flops)
        entry["total_flops"] = sums.total_flops
        entry["dram_bytes_per_s"] = sums.dram_bytes_per_s
    return {**made, "residuals": [dataclasses.asdict(one) for one in found]}
