"""A request from the moment it begins to its record: who takes it, and what its thread leaves behind.

Everything that takes time is done when the record is asked for, elsewhere: resolve.py walks the marks of a `generate`,
shares.py the rows of continuous batching.
"""

from __future__ import annotations

import itertools
import secrets
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from inferscope.capture.busy import busy_of
from inferscope.capture.calls import read_call, read_result
from inferscope.capture.census import census_of
from inferscope.capture.contention import TRAFFIC
from inferscope.capture.process import compiled_so_far, process_state, standing
from inferscope.capture.resolve import Resolver
from inferscope.capture.sampled import Sampled

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterable, Sequence

    from inferscope.capture.calls import Kept, RawCall
    from inferscope.capture.frames import Request
    from inferscope.records import GenerationRecord, ProcessState
    from inferscope.specs import ModelSpec

__all__ = ["Begun", "Finished", "RawRequest", "Where", "new_request_id", "restart_request_ids"]

_run = secrets.token_hex(4)
_numbers = itertools.count(1)


def new_request_id() -> str:
    """Sixteen hexadecimal digits, eight of this process and eight that count."""
    return f"{_run}{next(_numbers) & 0xFFFFFFFF:08x}"


def restart_request_ids() -> None:
    """A forked child must not count on where its parent does."""
    global _run, _numbers
    _run, _numbers = secrets.token_hex(4), itertools.count(1)


class Begun(NamedTuple):
    """What a receiver began a request with.

    Attributes:
        context: The OpenTelemetry context the request belongs to, opaque here.
        span_ids: Trace id and span id of its span; None where it has none.
        claims: Whether those who observe every model leave telling of it to this receiver.
        tells: Whether this receiver tells of it, as against only keeping it.
    """

    context: object | None = None
    span_ids: tuple[int, int] | None = None
    claims: bool = True
    tells: bool = True


class Where(NamedTuple):
    """On what a request ran, as its record says it.

    Attributes:
        versions: (name, version) of what ran.
        device_key: Identity of the device it ran on.
        rank: Of this process among those that run the model together.
    """

    versions: tuple[tuple[str, str], ...] = ()
    device_key: str | None = None
    rank: int | None = None


class Finished(ABC):
    """A request that has ended, of `generate` or of continuous batching: what a receiver takes.

    Attributes:
        request_id: 16 hexadecimal digits.
        module: The model.
    """

    __slots__ = ("_record", "module", "request_id")

    def __init__(self, request_id: str, module: weakref.ref[Any]) -> None:
        """Begin a request."""
        self.request_id = request_id
        self.module = module
        self._record: GenerationRecord | None = None

    def record(
        self,
        model: ModelSpec,
        *,
        versions: tuple[tuple[str, str], ...] = (),
        device_key: str | None = None,
        rank: int | None = None,
        breathe: Callable[[], None] = lambda: None,
    ) -> GenerationRecord:
        """The record; made once, however many sessions ask for it. Call from one thread.

        Args:
            model: What ran.
            versions: As in `Where`.
            device_key: As there.
            rank: As there.
            breathe: Called between stretches of work, to let the interpreter serve others.
        """
        if self._record is None:
            self._record = self._made(model, Where(versions, device_key, rank), breathe)
        return self._record

    @property
    def sampled_ns(self) -> int:
        """Own time between the stamps that went into what is sampled."""
        return 0

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Memory it keeps until its record has been made."""

    @abstractmethod
    def _made(self, model: ModelSpec, where: Where, breathe: Callable[[], None]) -> GenerationRecord:
        """Make the record, and let go of what it was made from."""


class RawRequest(Finished):
    """A request as the generating thread leaves it; everything that takes time is done by `record`, elsewhere.

    Attributes:
        request: Its rows, marks and stamps.
        call: What was asked, unread.
        module: The model.
        result_shape: Rows and tokens of what came back.
        result: The tokens, unread.
        error_type: Class name of the exception that left `generate`.
        keep_samples: Whether somebody wants every pass.
        keep_digest: Whether somebody wants a digest of the output.
        request_id: 16 hexadecimal digits.
        begun: Who takes the request when it has ended, each with what it began with.
        span_ids: Trace and span of the request; None where it has no span.
        loop: Whether it is a hand-written loop, where nobody says what was asked and what came back.
        settled: Whether its record has been made.
    """

    __slots__ = (
        "__weakref__",
        "_compiled",
        "_resolver",
        "_standing",
        "begun",
        "call",
        "error_type",
        "keep_digest",
        "keep_samples",
        "loop",
        "request",
        "result",
        "result_shape",
        "settled",
        "span_ids",
    )

    def __init__(
        self,
        request: Request,
        call: RawCall,
        module: weakref.ref[Any],
        *,
        request_id: str = "",
        begun: tuple[tuple[Any, Begun], ...] = (),
    ) -> None:
        """Begin a request."""
        super().__init__(request_id or new_request_id(), module)
        self.request = request
        self.call = call
        self.keep_samples = any(receiver.keep_samples for receiver, _ in begun)
        self.keep_digest = any(getattr(receiver, "keep_digest", False) for receiver, _ in begun)
        self.result_shape: tuple[int, int] | None = None
        self.result: Kept | None = None
        self.error_type: str | None = None
        self.begun = begun
        self.span_ids = next((each.span_ids for _, each in begun if each.span_ids is not None), None)
        self.settled = False
        self.loop = False
        self._standing = standing()
        self._compiled: tuple[int, int] | None = None
        self._resolver: Resolver | None = None
        request.fold = self._fold

    @property
    def held_bytes(self) -> int:
        """Memory it keeps until its record has been made."""
        return self.request.held_bytes

    @property
    def sampled_ns(self) -> int:
        """Own time between the stamps that went into what is sampled."""
        return self.request.sampled_ns

    def end_in_process(self) -> None:
        """Note what the compiler has done by now."""
        self._compiled = compiled_so_far()

    def process(self) -> ProcessState:
        """The process while it ran."""
        return process_state(self._standing, self._compiled)

    def _made(self, model: ModelSpec, where: Where, breathe: Callable[[], None]) -> GenerationRecord:
        call = read_call(self.module(), self.call)
        outcome = read_result(call, self.result_shape, self.result, inner=self.request.inner)
        record = self._begun().finish(self, call, outcome, model, where, breathe)
        self.result = None
        TRAFFIC.settled(self)
        # The request folds into this object: let go of each other, or only a collection would free them.
        self._resolver = None
        self.request.fold = lambda _chunks, _marks: None
        return record

    def _begun(self) -> Resolver:
        if self._resolver is None:
            known = busy_of(self.module())
            request = self.request
            sampled = Sampled(request.windows, request.sync_windows, request.counts)
            self._resolver = Resolver(
                request.entered_ns,
                keep_samples=self.keep_samples,
                known=known,
                census=census_of(self.module()),
            )
            self._resolver.begin(request.started_ns, sampled)
        return self._resolver

    def _fold(self, chunks: Iterable[Sequence[int]], marks: Iterable[tuple[int, int, int]]) -> None:
        self._begun().feed(chunks, marks)
