"""Who gets the requests of a model, and whether they want one that begins."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Protocol

import opentelemetry.context
import opentelemetry.trace

from inferscope import notices
from inferscope.capture.requests import new_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inferscope.capture.requests import Begun, Finished
    from inferscope.meters.nvtx import Ranges

__all__ = ["Receiver", "around_streamer_init", "begin", "caller_context", "gives_way"]

_streamer_contexts: weakref.WeakKeyDictionary[object, object] = weakref.WeakKeyDictionary()


class Receiver(Protocol):
    """Who gets the finished requests of a model. Both methods run on the generating thread and return at once.

    One that has an attribute `gives_way` that is true is asked after the others, and is told of no hand-written loops:
    it observes every model, and nobody said that this one's forwards are requests.
    """

    keep_samples: bool
    plug_every: int
    deep_every: int
    ranges: Ranges | None
    counters: bool

    @property
    def observed_share(self) -> float:
        """Share of requests that it wants (0..1), chosen by chance."""

    def begin(
        self,
        request_id: str,
        started_unix_ns: int,
        context: object | None,
        options: Mapping[str, Any],
        claimed: bool,  # noqa: FBT001 - an implementation that does not care takes it with `*_`
        /,
    ) -> Begun | None:
        """A request begins: whether it is wanted.

        Args:
            request_id: Its identity.
            started_unix_ns: Wall-clock time of its entry.
            context: The caller's OpenTelemetry context; None where it has no span.
            options: The keyword arguments of `generate`.
            claimed: Whether another receiver has taken it, and tells of it.

        Returns:
            What comes back with the finished request; None where it is not to be observed.
        """

    def __call__(self, raw: Finished, begun: Begun) -> None:
        """Take a finished request, and what `begin` returned for it."""

    def abandon(self, request_id: str) -> None:
        """A request that began will not be finished: a fault of ours ended it."""


def gives_way(receiver: Receiver) -> bool:
    """Whether a receiver is asked after the others."""
    return bool(getattr(receiver, "gives_way", False))


def begin(
    receivers: tuple[Receiver, ...], started_unix_ns: int, context: object | None, options: Mapping[str, Any]
) -> tuple[str, tuple[tuple[Receiver, Begun], ...]] | None:
    """The id of a request that begins, and who takes it; None where nobody wants it."""
    request_id = new_request_id()
    wanted: list[tuple[Receiver, Begun]] = []
    claimed = False
    for receiver in receivers:
        begun = receiver.begin(request_id, started_unix_ns, context, options, claimed)
        if begun is not None:
            wanted.append((receiver, begun))
            claimed = claimed or begun.claims
    return (request_id, tuple(wanted)) if wanted else None


def caller_context(streamer: object) -> object | None:
    """The caller's OpenTelemetry context: of this thread, or of the one that made the streamer; None without a span.

    A thread starts with an empty context, and `generate` in a thread with a streamer is how transformers streams.
    """
    context = opentelemetry.context.get_current()
    if opentelemetry.trace.get_current_span(context).get_span_context().is_valid:
        return context
    return _streamer_contexts.get(streamer) if streamer is not None else None


def around_streamer_init(
    wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401 - None
    """A streamer is made: the span that is open here is the one that its requests belong to."""
    try:
        context = opentelemetry.context.get_current()
        if opentelemetry.trace.get_current_span(context).get_span_context().is_valid:
            _streamer_contexts[instance] = context
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        notices.fault("capture-failed", error)
    return wrapped(*args, **kwargs)
