"""Observable OpenTelemetry instruments that tell the newest window of a monitor.

Callbacks run on the thread of the user's metric reader: they read what was kept, and ask no device.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from inferscope.sinks.hardware_semconv import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider

    from inferscope.analysis.utilisation import WindowSample, WindowVerdict
    from inferscope.sinks.hardware_semconv import Metric

__all__ = ["HardwareMetrics", "outlet"]


@dataclass(frozen=True, slots=True)
class _Shown:
    owner: weakref.ref[object]
    sample: WindowSample
    verdict: WindowVerdict
    until_s: float


class HardwareMetrics:
    """One set of instruments on one meter provider.

    Instruments cannot be taken off a provider again: whoever shows a window withdraws it, and a window that is too
    old is not told.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        """Create the instruments.

        Args:
            meter_provider: Where they go; None: the global provider, also one that is set later.
        """
        self._shown: _Shown | None = None
        meter = metrics.get_meter("inferscope", version("inferscope"), meter_provider)
        for row in METRICS:
            _CREATE[row.kind](meter)(row.name, [self._callback(row)], unit=row.unit, description=row.meaning)

    def show(self, owner: object, sample: WindowSample, verdict: WindowVerdict, *, fresh_s: float) -> None:
        """Tell this window from now on.

        Args:
            owner: Who shows it.
            sample: The window.
            verdict: On it.
            fresh_s: After so many seconds it is not told any more.
        """
        self._shown = _Shown(weakref.ref(owner), sample, verdict, time.monotonic() + fresh_s)

    def withdraw(self, owner: object) -> None:
        """Tell nothing more, if what is told is this owner's."""
        shown = self._shown
        if shown is not None and shown.owner() is owner:
            self._shown = None

    def _callback(self, row: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> list[Observation]:
            shown = self._shown
            if shown is None or time.monotonic() > shown.until_s:
                return []
            return [Observation(value, attributes) for value, attributes in row.read(shown.sample, shown.verdict)]

        return observe


_CREATE: dict[str, Callable[[Meter], Callable[..., object]]] = {
    "gauge": lambda meter: meter.create_observable_gauge,
    "counter": lambda meter: meter.create_observable_counter,
    "updowncounter": lambda meter: meter.create_observable_up_down_counter,
}

_lock = threading.Lock()
_global: list[HardwareMetrics] = []
_by_provider: weakref.WeakKeyDictionary[MeterProvider, HardwareMetrics] = weakref.WeakKeyDictionary()


def outlet(meter_provider: MeterProvider | None = None) -> HardwareMetrics:
    """The instruments on a provider, made once: the SDK complains about a second set of the same names.

    Args:
        meter_provider: None: the global provider, also one that is set later.
    """
    with _lock:
        if meter_provider is None:
            if not _global:
                _global.append(HardwareMetrics())
            return _global[0]
        if meter_provider not in _by_provider:
            _by_provider[meter_provider] = HardwareMetrics(meter_provider)
        return _by_provider[meter_provider]
