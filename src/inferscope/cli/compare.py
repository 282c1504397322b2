"""`inferscope compare`."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from inferscope.cli.documents import headed, show
from inferscope.errors import CannotTellError, LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.gates import GateResult

__all__ = ["EXAMPLES", "compare"]

EXAMPLES = """\b
Examples:
  inferscope compare before.jsonl after.jsonl
  inferscope compare before.jsonl after.jsonl --fail-if "tpot>1.05" --fail-if "syncs_per_token>1"
  inferscope compare before.jsonl after.jsonl --fail-if "decode.select > 10 %" --strict --json

A time without a unit is a ratio to the baseline (tpot>1.05), with one the candidate's median (ttft>200ms); a count
is the candidate's own (syncs_per_token>1), with x or % a ratio too.

Exit codes: 0 no condition is met, 4 one is, 5 one is about what is not the same work, or with --strict cannot be told,
2 a mistake in what was asked.
"""


def compare(
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE", help="Records from before (.jsonl).")],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="Records from after (.jsonl).")],
    *,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help='Exit with 4 where this holds, such as "tpot>1.05".')
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="Believe ratios in spite of another model, device, batch or lengths."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 5 where a condition cannot be told.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what changed between two sets of records, with intervals; "cannot tell" is an answer."""
    from inferscope import comparing  # noqa: PLC0415 - so that help needs nothing
    from inferscope.analysis.gates import hold, parse_gate  # noqa: PLC0415 - likewise
    from inferscope.report.comparison import comparison_to_json  # noqa: PLC0415 - likewise
    from inferscope.report.comparison_view import ComparisonView  # noqa: PLC0415 - likewise
    from inferscope.report.progress import progress  # noqa: PLC0415 - likewise

    gates = [parse_gate(text) for text in fail_if or ()]
    with progress(Console(stderr=True, highlight=False), lines=False) as tell:
        found = comparing.compare(baseline, candidate, progress=tell)
    results = hold(found, gates, accept=accept or ())
    if as_json:
        show(headed("comparison", json.loads(comparison_to_json(found, results))))
    else:
        Console(highlight=False).print(ComparisonView(found, results))
    _end(results, strict=strict)


def _end(results: Sequence[GateResult], *, strict: bool) -> None:
    for outcome, error in (("failed", LimitExceededError), ("cannot tell", CannotTellError)):
        found = [one for one in results if one.outcome == outcome]
        # A gate that compared nothing is not held, however often it is asked again.
        if outcome == "cannot tell" and not strict:
            found = [one for one in found if one.refused]
        if found:
            raise error("; ".join(f"{one.gate.text}: {one.said}" for one in found))
