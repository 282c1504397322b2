"""A model's facts and counted operators in a file: what a prediction needs where there is no torch."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import msgspec

from inferscope.errors import CacheUnwritableError, RecordFormatError
from inferscope.specs import BASIS, EXPERT_LETTERS, ModelSpec, OperatorTerms, PeakTerms

__all__ = ["is_model_file", "read_model", "write_model"]

_SCHEMA = 1
_LARGEST_FILE_BYTES = 64 << 20
_LETTERS = {*"1bqknect", *EXPERT_LETTERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    schema: int
    kind: Literal["inferscope model"]
    model: ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    schema: int | None = None
    kind: str | None = None


def write_model(spec: ModelSpec, path: str | Path) -> None:
    """Write a model's facts as JSON, to a file beside `path` that takes its place when it is complete.

    Raises:
        CacheUnwritableError: The file cannot be written.
    """
    data = msgspec.json.encode(_File(schema=_SCHEMA, kind="inferscope model", model=spec))
    where = Path(os.path.realpath(path))
    aside = where.exists() and not where.is_file()  # a pipe or a device is written to as it is
    unfinished = where if aside else where.with_name(f".{where.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(data + b"\n")
        if not aside:
            unfinished.replace(where)
    except OSError as error:
        raise CacheUnwritableError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if not aside:
            with contextlib.suppress(OSError):
                unfinished.unlink()


def is_model_file(path: str | Path) -> bool:
    """Whether a file says that it is one of these; a damaged one that says so is one."""
    try:
        with Path(path).open("rb") as file:
            return b'"inferscope model"' in file.read(256)
    except OSError:
        return False


def read_model(path: str | Path) -> ModelSpec:
    """The facts in a file, checked: whatever is computed from them may rely on them.

    Raises:
        RecordFormatError: It cannot be read, or does not hold what `write_model` writes; the message names the file
            and the reason.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise RecordFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > _LARGEST_FILE_BYTES:
        raise RecordFormatError(f"{path}: larger than any model's facts ({_LARGEST_FILE_BYTES >> 20} MiB)")
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.schema != _SCHEMA:
            raise ValueError(f"schema {head.schema}, this version reads schema {_SCHEMA}")  # noqa: TRY301 - one handler
        spec = msgspec.json.decode(data, type=_File).model
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordFormatError(f"{path}, line 1: not a model's facts: {error}") from error
    problem = _problem(spec)
    if problem:
        raise RecordFormatError(f"{path}, line 1: {problem}")
    return spec


def _problem(spec: ModelSpec) -> str | None:
    counts = {name: getattr(spec, name) for name in ("parameters", "weight_bytes", "context_tokens")}
    for name, value in counts.items():
        if value is not None and value < 0:
            return f"{name} is {value}: it cannot be negative"
    terms = spec.cost
    if terms is None:
        return None
    if terms.basis[: len(BASIS)] != BASIS or not {*"".join(terms.basis)} <= _LETTERS:
        return "its counts are of monomials that are not known"
    sizes = ("kv_bytes_per_token", "logits_bytes", "hidden_bytes", "stored_bytes")
    for name in sizes:
        if (getattr(terms, name) or 0) < 0:
            return f"{name} is {getattr(terms, name)}: it cannot be negative"
    entries: tuple[OperatorTerms | PeakTerms, ...] = (*terms.operators, *terms.peaks)
    for entry in entries:
        values = (getattr(entry, part.name) for part in fields(entry))
        if any(isinstance(value, tuple) and len(value) != len(terms.basis) for value in values):
            return f"not {len(terms.basis)} coefficients each"
    return None
