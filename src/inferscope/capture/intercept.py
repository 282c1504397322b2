"""Attaching to a model: wraps on its classes, gated by a registry of the modules that are traced.

Where the wraps stand is in wrapping.py, what they do in borders.py and watching.py. Nothing is put on the module
itself, so that a traced model can still be copied, pickled, moved, compiled and freed, and is the same model
afterwards. `module.forward` is never replaced: that breaks deepcopy, pickle, accelerate's own hook and transformers'
look at the forward's signature.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from inferscope import notices
from inferscope.capture import continuous, registry, seams
from inferscope.capture.borders import GC_MARKS, loops_of
from inferscope.capture.companions import ASSISTANT, Companions, companions_of
from inferscope.capture.contention import TRAFFIC
from inferscope.capture.frames import CURRENT
from inferscope.capture.registry import EVERYWHERE, REGISTRY, Observed
from inferscope.capture.requests import restart_request_ids
from inferscope.capture.wrapping import all_seams, look_again, needed_seams
from inferscope.errors import NotAModelError
from inferscope.meters import counters, deep, sync_points
from inferscope.meters.budget import BUDGET
from inferscope.meters.cuda import cuda_devices_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from inferscope.capture.loops import LoopFrame
    from inferscope.capture.receivers import Receiver

__all__ = [
    "Attachment",
    "EveryAttachment",
    "active_requests",
    "after_fork",
    "attach",
    "attach_every",
    "look_again",
    "target_of",
]


class Attachment:
    """What `attach` returns: keeps one receiver attached to one model until `detach`."""

    def __init__(self, module: torch.nn.Module, receiver: Receiver) -> None:
        """Remember the pair; `attach` does the work."""
        self._module = weakref.ref(module)
        self._receiver: Receiver | None = receiver

    @property
    def gone(self) -> bool:
        """Whether the model has been freed."""
        return self._module() is None

    def finish_loop(self) -> None:
        """The hand-written loop of this thread, if there is one, is over."""
        try:
            module = self._module()
            observed = REGISTRY.get(module) if module is not None else None
            if observed is not None:
                observed.loops.finish_here()
        except Exception as error:  # noqa: BLE001 - asking for results must not fail for a fault of ours
            notices.fault("capture-failed", error)

    def new_loop(self) -> LoopFrame | None:
        """A loop whose borders the caller sets; None where the model is gone."""
        module = self._module()
        observed = REGISTRY.get(module) if module is not None else None
        return observed.loops.new_frame() if observed is not None else None

    def detach(self) -> None:
        """Take the receiver off; with the last one, hooks and wraps go too. Safe to call twice."""
        with registry.LOCK:
            receiver, self._receiver = self._receiver, None
            if receiver is None:
                return
            GC_MARKS.stop()
            if receiver.deep_every or receiver.counters:
                deep.switch_off()
            module = self._module()
            observed = REGISTRY.get(module) if module is not None else None
            if module is not None and observed is not None:
                observed.loops.finish_all()
                observed.remove(receiver)
                if not observed.receivers:
                    observed.loops.detach()
                    del REGISTRY[module]
                    continuous.LOOPS.forget(module)
            seams.release(needed_seams())


class EveryAttachment:
    """What `attach_every` returns: keeps whatever model generates observed, from its first request until `detach`."""

    def __init__(self, receiver_of: Callable[[torch.nn.Module], Receiver]) -> None:
        """Remember who makes the receivers; `attach_every` does the work."""
        self._receiver_of = receiver_of
        self._known: weakref.WeakSet[object] = weakref.WeakSet()
        self._attachments: list[Attachment] = []

    def admit(self, module: torch.nn.Module) -> None:
        """A model begins a request: from now on it is observed."""
        # What is wrapped round another model hands its `generate` on, and that one is the model.
        if module in self._known or target_of(module) is not module:
            return
        with registry.LOCK:
            if module not in self._known and self in EVERYWHERE:
                self._forget_gone()
                self._attachments.append(attach(module, self._receiver_of(module)))
                self._known.add(module)

    def detach(self) -> None:
        """Take in no more models, and leave those that are observed. Safe to call twice."""
        with registry.LOCK:
            EVERYWHERE[:] = [kept for kept in EVERYWHERE if kept is not self]
            for attachment in self._attachments:
                attachment.detach()
            self._attachments.clear()
            seams.release(needed_seams())

    def _forget_gone(self) -> None:
        """A server that loads one model after the other: what is kept for those that were freed goes."""
        for attachment in self._attachments:
            if attachment.gone:
                attachment.detach()
        self._attachments = [kept for kept in self._attachments if not kept.gone]


def attach(model: object, receiver: Receiver) -> Attachment:
    """Observe every `generate` of a model.

    Args:
        model: A `torch.nn.Module` with `generate`, possibly compiled or wrapped.
        receiver: Called on the generating thread after each request.

    Returns:
        A handle whose `detach` leaves model and classes as they were.

    Raises:
        NotAModelError: `model` is not a `torch.nn.Module`.
    """
    module = target_of(model)
    with registry.LOCK:
        observed = REGISTRY.get(module)
        if observed is None:
            observed = REGISTRY[module] = Observed(module, companions_of(module, _bring), loops_of)
        seams.wrap(all_seams(module, observed.companions))
        observed.add(receiver)
        GC_MARKS.start()
    if receiver.deep_every or receiver.counters:  # not under the lock, which running requests may need: on CUDA seconds
        deep.switch_on(cuda=bool(cuda_devices_of(module)), warm=bool(receiver.deep_every))
    return Attachment(module, receiver)


def attach_every(receiver_of: Callable[[torch.nn.Module], Receiver]) -> EveryAttachment:
    """Observe every `generate` of every model of transformers in this process, also of models and classes to come.

    Nothing is done to a model before its first request. Where parts of transformers have not been loaded yet, call
    `look_again` once they have.

    Args:
        receiver_of: Makes the receiver of a model, on the thread and in the moment of its first request.

    Returns:
        A handle whose `detach` leaves models and classes as they were.
    """
    every = EveryAttachment(receiver_of)
    EVERYWHERE.append(every)
    look_again()
    return every


def target_of(model: object) -> torch.nn.Module:
    """The module whose forwards really run, behind torch.compile, DDP and PEFT wrappers.

    Raises:
        NotAModelError: `model` is not a `torch.nn.Module`.
    """
    import torch  # noqa: PLC0415 - torch loads with the first model, not with the package

    if not isinstance(model, torch.nn.Module):
        raise NotAModelError(
            f"trace() needs a torch.nn.Module with generate, not {type(model).__name__}: hand it the loaded model"
        )
    module: torch.nn.Module = model
    for _ in range(8):
        inner = _wrapped_by(module)
        if inner is None:
            break
        module = inner
    return module


def _wrapped_by(module: torch.nn.Module) -> torch.nn.Module | None:
    """One layer further in, for the wrappers whose own hooks never fire in `generate`."""
    kind = type(module).__name__
    inner: Any = None
    if kind == "OptimizedModule":
        inner = getattr(module, "_orig_mod", None)
    elif kind in {"DistributedDataParallel", "DataParallel"}:
        inner = getattr(module, "module", None)
    elif hasattr(module, "peft_config") and callable(base := getattr(module, "get_base_model", None)):
        inner = base()
    return inner if inner is not module else None


def _bring(companions: Companions, instance: torch.nn.Module, assistant: object) -> None:
    """A call brings its assistant along: it is observed too, as long as the model is."""
    try:
        module = target_of(assistant)
    except NotAModelError:  # generate will say so
        return
    with registry.LOCK:
        if module is not instance and module not in companions:
            companions.update(companions_of(module, _bring))
            companions[module] = ASSISTANT
            seams.wrap(all_seams(module, companions))


def after_fork() -> None:
    """In a forked child: requests of the parent's are not ours to finish, and its locks are nobody's."""
    registry.after_fork()
    deep.after_fork()
    sync_points.after_fork()
    counters.after_fork()
    BUDGET.after_fork()
    TRAFFIC.reset()
    continuous.LOOPS.after_fork()
    restart_request_ids()
    frame = CURRENT.get()
    if frame is not None:
        frame.request.dead = True
        frame.module = None


def active_requests() -> bool:
    """Whether any traced `generate` is running in this process."""
    return TRAFFIC.active() or continuous.LOOPS.active()
