"""Causes outside the model's arithmetic: Python between passes, the collector, other threads, the compiler."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from inferscope import session
from inferscope.experiments.zoo.exhibit import Live
from inferscope.experiments.zoo.models import fastest, fixed, llama, prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inferscope.specs import DeviceSpec

__all__ = [
    "busy_interpreter",
    "collections_of_garbage",
    "compilation_per_shape",
    "many_threads",
    "neighbour",
    "slow_criterion",
    "slow_processor",
    "slow_streamer",
]

_PLANTED_S = 0.015
_TOKENS = 12
_HEAP = 150_000


def _spend(duration_s: float) -> None:
    """Python that computes: by this thread's own processor time, so that other work does not shorten it."""
    end = time.thread_time() + duration_s
    while time.thread_time() < end:
        sum(range(200))


class SlowProcessor(LogitsProcessor):  # type: ignore[misc]
    """Looks at the scores in a loop of Python."""

    def __call__(self, _input_ids: Any, scores: Any) -> Any:  # noqa: ANN401
        """The same scores, late."""
        _spend(_PLANTED_S)
        return scores


class SlowCriterion(StoppingCriteria):  # type: ignore[misc]
    """Decides in a loop of Python to go on."""

    def __call__(self, input_ids: Any, _scores: Any, **_: Any) -> Any:  # noqa: ANN401
        """Never."""
        _spend(_PLANTED_S)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class SlowStreamer:
    """Takes its time over each token."""

    def put(self, _value: object) -> None:
        """Take one."""
        _spend(_PLANTED_S)

    def end(self) -> None:
        """Nothing is left to do."""


def slow_processor(_device: DeviceSpec) -> Live:
    """A logits processor in Python."""
    return Live(
        model=llama(),
        inputs=prompt(16),
        options=lambda: fixed(_TOKENS, logits_processor=LogitsProcessorList([SlowProcessor()])),
    )


def slow_criterion(_device: DeviceSpec) -> Live:
    """A stopping criterion in Python."""
    return Live(
        model=llama(),
        inputs=prompt(16),
        options=lambda: fixed(_TOKENS, stopping_criteria=StoppingCriteriaList([SlowCriterion()])),
    )


def slow_streamer(_device: DeviceSpec) -> Live:
    """A streamer that works while the model waits."""
    return Live(model=llama(), inputs=prompt(16), options=lambda: fixed(_TOKENS, streamer=SlowStreamer()))


def collections_of_garbage(_device: DeviceSpec) -> Live:
    """Each layer calls the collector, and there is much to look through."""
    model, heap = llama(), list[list[int]]()

    def collect(*_: object) -> None:
        if heap:
            gc.collect()

    @contextmanager
    def storm() -> Iterator[None]:
        # What the process holds beside it is left out, so that the storm is as large in any process.
        frozen = gc.get_freeze_count()
        gc.freeze()
        heap.extend([index] for index in range(_HEAP))
        try:
            yield
        finally:
            heap.clear()
            if not frozen:
                gc.unfreeze()

    for layer in model.model.layers:
        layer.register_forward_hook(collect)
    return Live(model=model, inputs=prompt(16), options=lambda: fixed(_TOKENS), around=storm)


def busy_interpreter(_device: DeviceSpec) -> Live:
    """Threads that compute in Python beside the generating one."""
    return Live(model=llama(), inputs=prompt(16), options=lambda: fixed(_TOKENS), around=_hogs)


@contextmanager
def _hogs() -> Iterator[None]:
    with _beside(lambda: sum(range(2_000)), threads=2):
        yield


@contextmanager
def _beside(work: Callable[[], object], *, threads: int = 1) -> Iterator[None]:
    """Something that other threads do again and again meanwhile."""
    ended = threading.Event()
    begun = threading.Barrier(threads + 1)

    def run() -> None:
        begun.wait()
        while not ended.is_set():
            work()

    every = [threading.Thread(target=run, name="zoo", daemon=True) for _ in range(threads)]
    for one in every:
        one.start()
    begun.wait()
    try:
        yield
    finally:
        ended.set()
        for one in every:
            one.join()


def neighbour(_device: DeviceSpec) -> Live:
    """Two other requests on another traced model of the process, all the time."""
    other = llama()
    inputs = prompt(64, batch=4)

    @contextmanager
    def around() -> Iterator[None]:
        with (
            session.trace(other, sinks=()),
            _beside(lambda: other.generate(**inputs, **fixed(8)), threads=2),
        ):
            yield

    return Live(model=llama(), inputs=prompt(16), options=lambda: fixed(_TOKENS), around=around)


def many_threads(device: DeviceSpec) -> Live:
    """Eight intra-op threads for each processor."""

    @contextmanager
    def around() -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(8 * max(before, 2))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return Live(
        model=llama(dtype=fastest(device), hidden_size=512, intermediate_size=1024),
        inputs=prompt(8),
        options=lambda: fixed(6),
        around=around,
    )


def compilation_per_shape(_device: DeviceSpec) -> Live:
    """A compiled forward that meets a new length with each token."""
    model = llama(num_hidden_layers=1)
    block = model.model.layers[0].self_attn
    block.forward = torch.compile(block.forward, backend="eager", dynamic=False)
    return Live(model=model, inputs=prompt(16), options=lambda: fixed(6), warm=False)
