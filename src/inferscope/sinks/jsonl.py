"""Records in a file, one JSON object per line: the only codec of `GenerationRecord`.

A line that is read has been checked, so that whatever follows may rely on it: sums close, nothing is negative,
nothing is infinite. Whatever is wrong with a file is one error that names the file and the line.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from inferscope import notices
from inferscope.errors import CacheUnwritableError, RecordFormatError
from inferscope.records import SCHEMA, GenerationRecord, QuantileSketch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from inferscope.analysis.verdict import Result
    from inferscope.specs import ModelSpec

__all__ = ["JsonlSink", "iter_records", "read_records"]

_TOLD_EVERY = 64
LINE_LIMIT_BYTES = 64 * 2**20
_INT64 = 2**63
_LAST_BUCKET = QuantileSketch.bucket(_INT64)
# Signed by nature: a remainder, coefficients of a polynomial, what a caller asked for, a difference of two means.
_SIGNED = frozenset({"residual_ns", "closure_ns", "cost", "options", "own_overhead"})
_BROKEN = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


class _Head(msgspec.Struct, frozen=True, kw_only=True):  # msgspec knows `Raw` in its own classes only
    schema: int
    model: msgspec.Raw = msgspec.Raw(b"")


_HEAD = msgspec.json.Decoder(_Head)
_RECORD = msgspec.json.Decoder(GenerationRecord)
_MODELS_KEPT = 64


class JsonlSink:
    """Appends the record of each result to a file as one line, flushed at once. Threads may share it.

    Opinions are not stored: they are recomputed from the record. What cannot be written is counted, and said
    once; the host goes on.

    Attributes:
        path: The file.
        written: Lines written.
        dropped: Records that could not be.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file for appending.

        Args:
            path: Created where it does not exist; its folder must.

        Raises:
            CacheUnwritableError: It cannot be opened for writing.
        """
        self.path = Path(path)
        self.written = 0
        self.dropped = 0
        self._lock = threading.Lock()
        try:
            self._file = self.path.open("ab", buffering=0)
            self._torn = _ends_torn(self.path)
        except (OSError, ValueError) as error:
            raise CacheUnwritableError(f"{path}: cannot be written: {error}") from error

    def __call__(self, result: Result) -> None:
        """Append one record."""
        self.append(result.record)

    def append(self, record: GenerationRecord) -> bool:
        """Append a record without a result.

        Args:
            record: What to write.

        Returns:
            Whether it was written; where not, it was counted as dropped.
        """
        own = () if record.own_overhead is None else dataclasses.astuple(record.own_overhead)
        floats = (record.tpot_ns, record.options.temperature, record.options.top_p, *own)
        if not all(math.isfinite(value) for value in floats if isinstance(value, (int, float))):
            self._drop("it holds a number that is not finite")
            return False
        try:
            line = msgspec.json.encode(record) + b"\n"
            with self._lock:
                self._append(line)
        except (OSError, ValueError, TypeError, msgspec.MsgspecError) as error:
            self._drop(f"{type(error).__name__}: {error}")
            return False
        return True

    def close(self) -> None:
        """Close the file; records that come later are dropped and counted."""
        with self._lock:
            self._file.close()

    def after_fork(self) -> None:
        """In a forked child: the file is shared, the lock is not."""
        self._lock = threading.Lock()

    def _append(self, line: bytes) -> None:
        # A line that an interrupted process left unfinished must not swallow this one.
        data = b"\n" + line if self._torn else line
        self._torn = True
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        self._torn = False
        self.written += 1

    def _drop(self, reason: str) -> None:
        with self._lock:
            self.dropped += 1
        notices.warn(
            "record-not-written",
            "a record could not be written; it is dropped and counted, and this is said once",
            path=str(self.path),
            reason=reason,
        )


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_records(path: str | Path) -> list[GenerationRecord]:
    """All records of a file, oldest first; empty lines and unknown fields are ignored.

    Args:
        path: A file that `JsonlSink` wrote.

    Raises:
        RecordFormatError: It cannot be read, or a line is not a record this version can use; the message names
            the file and the line.
    """
    return list(iter_records(path))


def iter_records(path: str | Path, *, told: Callable[[float], None] | None = None) -> Iterator[GenerationRecord]:
    """The records of a file one by one, in the memory of one line.

    Args:
        path: A file that `JsonlSink` wrote.
        told: Called now and then with the share of the file that has been read (0..1).

    Yields:
        Each record, once its line has been checked.

    Raises:
        RecordFormatError: As `read_records`, where the line is reached.
    """
    try:
        # A pipe or a device would block or never end.
        if not Path(path).is_file():
            problem = "not a file" if Path(path).exists() else "no such file"
            raise RecordFormatError(f"{path}: {problem}; give a file of records (.jsonl)")
        with Path(path).open("rb") as file:
            yield from _records(path, file, told)
    except (OSError, ValueError) as error:
        if isinstance(error, RecordFormatError):
            raise
        raise RecordFormatError(f"{path}: cannot be read: {error}") from error


def _records(path: str | Path, file: BinaryIO, told: Callable[[float], None] | None) -> Iterator[GenerationRecord]:
    number = 0
    size = max(os.fstat(file.fileno()).st_size, 1)
    models: dict[bytes, ModelSpec] = {}
    while line := file.readline(LINE_LIMIT_BYTES + 1):
        number += 1
        where = f"{path}, line {number}"
        if len(line) > LINE_LIMIT_BYTES:
            raise RecordFormatError(f"{where}: longer than {LINE_LIMIT_BYTES >> 20} MiB: this is no record file")
        if line.strip():
            yield _record(line, where, models)
        if told is not None and number % _TOLD_EVERY == 0:
            told(min(file.tell() / size, 1.0))


def _record(line: bytes, where: str, models: dict[bytes, ModelSpec]) -> GenerationRecord:
    """The record of a line, checked.

    Args:
        line: As it stands in the file.
        where: File and line, for errors.
        models: Those of earlier lines by their text. The records of one model share it: its costs are most of a
            line, and checking them most of the work.
    """
    try:
        head = _HEAD.decode(line)
    except _BROKEN as error:
        raise RecordFormatError(f"{where}: {_not_json(line, error)}") from error
    if head.schema != SCHEMA:
        advice = "upgrade inferscope" if head.schema > SCHEMA else "no inferscope wrote this"
        raise RecordFormatError(f"{where}: schema {head.schema}, this version reads schema {SCHEMA}: {advice}")
    try:
        record = _RECORD.decode(line)
    except _BROKEN as error:
        raise RecordFormatError(f"{where}: not a record: {error}") from error
    key = bytes(head.model)
    known = models.get(key)
    problem = _problem(record, model_checked=known is not None)
    if problem:
        raise RecordFormatError(f"{where}: {problem}")
    if known is not None:
        return dataclasses.replace(record, model=known)
    if len(models) < _MODELS_KEPT:
        models[key] = record.model
    return record


def _not_json(line: bytes, error: BaseException) -> str:
    if isinstance(error, msgspec.ValidationError):
        return f"not a record of inferscope: {error}"
    if b"\0" in line:
        return "binary data, not a record file"
    if not line.endswith(b"\n"):
        return "the last line is cut off: its writer was interrupted; delete the line to use the others"
    return f"not JSON: {error}"


def _problem(record: GenerationRecord, *, model_checked: bool) -> str | None:
    """What makes a well-formed record unusable; None where nothing does."""
    left_out = "model" if model_checked else ""
    return _numbers_problem(record, left_out) or _sum_problem(record) or _sketch_problem(record)


def _numbers_problem(record: GenerationRecord, left_out: str) -> str | None:
    for name in _fields(GenerationRecord):
        value, signed = getattr(record, name), name in _SIGNED
        # Where it lies is put into words only for a line that is refused.
        if name != left_out and not _numbers_fine(value, signed=signed):
            return _number_problem(value, f"record.{name}", signed=signed)
    return None


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _numbers_fine(value: object, *, signed: bool) -> bool:
    kind = type(value)  # exact types, which the decoder makes: this runs for every number of every record
    if kind is int or kind is float:
        return (-_INT64 if signed else 0) <= value < _INT64  # type: ignore[operator]
    if kind is str or kind is bool or value is None:
        return True
    if kind is tuple:
        return all(_numbers_fine(item, signed=signed) for item in value)  # type: ignore[attr-defined]
    names = _fields(kind)  # type: ignore[arg-type]
    return all(_numbers_fine(getattr(value, name), signed=signed or name in _SIGNED) for name in names)


def _number_problem(value: object, place: str, *, signed: bool) -> str | None:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    if isinstance(value, (int, float)):
        if not -_INT64 <= value < _INT64:
            return f"{place} is {value}: out of range"
        return f"{place} is {value}: it cannot be negative" if value < 0 and not signed else None
    if isinstance(value, tuple):
        children = ((f"{place}[{index}]", item, signed) for index, item in enumerate(value))
    else:
        names = _fields(type(value))  # type: ignore[arg-type]
        children = ((f"{place}.{name}", getattr(value, name), signed or name in _SIGNED) for name in names)
    return next(filter(None, (_number_problem(item, where, signed=free) for where, item, free in children)), None)


def _sum_problem(record: GenerationRecord) -> str | None:  # noqa: PLR0911 - one return per rule
    ledger = record.ledger
    if ledger.total_ns != record.wall_ns:
        return f"the ledger adds up to {ledger.total_ns} ns, the wall is {record.wall_ns} ns"
    if ledger.phases_ns != tuple((phase.name, phase.wall_ns) for phase in record.phases):
        return "the ledger names other phases, or other times, than the record holds"
    for phase in record.phases:
        if phase.ledger.total_ns != phase.wall_ns:
            return f"the ledger of {phase.name} adds up to {phase.ledger.total_ns} ns, its wall is {phase.wall_ns} ns"
        if phase.start_ns > phase.end_ns:
            return f"{phase.name} ends before it starts"
        if phase.device is not None and phase.device.low_ns > phase.device.high_ns:
            return f"the device time of {phase.name} has its low end above its high end"
        deep = phase.deep
        if deep is not None and deep.operators_ns + deep.python_ns + deep.closure_ns != deep.wall_ns:
            return f"the recorded passes of {phase.name} do not add up to their wall"
    if (record.accepted_tokens or 0) > (record.drafted_tokens or 0):
        return f"{record.accepted_tokens} tokens were accepted and {record.drafted_tokens} drafted"
    return None


def _sketch_problem(record: GenerationRecord) -> str | None:
    for sketch in (record.itl_ns, *(phase.pass_ns for phase in record.phases)):
        if sketch is None:
            continue
        indices = [index for index, _ in sketch.buckets]
        if indices != sorted(set(indices)) or any(index > _LAST_BUCKET for index in indices):
            return "a quantile sketch has buckets out of order or out of range"
        if sum(count for _, count in sketch.buckets) != sketch.count:
            return "a quantile sketch has another count than its buckets"
    return None
