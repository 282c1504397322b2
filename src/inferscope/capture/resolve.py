"""Marks become a record: names, phases, the closed ledger. Runs after the call, and when the buffer is full.

Time is walked once, from the entry of `generate` to its exit, with a cursor: every nanosecond that the cursor
passes is given to exactly one place, so the ledger closes by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferscope.capture.busy import BusyTable
from inferscope.capture.census import Census
from inferscope.capture.contention import taken_by_others
from inferscope.capture.deep import PUT_OFF_NOTE
from inferscope.capture.frames import UNREADABLE, Flag, Mark, Row
from inferscope.capture.passes import ENCODE, PREFILL, PassName
from inferscope.capture.phases import Cycle, PhaseSums, Tally
from inferscope.capture.rows import PASS, device_side, in_time, name_of, readable
from inferscope.capture.sampled import Sampled
from inferscope.capture.speculation import Speculation
from inferscope.records import (
    GenerationRecord,
    Ledger,
    PassSample,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from inferscope.capture.calls import Call, Outcome
    from inferscope.capture.contention import Interval
    from inferscope.capture.frames import Request
    from inferscope.capture.requests import RawRequest, Where
    from inferscope.records import PhaseRecord
    from inferscope.specs import ModelSpec

__all__ = ["SAMPLES_KEPT", "Resolver"]

SAMPLES_KEPT = 4096
SPANS_KEPT = 1024
"""Separate stretches of one phase that are told apart; where there are more, the last ones are taken as one."""
EVENTS_PER_BREATH = 64
"""Events placed in one stretch, about 0.3 ms."""
_NOT_OWN = Flag.ENCODE | Flag.ASSISTANT | Flag.FOREIGN


class Resolver:
    """Walks the marks of one request; memory is bounded whatever the length."""

    def __init__(
        self,
        entered_ns: int,
        *,
        keep_samples: bool = False,
        known: BusyTable | None = None,
        census: Census | None = None,
    ) -> None:
        """Start at the entry of `generate`.

        Args:
            entered_ns: Clock reading there.
            keep_samples: Keep every pass, up to `SAMPLES_KEPT`.
            known: What passes of this model were measured at on the device; what this request measures is added.
            census: What passes of this model launch; what was counted in this request is added.
        """
        self._census = census or Census()
        self._known = known or BusyTable()
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
        self._own_passes = 0  # of the model itself: no encoder's, no draft's
        self._prompts = 0  # those of them with nothing behind them
        self._nested: list[Sequence[int]] = []
        self._encoder_len: int | None = None
        self._speculation = Speculation()
        self._first_stop_ns: int | None = None
        self._first_put_ns: int | None = None
        self._after_first_ns: int | None = None
        self._last_stop_ns: int | None = None
        self._gaps = Tally()
        self._cpu_read: tuple[int, int] | None = None
        self._closed: tuple[PhaseSums, Cycle] | None = None
        self._samples: list[PassSample] = []
        self._samples_dropped = 0
        self._batch_size: int | None = None
        self._spans: dict[str, list[Interval]] = {}
        self._sampled = Sampled()

    def begin(self, started_ns: int, sampled: Sampled | None = None) -> None:
        """The user's `generate` starts now: what came before was ours.

        Args:
            started_ns: Clock reading there.
            sampled: What is recorded and counted of its passes; more may come while it runs.
        """
        self._sampled = sampled or self._sampled
        self._self_ns += started_ns - self._cursor_ns
        self._cursor_ns = started_ns

    def feed(self, chunks: Iterable[Sequence[int]], marks: Iterable[tuple[int, int, int]]) -> None:
        """Take rows and marks; whatever ended first is placed first."""
        for event in in_time(chunks, marks):
            self._place_event(event)

    def _place_event(self, event: tuple[Any, ...]) -> None:
        kind = event[1]
        if kind == PASS:
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
        self._note_span(self._phase.name, self._cycle.start_ns)
        self._closed = (self._phase, self._cycle)
        self._cycle = None

    def _note_span(self, phase: str, start_ns: int) -> None:
        """Where a phase lay in time, for what happened beside it; stretches that touch are one."""
        spans = self._spans.setdefault(phase, [])
        if spans and (start_ns <= spans[-1][1] or len(spans) >= SPANS_KEPT):
            spans[-1] = (spans[-1][0], self._cursor_ns)
        else:
            spans.append((start_ns, self._cursor_ns))

    def _sum_closed(self) -> None:
        if self._closed is not None:
            phase, cycle = self._closed
            phase.add_cycle(cycle)
            self._closed = None

    def _pass(self, row: Sequence[int]) -> None:
        entered, started, ended, left, q, past, batch, logits, flags, cpu_ns, *_ = row
        flags &= ~Flag.PLUGGED
        self._flush_puts()
        if cpu_ns != UNREADABLE:
            self._read_cpu(entered, cpu_ns)
        if flags & Flag.NESTED:
            self._nested.append(row)  # it is placed with the pass that it ran in
            return
        name = name_of(q, past, flags)
        phase_name = name.phase or (self._phase.name if self._phase is not None else "unknown")
        stopped = self._cycle is None and self._stops > 0  # time since the last token is this pass's selection
        began_ns = self._cursor_ns if stopped else entered
        spent_before = 0
        if stopped:
            spent_before = self._advance(entered)
        elif self._cycle is not None and self._phase is not None and self._phase.name == ENCODE.phase:
            self._close_cycle()  # between encoder and prefill, the model is still being set up
            self._setup_ns += self._advance(entered)
        else:
            self._place("select", self._advance(entered))
            self._close_cycle()
        self._sum_closed()
        self._note_order(name, entered, row)
        phase = self._phase = self._phases.get(phase_name) or self._phases.setdefault(
            phase_name, PhaseSums(phase_name, began_ns)
        )
        cycle = self._cycle = Cycle(began_ns)
        cycle.device = device_side(phase_name, row, self._known)
        cycle.parts["select"] += spent_before
        self._self_ns += self._advance(started)
        inside_ns = self._advance(ended)
        encoders_ns = sum(inner[Row.LEFT] - inner[Row.ENTERED] for inner in self._nested)
        cycle.parts["issue"] += inside_ns - encoders_ns
        self._self_ns += self._advance(left)
        self._passes += 1
        phase.passes += 1
        phase.end_ns = self._cursor_ns
        phase.pass_ns.add(ended - started - encoders_ns)
        phase.add_work(q, past, batch, logits)
        self._sampled.place(phase, name.name, row)
        if self._keep_samples:
            self._sample(name.name, row)
        self._place_nested()

    def _note_order(self, name: PassName, entered: int, row: Sequence[int]) -> None:
        """What follows from where a pass stands among the others."""
        q, past, batch, flags = row[Row.Q], row[Row.PAST], row[Row.BATCH], row[Row.FLAGS]
        self._speculation.add(name, q, past, flags)
        if name is ENCODE:
            self._encoder_len = readable(q)
        if flags & _NOT_OWN:
            if self._own_passes and self._after_first_ns is None and name is not ENCODE:
                self._after_first_ns = entered
            return
        self._prompts += past == 0 and name.phase == PREFILL.phase
        if self._own_passes == 0:
            self._batch_size = readable(batch)
        elif self._after_first_ns is None and name.phase not in {None, PREFILL.phase}:
            self._after_first_ns = entered
        self._own_passes += 1

    def _place_nested(self) -> None:
        """Encoders that ran inside the pass just placed: their time is theirs, and no longer that pass's."""
        for row in self._nested:
            entered, started, ended, left, q, past, batch, logits, *_ = row
            phase = self._phases.get("encode") or self._phases.setdefault("encode", PhaseSums("encode", entered))
            phase.inside = True
            cycle = Cycle(entered)
            cycle.parts["issue"] = ended - started
            phase.add_cycle(cycle)
            phase.passes += 1
            phase.end_ns = ended
            phase.pass_ns.add(ended - started)
            phase.add_work(q, past, batch, logits)
            self._self_ns += left - entered - (ended - started)
            self._encoder_len = readable(q)
            if self._keep_samples:
                self._sample(ENCODE.name, row)
        self._nested.clear()

    def _read_cpu(self, at_ns: int, cpu_ns: int) -> None:
        """The part of the time since the last reading in which the thread did not run belongs to the last pass."""
        cycle = self._cycle if self._closed is None else self._closed[1]
        if self._cpu_read is not None and cycle is not None:
            cycle.parts["offcpu"] += max(0, at_ns - self._cpu_read[0] - (cpu_ns - self._cpu_read[1]))
        self._cpu_read = (at_ns, cpu_ns)

    def _stop(self, started: int, ended: int) -> None:
        puts = [put for put in self._pending_puts if put[0] >= started]
        self._pending_puts = [put for put in self._pending_puts if put[0] < started]
        self._flush_puts()  # of a loop that hands tokens over before it asks whether it is over
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
        device = device_side(name, row, None)
        self._samples.append(
            PassSample(
                name=name,
                start_ns=started - self._origin_ns,
                host_ns=ended - started,
                q_len=readable(q),
                past_len=readable(past),
                batch_size=readable(batch),
                device=None if device is None else device.time(self._origin_ns),
            )
        )

    def finish(
        self,
        raw: RawRequest,
        call: Call,
        outcome: Outcome,
        model: ModelSpec,
        where: Where,
        breathe: Callable[[], None] = lambda: None,
    ) -> GenerationRecord:
        """The record of a finished request.

        Args:
            raw: What the generating thread handed over; what was not folded yet is taken.
            call: What was asked.
            outcome: What came back.
            model: What ran.
            where: And on what.
            breathe: Called between stretches of work, to let the interpreter serve others.

        Returns:
            A record whose ledger sums to its wall exactly.
        """
        request = raw.request
        tail_ns = self._walk_to_the_end(request, breathe)
        wall_ns = request.left_ns - request.entered_ns
        for phase in self._phases.values():
            phase.deep.read(self._known, breathe)
        for window in request.windows:  # of passes that were never written down
            window.discard()
        signed = self._sampled.settle(self._census, self._phases.values(), request, model)
        away_ns = {name: max(0, phase.parts["offcpu"] - phase.parts["wait"]) for name, phase in self._phases.items()}
        contended_ns, contended_with = taken_by_others(raw, self._spans, away_ns)
        phases = tuple(
            phase.record(
                self._origin_ns,
                wait_known=self._stops > 0,
                contended_ns=contended_ns.get(phase.name),
                known=self._known,
                encoder_len=self._encoder_len,
                steps=self._census.steps({signed(step): count for step, count in phase.steps.items()}),
            )
            for phase in self._phases.values()
        )
        counts = self._counts(raw, call, outcome, phases)
        ttft_ns, ttft_method = self._ttft(streaming=call.options.streaming)
        return GenerationRecord(
            request_id=raw.request_id,
            model=model,
            started_unix_ns=request.started_unix_ns,
            wall_ns=wall_ns,
            ttft_ns=ttft_ns,
            ttft_method=ttft_method,
            tpot_ns=_tpot(wall_ns, ttft_ns, counts["output_len"]),
            itl_ns=self._gaps.sketch() if self._stops > 1 else None,
            options=call.options,
            phases=phases,
            ledger=self._ledger(phases, tail_ns, wall_ns),
            pass_samples=tuple(self._samples),
            pass_samples_dropped=self._samples_dropped,
            status="aborted" if raw.error_type else "ok",
            error_type=raw.error_type,
            notes=self._notes(raw, phases),
            contended_with=contended_with,
            process=raw.process(),
            **counts,
            **where._asdict(),
        )

    def _counts(self, raw: RawRequest, call: Call, outcome: Outcome, phases: tuple[PhaseRecord, ...]) -> dict[str, Any]:
        """Sequences and tokens, as fields of a record; a hand-written loop says nothing of them but by its forwards."""
        drafted_tokens, accepted_tokens = self._speculation.counted(
            outcome.prefix_len, None if outcome.joined else outcome.output_len
        )
        batch_size, input_tokens, output_len = call.batch_size, call.input_tokens, outcome.output_len
        output_tokens, finish_reasons = outcome.count(call)
        if raw.loop:
            batch_size, input_tokens, output_len = self._loop_tokens(phases)
            output_tokens = output_len * batch_size if output_len and batch_size else None
        return {
            "batch_size": batch_size,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "output_len": output_len,
            "finish_reasons": finish_reasons,
            "padding_tokens": call.padding_tokens,
            "drafted_tokens": drafted_tokens,
            "accepted_tokens": accepted_tokens,
            "output_digest": outcome.digest() if raw.keep_digest else None,
        }

    def _walk_to_the_end(self, request: Request, breathe: Callable[[], None]) -> int:
        """Place what was not folded, then the rest of the request; the tail."""
        for index, event in enumerate(in_time(*request.gathered())):
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
        if self._after_first_ns is not None:
            return self._after_first_ns - self._origin_ns, "next_pass"
        return None, None

    def _loop_tokens(self, phases: tuple[PhaseRecord, ...]) -> tuple[int | None, int | None, int | None]:
        """Sequences, prompt tokens and new tokens per sequence of a hand-written loop, as its forwards tell them."""
        by_name = {phase.name: phase for phase in phases}
        prefill, decode = by_name.get("prefill"), by_name.get("decode")
        output_len = None
        if prefill is not None and set(by_name) <= {"prefill", "decode"}:
            passes = decode.passes if decode is not None else 0
            single = decode is None or decode.tokens == passes * (self._batch_size or 0)
            # Several prompts are several generations, of which nothing says how many tokens each gave.
            output_len = passes + 1 if single and self._prompts <= 1 else None
        return self._batch_size, None if prefill is None else prefill.tokens, output_len

    def _notes(self, raw: RawRequest, phases: tuple[PhaseRecord, ...]) -> tuple[str, ...]:
        notes = []
        if raw.request.put_off > 0 and not any(phase.deep for phase in phases):
            notes.append(PUT_OFF_NOTE)
        if raw.loop:
            notes.extend(_loop_notes(raw, phases))
        if self._passes == 0:
            notes.append("no forward was seen: its forwards did not pass through the model that is traced")
        elif self._stops == 0:
            notes.append(
                "tokens are not marked in this mode: wait is inside select, the last selection inside tail, "
                "and TTFT is an upper bound"
            )
        if "unknown" in self._phases:
            notes.append("some passes fit no naming rule and stand under the phase unknown")
        return tuple(notes)


def _loop_notes(raw: RawRequest, phases: tuple[PhaseRecord, ...]) -> Iterator[str]:
    """What is not known of a hand-written loop."""
    yield "a hand-written loop: its tokens are derived from its forwards, one from each and padding included"
    if any(phase.sync_passes for phase in phases):
        yield "a hand-written loop: waits for the device were looked for within forwards alone"
    if any(receiver.counters for receiver, _ in raw.begun):
        yield "a hand-written loop: nothing was counted at the driver, for nobody says when to end that"


def _tpot(wall_ns: int, ttft_ns: int | None, output_len: int | None) -> float | None:
    if ttft_ns is None or output_len is None or output_len < 2:  # noqa: PLR2004 - one gap needs two tokens
        return None
    return (wall_ns - ttft_ns) / (output_len - 1)
