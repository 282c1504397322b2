"""Named ranges for NVIDIA's profilers: where they can be put, and nothing where they cannot.

The package `nvtx` gives them a domain of their own and a number; torch's own function has neither. Not confirmed on
hardware yet.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any, Protocol

from inferscope import notices

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DOMAIN", "DomainRanges", "Ranges", "TorchRanges", "find_ranges"]

DOMAIN = "inferscope"


class Ranges(Protocol):
    """Opens and closes ranges on the thread that calls; the last one opened is the first closed."""

    def push(self, name: str, number: int) -> None:
        """A range begins.

        Args:
            name: What is shown.
            number: Which one of that name, where a range can carry it.
        """

    def pop(self) -> None:
        """The last range that was opened on this thread ends."""


class DomainRanges:
    """In our own domain, numbered, through the package `nvtx`."""

    def __init__(self, domain: Any) -> None:  # noqa: ANN401 - the package ships no types
        """Take a domain that a profiler listens to."""
        self._domain = domain
        self._kept = threading.local()  # what names a range also carries its number: threads must not share it

    def push(self, name: str, number: int) -> None:
        """A range begins."""
        kept: dict[str, Any] = self._kept.__dict__
        attributes = kept.get(name)
        if attributes is None:
            attributes = kept[name] = self._domain.get_event_attributes(message=name, payload=0)
        attributes.payload = number
        self._domain.push_range(attributes)

    def pop(self) -> None:
        """It ends."""
        self._domain.pop_range()


class TorchRanges:
    """In the default domain, without a number, through torch."""

    def __init__(self, push: Callable[[str], object], pop: Callable[[], object]) -> None:
        """Take torch's two functions."""
        self._push = push
        self._pop = pop

    def push(self, name: str, number: int) -> None:  # noqa: ARG002 - torch has no place for it
        """A range begins."""
        self._push(name)

    def pop(self) -> None:
        """It ends."""
        self._pop()


def find_ranges() -> Ranges | None:
    """What ranges can be put with here; None where there is nothing, which is said once."""
    domain = _domain()
    if domain is not None:
        # Where no profiler listens, the package hands out a domain that does nothing, and no attributes.
        return None if domain.get_event_attributes(message=DOMAIN, payload=0) is None else DomainRanges(domain)
    nvtx: Any = importlib.import_module("torch.cuda.nvtx")  # torch loads with the first model

    try:
        nvtx.range_push(DOMAIN)
        nvtx.range_pop()
    except (RuntimeError, AttributeError) as error:  # a build without CUDA
        notices.warn(
            "nvtx-unavailable",
            "INFERSCOPE_NVTX=1, but no ranges can be put: install the package nvtx, or a torch that is built for CUDA",
            reason=str(error),
        )
        return None
    return TorchRanges(nvtx.range_push, nvtx.range_pop)


def _domain() -> Any:  # noqa: ANN401 - a domain of the package, or None
    try:
        return importlib.import_module("nvtx").get_domain(DOMAIN)
    except (ImportError, AttributeError, OSError):  # not there, or older than domains of this kind
        return None
