"""`inferscope doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from inferscope.cli.documents import headed, show
from inferscope.cli.exit_codes import ExitCode
from inferscope.report.units import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.experiments.checkup import Check

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES = """\b
Examples:
  inferscope doctor
  inferscope doctor --json > machine.json

Exit codes: 0 inferscope works here, 3 something that it needs is broken.
"""

_STYLES = {"ok": "green", "note": "cyan", "missing": "yellow", "broken": "bold red"}


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what is there on this machine and what is missing, why, and what that costs.

    Nothing is measured and nothing is sent; of an endpoint only host and port are shown, of headers how many.
    """
    from inferscope.experiments import checkup  # noqa: PLC0415 - its checks load torch

    checks = checkup.examine()
    works = not any(check.status == "broken" for check in checks)
    if as_json:
        show(headed("doctor", {"works": works, "checks": [asdict(check) for check in checks]}))
    else:
        Console(highlight=False).print(_table(checks))
    if not works:
        raise typer.Exit(ExitCode.MACHINE)


def _table(checks: Sequence[Check]) -> Table:
    table = Table(title="inferscope doctor", title_justify="left", show_lines=False, pad_edge=False, box=None)
    for heading in ("what", "state", "found, why, and what that costs"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        table.add_row(clean(check.name), f"[{_STYLES[check.status]}]{check.status}[/]", _escaped(check.found))
        for more in (check.why, check.costs):
            if more:
                table.add_row("", "", f"[dim]{_escaped(more)}[/]")
    return table


def _escaped(text: str) -> str:
    """No control characters and no markup: paths and messages are others'."""
    return clean(text).replace("[", "\\[")
