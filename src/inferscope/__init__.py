"""inferscope says why a language model request took as long as it did.

    with inferscope.trace(model) as session:
        model.generate(**inputs)
    print(session.last)

Names are resolved when first used: importing the package loads neither torch nor opentelemetry.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferscope.errors import InferscopeError as InferscopeError

__version__ = "0.1.0"

_PLACES = {
    "InferscopeError": "errors",
}

__all__ = ["InferscopeError", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes have any type
    if name not in _PLACES:
        raise AttributeError(f"module 'inferscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"inferscope.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
