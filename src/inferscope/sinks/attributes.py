"""What one span attribute is, and how a value becomes one that every exporter and viewer takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Attribute", "AttributeType", "AttributeValue", "plain_text", "values"]

AttributeType = Literal["string", "int", "double", "boolean", "string[]"]
AttributeValue = str | int | float | bool | tuple[str, ...]
_Subject = TypeVar("_Subject")

_TEXT_LIMIT = 512
_LIST_LIMIT = 128
_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Attribute(Generic[_Subject]):
    """One row of a table: an attribute and where its value comes from.

    Attributes:
        name: Its key.
        type: Its OpenTelemetry type, the same for every value it ever has.
        unit: UCUM unit; "" for text and flags.
        meaning: One sentence for the reference.
        read: Its value, None where it is unknown: it is left out then.
    """

    name: str
    type: AttributeType
    unit: str
    meaning: str
    read: Callable[[_Subject], object]


def values(rows: Iterable[Attribute[_Subject]], subject: _Subject) -> dict[str, AttributeValue]:
    """The attributes of a subject that are known, in the order of the table.

    Args:
        rows: The table.
        subject: What its rows read from.
    """
    found: dict[str, AttributeValue] = {}
    for row in rows:
        value = row.read(subject)
        converted = None if value is None else _CONVERSIONS[row.type](value)
        if converted is not None:
            found[row.name] = converted
    return found


def plain_text(value: object) -> str | None:
    """Text as a trace viewer shows it: bounded, never taken for JSON, None where it is empty."""
    text = str(value)[:_TEXT_LIMIT]
    if not text.isascii():
        # A lone surrogate cannot be encoded: it would cost the whole batch.
        text = text.encode("utf-8", "replace").decode("utf-8")
    # Jaeger shows a string that starts with a bracket as a JSON tree.
    return f"'{text}'" if text.startswith(("{", "[")) else text or None


def _integer(value: object) -> int | None:
    # One number beyond 64 bits would cost the whole batch.
    number = int(value)  # type: ignore[call-overload]
    return number if -_INT64 <= number < _INT64 else None


def _double(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None


def _texts(value: object) -> tuple[str, ...] | None:
    texts = [plain_text(item) for item in value]  # type: ignore[attr-defined]
    # A list that was cut would look complete.
    return tuple(text for text in texts if text) or None if len(texts) <= _LIST_LIMIT else None


_CONVERSIONS: dict[AttributeType, Callable[[object], AttributeValue | None]] = {
    "string": plain_text,
    "int": _integer,
    "double": _double,
    "boolean": bool,
    "string[]": _texts,
}
