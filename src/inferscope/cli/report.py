"""`inferscope report`."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import inferscope
from inferscope.analysis.comparison import compare
from inferscope.cli import completion
from inferscope.cli.known_devices import KnownDevices
from inferscope.errors import InferscopeError, RecordFormatError, SettingError
from inferscope.hardware.catalog import catalog
from inferscope.report.changes import compared, medians
from inferscope.report.digest import digest
from inferscope.report.document import document_text
from inferscope.report.html import page
from inferscope.report.markdown import markdown
from inferscope.report.output import write
from inferscope.report.progress import progress
from inferscope.report.story import Report, Source
from inferscope.report.trace_events import trace_events
from inferscope.sinks.jsonl import iter_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inferscope.records import GenerationRecord
    from inferscope.report.changes import Changes
    from inferscope.report.digest import Digest
    from inferscope.report.progress import Tell

__all__ = ["EXAMPLES", "report"]

EXAMPLES = """\b
Examples:
  inferscope report inferscope-out/records.jsonl
  inferscope report runs/*.jsonl -o report.html --baseline before.jsonl
  inferscope report runs/*.jsonl --format md > summary.md
  inferscope report runs/*.jsonl --json > report.json
  inferscope report runs/*.jsonl --format perfetto -o trace.json
"""

_FORMATS = ("html", "md", "json", "perfetto")
_PIECE_BYTES = 1 << 20


def report(
    records: Annotated[list[Path], typer.Argument(metavar="FILES", help="Files of records (.jsonl).")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; for html report.html, else standard output.")
    ] = None,
    baseline: Annotated[list[Path] | None, typer.Option(help="Records of before; may be given more than once.")] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="html, md, json, or perfetto (for ui.perfetto.dev).", autocompletion=completion.formats
        ),
    ] = "html",
    ceilings: Annotated[
        list[Path] | None,
        typer.Option(help="What `inferscope calibrate --json` printed where the records were made; may be repeated."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Judge GPU records by this catalogue row, such as L40S.", autocompletion=completion.gpus),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Show where the time of many requests went: a page, a text for a pull request, or data for other tools.

    The page is one file that works offline. Verdicts need ceilings: those stored on this machine are used where
    the records were made on it, those of other machines can be given.
    """
    if as_json:
        if form not in ("html", "json"):  # html is what nobody has asked for
            raise SettingError(f"--json and --format {form}: give one of them")
        form = "json"
    if form not in _FORMATS:
        raise SettingError(f"--format {form}: expected one of {', '.join(_FORMATS)}")
    _check_files(records, baseline or [])
    to = output if output is not None or form != "html" else Path("report.html")
    with progress(Console(stderr=True, highlight=False), lines=False) as tell:
        if form == "perfetto":
            size = write(to, trace_events(_read(records, {}, None if to is None else tell)))
        else:
            made = _made(records, baseline or [], KnownDevices(files=ceilings or [], gpu=gpu), tell)
            tell("drawing the report", None)
            pieces = _pieces(made, form)
    if form != "perfetto":
        size = write(to, pieces)
    if to is not None:
        typer.echo(f"{to}: {size / 1e6:.1f} MB", err=True)


def _check_files(records: list[Path], baseline: list[Path]) -> None:
    for given in (records, baseline):
        seen: dict[Path, Path] = {}
        for path in given:
            same = seen.setdefault(path.resolve(), path)
            if same is not path:
                raise SettingError(f"{path}: given twice; its records would count twice")


def _pieces(made: Report, form: str) -> Iterable[str]:
    if form == "html":
        return (page(made),)
    return markdown(made) if form == "md" else document_text(made)


def _made(records: list[Path], baseline: list[Path], known: KnownDevices, tell: Tell) -> Report:
    found, sources = _digest(records, known, tell)
    before, before_sources = _digest(baseline, known, tell) if baseline else (None, ())
    tell("comparing", None)
    changes = None if before is None else _changes(baseline, records, before, found, known)
    devices = known.used
    return Report(
        found=found,
        sources=sources,
        devices=devices,
        datasheets={device.key: row for device in devices if (row := catalog().get(device.name)) is not None},
        unjudged=known.unjudged,
        baseline=before,
        baseline_sources=before_sources,
        changes=changes,
        version=inferscope.__version__,
    )


def _digest(paths: list[Path], known: KnownDevices, tell: Tell) -> tuple[Digest, tuple[Source, ...]]:
    counts: dict[Path, int] = {}
    found = digest(_read(paths, counts, tell), expected=sum(map(_lines, paths)), device_of=known.of)
    if not found.count:
        raise RecordFormatError(
            f"{', '.join(map(str, paths))}: no records in it: nothing was traced, or not to the end"
        )
    return found, tuple(Source(path=str(path), records=counts.get(path, 0)) for path in paths)


def _read(paths: list[Path], counts: dict[Path, int], tell: Tell | None = None) -> Iterator[GenerationRecord]:
    for path in paths:
        told = None if tell is None else functools.partial(tell, f"reading {path}")
        for record in iter_records(path, told=told):
            counts[path] = counts.get(path, 0) + 1
            yield record


def _lines(path: Path) -> int:
    """About how many records a file has; whatever is wrong with it is told when it is read."""
    if not path.is_file():
        return 0
    try:
        with path.open("rb") as file:
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(_PIECE_BYTES), b""))
    except OSError:
        return 0


def _changes(
    before_paths: list[Path], paths: list[Path], before: Digest, found: Digest, known: KnownDevices
) -> Changes:
    """With intervals, where there are requests to compare; else medians."""
    try:
        result = compare(_read(before_paths, {}), _read(paths, {}), ceilings=known.of)
    except InferscopeError as error:
        plain = medians(before, found)
        return replace(plain, notes=(f"{error}", *plain.notes))
    return compared(result)
