# What the C extension offers, where it was built; see capture/forward.py for the same in Python.

from array import array
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

CONSTANTS: Final[dict[str, int]]  # what it takes from capture/frames.py
INTERFACE: Final[int]  # raised with every change of what is seen from Python
READS_CLOCKS: Final[bool]  # whether it reads the system's clocks itself: Python's functions read the same ones

class Request:
    rows: array[int]
    row: int
    in_pass: int
    dead: bool

class Frame:
    request: Any
    module: object
    summed: object | None
    meter: Any
    thread: int
    past: int
    seen: int
    flags: int
    slow: bool
    now_ns: Callable[[], int]
    thread_cpu_ns: Callable[[], int]

class Watch:
    def __init__(
        self,
        below: object,
        current: ContextVar[Any],
        other_frame: Callable[[Any, object], object],
        encoded: Callable[..., object],
        step_aside: Callable[[Any, Exception], object],
    ) -> None: ...
    def __call__(self, module: object, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> object: ...

class StopCheck:
    def __init__(
        self,
        original: Callable[..., object],
        current: ContextVar[Any],
        step_aside: Callable[[Any, Exception], object],
    ) -> None: ...
    def __call__(self, *args: object, **kwargs: object) -> object: ...
