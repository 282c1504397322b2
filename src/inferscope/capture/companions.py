"""Other modules whose forwards belong to a request: encoders and vision towers, assistants, and inner generators.

They are found when a model is attached, or when a call brings its assistant along, so that a model that has none of
them pays nothing. An encoder may run before the passes of its model or inside one of them; either way it is a pass of
its own, and what it calls in turn is part of it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from inferscope import notices
from inferscope.capture.frames import ENCODING, UNREADABLE, Flag, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inferscope.capture.frames import Frame

__all__ = ["ASSISTANT", "ENCODER", "PART", "Companions", "companions_of", "encoded", "note_encoded"]

ENCODER = "encoder"
"""Its forwards are passes named encode."""
PART = "part"
"""Its `generate` is called by that of the whole model."""
ASSISTANT = "assistant"
"""Drafts tokens for the model."""


_TOWERS = (
    "vision_tower",
    "visual",
    "vision_model",
    "vision_encoder",
    "image_tower",
    "audio_tower",
    "audio_encoder",
    "speech_encoder",
)
"""Attributes that hold a model's other encoders, as transformers' own `get_encoder` looks them up."""
_TOKENS = ("input_ids", "inputs_embeds")
_FEATURES = ("input_features", "pixel_values", "pixel_values_videos", "input_values", "hidden_states")
_WHOLE_FEATURES = 3


class Companions(weakref.WeakKeyDictionary[Any, str]):
    """The other modules whose forwards belong to a model's requests, each with its role."""

    def __init__(self, take_in: Callable[[Companions, Any, object], None]) -> None:
        """Begin with none.

        Args:
            take_in: Has the assistant that a call of a model brings along observed, too, and notes it here.
        """
        super().__init__()
        self._take_in = take_in

    def bring(self, module: Any, assistant: object) -> None:  # noqa: ANN401 - any model
        """A call of a model brings its assistant along."""
        self._take_in(self, module, assistant)


def companions_of(
    module: Any,  # noqa: ANN401 - any model
    take_in: Callable[[Companions, Any, object], None],
) -> Companions:
    """The encoders and inner generators of a model, each with its role; `take_in` is theirs."""
    found = Companions(take_in)
    try:
        for part in (module, *_parts(module)):
            if part is not module:
                found[part] = PART
            for encoder in _encoders(part):
                found[encoder] = ENCODER
    except Exception as error:  # noqa: BLE001 - models answer to their attributes as they like
        notices.fault("capture-failed", error)
    return found


def _encoders(module: Any) -> Iterator[Any]:  # noqa: ANN401 - any model
    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False) and callable(find := getattr(module, "get_encoder", None)):
        encoder = find()
        if encoder is not module and hasattr(encoder, "forward"):
            yield encoder
    for owner in (module, getattr(module, "base_model", None)):
        for name in _TOWERS:
            tower = getattr(owner, name, None)
            if hasattr(tower, "forward"):
                yield tower


def _parts(module: Any) -> Iterator[Any]:  # noqa: ANN401 - any model
    """Submodules that generate by themselves, where the model's own `generate` may call theirs."""
    generate = getattr(type(module), "generate", None)
    if getattr(generate, "__qualname__", "").startswith("GenerationMixin.") or not hasattr(module, "modules"):
        return
    for part in module.modules():
        if part is not module and callable(getattr(type(part), "generate", None)):
            yield part


def encoded(
    frame: Frame,
    below: Any,  # noqa: ANN401 - see forward.watched
    step_aside: Callable[[Frame, Exception], None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # noqa: ANN401 - what the encoder returns
    """Run an encoder and write a row about it, also inside a pass of its model.

    Args:
        frame: Of the encoder.
        below: Its attribute `__call__` is what really runs.
        step_aside: Called with a fault of ours.
        args: Of the call.
        kwargs: Of the call.
    """
    output = None
    try:
        request = frame.request
        entered = frame.now_ns()
        outer = request.in_pass
        flags = Flag.ENCODE | (Flag.NESTED if outer else 0)
        cpu = UNREADABLE if outer else frame.thread_cpu_ns()
        started = frame.now_ns()
        request.in_pass = ENCODING
    except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
        module = frame.module
        step_aside(frame, error)
        return below.__call__(module, *args, **kwargs)
    try:
        output = below.__call__(frame.module, *args, **kwargs)
    except BaseException:
        flags |= Flag.ABORTED
        raise
    finally:
        request.in_pass = outer
        try:
            ended = frame.now_ns()
            batch, q = _encoded_shape(output, args, kwargs)
            note_encoded(frame, (entered, started, ended, 0, q, 0, batch, q, flags, cpu, 0, 0, 0, 0))
        except Exception as error:  # noqa: BLE001 - nothing of ours reaches the user's call
            step_aside(frame, error)
    return output


def note_encoded(frame: Frame, values: tuple[int, ...]) -> None:
    """Write a row of these values, in the order of `Row`."""
    request = frame.request
    row = request.row
    for offset, value in enumerate(values):
        request.rows[row + offset] = value
    request.row = row + Row.WIDTH
    request.rows[row + Row.LEFT] = frame.now_ns()
    if request.row == len(request.rows):
        request.next_chunk()


def _encoded_shape(output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:  # noqa: ANN401
    """Sequences and positions that were encoded: of the output where it says so, else of what was put in."""
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is not None and len(hidden.shape) == _WHOLE_FEATURES:
        return int(hidden.shape[0]), int(hidden.shape[1])
    for name in _TOKENS:
        if kwargs.get(name) is not None:
            return int(kwargs[name].shape[0]), int(kwargs[name].shape[1])
    features = next((kwargs[name] for name in _FEATURES if kwargs.get(name) is not None), args[0] if args else None)
    shape: tuple[int, ...] = tuple(getattr(features, "shape", ()))
    return (shape[0] if len(shape) >= _WHOLE_FEATURES else UNREADABLE), UNREADABLE
