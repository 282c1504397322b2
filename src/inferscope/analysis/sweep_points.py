"""What a sweep measures: settings of the model, and points of batch and lengths, in an order that can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.records import GenerationRecord

__all__ = ["OUTCOME", "OUT_OF_MEMORY", "Job", "Point", "Setting", "labels_of", "point_of", "rounds_of"]

OUTCOME = "sweep.outcome"
"""Label of a record whose request did not come to its end: why."""
OUT_OF_MEMORY = "out of memory"
_TOO_MANY = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Setting:
    """How the model runs.

    Attributes:
        dtype: Of the weights.
        attention: Attention implementation.
        cache: "dynamic" or "static".
    """

    dtype: str
    attention: str
    cache: str

    def __str__(self) -> str:
        """As tables name it."""
        return f"{self.dtype}, {self.attention} attention, {self.cache} cache"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """One request to measure.

    Attributes:
        setting: How the model runs.
        input_tokens: Prompt tokens of each sequence.
        batch_size: Sequences.
        output_tokens: New tokens of each sequence.
    """

    setting: Setting
    input_tokens: int
    batch_size: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement of a point.

    Attributes:
        point: What.
        round_number: In which round over the points, from 0.
    """

    point: Point
    round_number: int


def labels_of(job: Job) -> tuple[tuple[str, str], ...]:
    """What a record keeps of the job it was made for.

    Args:
        job: The measurement.
    """
    point = job.point
    values = (
        ("dtype", point.setting.dtype),
        ("attention", point.setting.attention),
        ("cache", point.setting.cache),
        ("batch_size", point.batch_size),
        ("input_tokens", point.input_tokens),
        ("output_tokens", point.output_tokens),
        ("round", job.round_number),
    )
    return tuple((f"sweep.{name}", str(value)) for name, value in values)


def point_of(record: GenerationRecord) -> Job | None:
    """The job that a record was made for; None where no sweep made it.

    Args:
        record: Any.
    """
    said = {name.removeprefix("sweep."): value for name, value in record.labels if name.startswith("sweep.")}
    try:
        return Job(
            point=Point(
                setting=Setting(dtype=said["dtype"], attention=said["attention"], cache=said["cache"]),
                input_tokens=_whole(said["input_tokens"]),
                batch_size=_whole(said["batch_size"]),
                output_tokens=_whole(said["output_tokens"]),
            ),
            round_number=_whole(said["round"], least=0),
        )
    except (KeyError, ValueError):
        return None


def _whole(text: str, *, least: int = 1) -> int:
    value = int(text)
    if not least <= value < _TOO_MANY:
        raise ValueError(text)
    return value


def rounds_of(points: Sequence[Point], rounds: range, seed: int) -> list[Job]:
    """Every point once in each round, in an order of its own that the seed alone decides.

    Points of one dtype follow each other within a round, since changing it may load another model.

    Args:
        points: What to measure.
        rounds: Their numbers.
        seed: Any whole number.
    """
    jobs = []
    for number in rounds:
        order = random.Random(f"{seed} {number}")  # noqa: S311 - an order, not a secret
        dtypes = sorted({point.setting.dtype for point in points})
        order.shuffle(dtypes)
        for dtype in dtypes:
            alike = sorted(point for point in points if point.setting.dtype == dtype)
            order.shuffle(alike)
            jobs += [Job(point=point, round_number=number) for point in alike]
    return jobs
