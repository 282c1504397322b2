"""The load of this machine and of one process, from psutil."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from inferscope.errors import SettingError
from inferscope.samples import HostSample

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HostLoad"]

_FIRST_READING = "a window begins with this reading: the next one has a value"
_LEAST_WINDOW_S = 0.05  # the kernel counts processor time in ticks of up to 10 ms


class HostLoad:
    """Reads the host and one process; each reading's shares cover the time since the one before.

    psutil's own `cpu_percent` keeps its last reading in the module: calling it here would spoil the answers of a
    program that calls it too. Differences are therefore taken here.
    """

    def __init__(self, pid: int | None) -> None:
        """Begin the first window now.

        Args:
            pid: The process to tell of; None for none.

        Raises:
            SettingError: There is no such process.
        """
        import psutil  # noqa: PLC0415 - only where somebody monitors

        self._psutil: Any = psutil
        try:
            self._process: Any = None if pid is None else psutil.Process(pid)
        except (psutil.Error, ValueError, OverflowError) as error:
            raise SettingError(f"pid={pid}: {error}") from error
        self._machine_before: tuple[float, Any] = (time.monotonic(), psutil.cpu_times())
        self._process_before: tuple[float, float] | None = None

    def read(self) -> HostSample:
        """Load since the last reading, and memory and clocks now. Never raises."""
        values: dict[str, Any] = {}
        missing: dict[str, str] = {}
        questions: tuple[tuple[tuple[str, ...], Callable[[], dict[str, Any]]], ...] = (
            (("window_s", "cpu_share"), self._machine_share),
            (("process_cpu_share",), self._process_share),
            (("cpus",), lambda: {"cpus": int(self._psutil.cpu_count())}),
            (("usable_cpus",), lambda: {"usable_cpus": self._usable_cpus()}),
            (("cpu_frequency_hz", "cpu_frequency_max_hz"), self._frequency),
            (("rss_bytes",), lambda: {"rss_bytes": int(self._watched().memory_info().rss)}),
            (("memory_available_bytes", "memory_total_bytes"), self._memory),
        )
        for fields, ask in questions:
            try:
                values.update(ask())
            except Exception as error:  # noqa: BLE001 - what one system lacks costs the other fields nothing
                missing.update(dict.fromkeys(fields, str(error) or type(error).__name__))
        if "cpu_frequency_hz" not in missing and values["cpu_frequency_max_hz"] is None:
            missing["cpu_frequency_max_hz"] = "the system does not say"
        return HostSample(unix_ns=time.time_ns(), **values, missing=missing)

    def _machine_share(self) -> dict[str, Any]:
        began_s, before = self._machine_before
        now_s, after = time.monotonic(), self._psutil.cpu_times()
        if now_s - began_s < _LEAST_WINDOW_S:
            raise ValueError(_FIRST_READING)
        self._machine_before = now_s, after
        spent = [max(0.0, late - early) for early, late in zip(before, after, strict=True)]
        # `guest` times are contained in `user` and `nice`: counting them again would dilute the share.
        parts = {name: value for name, value in zip(after._fields, spent, strict=True) if not name.startswith("guest")}
        total = sum(parts.values())
        if total <= 0:
            raise ValueError("the system's processor times did not advance")
        idle = parts.get("idle", 0.0) + parts.get("iowait", 0.0)
        return {"window_s": now_s - began_s, "cpu_share": min(max(1 - idle / total, 0.0), 1.0)}

    def _process_share(self) -> dict[str, Any]:
        times = self._watched().cpu_times()
        now_s, spent_s = time.monotonic(), times.user + times.system
        before, self._process_before = self._process_before, (now_s, spent_s)
        if before is None or now_s - before[0] < _LEAST_WINDOW_S:
            raise ValueError(_FIRST_READING)
        own = max(0.0, spent_s - before[1]) / ((now_s - before[0]) * self._usable_cpus())
        return {"process_cpu_share": min(own, 1.0)}

    def _watched(self) -> Any:  # noqa: ANN401 - psutil is untyped
        if self._process is None:
            raise ValueError("no process was named")
        return self._process

    def _usable_cpus(self) -> int:
        watched = self._watched()
        try:
            return len(watched.cpu_affinity())
        except AttributeError:  # not on macOS
            return int(self._psutil.cpu_count() or 1)

    def _frequency(self) -> dict[str, Any]:
        found = self._psutil.cpu_freq()
        if found is None or not found.current:
            raise ValueError("the system does not say")
        return {"cpu_frequency_hz": found.current * 1e6, "cpu_frequency_max_hz": found.max * 1e6 or None}

    def _memory(self) -> dict[str, Any]:
        memory = self._psutil.virtual_memory()
        return {"memory_available_bytes": int(memory.available), "memory_total_bytes": int(memory.total)}
