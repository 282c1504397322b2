"""Sessions: of one model, or of every model of this process."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
import time
import weakref
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from inferscope import losses, notices
from inferscope.capture import intercept, introspect
from inferscope.capture.contention import device_of
from inferscope.capture.frames import CURRENT
from inferscope.errors import NotAModelError
from inferscope.meters.budget import Governor
from inferscope.pipeline import Pipeline, say_failed
from inferscope.session.inbox import EveryInbox, Inbox, ambient_context, say_sink_failed
from inferscope.session.models import MODELS
from inferscope.session.results import Maker
from inferscope.sinks.base import EarlySink
from inferscope.surroundings import Around

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from inferscope.capture.requests import Begun, Finished
    from inferscope.opinion import Result
    from inferscope.settings import Settings
    from inferscope.sinks.base import Sink
    from inferscope.specs import DeviceSpec

__all__ = ["EverySession", "Session"]

_F = TypeVar("_F", bound="Callable[..., Any]")

_PIPELINE = Pipeline()
_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A pre-fork server's worker observes its own requests: threads, queues and locks begin anew."""
    notices.after_fork()
    losses.after_fork()
    intercept.after_fork()
    _PIPELINE.after_fork()
    MODELS.after_fork()
    for session in list(_SESSIONS):
        session.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Session:
    """An open trace of one model: context manager, async context manager and decorator.

    Attributes:
        results: The latest results, oldest first; bounded by INFERSCOPE_KEEP_RESULTS.
    """

    def __init__(
        self,
        model: object,
        *,
        settings: Settings,
        device: DeviceSpec | None,
        sinks: tuple[Sink, ...],
    ) -> None:
        """Prepare; nothing is attached before the session is entered."""
        target = model if settings.disabled else intercept.target_of(model)
        if not settings.disabled and not callable(getattr(target, "generate", None)):
            notices.warn(
                "no-generate",
                f"{type(model).__name__} has no generate(): its forwards are taken as a hand-written loop; name them "
                "with inferscope.phase(), or trace the model that generates",
            )
        # A server that drops its model must not find it kept alive by us.
        self._model: Callable[[], Any] = (lambda: None) if settings.disabled else weakref.ref(target)
        self._settings = settings
        self._sinks = sinks
        self.governor = Governor(settings.overhead_budget, thins=settings.budget_asked)
        self._maker = Maker(settings, device, self.governor, _PIPELINE.breathe)
        self._attachment: intercept.Attachment | None = None
        self._depth = 0
        self._entering = threading.Lock()  # one decorated function runs in many threads
        self._results: deque[Result] = deque(maxlen=settings.keep_results)
        self._pending = 0
        self._changed = threading.Condition()
        _SESSIONS.add(self)

    def __enter__(self) -> Session:
        """Attach; entering twice is counted."""
        with self._entering:
            self._depth += 1
            if self._depth == 1 and not self._settings.disabled:
                target = self._model()
                if target is None:
                    raise NotAModelError(
                        "the model of this session is gone: it was freed before the session was entered"
                    )
                name = introspect.name_of(target)
                inbox = Inbox(self._receive, self._settings, self.governor, self._sinks, name)
                self._attachment = intercept.attach(target, inbox)
                with contextlib.suppress(Exception):  # what it is for is less than the session
                    self._maker.around.open(device_of(target))
                self.governor.open()
                _PIPELINE.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach; results that are still being made arrive later. The user's exception passes through."""
        with self._entering:
            self._depth -= 1
            if self._depth == 0 and self._attachment is not None:
                self._attachment.detach()
                self.governor.close()
                self._attachment = None
                _PIPELINE.close()

    async def __aenter__(self) -> Session:
        """Attach."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.__exit__(kind, error, trace)

    def __call__(self, function: _F) -> _F:
        """Decorate a function or coroutine function: every call of it is traced."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def traced_coroutine(*args: object, **kwargs: object) -> object:
                async with self:
                    return await function(*args, **kwargs)

            return cast("_F", traced_coroutine)

        @functools.wraps(function)
        def traced(*args: object, **kwargs: object) -> object:
            with self:
                return function(*args, **kwargs)

        return cast("_F", traced)

    def after_fork(self) -> None:
        """In a forked child: what the parent's threads held, or had begun, is not ours."""
        self._changed, self._entering, self._pending = threading.Condition(), threading.Lock(), 0
        self._maker.around = Around()
        for sink in self._sinks:
            forget = getattr(sink, "after_fork", None)
            if forget is not None:
                forget()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """The borders of one request around a hand-written loop, or around several calls that belong together.

        Without it the forwards of a thread are one request until a new prompt begins, a result is asked for, or
        tracing ends.
        """
        attachment = self._attachment
        loop = None
        if attachment is not None:
            attachment.finish_loop()
            loop = attachment.new_loop()
        if loop is None:
            yield
            return
        loop.explicit, loop.module = True, self._model()
        loop.begin(time.perf_counter_ns())
        token = CURRENT.set(loop)
        error_type = None
        try:
            yield
        except BaseException as error:
            error_type = type(error).__qualname__
            raise
        finally:
            CURRENT.reset(token)
            loop.module = None
            loop.finish(time.perf_counter_ns(), error_type)

    @property
    def last(self) -> Result | None:
        """The newest result, waiting for those still being made; None where there was no request."""
        self.wait()
        return self._results[-1] if self._results else None

    @property
    def results(self) -> tuple[Result, ...]:
        """The latest results, oldest first, waiting for those still being made."""
        self.wait()
        return tuple(self._results)

    def wait(self, timeout_s: float = 30.0) -> bool:
        """Wait until every finished request has become a result.

        Args:
            timeout_s: How long at most.

        Returns:
            Whether all are there.
        """
        if self._attachment is not None:
            self._attachment.finish_loop()
        with self._changed:
            if self._pending == 0:
                return True
            if _PIPELINE.is_own_thread():  # a sink that asks for results must not wait for itself
                return False
            _PIPELINE.hurry()
            return self._changed.wait_for(lambda: self._pending == 0, timeout_s)

    def _receive(self, raw: Finished, begun: Begun) -> None:
        with self._changed:
            self._pending += 1
        MODELS.hold(raw)
        if not _PIPELINE.submit(functools.partial(self._process, raw, begun), raw.held_bytes):
            MODELS.let_go(raw)
            self._abandon(raw.request_id)
            self._done()

    def _process(self, raw: Finished, begun: Begun) -> None:
        try:
            self._make(raw, begun)
        except Exception as error:  # noqa: BLE001 - said before anybody who waits for the result goes on
            say_failed(error)
        finally:
            self._abandon(raw.request_id)
            self._done()

    def _abandon(self, request_id: str) -> None:
        """Let early sinks forget a request; those that have had its result have done so already."""
        for sink in self._sinks:
            if isinstance(sink, EarlySink):
                sink.abandon(request_id)

    def _make(self, raw: Finished, begun: Begun) -> None:
        result = self._maker.make(raw, begun)
        _PIPELINE.breathe()
        self._results.append(result)
        for sink in self._told(begun):
            try:
                sink(result)
            except Exception as error:  # noqa: BLE001 - a sink's fault is said once and costs the others nothing
                say_sink_failed(sink, error)

    def _told(self, begun: Begun) -> tuple[Sink, ...]:  # noqa: ARG002 - not all sessions tell all
        """The sinks that get the result of a request."""
        return self._sinks

    def _done(self) -> None:
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()


class EverySession(Session):
    """A session of every model of transformers in this process, of models to come, too: see `observe_every`."""

    def __init__(
        self, *, settings: Settings, device: DeviceSpec | None, keepers: tuple[Sink, ...], outlets: tuple[Sink, ...]
    ) -> None:
        """Prepare; nothing is attached before the session is entered."""
        super().__init__(None, settings=replace(settings, disabled=True), device=device, sinks=(*keepers, *outlets))
        self._settings = settings
        self._keepers, self._outlets = keepers, outlets
        self._every: intercept.EveryAttachment | None = None
        self._working = False

    def __enter__(self) -> EverySession:
        """Observe models from their next request on; entering twice is counted."""
        with self._entering:
            self._depth += 1
            if self._depth == 1 and not self._settings.disabled:
                # What has no span of its own belongs to who started the process, not to whoever asks first.
                self._process_context = ambient_context()
                self._every = intercept.attach_every(self._inbox_of)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave all models and classes as they were."""
        with self._entering:
            self._depth -= 1
            if self._depth == 0 and self._every is not None:
                self._every.detach()
                self._every = None
                if self._working:
                    self._working = False
                    _PIPELINE.close()

    def _inbox_of(self, module: object) -> EveryInbox:
        if not self._working:  # a program that never generates has no thread of ours
            self._working = True
            _PIPELINE.open()
        name = introspect.name_of(module)
        keeps = bool(self._keepers)
        return EveryInbox(
            self._receive,
            self._settings,
            self.governor,
            self._outlets,
            name,
            self._process_context,
            keeps=keeps,
        )

    def _told(self, begun: Begun) -> tuple[Sink, ...]:
        return self._sinks if begun.tells else self._keepers
