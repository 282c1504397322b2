"""`inferscope watch` as a process: on this machine as it is, and over a recorded driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = Path(__file__).parents[1] / "unit" / "hardware"
PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"
WITH_GPUS = f"""
import sys
sys.path.insert(0, {str(DRIVER)!r})
import pynvml
from recorded_driver import RecordedDriver
driver = RecordedDriver(count=2)
driver.gpm[2], driver.gpm[10] = 12.0, 6.0
pynvml._LoadNvmlLibrary = lambda: None
pynvml._nvmlGetFunctionPointer = driver.function
"""


def command(*arguments, before=""):
    return [sys.executable, "-c", before + PROGRAM, "watch", *arguments]


def run(*arguments, before="", **variables):
    return subprocess.run(
        command(*arguments, before=before),
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100", **variables},
        timeout=120,
        check=False,
    )


def test_once_as_json_tells_this_machine():
    done = run("--once", "--json", "--pid", str(os.getpid()))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert 0 <= found["sample"]["host"]["cpu_share"] <= 1
    assert found["sample"]["host"]["rss_bytes"] > 1_000_000
    assert found["sample"]["gpus"] or found["sample"]["gpus_missing"]
    assert found["verdict"]["bound"] in {"idle", "unknown"} or found["sample"]["gpus"]
    assert found["findings"][-1]["code"].startswith("window-")


def test_a_driver_s_answers_become_a_verdict_that_names_the_misleading_number():
    done = run("--once", "--json", before=WITH_GPUS)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [gpu["sm_activity"] for gpu in found["sample"]["gpus"]] == [0.12, 0.12]
    assert all(gpu["window_s"] >= 1.0 for gpu in found["sample"]["gpus"])
    assert found["verdict"]["bound"] == "overhead"
    assert found["findings"][0]["code"] == "gpu-util-misleads"


def test_once_as_a_picture():
    done = run("--once", before=WITH_GPUS, NO_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "GPU-Util" in done.stdout
    assert "gpu-util-misleads" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_narrow_terminal_is_kept_to():
    done = run("--once", before=WITH_GPUS, COLUMNS="40")
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 40


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_into_a_pipe_one_line_per_window_until_interrupted(options):
    process = subprocess.Popen(
        command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True
    )
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (0, "")
    for line in [*lines, *rest.splitlines()]:
        assert json.loads(line) if options else "host" in line


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal_it_draws_over_itself_and_ctrl_c_ends_it():
    import pty  # noqa: PLC0415

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        command(), stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    try:
        end = time.monotonic() + 60
        while shown.count(b"inferscope watch") < 2 and time.monotonic() < end:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        shown += _rest(ours)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"\x1b[" in shown  # it moves the cursor
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")  # and gives it back
    assert b"Traceback" not in shown


def _rest(descriptor):
    """What is still written until the other end closes."""
    found = b""
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux says it so
            return found
        if not chunk:
            return found
        found += chunk


@pytest.mark.parametrize(
    ("options", "said"), [(("--every", "0.2"), "at least 1 seconds"), (("--once", "--pid", "1073741824"), "pid=")]
)
def test_misuse_is_one_line(options, said):
    done = run(*options)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error[bad-setting]: ")
    assert said in line


def test_help_has_examples_and_loads_nothing_heavy():
    done = run("--help")
    assert done.returncode == 0
    assert "\n    inferscope watch --once --json\n" in done.stdout
