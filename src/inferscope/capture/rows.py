"""What rows and marks say once the request is over: events in time, the names of passes, their device's side."""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from inferscope.capture.busy import Kind, on_device
from inferscope.capture.frames import UNREADABLE, Flag, Mark, Row
from inferscope.capture.passes import PHASE_NAMES, PassFacts, name_pass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferscope.capture.busy import BusyTable, OnDevice
    from inferscope.capture.passes import PassName

__all__ = ["PASS", "device_side", "in_time", "name_of", "readable"]

PASS = 0
"""The kind of event that is a pass; the others are those of `Mark`."""
_ENDED = itemgetter(0)
# The rule asks whether q is one and past is none; beyond that it does not look at their size. Passes are many and
# their facts few, so each combination is named once.
_TELLING = (UNREADABLE, 0, 1)
_MANY = 2


def in_time(chunks: Iterable[Sequence[int]], marks: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, Any]]:
    """All events as (ended, kind, row or start), in the order in which they ended."""
    events: list[tuple[int, int, Any]] = [(ended, kind, started) for kind, started, ended in marks]
    for rows in chunks:
        for start in range(0, len(rows), Row.WIDTH):
            row = rows[start : start + Row.WIDTH]
            events.append((row[Row.LEFT], PASS, row))
            if row[Row.STOP_ENDED]:
                events.append((row[Row.STOP_ENDED], Mark.STOP, row[Row.STOP_STARTED]))
    events.sort(key=_ENDED)
    return events


def device_side(phase: str, row: Sequence[int], known: BusyTable | None) -> OnDevice | None:
    """A forward on the device; None where its events are not known. What was measured alone is added to `known`."""
    events_ns = row[Row.DEVICE_NS]
    if not events_ns:
        return None
    q, past, batch = row[Row.Q], row[Row.PAST], row[Row.BATCH]
    told = UNREADABLE not in (q, past, batch)
    one = on_device(
        started_ns=row[Row.DEVICE_STARTED],
        events_ns=events_ns,
        ended_ns=row[Row.ENDED],
        left_ns=row[Row.LEFT],
        kind=Kind(phase, batch, q) if told else None,
        context=past + q if told else 0,
        plugged=bool(row[Row.FLAGS] & Flag.PLUGGED),
    )
    if one.plugged and one.kind is not None and known is not None:
        known.add(one.kind, one.context, events_ns, "plug")
    return one


def name_of(q: int, past: int, flags: int) -> PassName:
    """What a pass is called, by what its row holds."""
    return _name(q if q in _TELLING else _MANY, past if past in _TELLING else _MANY, flags)


@lru_cache(maxsize=1024)
def _name(q: int, past: int, flags: int) -> PassName:
    facts = PassFacts(
        q=readable(q),
        past=readable(past),
        assistant=bool(flags & Flag.ASSISTANT),
        foreign=bool(flags & Flag.FOREIGN),
        first=bool(flags & Flag.FIRST),
        in_frame=not flags & Flag.BARE,
        named=PHASE_NAMES[(flags >> Flag.NAMED_SHIFT) - 1] if flags >> Flag.NAMED_SHIFT else None,
        in_prefill=bool(flags & Flag.IN_PREFILL),
        cache=_cache_identity(flags),
        frame_cache=1 if flags & Flag.FRAME_CACHE else None,
        assisted=bool(flags & Flag.ASSISTED),
        side=bool(flags & Flag.SIDE),
        submodule=bool(flags & Flag.ENCODE),
    )
    return name_pass(facts)


def _cache_identity(flags: int) -> int | None:
    if not flags & Flag.HAS_CACHE:
        return None
    return 1 if flags & Flag.SAME_CACHE else 2


def readable(value: int) -> int | None:
    """A number in a row; None where it could not be read."""
    return None if value == UNREADABLE else value
