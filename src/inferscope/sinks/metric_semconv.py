"""Every metric that requests become: its name, instrument, unit, attributes, meaning and where its values come from.

The `gen_ai.server` histograms have the names, units and borders of OpenTelemetry's conventions. What these have no name
for is under `inferscope`. Attributes take few values: those that a program could make many of are capped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from inferscope.analysis.verdict import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from inferscope.analysis.verdict import PhaseDiagnosis, Result
    from inferscope.records import GenerationRecord, OwnOverhead, PhaseRecord

__all__ = ["ACTIVE", "BASE_KEYS", "DROPPED", "REQUEST_METRICS", "Point", "RequestMetric", "metrics_markdown"]

Instrument = Literal["histogram", "counter", "updowncounter", "gauge"]
_PHASES = ("encode", "prefill", "decode", "verify", "draft", "mixed", "unknown")

BASE_KEYS = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
"""On every point that a request makes."""


class Point(NamedTuple):
    """One value of a metric.

    Attributes:
        value: In the metric's unit.
        attributes: Beyond those that every point of a request has.
        span: Name of the phase whose span the value is of; None for the request's own.
    """

    value: float
    attributes: dict[str, str]
    span: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetric:
    """One row of the table.

    Attributes:
        name: Of the instrument.
        kind: Which instrument.
        unit: UCUM unit.
        meaning: One sentence for the reference.
        attributes: Keys that its points may have beyond `BASE_KEYS`.
        borders: Upper borders of a histogram's buckets; empty for the other kinds.
        read: Its points of one request; what is unknown has none. None where the sink itself keeps count.
    """

    name: str
    kind: Instrument
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()
    borders: tuple[float, ...] = ()
    read: Callable[[Result], Iterable[Point]] | None = None


_DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# A small model's token takes a fraction of a millisecond: three borders in each power of ten from 0.1 ms to 100 s.
_FINE_S = (*(float(f"{digit}e{power}") for power in range(-4, 2) for digit in (1, 2, 5)), 100.0)
_SHARES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_COUNTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0)


def error_type(record: GenerationRecord) -> str | None:
    """Class of the exception that ended a request; `_OTHER` where it is not known, None where there was none."""
    return (record.error_type or "_OTHER") if record.status == "aborted" else None


def _failed(record: GenerationRecord) -> dict[str, str]:
    kind = error_type(record)
    return {} if kind is None else {"error.type": kind}


def _one(value: Callable[[GenerationRecord], float | None], span: str | None = None) -> Callable[..., Iterator[Point]]:
    def read(result: Result) -> Iterator[Point]:
        found = value(result.record)
        if found is not None:
            yield Point(found, {}, span)

    return read


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / 1e9


def _duration(result: Result) -> Iterator[Point]:
    yield Point(result.record.wall_ns / 1e9, _failed(result.record))


def _requests(result: Result) -> Iterator[Point]:
    yield Point(1, {"inferscope.status": result.record.status, **_failed(result.record)})


def _tokens(result: Result) -> Iterator[Point]:
    for kind, number in (("input", result.record.input_tokens), ("output", result.record.output_tokens)):
        if number is not None:
            yield Point(number, {"gen_ai.token.type": kind})


def _verdicts(result: Result) -> Iterator[tuple[PhaseRecord, PhaseDiagnosis | None, dict[str, str]]]:
    for phase in result.record.phases:
        name = phase.name if phase.name in _PHASES else "unknown"
        yield phase, result.diagnosis.phase(phase.name), {"inferscope.phase": name}


def _phase_time(result: Result) -> Iterator[Point]:
    for phase, verdict, keys in _verdicts(result):
        bound = "unknown" if verdict is None else verdict.bound
        yield Point(phase.wall_ns / 1e9, {**keys, "inferscope.bound": bound})


def _bound_time(result: Result) -> Iterator[Point]:
    for phase, verdict, keys in _verdicts(result):
        # A phase without shares is all unknown: the classes of a phase sum to its wall whatever is known.
        shares: dict[str, float] = dict(verdict.shares) if verdict is not None else {}
        for bound, share in (shares or {"unknown": 1.0}).items():
            if bound in BOUNDS:
                yield Point(phase.wall_ns * share / 1e9, {**keys, "inferscope.bound": bound})


def _ledger_time(result: Result) -> Iterator[Point]:
    ledger = result.record.ledger
    whole = {
        "queue": ledger.queue_ns,
        "setup": ledger.setup_ns,
        "tail": ledger.tail_ns,
        "self": ledger.self_ns,
        "residual": ledger.residual_ns,
    }
    for part, value_ns in whole.items():
        if value_ns is not None:
            yield Point(value_ns / 1e9, {"inferscope.class": part})
    for phase, _, keys in _verdicts(result):
        parts = {
            "issue": phase.ledger.issue_ns,
            "select": phase.ledger.select_ns,
            "wait": phase.ledger.wait_ns,
            "deliver": phase.ledger.deliver_ns,
            "shared": phase.ledger.shared_ns,
        }
        for part, value_ns in parts.items():
            if value_ns is not None:
                yield Point(value_ns / 1e9, {**keys, "inferscope.class": part})


def _overlay_time(result: Result) -> Iterator[Point]:
    for phase, _, keys in _verdicts(result):
        parts = {"offcpu": phase.ledger.offcpu_ns, "gc": phase.ledger.gc_ns, "contended": phase.contended_ns}
        for part, value_ns in parts.items():
            if value_ns is not None:
                yield Point(value_ns / 1e9, {**keys, "inferscope.class": part})


def _device_time(result: Result) -> Iterator[Point]:
    for phase, _, keys in _verdicts(result):
        if phase.device is not None:
            for limit, value_ns in (("low", phase.device.low_ns), ("high", phase.device.high_ns)):
                yield Point(value_ns / 1e9, {**keys, "inferscope.limit": limit})


def _counted(field: str) -> Callable[[Result], Iterator[Point]]:
    def read(result: Result) -> Iterator[Point]:
        for phase, _, keys in _verdicts(result):
            number: int | None = getattr(phase, field)
            if number is not None:
                yield Point(number, dict(keys))

    return read


def _launches_per_token(result: Result) -> Iterator[Point]:
    """Of decode, each pass of which makes one new token of every sequence: of all passes, or of those of kinds known.

    A count of an operator stands for no kernel, and one that never settles for no pass.
    """
    decode = result.record.phase("decode")
    if decode is None or not decode.passes:
        return
    if decode.launches is not None and decode.launches_source is not None:
        yield Point(decode.launches / decode.passes, {"inferscope.source": decode.launches_source}, "decode")
        return
    steps = [step for step in decode.steps if step.unit == "kernel" and not step.varies]
    passes = sum(step.passes for step in steps)
    if passes:
        source = "native" if all(step.source == "native" for step in steps) else "deep"
        mean = sum(step.passes * step.launches for step in steps) / passes
        yield Point(mean, {"inferscope.source": source}, "decode")


def _syncs_per_token(result: Result) -> Iterator[Point]:
    """Reads between the forwards of decode, and the waits within these where they were counted."""
    decode = result.record.phase("decode")
    if decode is None or not decode.passes:
        return
    inside = [(step.passes, step.syncs) for step in decode.steps if step.syncs is not None]
    if decode.syncs is None and not inside:
        return
    passes = sum(number for number, _ in inside)
    within = sum(number * syncs for number, syncs in inside) / passes if passes else 0.0
    yield Point((decode.syncs or 0) / decode.passes + within, {}, "decode")


def _gap(name: str) -> Callable[[GenerationRecord], float | None]:
    return lambda record: None if record.itl_ns is None else _seconds(getattr(record.itl_ns, name))


def _self_share(record: GenerationRecord) -> float | None:
    return record.ledger.self_ns / record.wall_ns if record.wall_ns else None


def _estimate(result: Result) -> Iterator[Point]:
    """What tracing costs per token by comparison of requests, of records that have such a comparison."""
    own = result.record.own_overhead
    if own is not None:
        for limit, value_ns in (("low", own.low_ns), ("middle", own.per_token_ns), ("high", own.high_ns)):
            if value_ns is not None:
                yield Point(value_ns / 1e9, {"inferscope.limit": limit})


def _own(value: Callable[[OwnOverhead], float | None]) -> Callable[[GenerationRecord], float | None]:
    return lambda record: None if record.own_overhead is None else value(record.own_overhead)


# fmt: off
# A table reads as rows.
REQUEST_METRICS: tuple[RequestMetric, ...] = (
    RequestMetric(name="gen_ai.server.request.duration", kind="histogram", unit="s", attributes=("error.type",),
                  borders=_DURATION_S, meaning="Wall of `generate`.", read=_duration),
    RequestMetric(name="gen_ai.server.time_to_first_token", kind="histogram", unit="s", borders=_TTFT_S,
                  meaning="`generate`'s entry to the first token selected.",
                  read=_one(lambda record: _seconds(record.ttft_ns), "prefill")),
    RequestMetric(name="gen_ai.server.time_per_output_token", kind="histogram", unit="s", borders=_TPOT_S,
                  meaning="(wall - TTFT) / (n - 1), n new tokens per sequence; none for n < 2.",
                  read=_one(lambda record: _seconds(record.tpot_ns), "decode")),
    RequestMetric(name="inferscope.request.ttft", kind="histogram", unit="s", borders=_FINE_S,
                  meaning="As `gen_ai.server.time_to_first_token`, in finer buckets.",
                  read=_one(lambda record: _seconds(record.ttft_ns), "prefill")),
    RequestMetric(name="inferscope.request.tpot", kind="histogram", unit="s", borders=_FINE_S,
                  meaning="As `gen_ai.server.time_per_output_token`, in finer buckets.",
                  read=_one(lambda record: _seconds(record.tpot_ns), "decode")),
    RequestMetric(name="inferscope.request.itl.p50", kind="histogram", unit="s", borders=_FINE_S,
                  meaning="A request's median gap between consecutive tokens, within 1 %.",
                  read=_one(_gap("p50"), "decode")),
    RequestMetric(name="inferscope.request.itl.p99", kind="histogram", unit="s", borders=_FINE_S,
                  meaning="A request's 99th percentile of the gaps between consecutive tokens, within 1 %.",
                  read=_one(_gap("p99"), "decode")),
    RequestMetric(name="inferscope.request.launches_per_token", kind="histogram", unit="{launch}", borders=_COUNTS,
                  attributes=("inferscope.source",),
                  meaning="Kernels launched per pass of decode, which makes one new token of each sequence: over all "
                  "passes, or over those of kinds that were counted (`native` at the driver, `deep` recorded).",
                  read=_launches_per_token),
    RequestMetric(name="inferscope.request.syncs_per_token", kind="histogram", unit="{sync}", borders=_COUNTS,
                  meaning="Host reads seen per pass of decode, and waits within it where these were counted: a lower "
                  "bound.", read=_syncs_per_token),
    RequestMetric(name="inferscope.requests", kind="counter", unit="{request}",
                  attributes=("inferscope.status", "error.type"), meaning="Requests that have ended.", read=_requests),
    RequestMetric(name="inferscope.request.tokens", kind="counter", unit="{token}", attributes=("gen_ai.token.type",),
                  meaning="Prompt tokens (`input`) and new tokens (`output`), padding excluded.", read=_tokens),
    RequestMetric(name="inferscope.phase.time", kind="counter", unit="s",
                  attributes=("inferscope.phase", "inferscope.bound"),
                  meaning="Wall of phases, each whole under the bound of its verdict.", read=_phase_time),
    RequestMetric(name="inferscope.bound.time", kind="counter", unit="s",
                  attributes=("inferscope.phase", "inferscope.bound"),
                  meaning="Wall of phases, split by the shares of the verdict; without shares it is `unknown`.",
                  read=_bound_time),
    RequestMetric(name="inferscope.ledger.time", kind="counter", unit="s",
                  attributes=("inferscope.phase", "inferscope.class"),
                  meaning="Wall of requests by class of the ledger: `issue`, `select`, `wait`, `deliver`, `shared` of "
                  "a phase; `queue`, `setup`, `tail`, `self`, `residual` of none. All together: the requests' wall.",
                  read=_ledger_time),
    RequestMetric(name="inferscope.overlay.time", kind="counter", unit="s",
                  attributes=("inferscope.phase", "inferscope.class"),
                  meaning="Part of that time in which the thread did not run (`offcpu`), Python's garbage was "
                  "collected (`gc`), other traced requests were at work (`contended`). These overlap.",
                  read=_overlay_time),
    RequestMetric(name="inferscope.phase.device_time", kind="counter", unit="s",
                  attributes=("inferscope.phase", "inferscope.limit"),
                  meaning="The device worked on forwards at least (`low`) and at most (`high`) this long.",
                  read=_device_time),
    RequestMetric(name="inferscope.phase.passes", kind="counter", unit="{pass}", attributes=("inferscope.phase",),
                  meaning="Forwards.", read=_counted("passes")),
    RequestMetric(name="inferscope.phase.launches", kind="counter", unit="{launch}", attributes=("inferscope.phase",),
                  meaning="Kernels launched, where they were counted.", read=_counted("launches")),
    RequestMetric(name="inferscope.phase.syncs", kind="counter", unit="{sync}", attributes=("inferscope.phase",),
                  meaning="Host reads seen: a lower bound.", read=_counted("syncs")),
    RequestMetric(name="inferscope.self.time", kind="histogram", unit="s", borders=(1e-6, 2e-6, 5e-6, 1e-5, 2e-5,
                  5e-5, *_FINE_S), meaning="inferscope's own measured time inside a request.",
                  read=_one(lambda record: _seconds(record.ledger.self_ns))),
    RequestMetric(name="inferscope.self.share", kind="histogram", unit="1", borders=_SHARES,
                  meaning="The same over the request's wall (0..1).", read=_one(_self_share)),
    RequestMetric(name="inferscope.overhead.estimate", kind="gauge", unit="s", attributes=("inferscope.limit",),
                  meaning="Newest live estimate of what tracing costs per new token, `middle` of its interval from "
                  "`low` to `high`; below 0 where noise exceeds it, absent where requests were not compared.",
                  read=_estimate),
    RequestMetric(name="inferscope.overhead.share", kind="gauge", unit="1",
                  meaning="Own measured time over the wall of the latest observed requests (0..1), what is sampled "
                  "left out; absent before 32 of them.", read=_one(_own(lambda own: own.self_share))),
    RequestMetric(name="inferscope.overhead.budget", kind="gauge", unit="1",
                  meaning="Share of the time that inferscope's own work may take (0..1).",
                  read=_one(_own(lambda own: own.budget_share))),
    RequestMetric(name="inferscope.overhead.observed_share", kind="gauge", unit="1",
                  meaning="Share of requests that are observed (0..1).",
                  read=_one(_own(lambda own: own.observed_share))),
)
# fmt: on
"""What one request adds to, in the order of the reference."""

ACTIVE = RequestMetric(
    name="inferscope.requests.active",
    kind="updowncounter",
    unit="{request}",
    attributes=("gen_ai.request.model",),
    meaning="Requests that have begun and whose results have not been made.",
)
DROPPED = RequestMetric(
    name="inferscope.dropped",
    kind="counter",
    unit="{item}",
    attributes=("inferscope.kind",),
    meaning="Lost since the process began: `results` never made, `spans` not delivered, exports of `metrics` that "
    "failed (their sums arrive with the next).",
)


def metrics_markdown(models: int, errors: int) -> str:
    """The table for docs/reference/telemetry.md.

    Args:
        models: How many names of models are told apart.
        errors: How many classes of exceptions are.
    """
    lead = (
        "Every request that is observed adds to these, sampled or not, through the meter provider that the program or "
        f"`setup` has set. Points of requests carry {', '.join(f'`{key}`' for key in BASE_KEYS)} beside the attributes "
        "below. What is unknown has no point: a model without counted launches has no `launches` of 0. No attribute is "
        f"unbounded: the first {models} models of a process keep their names and the first {errors} classes of "
        "exceptions theirs; further ones are `other` and `_OTHER`. Exemplars of histograms lead to the span that the "
        "value is of: time to first token to `prefill`, what is per token to `decode`, the rest to the request."
    )
    lines = ["## Metrics of requests\n", f"{lead}\n", "| metric | instrument | unit | attributes | meaning |"]
    lines.append("|---|---|---|---|---|")
    for row in (*REQUEST_METRICS, ACTIVE, DROPPED):
        keys = ", ".join(f"`{key}`" for key in row.attributes)
        lines.append(f"| `{row.name}` | {row.kind} | {row.unit} | {keys} | {row.meaning} |")
    lines += ["", "Borders of the histograms' buckets:\n", "| metric | borders |", "|---|---|"]
    for row in REQUEST_METRICS:
        if row.borders:
            lines.append(f"| `{row.name}` | {', '.join(f'{border:g}' for border in row.borders)} |")
    return "\n".join([*lines, "", _QUERIES])


_QUERIES = """Two questions of a fleet, in PromQL as an OpenTelemetry collector names things there:

    # Seconds of wall lost to overhead per second, by phase
    sum by (inferscope_phase) (rate(inferscope_bound_time_seconds_total{inferscope_bound="overhead"}[5m]))
    # Part of all generation time that goes to selecting tokens on the host
    sum(rate(inferscope_ledger_time_seconds_total{inferscope_class="select"}[5m]))
      / sum(rate(inferscope_ledger_time_seconds_total[5m]))

A part of a ledger below zero (two clocks that disagree) is not added: counters only grow."""
