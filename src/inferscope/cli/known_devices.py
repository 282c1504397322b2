"""Whose ceilings to judge a stored record by, found without torch and without a device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inferscope.errors import CalibrationError
from inferscope.hardware import calibration_file
from inferscope.hardware.catalog import lookup
from inferscope.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from inferscope.records import GenerationRecord
    from inferscope.specs import DeviceSpec

__all__ = ["KnownDevices"]

_NONE_STORED = "run `inferscope calibrate` there, or give its --json with --ceilings"


class KnownDevices:
    """Ceilings by record: those given for its device, else those stored here for it, else the catalogue row asked for.

    Attributes:
        unjudged: Why records were held against no ceilings, in words, once per device.
    """

    def __init__(self, *, files: Iterable[Path], gpu: str | None) -> None:
        """Read what was given.

        Raises:
            CalibrationError: A file is not what `inferscope calibrate --json` prints.
            UnknownDeviceError: The catalogue has no such GPU.
        """
        given = [calibration_file.read_device(path) for path in files]
        self._given = {device.key: device for device in given}
        self._gpu = None if gpu is None else lookup(gpu)
        self._folder = Settings.from_environment().cache_dir / "calibration"
        self._found: dict[tuple[str | None, str], DeviceSpec | None] = {}
        self._reasons: dict[str, None] = {}

    def of(self, record: GenerationRecord) -> DeviceSpec | None:
        """The ceilings to hold a record against; None where none are known for what it ran on."""
        kind = (record.model.device or "cpu").partition(":")[0]
        key = (record.device_key, kind)
        if key not in self._found:
            self._found[key] = self._look(*key)
        return self._found[key]

    @property
    def used(self) -> tuple[DeviceSpec, ...]:
        """Every device that records were held against."""
        return tuple({device.key: device for device in self._found.values() if device is not None}.values())

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Why some records were held against no ceilings."""
        return tuple(self._reasons)

    def _look(self, key: str | None, kind: str) -> DeviceSpec | None:
        if key in self._given:
            return self._given[key or ""]
        if key is not None:
            try:
                return calibration_file.read(calibration_file.file_of(self._folder, key), key).device
            except CalibrationError as error:
                if not isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                    self._reasons[str(error)] = None
        if self._gpu is not None and kind == self._gpu.kind:
            return replace(self._gpu, key=key or self._gpu.key)
        where = key or f"a {kind} that the record does not name"
        others = "; the ceilings given are of another device" if self._given else ""
        self._reasons[f"No ceilings are known for {where}{others}: {_NONE_STORED}."] = None
        return None
