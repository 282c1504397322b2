"""`inferscope calibrate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from inferscope.cli.documents import SCHEMA, show
from inferscope.cli.interruption import resumable
from inferscope.report.progress import progress
from inferscope.report.terminal import DeviceView

__all__ = ["EXAMPLES", "calibrate"]

EXAMPLES = """\b
Examples:
  inferscope calibrate
  inferscope calibrate --refresh
  inferscope calibrate --json > ceilings.json
"""


def calibrate(
    *,
    device: Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1.")] = "cpu",
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, whatever is stored.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Measure how fast this device can be, or show what was measured before.

    The result is stored, and verdicts are held against it. Measure on a machine that is otherwise idle.
    """
    from inferscope.hardware import calibration  # noqa: PLC0415 - loads torch

    kept = resumable(lambda: "nothing was stored; the same command measures anew")
    with kept, progress(Console(stderr=True, highlight=False)) as tell:
        measured = calibration.calibrate(
            device, refresh=refresh, progress=lambda what, share: tell(f"calibrating: {what}", share)
        )
    if as_json:
        show({"schema": SCHEMA, **asdict(measured)})  # a device, as `--ceilings` reads it: `kind` is its own
    else:
        Console(highlight=False).print(DeviceView(measured))
