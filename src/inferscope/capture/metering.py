"""Which meters work within the forwards of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.capture.deep import DeepMeter, NestedMeters
from inferscope.capture.device import meter_of
from inferscope.capture.driver_counts import counting_of
from inferscope.capture.ranges import RangeMeter
from inferscope.meters import counters
from inferscope.meters.cuda import cuda_devices_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from inferscope.capture.frames import ForwardMeter, Request
    from inferscope.capture.receivers import Receiver
    from inferscope.meters.counters import Counter

__all__ = ["driver_counter", "request_meter"]


def request_meter(
    instance: torch.nn.Module, request: Request, takers: Sequence[Receiver], *, loop: bool
) -> ForwardMeter | None:
    """What measures within the forwards of a request, and puts ranges around them; None where nothing does."""
    ranges = next((receiver.ranges for receiver in takers if receiver.ranges is not None), None)
    measuring = _measuring_of(instance, request, takers, loop=loop)
    return measuring if ranges is None else RangeMeter(ranges, measuring)


def _measuring_of(
    instance: torch.nn.Module, request: Request, takers: Sequence[Receiver], *, loop: bool
) -> ForwardMeter | None:
    timing: ForwardMeter | None = meter_of(
        instance, request, plug_every=max(receiver.plug_every for receiver in takers)
    )
    # Nobody says when a hand-written loop is over, and a subscription must not outlast its request.
    counts = not loop and any(receiver.counters for receiver in takers)
    sampling: ForwardMeter | None = counting_of(request, driver_counter(instance)) if counts else None
    every = [receiver.deep_every for receiver in takers if receiver.deep_every]
    if sampling is None and every:  # not both: there is room for one user of CUPTI
        sampling = DeepMeter(instance, request, min(every), loop=loop)
    if sampling is None or timing is None:
        return sampling or timing
    return NestedMeters(sampling, timing)


def driver_counter(module: torch.nn.Module) -> Counter | None:
    """What counts at the driver for a model; None where it lies on no CUDA device, or nothing can."""
    return counters.counter() if cuda_devices_of(module) else None
