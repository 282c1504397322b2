"""Zero code: `opentelemetry-instrument python serve.py` observes whatever model of transformers generates.

Neither torch nor transformers is loaded here. Once the program has loaded transformers' generation, its classes are
wrapped; a program that never does pays for one import hook.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import wrapt

from inferscope import notices
from inferscope.errors import InferscopeError, MissingExtraError

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
except ImportError as problem:
    raise MissingExtraError(
        "zero-code instrumentation needs opentelemetry-instrumentation: install inferscope with its extra [auto]"
    ) from problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from inferscope.session import EverySession

__all__ = ["EveryModel", "InferscopeInstrumentor"]

_instruments = ("transformers >= 4.56",)
"""As the extra `instruments` in pyproject.toml has it, which `opentelemetry-instrument` reads."""
_PARTS = ("transformers.generation.utils", "transformers.generation.streamers")
_LOCK = threading.Lock()
_waiting: list[EveryModel] = []
_hooked: list[str] = []


class EveryModel:
    """Observes every model of transformers from the moment that transformers is there, until it is ended."""

    def __init__(self, make: Callable[[], EverySession]) -> None:
        """Prepare; nothing is loaded.

        Args:
            make: Makes the session, once transformers has been loaded.
        """
        self._make = make
        self._lock = threading.RLock()
        self._making = False
        self.session: EverySession | None = None

    def start(self) -> None:
        """Begin now, where transformers is there, else once it is."""
        with _LOCK:
            _waiting.append(self)
        for part in _PARTS:
            if part not in _hooked:  # a hook cannot be taken back: there is one, whatever comes and goes
                _hooked.append(part)
                wrapt.register_post_import_hook(_loaded, part)
        self.look()

    def look(self) -> None:
        """Parts of transformers may have been loaded. Raises nothing: this runs within the program's import."""
        if _PARTS[0] not in sys.modules:
            return
        try:
            from inferscope.capture import intercept  # noqa: PLC0415 - torch is loaded by now

            with self._lock:
                if self.session is None and not self._making:  # what is loaded for it may come back here
                    self._making = True
                    try:
                        self.session = self._make()
                        self.session.__enter__()
                    finally:
                        self._making = False
            intercept.look_again()
        except InferscopeError as error:
            notices.warn(error.slug, f"models are not observed: {error}")
        except Exception as error:  # noqa: BLE001 - the program imports, and nothing more
            notices.fault("capture-failed", error)

    def end(self) -> None:
        """Leave models and classes as they were. What has finished is still worked off."""
        with _LOCK:
            if self in _waiting:
                _waiting.remove(self)
        with self._lock:
            session, self.session = self.session, None
        if session is not None:
            session.__exit__(None, None, None)


def _loaded(_module: object) -> None:
    for every in tuple(_waiting):
        every.look()


class InferscopeInstrumentor(BaseInstrumentor):  # type: ignore[misc,unused-ignore]  # it says nothing of its types
    """Observes every `generate` of every model of transformers in this process, also of models made before or later.

        InferscopeInstrumentor().instrument()

    is what `opentelemetry-instrument` does. Spans go to the program's own tracer provider, or to one that is given.
    What the program traces by itself, with `trace` or `instrument`, it tells by itself, and only once.
    """

    _every: EveryModel | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """The packages that are observed, with their versions."""
        return _instruments

    def _instrument(self, **kwargs: Any) -> None:  # noqa: ANN401 - OpenTelemetry's signature
        """Begin. Raises nothing: what an instrumentation raises ends all others that come after it.

        Args:
            **kwargs: `tracer_provider` and `meter_provider`; the global ones without.
        """
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return
        try:
            outlets = _Outlets(kwargs.get("tracer_provider"), kwargs.get("meter_provider"))
            self._every = EveryModel(outlets.session)
            self._every.start()
        except Exception as error:  # noqa: BLE001 - as above
            notices.fault("capture-failed", error)

    def _uninstrument(self, **_kwargs: Any) -> None:  # noqa: ANN401 - as above
        """Leave models and classes as they were."""
        every, self._every = self._every, None
        if every is not None:
            every.end()


class _Outlets:
    """Where what is seen goes, made once there is something to see."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider

    def session(self) -> EverySession:
        from inferscope.session import observe_every  # noqa: PLC0415 - loads torch

        return observe_every(outlets=self._sinks())

    def _sinks(self) -> tuple[object, ...]:
        if self._tracer_provider is None and self._meter_provider is None:
            return ("otel",)
        from inferscope.sinks.metrics import MetricSink  # noqa: PLC0415 - needed with a session only
        from inferscope.sinks.spans import SpanSink  # noqa: PLC0415 - as above

        spans = SpanSink(tracer_provider=self._tracer_provider)
        return (spans, MetricSink(meter_provider=self._meter_provider, spans=spans))
