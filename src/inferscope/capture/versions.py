"""What differs between versions of transformers: which places each has, and what stands in where one is missing.

Everything that depends on the version, as against on transformers at all, stands here. Nobody asks for a version
number: a place is there or it is not, and a version that moves one is as good as a version that never had it. The
numbers beside the places are for readers, and a test holds them against each version that is supported.
"""

from __future__ import annotations

import inspect
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.capture import seams

if TYPE_CHECKING:
    import torch

__all__ = [
    "ALL",
    "CONTINUOUS",
    "DRAFT_LAYERS",
    "GENERATION",
    "Place",
    "called_in_token_loop",
    "fatal_error",
    "found",
    "is_empty",
    "ready_for_shapes",
    "waits_inline",
]

_UTILS = "transformers.generation.utils"
_BATCHING = "transformers.generation.continuous_batching"
DRAFT_LAYERS = "MtpModel"
"""The class of layers with which some models draft for themselves: `generate` makes one that nobody else knows."""
_KEY_DIMS = 4
_TOKEN_LOOP = "_sample"  # noqa: S105 - a name of transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An attribute of a class of transformers that is wrapped where it is there.

    Attributes:
        module: Where the class stands.
        owner: The class; models inherit from GenerationMixin.
        name: The attribute.
        since: The first supported version that has it; None where the oldest one does.
        before: The first supported version that has it no more; None where the newest one does.
        without: What is not seen in a version without it; None where another place tells the same.
        inherited: The class has it from one above.
    """

    module: str
    owner: str
    name: str
    since: str | None = None
    before: str | None = None
    without: str | None = None
    inherited: bool = False


GENERATION = {
    "generate": Place(module=_UTILS, owner="GenerationMixin", name="generate"),
    "prefill": Place(module=_UTILS, owner="GenerationMixin", name="_prefill", since="5.0"),
    "chunks": Place(module=_UTILS, owner="GenerationMixin", name="_prefill_chunking", before="5.0"),
    "assisted": Place(module=_UTILS, owner="GenerationMixin", name="_assisted_decoding"),
    "compiled": Place(module="transformers.modeling_utils", owner="PreTrainedModel", name="get_compiled_call"),
    "stop": Place(module=_UTILS, owner="StopCheck", name="__call__", since="5.23"),
    "stop, inline": Place(module=_UTILS, owner="GenerationMixin", name="_has_unfinished_sequences"),
    "streamer": Place(module="transformers.generation.streamers", owner="TextStreamer", name="__init__"),
    "guidance": Place(
        module="transformers.generation.logits_process",
        owner="UnbatchedClassifierFreeGuidanceLogitsProcessor",
        name="get_unconditional_logits",
    ),
    "draft layers": Place(
        module="transformers.modeling_layers",
        owner=DRAFT_LAYERS,
        name="__call__",
        since="5.23",
        without="drafts by layers of the model's own: there are none",
        inherited=True,
    ),
}
"""Of `generate`."""


def _batching(module: str, owner: str, name: str, since: str | None = "5.10") -> Place:
    return Place(
        module=f"{_BATCHING}.{module}", owner=owner, name=name, since=since, without="continuous batching altogether"
    )


CONTINUOUS = {
    "add": _batching("continuous_api", "ContinuousBatchingManager", "add_request", None),
    "cancel": _batching("continuous_api", "ContinuousBatchingManager", "cancel_request", None),
    "loop": _batching("continuous_api", "ContinuousBatchingManager", "_run_generation_loop", None),
    "prepare": _batching("continuous_api", "ContinuousBatchProcessor", "prepare_next_batch", None),
    "pass": _batching("continuous_api", "ContinuousBatchProcessor", "_generation_step", "5.0"),
    "update": _batching("continuous_api", "ContinuousBatchProcessor", "update_batch", None),
    "failure": _batching("continuous_api", "ContinuousBatchProcessor", "_handle_request_error", None),
    "warmup": _batching("continuous_api", "ContinuousBatchProcessor", "warmup"),
    "delivery": _batching("continuous_api", "OutputRouter", "deliver_batch"),
    "state": _batching("requests", "RequestState", "__init__", None),
    "read": _batching("input_outputs", "ContinuousBatchingIOs", "prepare_batch_update"),
    "read, outputs": _batching("input_outputs", "ContinuousBatchingIOs", "retrieve_device_outputs"),
    "read, ahead": _batching("input_outputs", "ContinuousBatchingAsyncIOs", "prepare_batch_update"),
}
"""Of continuous batching, which is watched where all of them are there, and else not at all."""
ALL = (*GENERATION.values(), *CONTINUOUS.values())


def found(place: Place, *, load: bool = False) -> type | None:
    """The class of a place, where this version has it and the attribute.

    Args:
        place: Which.
        load: Whether to import its module, where the program has not done so.
    """
    module = seams.loaded(place.module) if load else sys.modules.get(place.module)
    owner = getattr(module, place.owner, None)
    there = isinstance(owner, type) and (place.inherited or place.name in vars(owner))
    return owner if there else None


def waits_inline() -> bool:
    """Whether the loop itself reads on the host if it is over: newer versions have a class for that."""
    return found(GENERATION["stop"]) is None


def called_in_token_loop(depth: int = 2) -> bool:
    """Whether the function that calls our caller is the loop in which every turn is one token.

    Beams and assisted decoding ask the same question after several tokens, or none.
    """
    return sys._getframe(depth).f_code.co_name == _TOKEN_LOOP  # noqa: SLF001 - as inspect does, at a tenth of its cost


def is_empty(cache: object) -> bool:
    """Whether a cache holds nothing, whatever it says: an old one of attention and states counts its rows then."""
    kept = getattr(cache, "__dict__", {}).get("key_cache")
    return isinstance(kept, list) and bool(kept) and all(keys.dim() < _KEY_DIMS for keys in kept)


def fatal_error(manager: Any) -> BaseException | None:  # noqa: ANN401 - transformers' class
    """What ended the loop of a manager; None where it was stopped. Kept in its status, or in the manager itself."""
    for holder in (getattr(manager, "background_thread_status", None), manager):
        error = getattr(holder, "fatal_error", None)
        if isinstance(error, BaseException):
            return error
    return None


def ready_for_shapes(twin: torch.nn.Module) -> None:
    """Let forwards of a model without memory run, where its version asks torch to autocast for its device.

    Older versions switch autocast off around rotary embeddings by the name of the device that tensors are on, and torch
    knows none for tensors without memory. Only this model is changed, which is ours.

    Args:
        twin: A model on the meta device.
    """
    for module in twin.modules():
        raw = inspect.unwrap(type(module).forward)
        code = getattr(raw, "__code__", None)
        if code is None:
            continue
        changed: dict[str, object] = {}
        if "autocast" in code.co_names and "torch" in raw.__globals__:
            changed["torch"] = _TorchWithoutAutocast(raw.__globals__["torch"])
        if "maybe_autocast" in code.co_names and not _casts_shapes(raw.__globals__.get("maybe_autocast")):
            changed["maybe_autocast"] = _no_autocast
        if changed:
            names = {**raw.__globals__, **changed}
            plain = types.FunctionType(code, names, raw.__name__, raw.__defaults__, raw.__closure__)
            plain.__kwdefaults__ = raw.__kwdefaults__
            module.forward = types.MethodType(plain, module)


def _casts_shapes(autocast: Any) -> bool:  # noqa: ANN401 - a function of transformers
    try:
        with autocast(device_type="meta", enabled=False):
            return True
    except (RuntimeError, TypeError):
        return False


def _no_autocast(*_args: object, **_kwargs: object) -> Any:  # noqa: ANN401 - a context
    return nullcontext()


class _TorchWithoutAutocast:
    """torch as the forward of a rotary embedding sees it."""

    autocast = staticmethod(_no_autocast)

    def __init__(self, torch_module: Any) -> None:  # noqa: ANN401 - a module
        self._torch = torch_module

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever torch has
        return getattr(self._torch, name)
