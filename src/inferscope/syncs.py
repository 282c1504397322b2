"""What the sync lint reports, and how two runs of different length are told apart. Pure: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

__all__ = ["LAUNCHES_ARE_A_LOWER_BOUND", "Certainty", "LintReport", "Place", "Rate", "SyncPoint", "Wait", "separate"]

Certainty = Literal["certain", "possible"]

LAUNCHES_ARE_A_LOWER_BOUND = (
    "launches are a lower bound: operators that start at least one kernel, memory fill or copy on the device; "
    "one operator may start several"
)

K = TypeVar("K", bound="Hashable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in Python something was done.

    Attributes:
        file: Innermost file that is not torch's own: relative to the folder of packages or to the working folder.
        line: Line in it.
        caller_file: Innermost file that belongs to no installed package; None where that is `file`, or nobody's.
        caller_line: Line in it; None with `caller_file`.
    """

    file: str
    line: int
    caller_file: str | None = None
    caller_line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One reason for the host to wait for the device, as seen while running: what `SyncPoint` counts.

    Attributes:
        operator: What Python called ("Tensor.item"), or the operator where no call was seen ("aten::nonzero").
        place: Where.
        why: Why that waits on CUDA.
        certainty: "possible" where it cannot be told whether the tensor is on the device, or whether torch waits.
    """

    operator: str
    place: Place
    why: str
    certainty: Certainty


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often something happens: a request of n tokens has `per_request` + n * `per_token` of it.

    Attributes:
        per_token: For each further token; a fraction where it does not happen for each.
        per_request: Once, however many tokens: setup, the tail, and what the first tokens have beyond later ones.
    """

    per_token: float
    per_request: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPoint:
    """A line at which the host would wait for a CUDA device.

    Attributes:
        operator: What Python called there, such as "Tensor.item" or "Tensor.__bool__".
        file: Innermost file that is not torch's own: relative to the folder of packages or to the working folder.
        line: Line in it.
        per_token: Waits for each further token (for each pass, where the report's unit is "pass").
        per_request: Waits beside those, once for each request.
        why: Why it waits on CUDA.
        certainty: "certain", or "possible" where it cannot be told.
        caller_file: Innermost file that belongs to no installed package; None where that is `file`, or nobody's.
        caller_line: Line in it; None with `caller_file`.
    """

    operator: str
    file: str
    line: int
    per_token: float
    per_request: float
    why: str
    certainty: Certainty
    caller_file: str | None = None
    caller_line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """How often a model would launch work on a CUDA device and wait for it. Counted without one.

    Attributes:
        model: Name of what was run.
        unit: "token", or "pass" where the model has no `generate`: one call of its forward counts as one token then.
        batch_size: Sequences in the request; one token here is one for each of them. None where it is not known.
        counted_tokens: Lengths of the two requests that were compared; None for passes.
        device: Where it ran while being counted.
        launches_per_token: Operators that start at least one kernel, fill or copy on the device.
        launches_per_request: Those beside `launches_per_token`.
        syncs_per_token: Waits of the host, certain ones only.
        syncs_per_request: Those beside `syncs_per_token`.
        possible_syncs_per_token: Waits of which it cannot be told whether they happen.
        possible_syncs_per_request: Those beside `possible_syncs_per_token`.
        sync_points: Each line, most frequent first.
        launches: Launches by operator, most frequent first.
        notes: What these numbers do not cover, and why.
        versions: (name, version) of what ran.
    """

    model: str
    unit: Literal["token", "pass"]
    batch_size: int | None
    counted_tokens: tuple[int, int] | None
    device: str
    launches_per_token: float
    launches_per_request: float
    syncs_per_token: float
    syncs_per_request: float
    possible_syncs_per_token: float
    possible_syncs_per_request: float
    sync_points: tuple[SyncPoint, ...]
    launches: tuple[tuple[str, Rate], ...]
    notes: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]


def separate(
    short: Mapping[K, int], long: Mapping[K, int], *, short_tokens: int, long_tokens: int
) -> dict[K, tuple[Fraction, Fraction]]:
    """What each further token costs and what a request costs once, from two requests that differ in length alone.

    Exact: the longer request begins with the shorter one, so that what it has more of belongs to its further tokens.
    What the first tokens have less of than later ones counts as nothing per request.

    Args:
        short: How often each thing happened in the shorter request.
        long: The same of the longer one.
        short_tokens: Tokens of the shorter request.
        long_tokens: Tokens of the longer one.

    Returns:
        (per token, per request) of everything that happened in either.

    Raises:
        ValueError: `long_tokens` is not larger than `short_tokens`.
    """
    further = long_tokens - short_tokens
    if further < 1:
        raise ValueError(f"{long_tokens} tokens are not more than {short_tokens}")
    rates = {}
    for key in [*short, *(key for key in long if key not in short)]:
        few, many = short.get(key, 0), long.get(key, 0)
        per_token = max(Fraction(many - few, further), Fraction(0))
        rates[key] = (per_token, max(few - per_token * short_tokens, Fraction(0)))
    return rates
