from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from inferscope.errors import SettingError
from inferscope.hardware.load import HostLoad


def test_a_window_of_this_machine():
    load = HostLoad(os.getpid())
    load.read()
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        sum(range(1000))
    host = load.read()
    assert host.window_s >= 0.05
    assert 0 <= host.cpu_share <= 1
    assert 0 < host.process_cpu_share <= 1  # it has just counted
    assert host.cpus >= host.usable_cpus >= 1
    assert host.rss_bytes > 1_000_000
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes
    assert not {"cpu_share", "process_cpu_share", "rss_bytes", "cpus"} & host.missing.keys()


def test_a_first_reading_has_no_window_and_says_so():
    host = HostLoad(os.getpid()).read()
    assert host.cpu_share is host.process_cpu_share is None
    assert "window" in host.missing["cpu_share"]
    assert host.rss_bytes


def test_a_program_s_own_psutil_is_not_disturbed():
    """psutil remembers one last reading per process of the caller: ours must not replace it."""
    psutil.cpu_percent()
    before = dict(psutil._last_cpu_times)
    load = HostLoad(os.getpid())
    load.read()
    time.sleep(0.1)
    load.read()
    assert dict(psutil._last_cpu_times) == before


def test_without_a_process_the_machine_is_still_told():
    load = HostLoad(None)
    time.sleep(0.1)
    host = load.read()
    assert host.cpu_share is not None
    assert host.rss_bytes is None
    assert host.missing["rss_bytes"] == "no process was named"


def test_a_process_that_is_not_there_is_an_error_and_one_that_ends_is_a_reason():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    load = HostLoad(process.pid)
    assert load.read().rss_bytes
    process.kill()
    process.wait()
    host = load.read()
    assert host.rss_bytes is None
    assert host.missing["rss_bytes"]
    with pytest.raises(SettingError, match="pid="):
        HostLoad(process.pid)


def test_what_a_system_does_not_say_has_a_reason(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    host = HostLoad(None).read()
    assert host.cpu_frequency_hz is None
    assert host.missing["cpu_frequency_hz"] == "the system does not say"
