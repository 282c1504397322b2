"""What the records of a sweep say: times by point, knees, out of memory, and which batch meets an objective.

From records alone, without torch: a sweep that is read again says the same as when it was made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

from inferscope.analysis.knees import decode_size, fit_curve
from inferscope.analysis.memory import account
from inferscope.analysis.scatter import scatter_of, timings
from inferscope.analysis.sweep_answers import Goodput, goodput_of
from inferscope.analysis.sweep_points import OUT_OF_MEMORY, OUTCOME, Point, point_of
from inferscope.errors import CostUnavailableError
from inferscope.specs import DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from inferscope.analysis.knees import Curve
    from inferscope.analysis.objective import Objective
    from inferscope.analysis.scatter import Timing
    from inferscope.analysis.sweep_points import Setting
    from inferscope.records import GenerationRecord
    from inferscope.specs import ModelSpec

__all__ = [
    "MemoryEdge",
    "PointResult",
    "SeriesResult",
    "Sweep",
    "is_out_of_memory",
    "needed_bytes",
    "specs_of",
    "summarise",
]

_Records = dict[Point, dict[int, "GenerationRecord"]]
Status = Literal["measured", "out of memory", "failed", "not measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """One point.

    Attributes:
        point: What was asked.
        status: What became of it.
        note: How that is known, where it was not measured.
        ttft_ns: Entry to first token; None where it was not measured.
        tpot_ns: From one token to the next; None for a single token too.
        tokens_per_s: New tokens of all sequences over the request's wall, median; None where it was not measured.
        needed_bytes: Counted memory at the highest moment; None where it could not be counted.
        expected_ttft_ns: What was predicted: low, middle, high; None where nothing supports a prediction.
        expected_tpot_ns: Likewise.
    """

    point: Point
    status: Status
    note: str = ""
    ttft_ns: Timing | None = None
    tpot_ns: Timing | None = None
    tokens_per_s: float | None = None
    needed_bytes: int | None = None
    expected_ttft_ns: tuple[float, float, float] | None = None
    expected_tpot_ns: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEdge:
    """The batch at which memory ends, for one prompt length.

    Attributes:
        input_tokens: Prompt tokens of each sequence.
        largest_run: Largest batch that ran; None where none did.
        smallest_out: Smallest batch that was out of memory; None where none was.
        counted: Smallest batch that would not fit, from counted operators; None where that is not known.
        source: How `smallest_out` is known: "measured", "predicted" or "" where there is none.
    """

    input_tokens: int
    largest_run: int | None
    smallest_out: int | None
    counted: int | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesResult:
    """One setting.

    Attributes:
        setting: Of the model.
        points: By prompt length and batch.
        prefill: Curve of TTFT over prompt tokens of all sequences; in words, why there is none.
        decode: Curve of TPOT over batch and cached tokens; in words, why there is none.
        memory: By prompt length.
        goodput: By prompt length; () where no objective was given.
    """

    setting: Setting
    points: tuple[PointResult, ...]
    prefill: Curve | str
    decode: Curve | str
    memory: tuple[MemoryEdge, ...]
    goodput: tuple[Goodput, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Everything a sweep found.

    Attributes:
        model: Its name.
        device: What it ran on, as torch names it.
        rounds: The most times that a point was measured.
        requests: Records that this rests on.
        memory_limit_bytes: What requests had to fit into; None where there was no limit.
        objective: As it was written; None where none was given.
        series: By setting.
        notes: What is missing, in words.
    """

    model: str
    device: str
    rounds: int
    requests: int
    memory_limit_bytes: int | None
    objective: str | None
    series: tuple[SeriesResult, ...]
    notes: tuple[str, ...] = ()


def is_out_of_memory(record: GenerationRecord) -> bool:
    """Whether a request ended because there was no memory left.

    Args:
        record: Of it.
    """
    return (OUTCOME, OUT_OF_MEMORY) in record.labels


def specs_of(records: Iterable[GenerationRecord]) -> dict[Setting, ModelSpec]:
    """The model in each setting that a sweep's records tell of.

    Args:
        records: Any; those of no sweep are left out.
    """
    return {job.point.setting: record.model for record in records if (job := point_of(record)) is not None}


def needed_bytes(spec: ModelSpec | None, point: Point) -> int | None:
    """Memory of a point at its highest moment, weights included; None where it cannot be counted.

    Args:
        spec: The model in the point's setting, with its cost.
        point: The request.
    """
    if spec is None or spec.cost is None:
        return None
    try:
        return account(
            spec, batch_size=point.batch_size, input_tokens=point.input_tokens, output_tokens=point.output_tokens
        ).peak_bytes
    except CostUnavailableError:
        return None


def summarise(
    records: Iterable[GenerationRecord],
    points: Sequence[Point],
    *,
    specs: Mapping[Setting, ModelSpec],
    memory_limit_bytes: int | None = None,
    objective: Objective | None = None,
) -> Sweep:
    """The sweep that some records are.

    Args:
        records: Of a sweep; others are left out.
        points: What was to be measured; points of the same settings that the records have beside are taken in.
        specs: The model by setting, with its cost, for counted memory; taken from the records where it is missing.
        memory_limit_bytes: What requests had to fit into.
        objective: To answer.
    """
    by_point = _by_point(records, {point.setting for point in points})
    known = {**{point.setting: one.model for point, several in by_point.items() for one in several.values()}, **specs}
    results = _results([*points, *by_point], by_point, known, memory_limit_bytes)
    settings = dict.fromkeys(point.setting for point in points)
    series = tuple(
        _series(
            setting,
            [one for one in results if one.point.setting == setting],
            by_point,
            known.get(setting),
            (memory_limit_bytes, objective),
        )
        for setting in settings
    )
    models = list(known.values())
    return Sweep(
        model=models[0].name if models else "unknown",
        device=(models[0].device or "unknown") if models else "unknown",
        rounds=max((len(several) for several in by_point.values()), default=0),
        requests=sum(map(len, by_point.values())),
        memory_limit_bytes=memory_limit_bytes,
        objective=None if objective is None else objective.text,
        series=series,
        notes=tuple(_notes(by_point, known, memory_limit_bytes)),
    )


def _notes(by_point: _Records, specs: Mapping[Setting, ModelSpec], limit: int | None) -> Iterator[str]:
    devices = {one.device_key for several in by_point.values() for one in several.values()} - {None}
    if len(devices) > 1:
        yield f"measured on {len(devices)} devices: where they differ, so do times that stand in one curve"
    if limit is not None:
        for setting, spec in specs.items():
            if spec.cost is None:
                reason = spec.cost_note or "operators are not counted"
                yield f"memory cannot be counted, every point is tried: {setting}: {reason}"


def _by_point(records: Iterable[GenerationRecord], settings: set[Setting]) -> _Records:
    found: defaultdict[Point, dict[int, GenerationRecord]] = defaultdict(dict)
    for record in records:
        job = point_of(record)
        if job is not None and job.point.setting in settings:
            found[job.point].setdefault(job.round_number, record)
    return dict(found)


def _results(
    points: Iterable[Point], by_point: _Records, specs: Mapping[Setting, ModelSpec], limit: int | None
) -> list[PointResult]:
    ended = {point for point, several in by_point.items() if any(map(is_out_of_memory, several.values()))}
    made = []
    for point in sorted(set(points)):
        needed = needed_bytes(specs.get(point.setting), point)
        several = [one for one in by_point.get(point, {}).values() if _is_whole(one)]
        if several and point not in ended:
            speed = median(point.batch_size * point.output_tokens / (one.wall_ns / 1e9) for one in several)
            result = PointResult(point=point, status="measured", tokens_per_s=speed)
        else:
            result = _absent(point, by_point, ended, needed, limit)
        made.append(replace(result, needed_bytes=needed))
    return _timed(made, by_point)


def _is_whole(record: GenerationRecord) -> bool:
    return record.status == "ok" and record.ttft_ns is not None and record.wall_ns > 0


def _absent(point: Point, by_point: _Records, ended: set[Point], needed: int | None, limit: int | None) -> PointResult:
    if point in ended:
        return PointResult(point=point, status="out of memory", note="measured")
    if needed is not None and limit is not None and needed > limit:
        return PointResult(point=point, status="out of memory", note="predicted")
    if any(_covers(one, point) for one in ended):
        return PointResult(point=point, status="out of memory", note="a smaller batch was")
    failed = [one for one in by_point.get(point, {}).values() if one.error_type is not None]
    if failed:
        said = dict(failed[0].labels).get(OUTCOME) or failed[0].error_type or ""
        return PointResult(point=point, status="failed", note=said)
    return PointResult(point=point, status="not measured")


def _covers(ended: Point, point: Point) -> bool:
    return replace(ended, batch_size=point.batch_size) == point and ended.batch_size < point.batch_size


def _timed(results: list[PointResult], by_point: _Records) -> list[PointResult]:
    """With times; how far they scatter is taken over all points of a setting."""
    made = {one.point: one for one in results}
    for setting in {one.point.setting for one in results}:
        alike = [one.point for one in results if one.point.setting == setting and one.status == "measured"]
        for name in ("ttft_ns", "tpot_ns"):
            timed = [(point, found) for point in alike if (found := _times(by_point[point], name))]
            for (point, _), timing in zip(timed, timings([found for _, found in timed]), strict=True):
                # `replace` checks the name when it runs.
                made[point] = replace(made[point], **{name: timing})  # type: ignore[arg-type]
    return [made[one.point] for one in results]


def _times(several: Mapping[int, GenerationRecord], name: str) -> dict[int, float]:
    values = ((number, getattr(one, name)) for number, one in several.items() if _is_whole(one))
    return {number: float(value) for number, value in values if value}


def _series(
    setting: Setting,
    results: list[PointResult],
    by_point: _Records,
    spec: ModelSpec | None,
    asked: tuple[int | None, Objective | None],
) -> SeriesResult:
    limit, objective = asked
    measured = [one.point for one in results if one.status == "measured"]
    lengths = sorted({one.point.input_tokens for one in results})
    grouped = {length: [one for one in results if one.point.input_tokens == length] for length in lengths}
    return SeriesResult(
        setting=setting,
        points=tuple(results),
        prefill=_curve("ttft_ns", measured, by_point),
        decode=_curve("tpot_ns", measured, by_point),
        memory=tuple(_edge(length, alike, spec, limit) for length, alike in grouped.items()),
        goodput=tuple(goodput_of(length, alike, objective) for length, alike in grouped.items()) if objective else (),
    )


def _curve(name: str, points: Sequence[Point], by_point: _Records) -> Curve | str:
    timed = [(point, found) for point in points if (found := _times(by_point[point], name))]
    if not timed:
        return "nothing was measured"
    place = _in_decode if name == "tpot_ns" else _in_prefill
    return fit_curve([place(point) for point, _ in timed], scatter_of([found for _, found in timed]))


def _in_decode(point: Point) -> tuple[float, float]:
    return decode_size(point.batch_size, point.input_tokens, point.output_tokens)


def _in_prefill(point: Point) -> tuple[float, float]:
    """Prompt tokens, and pairs of a token and one it looks at."""
    tokens = point.batch_size * point.input_tokens
    return float(tokens), tokens * (point.input_tokens + 1) / 2


def _edge(length: int, results: Sequence[PointResult], spec: ModelSpec | None, limit: int | None) -> MemoryEdge:
    ran = [one.point.batch_size for one in results if one.status == "measured"]
    out = [one for one in results if one.status == "out of memory"]
    first = min(out, key=lambda one: one.point.batch_size) if out else None
    return MemoryEdge(
        input_tokens=length,
        largest_run=max(ran, default=None),
        smallest_out=None if first is None else first.point.batch_size,
        counted=_counted(results[0].point, spec, limit),
        source="" if first is None else "predicted" if first.note == "predicted" else "measured",
    )


def _counted(point: Point, spec: ModelSpec | None, limit: int | None) -> int | None:
    if spec is None or spec.cost is None or limit is None:
        return None
    device = DeviceSpec(name="limit", kind="cpu", memory_bytes=limit)
    try:
        largest = account(
            spec, batch_size=1, input_tokens=point.input_tokens, output_tokens=point.output_tokens, device=device
        ).largest_batch
    except CostUnavailableError:
        return None
    return None if largest is None else largest + 1
