"""What a request left behind, as a file: taken where there is a device, replayed where there is none.

A timeline holds the rows and marks of one request as they were written while it ran, and where they come from.
Replaying it goes the way of every request, from marks to record, so that what was seen on a device once is a test
everywhere.
"""

from __future__ import annotations

import weakref
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inferscope.capture.calls import hold
from inferscope.capture.frames import Request, Row
from inferscope.capture.requests import RawRequest
from inferscope.errors import RecordFormatError
from inferscope.specs import ModelSpec  # noqa: TC001 - the codec resolves annotations at run time

if TYPE_CHECKING:
    from inferscope.records import GenerationRecord

__all__ = ["SCHEMA", "Timeline", "read_timeline", "timeline_of", "write_timeline"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One request as it was written down.

    Attributes:
        schema: Version of this layout.
        provenance: Where it comes from: "source" ("measured" or "device twin"), and for what was measured device,
            driver, versions and date.
        model: What ran.
        entered_ns: Clock reading at the entry of `generate`.
        started_ns: Where the user's own call began.
        returned_ns: Where it returned.
        left_ns: Where `generate` was left.
        columns: What the integers of a row are.
        rows: One per forward.
        marks: (kind, started, ended) of everything else.
    """

    schema: int = SCHEMA
    provenance: dict[str, str]
    model: ModelSpec
    entered_ns: int
    started_ns: int
    returned_ns: int
    left_ns: int
    columns: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    marks: tuple[tuple[int, int, int], ...] = ()

    def replay(self) -> GenerationRecord:
        """The record of it, made as that of any request."""
        placeholder = _Model()
        request = Request(entered_ns=self.entered_ns, started_unix_ns=1)
        request.started_ns, request.returned_ns, request.left_ns = self.started_ns, self.returned_ns, self.left_ns
        request.rows = array("q", [value for row in self.rows for value in row])
        request.row = len(request.rows)
        request.marks = list(self.marks)
        raw = RawRequest(request, hold((), {}), weakref.ref(placeholder))
        raw.keep_samples = True
        return raw.record(self.model)


class _Model:
    """Nobody: a timeline needs no model any more."""


_COLUMNS = tuple(
    name
    for name, _ in sorted(((n, v) for n, v in vars(Row).items() if n.isupper() and n != "WIDTH"), key=lambda p: p[1])
)


def timeline_of(raw: Any, model: ModelSpec, provenance: dict[str, str]) -> Timeline:  # noqa: ANN401 - a finished request
    """The timeline of a finished request that was not folded.

    Args:
        raw: As capture hands it to its receivers.
        model: What ran.
        provenance: See `Timeline`.
    """
    chunks, marks = raw.request.gathered()
    values = [value for chunk in chunks for value in chunk]
    return Timeline(
        provenance=provenance,
        model=model,
        entered_ns=raw.request.entered_ns,
        started_ns=raw.request.started_ns,
        returned_ns=raw.request.returned_ns,
        left_ns=raw.request.left_ns,
        columns=_COLUMNS,
        rows=tuple(tuple(values[at : at + Row.WIDTH]) for at in range(0, len(values), Row.WIDTH)),
        marks=tuple(marks),
    )


def write_timeline(path: str | Path, timeline: Timeline) -> None:
    """Write one as JSON, a row a line."""
    text = msgspec.json.format(msgspec.json.encode(timeline), indent=1).decode()
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_timeline(path: str | Path) -> Timeline:
    """Read one.

    Raises:
        RecordFormatError: The file cannot be read, is no timeline, or one of another layout; the message names it.
    """
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=Timeline)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordFormatError(f"{path}: not a timeline: {error}") from error
    if found.schema != SCHEMA or found.columns != _COLUMNS:
        raise RecordFormatError(f"{path}: a timeline of another layout: {', '.join(found.columns)}")
    if any(len(row) != Row.WIDTH for row in found.rows):
        raise RecordFormatError(f"{path}: a row does not have {Row.WIDTH} integers")
    if not found.provenance.get("source"):
        raise RecordFormatError(f"{path}: its provenance does not say where it comes from")
    return found
