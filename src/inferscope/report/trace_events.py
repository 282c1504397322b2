"""Requests as trace events, for ui.perfetto.dev and chrome://tracing.

Source: "Trace Event Format" (Google, 2016): complete events ("X"), times in microseconds, one process per request
of a model's device, one thread per lane.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from inferscope.report.units import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inferscope.records import DeviceTime, GenerationRecord

__all__ = ["EVENTS", "trace_events"]

EVENTS = 400_000
"""Passes that are written; beyond them requests and phases alone are, and the file says how many were left out."""
LANES = 512
"""Requests that run at once get a track each, up to so many; further ones share the last."""
_NS_PER_US = 1000


def trace_events(records: Iterable[GenerationRecord]) -> Iterator[str]:
    """The file in pieces; records are read once and not kept.

    A request's events stand on a track of their own while others run: requests never overlap within a track.
    """
    yield '{"displayTimeUnit":"ms","traceEvents":[\n'
    writer = _Writer()
    separator = ""
    for record in records:
        for event in writer.events(record):
            yield separator + json.dumps(event, allow_nan=False, separators=(",", ":"))
            separator = ",\n"
    left_out = {"passes_left_out": writer.left_out, "start_unix_ns": str(writer.origin_ns or 0)}
    yield f'\n],"metadata":{json.dumps(left_out)}}}\n'


class _Writer:
    def __init__(self) -> None:
        self.origin_ns: int | None = None
        self.left_out = 0
        self._written = 0
        self._free_ns: list[int] = []

    def events(self, record: GenerationRecord) -> Iterator[dict[str, Any]]:
        """Everything that one record says of time."""
        if self.origin_ns is None:
            self.origin_ns = record.started_unix_ns
        start_ns = record.started_unix_ns - self.origin_ns
        lane, new = self._lane(start_ns, start_ns + record.wall_ns)
        if new:
            yield from _names(lane)
        identity = {"request_id": record.request_id, "model": clean(record.model.name), "status": record.status}
        yield _event(
            "request", clean(record.model.name), (lane, 1), start_ns, record.wall_ns, identity | _latency(record)
        )
        for phase in record.phases:
            facts = {"passes": phase.passes, "wall_ns": phase.wall_ns, "tokens": phase.tokens}
            length = phase.end_ns - phase.start_ns
            yield _event("phase", clean(phase.name), (lane, 1), start_ns + phase.start_ns, length, facts | _id(record))
            if not record.pass_samples and phase.device is not None:
                yield from _device(phase.device, clean(phase.name), lane, start_ns, record)
        if self._written + len(record.pass_samples) > EVENTS:
            self.left_out += len(record.pass_samples)
            return
        self._written += len(record.pass_samples)
        yield from _passes(record, lane, start_ns)

    def _lane(self, start_ns: int, end_ns: int) -> tuple[int, bool]:
        for lane, free_ns in enumerate(self._free_ns):
            if free_ns <= start_ns:
                self._free_ns[lane] = end_ns
                return lane + 1, False
        if len(self._free_ns) >= LANES:
            self._free_ns[-1] = max(end_ns, self._free_ns[-1])
            return LANES, False
        self._free_ns.append(end_ns)
        return len(self._free_ns), True


def _names(lane: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": lane, "args": {"name": f"requests, track {lane}"}}
    yield {"ph": "M", "name": "process_sort_index", "pid": lane, "args": {"sort_index": lane}}
    for thread, name in ((1, "request and phases"), (2, "host passes"), (3, "device")):
        yield {"ph": "M", "name": "thread_name", "pid": lane, "tid": thread, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": lane, "tid": thread, "args": {"sort_index": thread}}


def _passes(record: GenerationRecord, lane: int, start_ns: int) -> Iterator[dict[str, Any]]:
    for index, sample in enumerate(record.pass_samples):
        facts = {"pass": index, "batch_size": sample.batch_size, "q_len": sample.q_len, "past_len": sample.past_len}
        began_ns = start_ns + sample.start_ns
        yield _event("pass", clean(sample.name), (lane, 2), began_ns, sample.host_ns, facts | _id(record))
        if sample.device is not None:
            yield from _device(sample.device, clean(sample.name), lane, start_ns, record)


def _device(
    device: DeviceTime, name: str, lane: int, start_ns: int, record: GenerationRecord
) -> Iterator[dict[str, Any]]:
    if device.start_ns is None or device.end_ns is None:
        return
    facts = {"low_ns": device.low_ns, "high_ns": device.high_ns, "provenance": device.provenance}
    length = max(device.end_ns - device.start_ns, 0)
    yield _event("device", name, (lane, 3), start_ns + device.start_ns, length, facts | _id(record))


def _event(
    kind: str, name: str, track: tuple[int, int], start_ns: int, length_ns: int, facts: dict[str, Any]
) -> dict[str, Any]:
    lane, thread = track
    known = {key: value for key, value in facts.items() if value is not None}
    times = {"ts": start_ns / _NS_PER_US, "dur": length_ns / _NS_PER_US}
    return {"ph": "X", "cat": kind, "name": name, "pid": lane, "tid": thread, **times, "args": known}


def _id(record: GenerationRecord) -> dict[str, Any]:
    return {"request_id": record.request_id}


def _latency(record: GenerationRecord) -> dict[str, Any]:
    return {
        "ttft_ns": record.ttft_ns,
        "tpot_ns": record.tpot_ns,
        "batch_size": record.batch_size,
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "self_ns": record.ledger.self_ns,
    }
