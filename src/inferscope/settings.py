"""Settings and the one table of environment variables."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inferscope.errors import SettingError

__all__ = ["VARIABLES", "Settings", "Variable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One environment variable as the reference documents it."""

    name: str
    default: str
    meaning: str


VARIABLES = (
    Variable(
        name="INFERSCOPE_DISABLED",
        default="0",
        meaning="1: `trace` attaches nothing; `session.last` is None. A monitor starts no thread.",
    ),
    Variable(
        name="INFERSCOPE_DETAIL",
        default="phases",
        meaning="`passes` keeps every pass in `record.pass_samples`, up to 4,096.",
    ),
    Variable(
        name="INFERSCOPE_CACHE_DIR",
        default="~/.cache/inferscope",
        meaning="Where calibrations, operator costs and converted demo weights are kept.",
    ),
    Variable(
        name="INFERSCOPE_SAMPLE_RATE",
        default="1",
        meaning="Share of requests that are observed, from 0 to 1, decided when a request begins.",
    ),
    Variable(
        name="INFERSCOPE_PLUG_EVERY",
        default="0",
        meaning="On CUDA, hold the device up before one pass in so many, until it has been issued, to see how long the "
        "device works on it. Each such pass takes about twice as long; 0 for none.",
    ),
    Variable(
        name="INFERSCOPE_DEEP_EVERY",
        default="0",
        meaning="Record the operators of one pass in so many, and never so often that it costs more than the budget; "
        "0 for none.",
    ),
    Variable(
        name="INFERSCOPE_COUNTERS",
        default="off",
        meaning="`native`: on CUDA, count launches, waits and copies at the driver in some requests, and never so "
        "often that it costs more than the budget.",
    ),
    Variable(
        name="INFERSCOPE_OVERHEAD_BUDGET",
        default="0.01",
        meaning="Share of the time that inferscope's own work may take. What is sampled is put off to keep it; only "
        "where it is set, fewer requests are observed, too.",
    ),
    Variable(
        name="INFERSCOPE_NVTX",
        default="0",
        meaning="1: put NVTX ranges around requests and forwards, named as their phases, for NVIDIA's profilers. Needs "
        "the package `nvtx` or a torch built for CUDA.",
    ),
    Variable(name="INFERSCOPE_KEEP_RESULTS", default="256", meaning="How many results a session keeps, oldest out."),
    Variable(
        name="INFERSCOPE_OUTPUT_DIGEST",
        default="0",
        meaning="1: `record.output_digest` says whether two outputs have the same tokens, for `inferscope.compare`. It "
        "has no salt: who guesses a short output can confirm the guess.",
    ),
    Variable(
        name="INFERSCOPE_NATIVE",
        default="1",
        meaning="0: Python code watches the forwards, not the C extension. Read once, when tracing is first loaded.",
    ),
    Variable(
        name="INFERSCOPE_RAISE",
        default="0",
        meaning="1: inferscope's own faults are raised instead of logged. For its tests; never in production.",
    ),
    Variable(
        name="INFERSCOPE_TRACEBACK",
        default="0",
        meaning="1: the command line shows the traceback of a failure instead of one line.",
    ),
)

_DETAILS = ("phases", "passes")
_COUNTERS = ("off", "native")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set; each field has its row in `VARIABLES`.

    Attributes:
        disabled: Attach nothing.
        detail: "phases", or "passes" to keep every pass.
        cache_dir: Folder for calibrations and costs.
        keep_results: Results a session keeps.
        sample_rate: Share of requests that are observed, 0..1.
        plug_every: One pass in so many is held up on the device; 0 for none.
        native: Watch forwards with the C extension, where it is there.
        deep_every: One pass in so many has its operators recorded; 0 for none.
        nvtx: Put NVTX ranges around requests and forwards.
        output_digest: Keep a digest of the tokens that came out.
        counters: "off", or "native" to count at the driver.
        overhead_budget: Share of the time that inferscope's own work may take.
        budget_asked: Whether somebody has set it, so that requests may go unobserved to keep it.
    """

    disabled: bool = False
    detail: Literal["phases", "passes"] = "phases"
    cache_dir: Path = Path("~/.cache/inferscope")
    keep_results: int = 256
    sample_rate: float = 1.0
    plug_every: int = 0
    native: bool = True
    deep_every: int = 0
    nvtx: bool = False
    output_digest: bool = False
    counters: Literal["off", "native"] = "off"
    overhead_budget: float = 0.01
    budget_asked: bool = False

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the `INFERSCOPE_*` variables.

        Raises:
            SettingError: A variable has a value it cannot have; the message names both.
        """
        keep = _read("INFERSCOPE_KEEP_RESULTS")
        if not keep.isdigit() or int(keep) < 1:
            raise SettingError(f"INFERSCOPE_KEEP_RESULTS={keep!r}: expected a whole number of at least 1")
        return cls(
            disabled=_flag("INFERSCOPE_DISABLED"),
            detail=checked_detail(_read("INFERSCOPE_DETAIL"), where="INFERSCOPE_DETAIL"),
            cache_dir=Path(_read("INFERSCOPE_CACHE_DIR")).expanduser(),
            keep_results=int(keep),
            sample_rate=checked_rate(_read("INFERSCOPE_SAMPLE_RATE"), where="INFERSCOPE_SAMPLE_RATE"),
            plug_every=checked_every(_read("INFERSCOPE_PLUG_EVERY"), where="INFERSCOPE_PLUG_EVERY"),
            native=_flag("INFERSCOPE_NATIVE"),
            deep_every=checked_every(_read("INFERSCOPE_DEEP_EVERY"), where="INFERSCOPE_DEEP_EVERY"),
            nvtx=_flag("INFERSCOPE_NVTX"),
            output_digest=_flag("INFERSCOPE_OUTPUT_DIGEST"),
            counters=checked_counters(_read("INFERSCOPE_COUNTERS"), where="INFERSCOPE_COUNTERS"),
            overhead_budget=checked_budget(_read("INFERSCOPE_OVERHEAD_BUDGET"), where="INFERSCOPE_OVERHEAD_BUDGET"),
            budget_asked=bool(os.environ.get("INFERSCOPE_OVERHEAD_BUDGET", "").strip()),
        )


def checked_detail(value: str, *, where: str) -> Literal["phases", "passes"]:
    """The detail level, or an error that names where the wrong one came from.

    Raises:
        SettingError: `value` is neither "phases" nor "passes".
    """
    if value == "phases":
        return "phases"
    if value == "passes":
        return "passes"
    raise SettingError(f"{where}={value!r}: expected one of {', '.join(_DETAILS)}")


def checked_rate(value: float | str, *, where: str) -> float:
    """A share of requests, or an error that names where the wrong one came from.

    Raises:
        SettingError: `value` is no number from 0 to 1.
    """
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if 0 <= rate <= 1:
        return rate
    raise SettingError(f"{where}={value!r}: expected a number from 0 to 1")


def checked_every(value: int | str, *, where: str) -> int:
    """A number of passes, or an error that names where the wrong one came from.

    Raises:
        SettingError: `value` is no whole number of at least 0.
    """
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()):
        raise SettingError(f"{where}={value!r}: expected a whole number of at least 0")
    return int(text)


def checked_counters(value: str, *, where: str) -> Literal["off", "native"]:
    """What counts, or an error that names where the wrong one came from.

    Raises:
        SettingError: `value` is neither "off" nor "native".
    """
    if value == "off":
        return "off"
    if value == "native":
        return "native"
    raise SettingError(f"{where}={value!r}: expected one of {', '.join(_COUNTERS)}")


def checked_budget(value: float | str, *, where: str) -> float:
    """A share of the time, or an error that names where the wrong one came from.

    Raises:
        SettingError: `value` is no number above 0 and up to 1.
    """
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if 0 < share <= 1:
        return share
    raise SettingError(f"{where}={value!r}: expected a number above 0 and up to 1")


def checked_switch(value: object, *, where: str) -> bool:
    """Whether something is on, or an error that names where the wrong value came from.

    Raises:
        SettingError: `value` is neither True nor False.
    """
    if isinstance(value, bool):
        return value
    raise SettingError(f"{where}={value!r}: expected True or False")


def _read(name: str) -> str:
    default = next(variable.default for variable in VARIABLES if variable.name == name)
    return os.environ.get(name, "").strip() or default


def _flag(name: str) -> bool:
    value = _read(name).lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise SettingError(f"{name}={value!r}: expected 0 or 1")
