"""The device's side of a request's passes: written into their rows when it is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferscope.capture.frames import Flag, Row
from inferscope.meters.budget import BUDGET
from inferscope.meters.cuda import CudaEvents, cuda_devices_of
from inferscope.meters.device import DeviceMeter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.capture.frames import Request
    from inferscope.meters.budget import Budget
    from inferscope.meters.device import EventSource, Timed

__all__ = ["PassMeter", "meter_of"]

HOLD = 2
"""How many times the issuing of the last pass a plugged one is held up."""
LONGEST_HOLD_NS = 200_000_000


class PassMeter:
    """Stands on a request and its frames; `begin` and `end` are called around each forward, after and before stamps."""

    def __init__(
        self, request: Request, sources: Sequence[EventSource], *, plug_every: int = 0, budget: Budget | None = None
    ) -> None:
        """Time the passes of a request on these devices.

        Args:
            request: Whose rows are written.
            sources: One for each device.
            plug_every: Hold the device up before one pass in so many, until it has been issued; 0 for none.
            budget: What holding up is paid from; None where nobody asks what it costs.
        """
        self._budget = budget
        self._request = request
        self._meter = DeviceMeter(sources, request.clock.now_ns)
        self._plug_every = plug_every
        self._seen = 0

    def begin(self) -> None:
        """A forward begins. The host has waited for the device since the last one where a stop check was seen."""
        request = self._request
        row = request.row
        rows, last = request.rows, row - Row.WIDTH
        hold_ns = 0
        if self._plug_every:
            self._seen += 1
            if row and self._seen >= self._plug_every and (self._budget is None or self._budget.allows()):
                self._seen = 0
                hold_ns = min(HOLD * (rows[last + Row.ENDED] - rows[last + Row.STARTED]), LONGEST_HOLD_NS)
                if self._budget is not None:
                    self._budget.charge(hold_ns)
        self._meter.begin(synced=bool(row and rows[last + Row.STOP_ENDED]), hold_ns=hold_ns)

    def end(self) -> None:
        """A forward has been issued; its row is the one that will be written next."""
        request = self._request
        self._write(self._meter.end((request.rows, request.row)))

    def flush(self) -> None:
        """Rows are about to be looked at: write down what is known by now."""
        self._write(self._meter.resolve())

    def close(self) -> None:
        """The request is over."""
        self._write(self._meter.close())

    @staticmethod
    def _write(done: Sequence[Timed]) -> None:
        for (rows, row), started_ns, elapsed_ns, plugged in done:
            if plugged:
                rows[row + Row.FLAGS] |= Flag.PLUGGED
            rows[row + Row.DEVICE_STARTED] = started_ns
            rows[row + Row.DEVICE_NS] = max(elapsed_ns, 1)  # 0 stands for unknown


def meter_of(
    module: Any,  # noqa: ANN401 - any model
    request: Request,
    *,
    plug_every: int = 0,
) -> PassMeter | None:
    """What times the passes of a model on its devices; None where it lies on none that has events.

    Args:
        module: The model.
        request: Whose passes are timed.
        plug_every: See `PassMeter`.
    """
    devices = cuda_devices_of(module)
    if not devices:
        return None
    sources = [CudaEvents(device) for device in devices]
    return PassMeter(request, sources, plug_every=plug_every, budget=BUDGET)
