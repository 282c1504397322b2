import contextlib
import math
import os
import subprocess
import sys
import time

import pytest

from inferscope.hardware.stopwatch import quiet_seconds, shortest_seconds


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.fixture
def rival():
    """Another process that wants the one processor this one is bound to."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("processes cannot be bound to a processor here")
    mine = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {min(mine)})
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield
    process.kill()
    process.communicate()
    os.sched_setaffinity(0, mine)


def test_a_time_taken_while_another_program_had_the_processor_is_refused(rival):
    assert math.isnan(quiet_seconds(lambda: spin(0.5)))
    assert shortest_seconds(lambda: spin(0.3), 3, 0.5) is None


def test_waiting_of_ones_own_will_is_no_disturbance():
    # Sleeping gives the processor up voluntarily; a few other interruptions may still fall into it.
    readings = [quiet_seconds(lambda: time.sleep(0.01)) for _ in range(20)]
    assert any(reading >= 0.01 for reading in readings)


def test_repeats_are_all_run():
    runs = []
    quiet_seconds(lambda: runs.append(1), 7)
    assert len(runs) == 7


def test_patience_ends_the_tries():
    runs = []
    shortest_seconds(lambda: runs.append(spin(0.02)), 1_000_000, 0.05)
    assert 1 <= len(runs) <= 3
