"""compare(): two sets of records, from memory or from files, with the ceilings that are stored for their devices.

Neither torch nor a device is needed: it may be done on a laptop.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

from inferscope.analysis import comparison
from inferscope.analysis.comparison import TOLERANCE
from inferscope.errors import NothingToCompareError, SettingError
from inferscope.hardware import calibration_file
from inferscope.records import GenerationRecord
from inferscope.report.comparison import comparison_to_json, comparison_to_text
from inferscope.settings import Settings
from inferscope.sinks.jsonl import iter_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from inferscope.specs import DeviceSpec

__all__ = ["Comparison", "Records", "compare"]

Records: TypeAlias = "GenerationRecord | str | Path | Iterable[GenerationRecord | str | Path]"
"""A record, a file of records, or several of either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(comparison.Comparison):
    """What became of the baseline; printing it shows a table."""

    def __str__(self) -> str:
        """The comparison as plain text."""
        return comparison_to_text(self)

    def to_json(self) -> str:
        """The comparison as one JSON object, indented: the same records give the same text."""
        return comparison_to_json(self)


def compare(
    baseline: Records,
    candidate: Records,
    *,
    device: DeviceSpec | None = None,
    tolerance: float = TOLERANCE,
    progress: Callable[[str, float | None], None] | None = None,
) -> Comparison:
    """What changed from one set of records to another, with intervals; "cannot tell" is an answer.

    Args:
        baseline: Before: records, paths of files that `sinks=["jsonl:PATH"]` wrote, or several of them.
        candidate: After, likewise.
        device: Ceilings to judge both sets by; None takes the stored calibration of the device that each record was
            made on, if there is one. Without ceilings there are no verdicts.
        tolerance: Ratios nearer to 1 than this count as the same (0..1).
        progress: Called now and then with what is being read and which share of that file has been (0..1).

    Returns:
        Changes of times and counts, verdicts that flipped, and what became of predictions.

    Raises:
        RecordFormatError: A file cannot be read, or a line of it is not a record; the message names both.
        NothingToCompareError: A set is empty, or the two have no phase in common.
        SettingError: `tolerance` is not a number from 0 to 1.
    """
    if not 0 <= tolerance < 1:
        raise SettingError(f"tolerance={tolerance!r}: expected a number from 0 to 1")
    made = comparison.compare(
        _records(baseline, "baseline", progress),
        _records(candidate, "candidate", progress),
        ceilings=_stored() if device is None else lambda _: device,
        tolerance=tolerance,
    )
    return Comparison(**{field.name: getattr(made, field.name) for field in fields(made)})


def _records(
    given: Records, side: str, progress: Callable[[str, float | None], None] | None
) -> Iterator[GenerationRecord]:
    if isinstance(given, GenerationRecord):
        yield given
    elif isinstance(given, (str, os.PathLike)):
        empty = True
        told = None if progress is None else functools.partial(progress, f"reading {given}")
        for record in iter_records(given, told=told):
            empty = False
            yield record
        if empty:
            raise NothingToCompareError(f"{given}: no records in this file, given as the {side}")
    else:
        for one in given:
            if not isinstance(one, (GenerationRecord, str, os.PathLike)):
                raise SettingError(f"{side}: expected records or paths of record files, not {type(one).__name__}")
            yield from _records(one, side, progress)


def _stored() -> Callable[[GenerationRecord], DeviceSpec | None]:
    """What calibrations say, by the device's key: read once each, and without asking the device."""
    folder = Settings.from_environment().cache_dir / "calibration"

    known = functools.cache(functools.partial(calibration_file.stored, folder))
    return lambda record: known(record.device_key) if record.device_key else None
