"""A request on a device twin: what would be written down of one on a GPU, made where there is none.

    run = TwinRequest()
    run.forward(lambda: run.issue([(8_000, 20_000)] * 200), q=64)  # 200 launches: 8 us to issue, 20 us of work each
    run.select()
    record = run.record(model_spec)

Passes go the way of every request: through the wrapper of a model's call, its device meter and the record's maker.
"""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from inferscope.capture.calls import hold
from inferscope.capture.device import PassMeter
from inferscope.capture.forward import watched
from inferscope.capture.frames import CURRENT, Frame, Request, Row
from inferscope.capture.requests import RawRequest
from inferscope.specs import ModelSpec
from inferscope.testing.twin import DeviceTwin, FakeClock, TwinEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.meters.device import EventSource
    from inferscope.records import GenerationRecord
    from inferscope.testing.twin import TwinStream

__all__ = ["TwinModel", "TwinRequest"]

_SELECTION = ((4_000, 2_000),)


class TwinModel:
    """Issues to a twin what a course says, pass by pass."""


class _Cache:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def get_seq_length(self) -> int:
        return self.tokens


class TwinRequest:
    """A request on a twin: passes of (issue, work) launches, selection after each, waiting or not."""

    def __init__(
        self,
        *,
        plug_every: int = 0,
        model: object | None = None,
        batch_size: int = 1,
        cached: int = 0,
        **twin: Any,  # noqa: ANN401 - options of the twin
    ) -> None:
        """Begin a request.

        Args:
            plug_every: Hold the device up before one pass in so many; 0 for none.
            model: Stands for the model; what is learnt of its passes is kept with it.
            batch_size: Sequences in each pass.
            cached: Tokens in the cache before the first pass.
            **twin: Options of `DeviceTwin`.
        """
        self.clock = FakeClock()
        self.twin = DeviceTwin(self.clock, **twin)
        self.events = TwinEvents(self.twin)
        self.model = model or TwinModel()
        self.cache = _Cache(cached)
        self.faults: list[BaseException] = []
        self.request = Request(entered_ns=self.clock.now_ns(), started_unix_ns=1, clock=self.clock)
        self.request.meter = PassMeter(self.request, [cast("EventSource", self.events)], plug_every=plug_every)
        self.raw = RawRequest(self.request, hold((), {}), weakref.ref(self.model), request_id="0" * 16)
        self.raw.keep_samples = True
        self.frame = Frame(self.request, self.model)
        self.seen = 0
        self._batch_size = batch_size
        below = SimpleNamespace(__call__=lambda _self, *_args, body, **_kwargs: body())
        self.call = watched(below, lambda: False, lambda *_: None, lambda _frame, error: self.faults.append(error))

    def forward(self, body: Callable[[], object], q: int = 1) -> None:
        """One pass.

        Args:
            body: Issues its launches.
            q: Tokens of each sequence.
        """
        self.twin.label = self.seen
        self.seen += 1
        token = CURRENT.set(self.frame)
        try:
            ids = SimpleNamespace(shape=(self._batch_size, q))
            self.call(self.model, input_ids=ids, past_key_values=self.cache, body=body)
        finally:
            CURRENT.reset(token)
        self.cache.tokens += q
        self.twin.label = "select"

    def issue(self, launches: Iterable[tuple[int, int]], stream: TwinStream | None = None) -> None:
        """Launch kernels: (nanoseconds the host takes, nanoseconds the device works) each."""
        for issue_ns, work_ns in launches:
            self.twin.launch(work_ns, issue_ns=issue_ns, stream=stream)

    def select(self, launches: Iterable[tuple[int, int]] = _SELECTION, *, synced: bool = True) -> None:
        """Choose a token; as a rule the host waits for it."""
        self.issue(launches)
        if synced:
            rows, row = self.request.rows, self.request.row
            started = self.clock.now_ns()
            self.twin.synchronize()
            if row:
                rows[row - Row.WIDTH + Row.STOP_STARTED], rows[row - Row.WIDTH + Row.STOP_ENDED] = (
                    started,
                    self.clock.now_ns(),
                )

    def record(self, spec: ModelSpec | None = None) -> GenerationRecord:
        """End the request, and make its record.

        Args:
            spec: What ran; None for a model of which nothing is known.

        Raises:
            RuntimeError: The passes could not be recorded, or the record does not add up.
        """
        self.twin.synchronize()
        self.request.returned_ns = self.clock.now_ns()
        if self.request.meter is not None:
            self.request.meter.close()
        self.request.left_ns = self.clock.now_ns()
        if self.faults:
            raise RuntimeError("a pass on the twin could not be recorded") from self.faults[0]
        record = self.raw.record(spec or ModelSpec(name="model", model_class="Model"))
        if record.ledger.total_ns != record.wall_ns:
            raise RuntimeError("the ledger of a request on the twin does not close")
        return record
