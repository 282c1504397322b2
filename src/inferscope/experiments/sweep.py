"""Measure a model over batch, prompt length and settings, keep every request, and say what they show.

Points are measured in rounds, each in another order, so that what the machine does meanwhile falls on all of them.
What was measured is in the file at once: a sweep that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Protocol

from inferscope import predicting
from inferscope.analysis.objective import parse_objective
from inferscope.analysis.sweep_answers import points_that_say_more
from inferscope.analysis.sweep_points import Point, Setting, point_of, rounds_of
from inferscope.analysis.sweep_summary import is_out_of_memory, needed_bytes, specs_of, summarise
from inferscope.errors import CacheUnwritableError, InferscopeError, RecordFormatError, SettingError
from inferscope.experiments.models import DEFAULT_NAME, DTYPES
from inferscope.hardware import calibration, probe
from inferscope.sinks.jsonl import JsonlSink, iter_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from inferscope.analysis.sweep_points import Job
    from inferscope.analysis.sweep_summary import PointResult, Sweep
    from inferscope.experiments.models import Progress
    from inferscope.experiments.sweep_bench import Bench
    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec, ModelSpec

__all__ = [
    "Executor",
    "LocalExecutor",
    "SweepOptions",
    "known_records",
    "memory_limit_bytes",
    "resume_command",
    "run_sweep",
    "sweep_labels",
]

CACHES = ("dynamic", "static")
_MOST_POINTS = 2_000
_MOST_SIZE = 1 << 20
_MEMORY_SHARE = 0.75
"""Of the memory that is free: what a counted peak leaves out, and models in other dtypes, must fit beside it."""
_MODEL, _DEVICE, _LIMIT = "sweep.model", "sweep.device", "sweep.memory_limit_bytes"


class Executor(Protocol):
    """Where jobs are measured."""

    def describe(self, setting: Setting) -> ModelSpec:
        """The model in a setting."""

    def measure(self, jobs: Iterator[Job]) -> Iterator[GenerationRecord]:
        """A record for each job, in any order; jobs are taken when they can be begun."""


class LocalExecutor:
    """One after the other, in this process."""

    def __init__(self, bench: Bench) -> None:
        """Take the bench to measure on."""
        self._bench = bench

    def describe(self, setting: Setting) -> ModelSpec:
        """The model in a setting."""
        return self._bench.describe(setting)

    def measure(self, jobs: Iterator[Job]) -> Iterator[GenerationRecord]:
        """A record for each job, in their order."""
        return map(self._bench.measure, jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """What to measure; the command line's words.

    Attributes:
        model: As `sweep_bench.load_model` takes it.
        batch: Batch sizes.
        input_tokens: Prompt lengths.
        output_tokens: New tokens of each request.
        dtype: Of the weights.
        attention: Attention implementations.
        cache: "dynamic" or "static".
        rounds: How often each point is measured.
        adaptive: How often points are added where the answers are least certain.
        objective: Limits on latency, as `parse_objective` takes them.
        device: torch device.
        memory_limit_bytes: What a request must fit into; None: most of what is free.
        seed: Of the order, of prompts, and of random weights.
    """

    model: str | None = None
    batch: tuple[int, ...] = (1, 2, 4, 8, 16)
    input_tokens: tuple[int, ...] = (16, 64, 256)
    output_tokens: int = 16
    dtype: tuple[str, ...] = ("float32",)
    attention: tuple[str, ...] = ("sdpa",)
    cache: tuple[str, ...] = ("dynamic",)
    rounds: int = 5
    adaptive: int = 2
    objective: str | None = None
    device: str = "cpu"
    memory_limit_bytes: int | None = None
    seed: int = 0

    def check(self, *, here: bool = True) -> None:
        """Refuse what cannot work before anything is loaded.

        Args:
            here: Whether the device must be one of this machine.

        Raises:
            SettingError: An option has a value it cannot have; the message names it.
            UnknownDeviceError: There is no such device.
        """
        sizes = (*(("--batch", one) for one in self.batch), *(("--input-tokens", one) for one in self.input_tokens))
        for name, value in (*sizes, ("--output-tokens", self.output_tokens), ("--rounds", self.rounds)):
            if not 1 <= value < _MOST_SIZE:
                raise SettingError(f"{name} {value}: expected a whole number from 1 to {_MOST_SIZE - 1}")
        for name, values, known in (("--dtype", self.dtype, DTYPES), ("--cache", self.cache, CACHES)):
            for one in values:
                if one not in known:
                    raise SettingError(f"{name} {one}: expected one of {', '.join(known)}")
        if not 0 <= self.adaptive <= 16:  # noqa: PLR2004 - each step at least halves a gap
            raise SettingError(f"--adaptive {self.adaptive}: expected a whole number from 0 to 16")
        if len(self.points()) * self.rounds > _MOST_POINTS * 10:
            raise SettingError(f"{len(self.points())} points in {self.rounds} rounds are more than a sweep takes")
        if self.objective is not None:
            parse_objective(self.objective)
        if here:
            probe.identify(self.device)
        else:
            probe.parse_device(self.device)

    def points(self) -> list[Point]:
        """All points asked for."""
        settings = [
            Setting(dtype=dtype, attention=attention, cache=cache)
            for dtype, attention, cache in product(self.dtype, self.attention, self.cache)
        ]
        return [
            Point(setting=setting, input_tokens=length, batch_size=batch, output_tokens=self.output_tokens)
            for setting, length, batch in product(settings, self.input_tokens, self.batch)
        ]


def sweep_labels(options: SweepOptions, limit_bytes: int | None) -> tuple[tuple[str, str], ...]:
    """What every record of a sweep says of the whole.

    Args:
        options: Of the sweep.
        limit_bytes: Memory that requests must fit into.
    """
    said = ((_MODEL, options.model or DEFAULT_NAME), (_DEVICE, options.device))
    return (*said, (_LIMIT, str(limit_bytes))) if limit_bytes is not None else said


def known_records(options: SweepOptions, out: Path, *, resume: bool) -> list[GenerationRecord]:
    """What a file holds of this sweep already.

    Args:
        options: Of the sweep.
        out: The file; it need not exist.
        resume: Whether to go on with one that does.

    Raises:
        SettingError: It is there although nothing is to be resumed, or holds something else.
        RecordFormatError: It cannot be read. A last line that was cut off is taken away instead.
    """
    if not out.exists() or (out.is_file() and out.stat().st_size == 0):
        return []
    if out.is_dir():
        raise SettingError(f"--out {out}: a folder; name a file for the records (.jsonl)")
    if not resume:
        raise SettingError(f"--out {out}: there already; go on with --resume, or name another file with --out")
    records, whole_bytes = _whole_records(out)
    for record in records:
        labels = dict(record.labels)
        if point_of(record) is None:
            raise RecordFormatError(f"{out}: holds records that no sweep made: name another file with --out")
        for name, asked in sweep_labels(options, None):
            if labels.get(name) != asked:
                raise SettingError(f"{out}: was measured with {labels.get(name)}, not with {asked}")
    if whole_bytes is not None:  # all before it is this sweep's own
        os.truncate(out, whole_bytes)
    return records


def _whole_records(out: Path) -> tuple[list[GenerationRecord], int | None]:
    """The records, and where they end if a full disk or a kill cut off one more behind them: it is measured again."""
    records: list[GenerationRecord] = []
    try:
        records.extend(iter_records(out))
    except RecordFormatError:
        content = out.read_bytes() if out.is_file() and records else b""
        whole, _, torn = content.rpartition(b"\n")
        if not torn or whole.count(b"\n") + 1 != len(records):
            raise
        return records, len(whole) + 1
    return records, None


def memory_limit_bytes(options: SweepOptions, records: Iterable[GenerationRecord]) -> int | None:
    """What a request must fit into, counted before it runs; None where running it decides.

    As in the records of a sweep that goes on, so that both halves leave out the same points.

    Args:
        options: Of the sweep.
        records: Those that are there.
    """
    if options.memory_limit_bytes is not None:
        return options.memory_limit_bytes
    for record in records:
        said = dict(record.labels).get(_LIMIT, "")
        if said.isdigit():
            return int(said)
    if options.device != "cpu":
        return None  # a GPU says so itself, and nothing else suffers
    free = probe.available_memory_bytes()
    return None if free is None else int(_MEMORY_SHARE * free)


def run_sweep(
    options: SweepOptions,
    out: Path,
    executor: Executor,
    *,
    records: list[GenerationRecord],
    limit_bytes: int | None,
    tell: Progress,
) -> Sweep:
    """Measure what is missing and say what all of it shows.

    Args:
        options: What to measure.
        out: Where records are appended.
        executor: Measures.
        records: What is there already, as `known_records` says.
        limit_bytes: As `memory_limit_bytes` says.
        tell: Told what is being done.

    Raises:
        CacheUnwritableError: `out` cannot be written, or could not be on the way.
        InferscopeError: The model or a setting cannot be had.
    """
    run = _Run(options, executor, list(records), limit_bytes)
    objective = parse_objective(options.objective) if options.objective else None
    points: list[Point] = []
    more = options.points()
    sink = _opened(out)
    try:
        for step in range(options.adaptive + 1):
            new = [point for point in dict.fromkeys(more) if point not in points]
            if not new:
                break
            points += new
            run.measure(new, range(step * options.rounds, (step + 1) * options.rounds), sink, tell)
            # What else a file holds must not change what is measured next.
            own = [record for record in run.records if _belongs(record, points)]
            sweep = summarise(own, points, specs=run.specs, memory_limit_bytes=limit_bytes, objective=objective)
            more = points_that_say_more(sweep)
    finally:
        sink.close()
    sweep = summarise(run.records, points, specs=run.specs, memory_limit_bytes=limit_bytes, objective=objective)
    return _with_predictions(sweep, {**specs_of(run.records), **run.specs}, options.device)


def resume_command(options: SweepOptions, out: Path, *, ray: bool) -> str:
    """The command that goes on with a sweep.

    Args:
        options: Of the sweep.
        out: Its file.
        ray: Whether it was spread over a cluster.
    """
    usual = SweepOptions()
    words = ["inferscope", "sweep", *([options.model] if options.model else [])]
    for name in SweepOptions.__dataclass_fields__:
        value = getattr(options, name)
        if name != "model" and value != getattr(usual, name):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.removesuffix('_bytes').replace('_', '-')}", shown]
    return shlex.join([*words, "--out", str(out), *(["--ray"] if ray else []), "--resume"])


def _opened(out: Path) -> JsonlSink:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheUnwritableError(f"{out.parent}: cannot be made: {error}") from error
    return JsonlSink(out)


def _belongs(record: GenerationRecord, points: list[Point]) -> bool:
    job = point_of(record)
    return job is not None and job.point in points


class _Run:
    """What is known so far, and what is not worth trying any more."""

    def __init__(
        self, options: SweepOptions, executor: Executor, records: list[GenerationRecord], limit_bytes: int | None
    ) -> None:
        self.records = records
        self.specs: dict[Setting, ModelSpec] = specs_of(records)
        self._options = options
        self._executor = executor
        self._limit_bytes = limit_bytes
        self._ended: list[Point] = []
        self._failed: set[Point] = set()
        for record in records:
            self._note(record)

    def measure(self, points: list[Point], rounds: range, sink: JsonlSink, tell: Progress) -> None:
        """Measure what is missing of some points, and keep each record at once."""
        done = {point_of(record) for record in self.records}
        jobs = rounds_of(points, rounds, self._options.seed)
        missing = [job for job in jobs if job not in done]
        if not missing:
            return
        for setting in dict.fromkeys(job.point.setting for job in missing):
            if setting not in self.specs:
                tell(f"loading and counting: {setting}", None)
                self.specs[setting] = self._executor.describe(setting)
        left = self._worth(missing, _teller(tell, missing, rounds))
        for record in self._executor.measure(left):
            self.records.append(record)
            self._note(record)
            _write(sink, record)

    def _worth(self, jobs: list[Job], tell: Callable[[int], None]) -> Iterator[Job]:
        for number, job in enumerate(jobs):
            tell(number)
            needed = needed_bytes(self.specs.get(job.point.setting), job.point)
            fits = needed is None or self._limit_bytes is None or needed <= self._limit_bytes
            if fits and job.point not in self._failed and not any(_at_least(one, job.point) for one in self._ended):
                yield job

    def _note(self, record: GenerationRecord) -> None:
        job = point_of(record)
        if job is None or record.status == "ok":
            return
        if is_out_of_memory(record):
            self._ended.append(job.point)
        else:
            self._failed.add(job.point)


def _at_least(ended: Point, point: Point) -> bool:
    return point.batch_size >= ended.batch_size and replace(ended, batch_size=point.batch_size) == point


def _teller(tell: Progress, jobs: list[Job], rounds: range) -> Callable[[int], None]:
    first = rounds.start
    said = "measuring" if first == 0 else "measuring points in between"

    def at(number: int) -> None:
        round_number = jobs[number].round_number - first + 1
        tell(f"{said}, round {round_number} of {len(rounds)}", number / len(jobs))

    return at


def _write(sink: JsonlSink, record: GenerationRecord) -> None:
    if not sink.append(record):
        raise CacheUnwritableError(f"{sink.path}: a record could not be written: the sweep stops; a warning says why")


def _with_predictions(sweep: Sweep, specs: dict[Setting, ModelSpec], device: str) -> Sweep:
    try:
        spec_of_device = calibration.current_device_spec(device)
    except InferscopeError as error:  # the device of a cluster's nodes need not be here
        return replace(sweep, notes=(*sweep.notes, f"no prediction: {error}"))
    refused: dict[str, None] = {}

    def beside(result: PointResult) -> PointResult:
        spec = specs.get(result.point.setting)
        return result if spec is None else _predicted(result, spec, spec_of_device, refused)

    series = tuple(replace(one, points=tuple(map(beside, one.points))) for one in sweep.series)
    notes = tuple(f"no prediction: {reason}" for reason in refused)
    return replace(sweep, series=series, notes=(*sweep.notes, *notes))


def _predicted(result: PointResult, spec: ModelSpec, device: DeviceSpec, refused: dict[str, None]) -> PointResult:
    point = result.point
    try:
        found = predicting.predict(
            spec,
            device=device,
            batch_size=point.batch_size,
            input_tokens=point.input_tokens,
            output_tokens=point.output_tokens,
        )
    except InferscopeError as error:
        refused[str(error)] = None
        return result
    times = [
        None if one is None else (one.low * 1e9, one.mid * 1e9, one.high * 1e9) for one in (found.ttft_s, found.tpot_s)
    ]
    return replace(result, expected_ttft_ns=times[0], expected_tpot_ns=times[1])
