"""The tour: every exhibit of the zoo, what is planted in it, and what inferscope says first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from inferscope.errors import MissingExtraError, SettingError
from inferscope.hardware import calibration
from inferscope.report.progress import progress
from inferscope.report.units import clean
from inferscope.specs import DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from inferscope.analysis.verdict import Evidence
    from inferscope.experiments.zoo.exhibit import Exhibit
    from inferscope.experiments.zoo.visit import Visit
    from inferscope.report.progress import Tell

__all__ = ["as_data", "choose", "run_tour"]

_ROWS = 4


def choose(only: Iterable[str]) -> tuple[Exhibit, ...]:
    """The exhibits of these names; all of them where none is named.

    Raises:
        SettingError: There is none of such a name.
        MissingExtraError: transformers is not installed.
    """
    try:
        from inferscope.experiments.zoo.catalogue import EXHIBITS  # noqa: PLC0415 - loads transformers
    except ImportError as error:
        raise MissingExtraError(f"the tour needs {error.name}: pip install 'inferscope[hf]'") from error
    wanted = tuple(only)
    known = {exhibit.name: exhibit for exhibit in EXHIBITS}
    for name in wanted:
        if name not in known:
            raise SettingError(f"--only {name}: expected one of {', '.join(known)}")
    return tuple(known[name] for name in known if not wanted or name in wanted)


def run_tour(only: Iterable[str], *, console: Console | None, status: Console) -> tuple[Visit, ...]:
    """Show the exhibits one by one, and print what came of each as soon as it is there.

    Args:
        only: Names of exhibits; none for all.
        console: Where the tour goes; None prints nothing.
        status: Where progress goes; should write to standard error.

    Returns:
        What came of each.

    Raises:
        SettingError: There is no exhibit of such a name.
        MissingExtraError: A package that this needs is not installed.
    """
    chosen = choose(only)
    visits: list[Visit] = []
    device = DeviceSpec(name="a twin's own", kind="cuda")
    if not all(exhibit.twin for exhibit in chosen):
        with progress(status) as tell:
            device = _calibrated(tell)
    for index, exhibit in enumerate(chosen):
        with progress(status) as tell:
            tell(f"{index + 1}/{len(chosen)} {exhibit.name}", index / len(chosen))
            visits.append(_look(exhibit, device))
        if console is not None:
            _print(visits[-1], console)
    if console is not None:
        _print_end(visits, console)
    return tuple(visits)


def as_data(visit: Visit) -> dict[str, Any]:
    """One exhibit for programs: plain data."""
    first = visit.first
    return {
        "exhibit": visit.exhibit.name,
        "planted": visit.exhibit.planted,
        "expected": [one.code for one in visit.truth.expected],
        "right": not visit.faults,
        "faults": list(visit.faults),
        "disturbed": visit.disturbed,
        "took_s": round(visit.took_s, 3),
        "first": None
        if first is None
        else {
            "code": first.code,
            "severity": first.severity,
            "phase": first.phase,
            "claim": first.claim,
            "evidence": [_row(row) for row in first.evidence],
        },
        "findings": [[one.severity, one.code, one.phase] for one in visit.result.findings],
    }


def _row(row: Evidence) -> dict[str, Any]:
    return {
        "metric": row.metric,
        "value": row.value,
        "threshold": row.threshold,
        "source": row.source,
        "note": row.note,
    }


def _calibrated(tell: Tell) -> DeviceSpec:
    def measuring(what: str, share: float) -> None:
        tell(f"calibrating, once: {what}", share)

    return calibration.calibrate("cpu", progress=measuring)


def _look(exhibit: Exhibit, device: DeviceSpec) -> Visit:
    from inferscope.experiments.zoo.visit import look  # noqa: PLC0415 - beside the catalogue

    return look(exhibit, device)


def _print(visit: Visit, console: Console) -> None:
    console.print()
    console.print(Rule(Text(visit.exhibit.name, style="bold"), align="left"))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    rows.add_row("planted", Text(visit.exhibit.planted))
    first = visit.first
    if first is None:
        rows.add_row("said", Text("nothing"))
    else:
        rows.add_row("said", Text(f"{first.severity} {first.code}", style="bold"))
        rows.add_row("", Text(clean(first.claim)))
        for row in first.evidence[:_ROWS]:
            rows.add_row("evidence", Text(_in_words(row)))
    for fault in visit.faults:
        rows.add_row("but", Text(fault))
    if visit.faults and visit.disturbed:
        rows.add_row("note", Text("other work kept the thread off the CPU meanwhile: try again on a quiet machine"))
    console.print(rows)


def _in_words(row: Evidence) -> str:
    limit = "" if row.threshold is None else f" (against {row.threshold:,.4g})"
    return f"{row.metric} {row.value:,.4g}{limit}, {row.source}"


def _print_end(visits: list[Visit], console: Console) -> None:
    right = sum(not visit.faults for visit in visits)
    console.print()
    console.print(
        Text(f"{right} of {len(visits)} planted causes were named first, for the right reason, and nothing false.")
    )
