"""diagnose(): the opinion on a stored record, on any machine; a device is asked only where nothing is stored for it.

Neither torch nor a device is needed: it may be done on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis import diagnosis, verdict
from inferscope.analysis.findings import find
from inferscope.hardware import calibration_file
from inferscope.report.plain import to_text
from inferscope.settings import Settings

if TYPE_CHECKING:
    from inferscope.analysis.findings import Surroundings
    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec

__all__ = ["Result", "diagnose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(verdict.Result):
    """What is known of one request; printing it shows a table."""

    def __str__(self) -> str:
        """The result as plain text."""
        return to_text(self)


def diagnose(
    record: GenerationRecord, *, device: DeviceSpec | None = None, surroundings: Surroundings | None = None
) -> Result:
    """The opinion on a stored record.

    Args:
        record: What was measured.
        device: Ceilings to judge by; None takes the stored calibration of the device that the record was made on,
            or, where torch is installed and this is that device, what is known of it; else none.
        surroundings: What is known beside the record (`inferscope.analysis.findings.Surroundings`): a window of the
            GPU, the load, a lint report, retries of the allocator.

    Returns:
        Record, verdict and findings.
    """
    if device is None:
        device = _stored(record) or _present(record)
    opinion = diagnosis.diagnose(record, device=device)
    return Result(record=record, diagnosis=opinion, findings=find(record, opinion, surroundings=surroundings))


def _stored(record: GenerationRecord) -> DeviceSpec | None:
    if record.device_key is None:
        return None
    return calibration_file.stored(Settings.from_environment().cache_dir / "calibration", record.device_key)


def _present(record: GenerationRecord) -> DeviceSpec | None:
    """The device of this machine, where the record was made on it or does not say where it was."""
    try:
        from inferscope.hardware import calibration  # noqa: PLC0415 - loads torch
    except ImportError:  # a record may be judged where no model runs
        return None
    known = calibration.current_device_spec((record.model.device or "cpu").partition(":")[0])
    return known if record.device_key in {None, known.key} else None
