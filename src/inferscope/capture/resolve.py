"""Marks become a record: names, phases, the closed ledger. Runs after the call, and when the buffer is full.

Time is walked once, from the entry of `generate` to its exit, with a cursor: every nanosecond that the cursor
passes is given to exactly one place, so the ledger closes by construction.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from inferscope.capture.calls import read_call, read_result
from inferscope.capture.frames import UNREADABLE, Flag, Mark, Row
from inferscope.capture.passes import PassFacts, PassName, name_pass
from inferscope.capture.phases import Cycle, PhaseSums, Tally
from inferscope.records import (
    GenerationRecord,
    Ledger,
    PassSample,
)

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterable, Sequence

    from inferscope.capture.calls import Call, Kept, Outcome, RawCall
    from inferscope.capture.frames import Request
    from inferscope.records import PhaseRecord
    from inferscope.specs import ModelSpec

__all__ = ["SAMPLES_KEPT", "RawRequest", "Resolver"]

SAMPLES_KEPT = 4096
EVENTS_PER_BREATH = 64
"""Events placed in one stretch, about 0.3 ms."""
_PASS = 0
_ENDED = itemgetter(0)


class RawRequest:
    """A request as the generating thread leaves it; everything that takes time is done by `record`, elsewhere.

    Attributes:
        request: Its rows, marks and stamps.
        call: What was asked, unread.
        module: The model.
        parent_context: The caller's OpenTelemetry context, opaque here.
        result_shape: Rows and tokens of what came back.
        result: The tokens, unread.
        error_type: Class name of the exception that left `generate`.
        keep_samples: Whether somebody wants every pass.
    """

    __slots__ = (
        "_record",
        "_resolver",
        "call",
        "error_type",
        "keep_samples",
        "module",
        "parent_context",
        "request",
        "result",
        "result_shape",
    )

    def __init__(
        self,
        request: Request,
        call: RawCall,
        module: weakref.ref[Any],
        *,
        parent_context: object | None = None,
        keep_samples: bool = False,
    ) -> None:
        """Begin a request."""
        self.request = request
        self.call = call
        self.module = module
        self.parent_context = parent_context
        self.keep_samples = keep_samples
        self.result_shape: tuple[int, int] | None = None
        self.result: Kept | None = None
        self.error_type: str | None = None
        self._resolver: Resolver | None = None
        self._record: GenerationRecord | None = None
        request.fold = self._fold

    def record(
        self,
        model: ModelSpec,
        *,
        versions: tuple[tuple[str, str], ...] = (),
        device_key: str | None = None,
        breathe: Callable[[], None] = lambda: None,
    ) -> GenerationRecord:
        """The record; made once, however many sessions ask for it. Call from one thread.

        Args:
            model: What ran.
            versions: (name, version) of what ran.
            device_key: Identity of the device it ran on.
            breathe: Called between stretches of work, to let the interpreter serve others.
        """
        if self._record is None:
            call = read_call(self.module(), self.call)
            outcome = read_result(call, self.result_shape, self.result)
            self._record = self._begun().finish(
                self, call, outcome, model, versions=versions, device_key=device_key, breathe=breathe
            )
            self.result = None
            # The request folds into this object: let go of each other, or only a collection would free them.
            self._resolver = None
            self.request.fold = lambda _chunks, _marks: None
        return self._record

    def _begun(self) -> Resolver:
        if self._resolver is None:
            self._resolver = Resolver(self.request.entered_ns, keep_samples=self.keep_samples)
            self._resolver.begin(self.request.started_ns)
        return self._resolver

    def _fold(self, chunks: Iterable[Sequence[int]], marks: Iterable[tuple[int, int, int]]) -> None:
        self._begun().feed(chunks, marks)


class Resolver:
    """Walks the marks of one request; memory is bounded whatever the length."""

    def __init__(self, entered_ns: int, *, keep_samples: bool = False) -> None:
        """Start at the entry of `generate`.

        Args:
            entered_ns: Clock reading there.
            keep_samples: Keep every pass, up to `SAMPLES_KEPT`.
        """
        self._origin_ns = entered_ns
        self._cursor_ns = entered_ns
        self._keep_samples = keep_samples
        self._setup_ns = 0
        self._self_ns = 0
        self._gc_ns = 0
        self._pending_puts: list[tuple[int, int]] = []
        self._phases: dict[str, PhaseSums] = {}
        self._phase: PhaseSums | None = None
        self._cycle: Cycle | None = None
        self._stops = 0
        self._passes = 0
        self._first_stop_ns: int | None = None
        self._first_put_ns: int | None = None
        self._second_pass_ns: int | None = None
        self._last_stop_ns: int | None = None
        self._gaps = Tally()
        self._cpu_read: tuple[int, int] | None = None
        self._closed: tuple[PhaseSums, Cycle] | None = None
        self._samples: list[PassSample] = []
        self._samples_dropped = 0

    def begin(self, started_ns: int) -> None:
        """The user's `generate` starts now: what came before was ours."""
        self._self_ns += started_ns - self._cursor_ns
        self._cursor_ns = started_ns

    def feed(self, chunks: Iterable[Sequence[int]], marks: Iterable[tuple[int, int, int]]) -> None:
        """Take rows and marks; whatever ended first is placed first."""
        for event in _in_time(chunks, marks):
            self._place_event(event)

    def _place_event(self, event: tuple[Any, ...]) -> None:
        kind = event[1]
        if kind == _PASS:
            self._pass(event[2])
        elif kind == Mark.STOP:
            self._stop(event[2], event[0])
        elif kind == Mark.PUT:
            self._pending_puts.append((event[2], event[0]))
        elif kind == Mark.GC:
            self._gc_ns += event[0] - event[2]
        else:
            self._own(event[2], event[0])

    def _advance(self, to_ns: int) -> int:
        """Move the cursor; the nanoseconds it passed. Never backwards: what is behind is accounted for."""
        passed = max(0, to_ns - self._cursor_ns)
        self._cursor_ns = max(self._cursor_ns, to_ns)
        return passed

    def _place(self, part: str, spent_ns: int) -> None:
        """Give time between forwards to the open cycle, or to the setup before the first."""
        if self._cycle is not None:
            self._cycle.parts[part] += spent_ns
        else:
            self._setup_ns += spent_ns

    def _flush_puts(self) -> None:
        """Streamer callbacks that no stop check enclosed."""
        for started, ended in self._pending_puts:
            if self._passes and self._first_put_ns is None:
                self._first_put_ns = started
            self._place("select", self._advance(started))
            self._place("deliver", self._advance(ended))
        self._pending_puts.clear()

    def _close_cycle(self) -> None:
        """The pass is over; it is summed when the CPU reading at the next pass has told about it."""
        if self._cycle is None or self._phase is None:
            return
        self._cycle.parts["gc"] += self._gc_ns
        self._gc_ns = 0
        self._phase.end_ns = self._cursor_ns
        self._closed = (self._phase, self._cycle)
        self._cycle = None

    def _sum_closed(self) -> None:
        if self._closed is not None:
            phase, cycle = self._closed
            phase.add_cycle(cycle)
            self._closed = None

    def _pass(self, row: Sequence[int]) -> None:
        entered, started, ended, left, q, past, batch, logits, flags, cpu_ns, *_ = row
        self._flush_puts()
        if cpu_ns != UNREADABLE:
            self._read_cpu(entered, cpu_ns)
        name = _name(q if q in _TELLING else _MANY, past if past in _TELLING else _MANY, flags)
        phase_name = name.phase or (self._phase.name if self._phase is not None else "unknown")
        stopped = self._cycle is None and self._stops > 0  # time since the last token is this pass's selection
        began_ns = self._cursor_ns if stopped else entered
        if stopped:
            spent_before = self._advance(entered)
        else:
            self._place("select", self._advance(entered))
            self._close_cycle()
            spent_before = 0
        self._sum_closed()
        if self._passes == 1:
            self._second_pass_ns = entered
        phase = self._phase = self._phases.get(phase_name) or self._phases.setdefault(
            phase_name, PhaseSums(phase_name, began_ns)
        )
        cycle = self._cycle = Cycle(began_ns)
        cycle.parts["select"] += spent_before
        self._self_ns += self._advance(started)
        issue_ns = self._advance(ended)
        cycle.parts["issue"] += issue_ns
        self._self_ns += self._advance(left)
        self._passes += 1
        phase.passes += 1
        phase.end_ns = self._cursor_ns
        phase.pass_ns.add(ended - started)
        phase.add_work(q, past, batch, logits)
        if self._keep_samples:
            self._sample(name.name, row)

    def _read_cpu(self, at_ns: int, cpu_ns: int) -> None:
        """The part of the time since the last reading in which the thread did not run belongs to the last pass."""
        cycle = self._cycle if self._closed is None else self._closed[1]
        if self._cpu_read is not None and cycle is not None:
            cycle.parts["offcpu"] += max(0, at_ns - self._cpu_read[0] - (cpu_ns - self._cpu_read[1]))
        self._cpu_read = (at_ns, cpu_ns)

    def _stop(self, started: int, ended: int) -> None:
        puts = self._pending_puts
        self._pending_puts = []
        if puts and self._first_put_ns is None and self._passes:
            self._first_put_ns = puts[0][0]
        self._place("select", self._advance(started))
        for put_started, put_ended in puts:
            self._place("wait", self._advance(put_started))
            self._place("deliver", self._advance(put_ended))
        self._place("wait", self._advance(ended))
        self._stops += 1
        if self._phase is not None:
            self._phase.syncs = (self._phase.syncs or 0) + 1
        if self._first_stop_ns is None:
            self._first_stop_ns = ended
        if self._last_stop_ns is not None:
            self._gaps.add(ended - self._last_stop_ns)
        self._last_stop_ns = ended
        self._close_cycle()

    def _own(self, started: int, ended: int) -> None:
        self._place("select", self._advance(started))
        self._self_ns += self._advance(ended)

    def _sample(self, name: str, row: Sequence[int]) -> None:
        if len(self._samples) >= SAMPLES_KEPT:
            self._samples_dropped += 1
            return
        _, started, ended, _, q, past, batch, *_ = row
        self._samples.append(
            PassSample(
                name=name,
                start_ns=started - self._origin_ns,
                host_ns=ended - started,
                q_len=_known(q),
                past_len=_known(past),
                batch_size=_known(batch),
            )
        )

    def finish(
        self,
        raw: RawRequest,
        call: Call,
        outcome: Outcome,
        model: ModelSpec,
        *,
        versions: tuple[tuple[str, str], ...] = (),
        device_key: str | None = None,
        breathe: Callable[[], None] = lambda: None,
    ) -> GenerationRecord:
        """The record of a finished request.

        Args:
            raw: What the generating thread handed over; what was not folded yet is taken.
            call: What was asked.
            outcome: What came back.
            model: What ran.
            versions: (name, version) of what ran.
            device_key: Identity of the device it ran on.
            breathe: Called between stretches of work, to let the interpreter serve others.

        Returns:
            A record whose ledger sums to its wall exactly.
        """
        request = raw.request
        tail_ns = self._walk_to_the_end(request, breathe)
        wall_ns = request.left_ns - request.entered_ns
        phases = tuple(phase.record(self._origin_ns, wait_known=self._stops > 0) for phase in self._phases.values())
        output_tokens, finish_reasons = outcome.count(call)
        ttft_ns, ttft_method = self._ttft(streaming=call.options.streaming)
        return GenerationRecord(
            request_id=secrets.token_hex(8),
            model=model,
            started_unix_ns=request.started_unix_ns,
            wall_ns=wall_ns,
            ttft_ns=ttft_ns,
            ttft_method=ttft_method,
            tpot_ns=_tpot(wall_ns, ttft_ns, outcome.output_len),
            itl_ns=self._gaps.sketch() if self._stops > 1 else None,
            batch_size=call.batch_size,
            input_tokens=call.input_tokens,
            output_tokens=output_tokens,
            output_len=outcome.output_len,
            finish_reasons=finish_reasons,
            options=call.options,
            phases=phases,
            ledger=self._ledger(phases, tail_ns, wall_ns),
            pass_samples=tuple(self._samples),
            pass_samples_dropped=self._samples_dropped,
            status="aborted" if raw.error_type else "ok",
            error_type=raw.error_type,
            notes=self._notes(),
            versions=versions,
            device_key=device_key,
        )

    def _walk_to_the_end(self, request: Request, breathe: Callable[[], None]) -> int:
        """Place what was not folded, then the rest of the request; the tail."""
        for index, event in enumerate(_in_time(*request.gathered())):
            self._place_event(event)
            if index % EVENTS_PER_BREATH == 0:
                breathe()
        self._flush_puts()
        if self._passes == 0:
            self._setup_ns += self._advance(request.returned_ns)
        self._close_cycle()
        if request.cpu_ns != UNREADABLE:
            self._read_cpu(request.returned_ns, request.cpu_ns)
        self._sum_closed()
        tail_ns = self._advance(request.returned_ns)
        self._self_ns += self._advance(request.left_ns)
        return tail_ns

    def _ledger(self, phases: tuple[PhaseRecord, ...], tail_ns: int, wall_ns: int) -> Ledger:
        walls = tuple((phase.name, phase.wall_ns) for phase in phases)
        placed_ns = self._setup_ns + sum(wall for _, wall in walls) + tail_ns + self._self_ns
        return Ledger(
            setup_ns=self._setup_ns,
            phases_ns=walls,
            tail_ns=tail_ns,
            self_ns=self._self_ns,
            residual_ns=wall_ns - placed_ns,
        )

    def _ttft(self, *, streaming: bool) -> tuple[int | None, Any]:
        if streaming and self._first_put_ns is not None:
            return self._first_put_ns - self._origin_ns, "streamer"
        if self._first_stop_ns is not None:
            return self._first_stop_ns - self._origin_ns, "stop_check"
        if self._second_pass_ns is not None:
            return self._second_pass_ns - self._origin_ns, "next_pass"
        return None, None

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._passes == 0:
            notes.append("no forward was seen: the model's hooks did not fire in this call")
        elif self._stops == 0:
            notes.append(
                "tokens are not marked in this mode: wait is inside select, the last selection inside tail, "
                "and TTFT is an upper bound"
            )
        if "unknown" in self._phases:
            notes.append("some passes fit no naming rule and stand under the phase unknown")
        return tuple(notes)


def _in_time(chunks: Iterable[Sequence[int]], marks: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, Any]]:
    """All events as (ended, kind, row or start), in the order in which they ended."""
    events: list[tuple[int, int, Any]] = [(ended, kind, started) for kind, started, ended in marks]
    for rows in chunks:
        for start in range(0, len(rows), Row.WIDTH):
            row = rows[start : start + Row.WIDTH]
            events.append((row[Row.LEFT], _PASS, row))
            if row[Row.STOP_ENDED]:
                events.append((row[Row.STOP_ENDED], Mark.STOP, row[Row.STOP_STARTED]))
    events.sort(key=_ENDED)
    return events


# The rule asks whether q is one and past is none; beyond that it does not look at their size. Passes are many and
# their facts few, so each combination is named once.
_TELLING = (UNREADABLE, 0, 1)
_MANY = 2


@lru_cache(maxsize=1024)
def _name(q: int, past: int, flags: int) -> PassName:
    facts = PassFacts(
        q=_known(q),
        past=_known(past),
        assistant=bool(flags & Flag.ASSISTANT),
        foreign=bool(flags & Flag.FOREIGN),
        first=bool(flags & Flag.FIRST),
        in_prefill=bool(flags & Flag.IN_PREFILL),
        cache=_cache_identity(flags),
        frame_cache=1 if flags & Flag.FRAME_CACHE else None,
        assisted=bool(flags & Flag.ASSISTED),
    )
    return name_pass(facts)


def _cache_identity(flags: int) -> int | None:
    if not flags & Flag.HAS_CACHE:
        return None
    return 1 if flags & Flag.SAME_CACHE else 2


def _known(value: int) -> int | None:
    return None if value == UNREADABLE else value


def _tpot(wall_ns: int, ttft_ns: int | None, output_len: int | None) -> float | None:
    if ttft_ns is None or output_len is None or output_len < 2:  # noqa: PLR2004 - one gap needs two tokens
        return None
    return (wall_ns - ttft_ns) / (output_len - 1)
