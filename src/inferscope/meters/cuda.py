"""Events of CUDA devices: the part of torch that device.py stands on.

No call here waits for the device. They are made on the generating thread alone: a foreign thread that asks for an
event can break another one's graph capture (pytorch#104487). Not confirmed on hardware yet.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from inferscope.meters.device import TimingEvent

__all__ = ["CudaEvents", "cuda_devices_of"]

_POOL = 256
_CLOCK_KHZ = 2_000_000
"""Where torch does not tell: above most boost clocks, so that holding lasts too long rather than too short."""
_pools = threading.local()


class CudaEvents:
    """Timing events of the current stream of one CUDA device; a thread reuses its own from request to request."""

    def __init__(self, device: torch.device) -> None:
        """Take the stream that is current now.

        Args:
            device: With its index.
        """
        import torch  # noqa: PLC0415 - a model on CUDA is there, so torch is loaded

        self.stream: Any = torch.cuda.current_stream(device)
        self._make: Any = torch.cuda.Event
        self._on = torch.cuda.stream
        self._sleep: Any = torch.cuda._sleep  # noqa: SLF001 - torch's own tests use it to the same end
        # At the boost clock; a slower one holds longer, which is what the probe needs.
        self._cycles_per_ns = getattr(torch.cuda.get_device_properties(device), "clock_rate", _CLOCK_KHZ) / 1e6
        self._is_capturing = torch.cuda.is_current_stream_capturing
        pools: dict[int, list[TimingEvent]] = _pools.__dict__.setdefault("free", {})
        self._free = pools.setdefault(device.index or 0, [])

    def take(self) -> TimingEvent:
        """An event that is in no use."""
        return self._free.pop() if self._free else self._make(enable_timing=True)

    def give_back(self, event: TimingEvent) -> None:
        """It is in no use any more."""
        if len(self._free) < _POOL:
            self._free.append(event)

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""
        return bool(self._is_capturing())

    def hold(self, hold_ns: int) -> None:
        """Keep the stream busy with nothing for about this long."""
        with self._on(self.stream):
            self._sleep(int(hold_ns * self._cycles_per_ns))


def cuda_devices_of(module: Any) -> tuple[torch.device, ...]:  # noqa: ANN401 - any model
    """The CUDA devices a model lies on, in its own order; nothing where it lies elsewhere.

    Reads the device map that accelerate leaves on a model, or else where the first parameter lies.
    """
    import torch  # noqa: PLC0415 - a model is there, so torch is loaded

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # nothing lies there
        return ()
    first = next(module.parameters(), None)
    if first is None:
        return ()
    places = {first.device: None}
    mapped = getattr(module, "hf_device_map", None)
    for place in mapped.values() if isinstance(mapped, dict) else ():
        if isinstance(place, int) or (isinstance(place, str) and place.startswith("cuda")) or hasattr(place, "index"):
            places[torch.device("cuda", place) if isinstance(place, int) else torch.device(place)] = None
    return tuple(place for place in places if place.type == "cuda")
