"""What the requests of the last minute amount to: throughput, bounds by phase, and energy per token.

Only requests that have ended are known, so throughput is a lower bound while others run. Energy comes from the
device's cumulative counter, which is read about once a second: the counter never falls, so the energy between two
moments lies between two differences of readings. That interval is reported, not a guess inside it. It is the whole
board's: what other work drew meanwhile, and what the device draws idle, is in it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from inferscope.analysis.verdict import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inferscope.analysis.verdict import Bound, Result

__all__ = ["HORIZON_S", "EnergyShare", "PhaseLoad", "RequestDigest", "Workload", "digest", "summarise"]

HORIZON_S = 60.0
"""How far back requests count."""
_NS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDigest:
    """What is kept of one request.

    Attributes:
        start_unix_ns: `generate`'s entry.
        end_unix_ns: Its exit.
        device: Kind of torch device it ran on ("cpu", "cuda"); None where unknown.
        device_key: Identity of that very device; None where unknown.
        output_tokens: New tokens over the batch; None where they were not counted.
        aborted: Whether an exception ended it.
        phases: Name, wall in nanoseconds and shares by bound (empty where unknown) of each phase.
    """

    start_unix_ns: int
    end_unix_ns: int
    device: str | None
    device_key: str | None
    output_tokens: int | None
    aborted: bool
    phases: tuple[tuple[str, int, dict[str, float]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLoad:
    """One kind of phase over the requests of the horizon.

    Attributes:
        name: "prefill", "decode", ...
        wall_s: Summed over the requests.
        bound: The class with the largest share; "unknown" where nothing is known of any.
        shares: Of the wall whose shares are known, by class, summing to 1; empty where nothing is known.
        known_share: Part of the wall whose shares are known (0..1).
    """

    name: str
    wall_s: float
    bound: Bound
    shares: dict[str, float]
    known_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyShare:
    """Energy one device drew while requests ran on it, as an interval.

    Attributes:
        device: The device's identity.
        low_j: Not less than this.
        high_j: Not more than this.
        requests: Whose time is covered; time that several share is counted once.
        tokens: New tokens of these requests.
    """

    device: str
    low_j: float
    high_j: float
    requests: int
    tokens: int

    @property
    def per_token_j(self) -> tuple[float, float] | None:
        """Lower and upper limit per new token; None without tokens."""
        return None if self.tokens == 0 else (self.low_j / self.tokens, self.high_j / self.tokens)

    @property
    def per_request_j(self) -> tuple[float, float]:
        """Lower and upper limit per request."""
        return self.low_j / self.requests, self.high_j / self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests that ended within the horizon.

    Attributes:
        horizon_s: Seconds looked back: 60, or since monitoring began.
        requests: How many ended.
        aborted: How many of them by an exception.
        uncounted: How many of them have unknown tokens.
        on_host: How many of them ran on the CPU.
        busy_share: Part of the horizon in which at least one of them ran (0..1).
        tokens_per_s: New tokens per second of the horizon, those of a request spread evenly over its time; None
            where no request's tokens are known.
        phases: By kind, longest first.
        energy: By device; empty where nothing is known.
        missing: Field name and why it is empty.
    """

    horizon_s: float = 0.0
    requests: int = 0
    aborted: int = 0
    uncounted: int = 0
    on_host: int = 0
    busy_share: float = 0.0
    tokens_per_s: float | None = None
    phases: tuple[PhaseLoad, ...] = ()
    energy: tuple[EnergyShare, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)


def digest(result: Result) -> RequestDigest:
    """What is worth keeping of a result."""
    record = result.record
    return RequestDigest(
        start_unix_ns=record.started_unix_ns,
        end_unix_ns=record.started_unix_ns + record.wall_ns,
        device=None if record.model.device is None else record.model.device.partition(":")[0],
        device_key=record.device_key,
        output_tokens=record.output_tokens,
        aborted=record.status == "aborted",
        phases=tuple((p.name, p.wall_ns, _shares(result, p.name)) for p in record.phases),
    )


def summarise(
    requests: Iterable[RequestDigest],
    *,
    now_unix_ns: int,
    since_unix_ns: int,
    energy: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> Workload:
    """The requests that ended between `now - 60 s` and now.

    Args:
        requests: In any order; those that ended outside are left out.
        now_unix_ns: End of the horizon.
        since_unix_ns: When monitoring began.
        energy: By device identity the counter's readings, (Unix nanoseconds, joules), in time order.
    """
    begin_ns = max(since_unix_ns, now_unix_ns - round(HORIZON_S * _NS))
    horizon_ns = now_unix_ns - begin_ns
    if horizon_ns <= 0:
        return Workload(missing={"tokens_per_s": "monitoring has only begun", "energy": "monitoring has only begun"})
    inside = [one for one in requests if begin_ns < one.end_unix_ns <= now_unix_ns]
    shared, why_no_energy = _energy(inside, energy or {})
    counted = [one for one in inside if one.output_tokens is not None]
    tokens = sum(_tokens_within(one, begin_ns) for one in counted)
    missing = {} if counted else {"tokens_per_s": _no_tokens(inside)}
    if not shared:
        missing["energy"] = why_no_energy
    return Workload(
        horizon_s=horizon_ns / _NS,
        requests=len(inside),
        aborted=sum(one.aborted for one in inside),
        uncounted=len(inside) - len(counted),
        on_host=sum(one.device == "cpu" for one in inside),
        busy_share=_covered_ns((max(one.start_unix_ns, begin_ns), one.end_unix_ns) for one in inside) / horizon_ns,
        tokens_per_s=tokens * _NS / horizon_ns if counted else None,
        phases=_phases(inside),
        energy=shared,
        missing=missing,
    )


def _shares(result: Result, phase: str) -> dict[str, float]:
    verdict = result.diagnosis.phase(phase)
    return {} if verdict is None else dict(verdict.shares)


def _no_tokens(inside: list[RequestDigest]) -> str:
    return "the requests' tokens were not counted" if inside else "no request has ended: is the monitor a sink?"


def _tokens_within(one: RequestDigest, begin_ns: int) -> float:
    wall_ns = one.end_unix_ns - one.start_unix_ns
    tokens = float(one.output_tokens or 0)
    return tokens if wall_ns <= 0 else tokens * (one.end_unix_ns - max(one.start_unix_ns, begin_ns)) / wall_ns


def _merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def _covered_ns(intervals: Iterable[tuple[int, int]]) -> int:
    return sum(end - begin for begin, end in _merged(intervals))


def _phases(inside: list[RequestDigest]) -> tuple[PhaseLoad, ...]:
    walls: dict[str, int] = {}
    known: dict[str, int] = {}
    sums: dict[str, dict[str, float]] = {}
    for name, wall_ns, shares in (phase for one in inside for phase in one.phases):
        walls[name] = walls.get(name, 0) + wall_ns
        if shares:
            known[name] = known.get(name, 0) + wall_ns
            total = sums.setdefault(name, dict.fromkeys(BOUNDS, 0.0))
            for bound, share in shares.items():
                total[bound] = total.get(bound, 0.0) + share * wall_ns
    return tuple(
        _phase(name, wall_ns, known.get(name, 0), sums.get(name, {}))
        for name, wall_ns in sorted(walls.items(), key=lambda item: -item[1])
    )


def _phase(name: str, wall_ns: int, known_ns: int, sums: dict[str, float]) -> PhaseLoad:
    whole = sum(sums.values())
    shares = {bound: value / whole for bound, value in sums.items()} if whole > 0 else {}
    return PhaseLoad(
        name=name,
        wall_s=wall_ns / _NS,
        bound=max(BOUNDS, key=lambda bound: shares.get(bound, 0.0)) if shares else "unknown",
        shares=shares,
        known_share=known_ns / wall_ns if wall_ns and shares else 0.0,
    )


def _energy(
    inside: list[RequestDigest], readings: Mapping[str, Sequence[tuple[int, float]]]
) -> tuple[tuple[EnergyShare, ...], str]:
    """Energy by device, and why there is none."""
    if not readings:
        return (), "no device here tells its energy"
    shared = []
    for device, taken in readings.items():
        counter = _Counter(taken)
        covered = [
            one
            for one in inside
            if _ran_on(one, device, only=len(readings) == 1)
            and one.output_tokens is not None
            and counter.between_j(one.start_unix_ns, one.end_unix_ns) is not None
        ]
        stretches = _merged((one.start_unix_ns, one.end_unix_ns) for one in covered)
        limits = [counter.between_j(begin, end) for begin, end in stretches]
        known = [limit for limit in limits if limit is not None]
        if known and len(known) == len(limits):
            shared.append(
                EnergyShare(
                    device=device,
                    low_j=sum(low for low, _ in known),
                    high_j=sum(high for _, high in known),
                    requests=len(covered),
                    tokens=sum(one.output_tokens or 0 for one in covered),
                )
            )
    return tuple(shared), "" if shared else "no request ran between two readings of its device's energy counter"


def _ran_on(one: RequestDigest, uuid: str, *, only: bool) -> bool:
    """Whether a request ran on a device, by its identity or because there is no other."""
    if one.device != "cuda":
        return False
    if one.device_key is None:
        return only
    # torch writes a GPU's identity without NVML's prefix.
    return uuid.removeprefix("GPU-") in one.device_key


class _Counter:
    """Readings of a counter that never falls while its driver stays loaded."""

    def __init__(self, readings: Sequence[tuple[int, float]]) -> None:
        self._moments_ns = [moment for moment, _ in readings]
        self._values_j = [value for _, value in readings]

    def between_j(self, begin_ns: int, end_ns: int) -> tuple[float, float] | None:
        """Least and most energy between two moments; None where no readings enclose them, or they fell."""
        before = bisect_right(self._moments_ns, begin_ns) - 1
        after = bisect_left(self._moments_ns, end_ns)
        if before < 0 or after >= len(self._moments_ns):
            return None
        values_j = self._values_j[before : after + 1]
        if any(late < early for early, late in pairwise(values_j)):
            return None  # the driver was loaded anew in between
        # What lies between the first and the last reading inside was certainly drawn in this time.
        first = bisect_left(self._moments_ns, begin_ns)
        last = bisect_right(self._moments_ns, end_ns) - 1
        low_j = self._values_j[last] - self._values_j[first] if last >= first else 0.0
        return low_j, values_j[-1] - values_j[0]
