"""Many requests in one view: what `inferscope run` says at the end. Bounded, whatever the number of requests."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from inferscope.records import QuantileSketch
from inferscope.report.plain import to_text
from inferscope.report.units import UNKNOWN, clean, count, duration_ns, percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferscope.analysis.verdict import Result

__all__ = ["RequestTally"]

_MODELS = 8
_FINDINGS = 5
_EXACT = 256
"""Up to so many values quantiles are those of the values themselves; beyond, of a sketch, within 1 %."""
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


class RequestTally:
    """A sink that adds requests up, and keeps the slowest and the last. Threads may share it.

    Attributes:
        requests: How many there were.
        aborted: How many of them an exception ended.
        slowest: The one with the longest wall; None where there was none.
        last: The newest one; None where there was none.
    """

    def __init__(self) -> None:
        """Begin with no requests."""
        self.requests = 0
        self.aborted = 0
        self.slowest: Result | None = None
        self.last: Result | None = None
        self._lock = threading.Lock()
        self._models: Counter[str] = Counter()
        self._findings: Counter[str] = Counter()
        self._saves_ns: Counter[str] = Counter()
        self._phase_ns: Counter[tuple[str, str]] = Counter()
        self._tokens = {"input": _Sum(), "output": _Sum()}
        self._times = {"wall": _Times(), "ttft": _Times(), "tpot": _Times()}

    def __call__(self, result: Result) -> None:
        """Add one request."""
        record = result.record
        with self._lock:
            self.requests += 1
            self.aborted += record.status == "aborted"
            known = record.model.name in self._models or len(self._models) < _MODELS
            self._models[record.model.name if known else "others"] += 1
            self._findings.update(dict.fromkeys(finding.code for finding in result.findings).keys())
            for finding in result.findings:
                if finding.saves is not None:
                    self._saves_ns[finding.code] += round(finding.saves.request_share * record.wall_ns)
            for phase in record.phases:
                verdict = result.diagnosis.phase(phase.name)
                self._phase_ns[phase.name, "unknown" if verdict is None else verdict.bound] += phase.wall_ns
            self._tokens["input"].add(record.input_tokens)
            self._tokens["output"].add(record.output_tokens)
            self._times["wall"].add(record.wall_ns)
            self._times["ttft"].add(record.ttft_ns)
            self._times["tpot"].add(record.tpot_ns)
            self.last = result
            if self.slowest is None or record.wall_ns > self.slowest.record.wall_ns:
                self.slowest = result

    def as_json(self) -> dict[str, Any]:
        """What there was, for programs: times in seconds, None for what is not known."""
        with self._lock:
            return {
                "schema": 1,
                "requests": self.requests,
                "aborted": self.aborted,
                "models": dict(self._models),
                "tokens": {name: total.as_json() for name, total in self._tokens.items()},
                **{f"{name}_s": times.as_json() for name, times in self._times.items()},
                "phases": [
                    {"phase": phase, "bound": bound, "time_s": time_ns / 1e9}
                    for (phase, bound), time_ns in self._phase_ns.most_common()
                ],
                "findings": dict(self._ranked()),
                "slowest": None if self.slowest is None else _named(self.slowest),
                "last": None if self.last is None else _named(self.last),
            }

    def to_text(self, *, width: int = 80) -> str:
        """What there was, for people: the sums, then the slowest request in full.

        Args:
            width: Characters per line.
        """
        with self._lock:
            slowest = self.slowest
            if slowest is None:
                return "inferscope  no generate() of a transformers model was seen"
            lines = [f"inferscope  {self._headline()}", ""]
            lines += [f"  {line}" for line in self._rows()]
        what = "The request" if self.requests == 1 else "The slowest request"
        return "\n".join([*lines, "", f"{what}, {slowest.record.request_id}", "", to_text(slowest, width=width)])

    def _ranked(self) -> list[tuple[str, int]]:
        """Findings and in how many requests they are: what would save most first, then what is seen most."""
        return sorted(self._findings.items(), key=lambda item: (-self._saves_ns[item[0]], -item[1]))

    def _headline(self) -> str:
        models = ", ".join(clean(name) for name, _ in self._models.most_common())
        number = "1 request" if self.requests == 1 else f"{count(self.requests)} requests"
        aborted = f" · {count(self.aborted)} aborted" if self.aborted else ""
        return f"{number} of {models}{aborted} · {duration_ns(self._times['wall'].sum_ns)} in generate()"

    def _rows(self) -> Iterable[str]:
        yield f"tokens     {self._tokens['input']} in, {self._tokens['output']} out"
        for name, label in (("wall", "wall"), ("ttft", "TTFT"), ("tpot", "TPOT")):
            yield f"{label:<10} {self._times[name]}"
        whole_ns = self._times["wall"].sum_ns
        for (phase, bound), time_ns in self._phase_ns.most_common():
            share = percent(time_ns / whole_ns) if whole_ns else UNKNOWN
            yield f"{clean(phase):<10} {duration_ns(time_ns)}, {share} of the wall: {clean(bound)}"
        for code, seen in self._ranked()[:_FINDINGS]:
            yield f"finding    {clean(code)} in {count(seen)} of {count(self.requests)}"
        if len(self._findings) > _FINDINGS:
            others = count(len(self._findings) - _FINDINGS)
            yield f"           and {others} more that would save less: inferscope report"


class _Sum:
    """A sum of what is known, and of how many it is."""

    def __init__(self) -> None:
        self.total, self.known, self.unknown = 0, 0, 0

    def add(self, value: int | None) -> None:
        if value is None:
            self.unknown += 1
        else:
            self.total += value
            self.known += 1

    def as_json(self) -> dict[str, int | None]:
        return {"sum": self.total if self.known else None, "requests_without": self.unknown}

    def __str__(self) -> str:
        if not self.known:
            return UNKNOWN
        return count(self.total) + (f" (not known of {count(self.unknown)} requests)" if self.unknown else "")


class _Times:
    """Quantiles of durations in bounded memory, of those that are known."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._values: list[int] = []
        self.sum_ns, self._min_ns, self._max_ns = 0, 0, 0

    def add(self, value: float | None) -> None:
        if value is None:
            return
        value_ns = round(value)
        self._min_ns = min(self._min_ns, value_ns) if self._buckets else value_ns
        self._max_ns = max(self._max_ns, value_ns)
        self.sum_ns += value_ns
        self._buckets[QuantileSketch.bucket(value_ns)] += 1
        if len(self._values) <= _EXACT:
            self._values.append(value_ns)

    def _quantile_ns(self, sketch: QuantileSketch, share: float) -> float | None:
        """Between the two values nearest to it where there are few, so that the median is the one everybody means."""
        if len(self._values) > _EXACT:
            return sketch.quantile_ns(share)
        ascending = sorted(self._values)
        place = share * (len(ascending) - 1)
        low = int(place)
        high = min(low + 1, len(ascending) - 1)
        return ascending[low] + (place - low) * (ascending[high] - ascending[low])

    def _sketch(self) -> QuantileSketch | None:
        if not self._buckets:
            return None
        return QuantileSketch(
            buckets=tuple(sorted(self._buckets.items())),
            count=sum(self._buckets.values()),
            sum_ns=self.sum_ns,
            min_ns=self._min_ns,
            max_ns=self._max_ns,
        )

    def as_json(self) -> dict[str, float | None]:
        sketch = self._sketch()
        found = {name: None if sketch is None else self._quantile_ns(sketch, share) for name, share in _QUANTILES}
        found["max"] = None if sketch is None else sketch.max_ns
        return {name: None if value is None else value / 1e9 for name, value in found.items()}

    def __str__(self) -> str:
        sketch = self._sketch()
        if sketch is None:
            return UNKNOWN
        parts = [f"{name} {duration_ns(self._quantile_ns(sketch, share))}" for name, share in _QUANTILES]
        return ", ".join([*parts, f"max {duration_ns(sketch.max_ns)}"])


def _named(result: Result) -> dict[str, Any]:
    record = result.record
    return {
        "request_id": record.request_id,
        "model": record.model.name,
        "wall_s": record.wall_ns / 1e9,
        "bounds": {verdict.name: verdict.bound for verdict in result.diagnosis.phases},
        "findings": [finding.code for finding in result.findings],
    }
