"""A pass that several requests share: which part of its time is whose. Pure arithmetic on integers.

Each request's time is walked with a cursor of its own, from the moment it was added to the moment it ended. Every
nanosecond the cursor passes goes to exactly one place, so that the ledger closes by construction: to the request, in
the proportion of its tokens, or to `shared` where it was the turn of others. What the requests of a pass are charged
for the forward adds up to the forward, to the nanosecond.

The loop writes one row of integers per pass, whoever is in it; requests read the rows of their time when they have
ended, on another thread.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from inferscope.capture.passes import PassFacts, PassName, Slot, name_pass, name_slot
from inferscope.capture.phases import Cycle, PhaseSums, Tally
from inferscope.capture.requests import Finished
from inferscope.capture.resolve import SAMPLES_KEPT
from inferscope.records import GenerationRecord, Ledger, PassSample, RequestOptions

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterator, Sequence

    from inferscope.capture.requests import Begun, Where
    from inferscope.records import PhaseRecord
    from inferscope.specs import ModelSpec

__all__ = ["SharedCycle", "SharedRequest"]

SHARED_NOTE = (
    "continuous batching: of each pass this request is charged its part by tokens; the rest of the pass is in shared"
)
UNSAMPLED_NOTE = (
    "continuous batching: a pass is nobody's alone, so that none was recorded, looked at for waits or counted at the "
    "driver"
)
ROWS_PER_BREATH = 32
"""Rows read in one stretch, about 0.3 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCycle:
    """One pass and all that belongs to it, as the loop that runs it sees it.

    Attributes:
        scheduled_ns: When the loop began to prepare it.
        pass_ns: When its forward was about to be run.
        start_ns: Where the cycle before ended.
        end_ns: Where this one ends: its tokens are taken in.
        forward_ns: When the forward began, or `pass_ns` where the forward itself was not seen.
        issue_ns: Inside forwards.
        wait_ns: Inside reads of the tokens on the host.
        own_gap_ns: inferscope's own time after the cycle before.
        own_setup_ns: The same between `scheduled_ns` and `pass_ns`.
        own_ns: The same from there on.
        offcpu_ns: Time in which the loop's thread did not run.
        gc_ns: Pauses of Python's garbage collector on it.
        failed: Whether no tokens came out of it (0 or 1).
        slots: The requests in the pass, also those that are not observed.
    """

    scheduled_ns: int
    pass_ns: int
    start_ns: int
    end_ns: int
    forward_ns: int
    issue_ns: int
    wait_ns: int = 0
    own_gap_ns: int = 0
    own_setup_ns: int = 0
    own_ns: int = 0
    offcpu_ns: int = 0
    gc_ns: int = 0
    failed: int = 0
    slots: tuple[Slot, ...] = ()

    @property
    def tokens(self) -> int:
        """New tokens of all requests in the pass."""
        return sum(slot.tokens for slot in self.slots)

    def row(self) -> list[int]:
        """The same as integers, for a log; the loop itself writes them without making a cycle first."""
        times: list[int] = [getattr(self, name) for name in HEAD]
        return [*times, len(self.slots), *(value for slot in self.slots for value in slot)]


HEAD = tuple(field.name for field in fields(SharedCycle) if field.name != "slots")
"""A row: these, the number of slots, and the slots one after the other."""
_COUNT = len(HEAD)
_SLOTS = _COUNT + 1
_WIDTH = len(Slot._fields)
_NUMBER = Slot._fields.index("number")


class SharedRequest(Finished):
    """A request of continuous batching while it runs, and then what its record is made from.

    Attributes:
        request_id: 16 hexadecimal digits.
        begun: Who takes the request when it has ended, each with what it began with.
        module: The model.
        number: What rows of its loop know it by.
        entered_ns: When it was added.
        started_unix_ns: Wall-clock time of the same moment.
        own_ns: inferscope's own time while it was added.
        error_type: Why it did not come to its end; None where it did.
        output_tokens: Tokens it generated; None where only its rows tell.
        finish_reason: "length" or "stop"; None where unknown.
        notes: What is to be said beside the numbers.
        logs: Rows of its time that it has not read yet; empty before its first pass.
    """

    def __init__(
        self,
        *,
        entered_ns: int,
        started_unix_ns: int,
        prompt_len: int,
        module: weakref.ref[Any],
        number: int = 0,
        request_id: str = "",
        begun: tuple[tuple[Any, Begun], ...] = (),
        options: RequestOptions | None = None,
    ) -> None:
        """Begin a request."""
        super().__init__(request_id, module)
        self.begun = begun
        self.number = number
        self.entered_ns = entered_ns
        self.started_unix_ns = started_unix_ns
        self.own_ns = 0
        self.error_type: str | None = None
        self.output_tokens: int | None = None
        self.finish_reason: str | None = None
        self.notes: list[str] = []
        self.logs: list[Sequence[int]] = []
        self._prompt_len = prompt_len
        self._options = options or RequestOptions()
        self._keep_samples = any(receiver.keep_samples for receiver, _ in begun)
        self._asked = any(receiver.deep_every or receiver.counters for receiver, _ in begun)
        self._held_bytes = 0
        self._last_log = 0
        self._end_ns = entered_ns
        self._walk: _Walk | None = None

    def finish(self, at_ns: int, *, sharers: int = 1) -> None:
        """The request ends: what the loop writes from now on is not its time.

        Args:
            at_ns: When.
            sharers: Requests of the loop that keep the same rows, about.
        """
        self._end_ns = max(at_ns, self.entered_ns)
        self._last_log = len(self.logs[-1]) if self.logs else 0
        self._held_bytes = 8 * sum(map(len, self.logs)) // sharers

    @property
    def held_bytes(self) -> int:
        """Memory it keeps until its record has been made: its part of the rows."""
        return self._held_bytes

    def fold(self) -> None:
        """Read the oldest rows now, so that they need not be kept: of a request of thousands of passes."""
        for _ in self._walking().read(self.logs.pop(0)):
            pass

    def _made(self, model: ModelSpec, where: Where, breathe: Callable[[], None]) -> GenerationRecord:
        walk = self._walking()
        logs, self.logs = self.logs, []
        if logs:
            logs[-1] = logs[-1][: self._last_log]
        for log in logs:
            for index, _ in enumerate(walk.read(log)):
                if index % ROWS_PER_BREATH == 0:
                    breathe()
        walk.finish(self._end_ns)
        self._walk = None
        return self._as_walked(walk, model, where)

    def _walking(self) -> _Walk:
        if self._walk is None:
            self._walk = _Walk(self.number, self.entered_ns, self.own_ns, self._prompt_len, samples=self._keep_samples)
        return self._walk

    def _as_walked(self, walk: _Walk, model: ModelSpec, where: Where) -> GenerationRecord:
        wall_ns = self._end_ns - self.entered_ns
        phases = walk.phases()
        tokens = walk.tokens if self.output_tokens is None else self.output_tokens
        ttft_ns = None if walk.first_token_ns is None else walk.first_token_ns - self.entered_ns
        several = ttft_ns is not None and tokens > 1
        return GenerationRecord(
            request_id=self.request_id,
            model=model,
            started_unix_ns=self.started_unix_ns,
            wall_ns=wall_ns,
            ttft_ns=ttft_ns,
            ttft_method=None if ttft_ns is None else "update",
            tpot_ns=(wall_ns - (ttft_ns or 0)) / (tokens - 1) if several else None,
            itl_ns=walk.gaps.sketch() if several else None,
            batch_size=1,
            input_tokens=self._prompt_len,
            output_tokens=tokens,
            output_len=tokens,
            finish_reasons=None if self.finish_reason is None else (self.finish_reason,),
            options=self._options,
            phases=phases,
            ledger=walk.ledger(phases, wall_ns),
            pass_samples=tuple(walk.samples),
            pass_samples_dropped=walk.samples_dropped,
            status="aborted" if self.error_type else "ok",
            error_type=self.error_type,
            notes=(SHARED_NOTE, *([UNSAMPLED_NOTE] if self._asked else ()), *walk.notes(), *self.notes),
            **where._asdict(),
        )


class _Walk:
    """Through the time of one request."""

    def __init__(self, number: int, entered_ns: int, own_ns: int, prompt_len: int, *, samples: bool) -> None:
        self.tokens = 0
        self.first_token_ns: int | None = None
        self.gaps = Tally()
        self.samples: list[PassSample] = []
        self.samples_dropped = 0
        self._number = number
        self._origin_ns = self._cursor_ns = entered_ns
        self._own_ns = own_ns
        self._keep_samples = samples
        self._queue_ns = self._setup_ns = self._tail_ns = 0
        self._cached = self._recomputed = 0
        self._prompt_len = prompt_len
        self._phases: dict[str, PhaseSums] = {}
        self._last_token_ns: int | None = None

    def read(self, log: Sequence[int]) -> Iterator[None]:
        """Account for the passes of a log in which the request was; one turn per row."""
        at, end = 0, len(log)
        while at < end:
            slots_at = at + _SLOTS
            row_end = slots_at + _WIDTH * log[at + _COUNT]
            numbers = log[slots_at + _NUMBER : row_end : _WIDTH]
            if self._number in numbers:
                slots = tuple(Slot(*log[index : index + _WIDTH]) for index in range(slots_at, row_end, _WIDTH))
                cycle = SharedCycle(**dict(zip(HEAD, log[at : at + _COUNT], strict=True)), slots=slots)
                self._take_part(cycle, list(numbers).index(self._number))
            at = row_end
            yield

    def _take_part(self, cycle: SharedCycle, index: int) -> None:
        """Account for a pass the request was in, at a place among its slots."""
        slot = cycle.slots[index]
        before = sum(other.tokens for other in cycle.slots[:index])
        whole = name_pass(PassFacts(q=None, past=None, slots=cycle.slots))
        first = not self._phases
        own_ns = cycle.own_ns
        if first:
            self._admit(cycle, slot)
        else:
            own_ns += cycle.own_gap_ns + cycle.own_setup_ns
        name = name_slot(slot, whole, first=first)
        if slot.prompt_len > self._prompt_len:  # it has grown by what was generated, and begins anew
            self._prompt_len = slot.prompt_len
            self._recomputed += 1
        self._sum(cycle, slot, name, (before, before + slot.tokens), own_ns, mixed=whole.phase == "mixed")
        if slot.yields and not cycle.failed:
            self._token(cycle.end_ns)

    def _admit(self, cycle: SharedCycle, slot: Slot) -> None:
        """The queue ends where the first pass is prepared, and the setup where it is run."""
        queue_end_ns = max(self._cursor_ns, min(cycle.scheduled_ns, cycle.pass_ns))
        pass_ns = max(queue_end_ns, cycle.pass_ns)
        self._end_queue(queue_end_ns)
        own_setup_ns = min(cycle.own_setup_ns, pass_ns - queue_end_ns)
        self._setup_ns = pass_ns - queue_end_ns - own_setup_ns
        self._own_ns += own_setup_ns
        self._cursor_ns = pass_ns
        self._cached = slot.past

    def _end_queue(self, at_ns: int) -> None:
        self._own_ns = min(self._own_ns, at_ns - self._cursor_ns)
        self._queue_ns = at_ns - self._cursor_ns - self._own_ns
        self._cursor_ns = at_ns

    def _sum(
        self, cycle: SharedCycle, slot: Slot, name: PassName, part: tuple[int, int], own_ns: int, *, mixed: bool
    ) -> None:
        began_ns = self._cursor_ns
        phase_name = name.phase or "unknown"
        phase = self._phases.get(phase_name)
        if phase is None:
            phase = self._phases[phase_name] = PhaseSums(phase_name, began_ns)
            phase.mixed = 0
        phase.add_cycle(Cycle(began_ns, self._parts(cycle, part, own_ns)))
        phase.end_ns = self._cursor_ns
        phase.passes += 1
        phase.pass_ns.add(cycle.issue_ns)
        phase.tokens = (phase.tokens or 0) + slot.tokens
        phase.mixed = (phase.mixed or 0) + mixed
        if self._keep_samples:
            self._sample(cycle, slot, name.name)

    def _parts(self, cycle: SharedCycle, part: tuple[int, int], own_ns: int) -> dict[str, int]:
        """Give the time up to the end of the cycle away, and move the cursor there."""
        held_ns = max(0, min(cycle.start_ns, cycle.end_ns) - self._cursor_ns)
        left_ns = max(0, cycle.end_ns - self._cursor_ns) - held_ns
        self._cursor_ns = max(self._cursor_ns, cycle.end_ns)
        own_ns = min(left_ns, own_ns)
        issue_ns = min(left_ns - own_ns, cycle.issue_ns)
        wait_ns = min(left_ns - own_ns - issue_ns, cycle.wait_ns)
        times = {"issue": issue_ns, "select": left_ns - own_ns - issue_ns - wait_ns, "wait": wait_ns, "deliver": 0}
        before, upto = part
        whole = cycle.tokens
        parts = {name: _share(time_ns, before, upto, whole) for name, time_ns in times.items()}
        parts["shared"] = held_ns + sum(times.values()) - sum(parts.values())
        parts["offcpu"] = _share(min(cycle.offcpu_ns, left_ns), before, upto, whole)
        parts["gc"] = _share(min(cycle.gc_ns, left_ns), before, upto, whole)
        self._own_ns += own_ns
        return parts

    def _token(self, at_ns: int) -> None:
        self.tokens += 1
        if self.first_token_ns is None:
            self.first_token_ns = at_ns
        if self._last_token_ns is not None:
            self.gaps.add(at_ns - self._last_token_ns)
        self._last_token_ns = at_ns

    def _sample(self, cycle: SharedCycle, slot: Slot, name: str) -> None:
        if len(self.samples) >= SAMPLES_KEPT:
            self.samples_dropped += 1
            return
        self.samples.append(
            PassSample(
                name=name,
                start_ns=cycle.forward_ns - self._origin_ns,
                host_ns=cycle.issue_ns,
                q_len=slot.tokens,
                past_len=slot.past,
                batch_size=len(cycle.slots),
                pass_tokens=cycle.tokens,
            )
        )

    def finish(self, at_ns: int) -> None:
        """The request ends: what has passed since its last pass is its tail, or its queue where it had none."""
        at_ns = max(at_ns, self._cursor_ns)
        if self._phases:
            self._tail_ns = at_ns - self._cursor_ns
            self._cursor_ns = at_ns
        else:
            self._end_queue(at_ns)

    def phases(self) -> tuple[PhaseRecord, ...]:
        """All phases, in time order."""
        return tuple(phase.record(self._origin_ns, wait_known=True) for phase in self._phases.values())

    def ledger(self, phases: tuple[PhaseRecord, ...], wall_ns: int) -> Ledger:
        """The closed ledger of a finished walk."""
        walls = tuple((phase.name, phase.wall_ns) for phase in phases)
        placed_ns = self._queue_ns + self._setup_ns + sum(wall for _, wall in walls) + self._tail_ns + self._own_ns
        return Ledger(
            queue_ns=self._queue_ns,
            setup_ns=self._setup_ns,
            phases_ns=walls,
            tail_ns=self._tail_ns,
            self_ns=self._own_ns,
            residual_ns=wall_ns - placed_ns,
        )

    def notes(self) -> Iterator[str]:
        """What the numbers alone do not say."""
        if self._cached:
            yield f"{self._cached} prompt tokens were found in the cache and not computed"
        if self._recomputed:
            yield f"its cache was given up {self._recomputed} times, and what it held was computed again, as prefill"


def _share(time_ns: int, before: int, upto: int, whole: int) -> int:
    """The part of a time that belongs to tokens `before`..`upto` of `whole`; the parts add up to the time."""
    return time_ns * upto // whole - time_ns * before // whole if whole > 0 else 0
