"""Everything inferscope raises, each with a slug explained in docs/reference/messages.md.

These reach a user only where they asked for something that cannot be done. Nothing here is ever raised
inside a call that inferscope merely observes.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CacheUnwritableError",
    "CalibrationError",
    "CannotTellError",
    "CostUnavailableError",
    "InferscopeError",
    "LimitExceededError",
    "LintError",
    "MissingExtraError",
    "ModelNotFoundError",
    "NotAModelError",
    "NothingToCompareError",
    "PredictionError",
    "RecordFormatError",
    "ScriptError",
    "SettingError",
    "SinkError",
    "UnknownDeviceError",
]


class InferscopeError(Exception):
    """Base of all errors raised by inferscope.

    Attributes:
        slug: Stable key of the message, the heading of its section in docs/reference/messages.md.
        exit_code: What the command line exits with (2 = the user's input, 3 = this machine,
            4 = a limit that was given is exceeded, 5 = whether it is cannot be told).
    """

    slug: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 2


class NotAModelError(InferscopeError, TypeError):
    """What was handed to `trace` is not a `torch.nn.Module`."""

    slug = "not-a-model"


class SinkError(InferscopeError, TypeError):
    """A sink is neither a callable nor a name inferscope knows."""

    slug = "unknown-sink"


class SettingError(InferscopeError, ValueError):
    """An option or an `INFERSCOPE_*` variable has a value it cannot have."""

    slug = "bad-setting"


class UnknownDeviceError(InferscopeError, LookupError):
    """A device name is not in the catalogue."""

    slug = "unknown-device"


class CalibrationError(InferscopeError, ValueError):
    """A calibration file is corrupt, stale, or of another machine."""

    slug = "calibration-unusable"


class CacheUnwritableError(InferscopeError, OSError):
    """A file that was asked for cannot be written."""

    slug = "cache-unwritable"
    exit_code = 3


class RecordFormatError(InferscopeError, ValueError):
    """A record file cannot be read: the message names the file and the line."""

    slug = "record-format"


class ScriptError(InferscopeError, ValueError):
    """A program that is to be run is not there, or is not Python."""

    slug = "script-unusable"


class CostUnavailableError(InferscopeError, ValueError):
    """No exact operator count can be made for this model."""

    slug = "cost-unavailable"


class PredictionError(InferscopeError, ValueError):
    """Nothing supports the prediction that was asked for."""

    slug = "prediction-unsupported"


class ModelNotFoundError(InferscopeError, LookupError):
    """A model, or the file its weights are in, is not there."""

    slug = "model-not-found"


class MissingExtraError(InferscopeError, ImportError):
    """An optional dependency is needed for what was asked."""

    slug = "missing-extra"


class LintError(InferscopeError, ValueError):
    """A model cannot be linted as asked: inputs are missing, or it needs values that are not there."""

    slug = "lint-impossible"


class LimitExceededError(InferscopeError):
    """Something was measured or counted, and is above the limit that was given."""

    slug = "limit-exceeded"
    exit_code: ClassVar[int] = 4


class NothingToCompareError(InferscopeError, ValueError):
    """Two sets of records have nothing that could be compared."""

    slug = "nothing-to-compare"


class CannotTellError(InferscopeError):
    """Whether a limit is exceeded cannot be told, and that was asked to count as a failure."""

    slug = "cannot-tell"
    exit_code: ClassVar[int] = 5
