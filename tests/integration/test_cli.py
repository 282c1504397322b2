import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

import inferscope
from inferscope.cli.main import main
from inferscope.experiments import demo
from inferscope.hardware import calibration_file, probe
from inferscope.specs import Ceiling

PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"


def _run(*arguments, before="", **variables):
    return subprocess.run(
        [sys.executable, "-c", before + PROGRAM, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100", **variables},
        timeout=300,
        check=False,
    )


def _one_error_line(done, slug, code):
    """The run failed as a user's mistake does: one line that names the slug, and no traceback."""
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]  # stages are told that way
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error[{slug}]: ")
    assert lines[0].endswith(f"(see docs/reference/messages.md#{slug})")
    return lines[0]


def test_version():
    done = _run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"inferscope {inferscope.__version__}")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(arguments):
    done = _run(*arguments)
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "calibrate" in done.stdout


@pytest.mark.parametrize("command", ["demo", "calibrate"])
def test_each_command_has_examples(command):
    done = _run(command, "--help")
    assert done.returncode == 0
    assert f"\n    inferscope {command}\n" in done.stdout


def test_help_is_quick_because_it_loads_no_torch():
    done = _run("demo", "--help", before="import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "slug", "named"),
    [
        (("demo", "--max-new-tokens", "0"), "bad-setting", "--max-new-tokens 0"),
        (("demo", "--max-new-tokens", "many"), "usage", "--max-new-tokens"),
        (("demo", "--batch-size", "0"), "bad-setting", "--batch-size 0"),
        (("demo", "--batch-size", "-3"), "bad-setting", "--batch-size -3"),
        (("demo", "--dtype", "nonsense"), "bad-setting", "--dtype nonsense"),
        (("demo", "--prompt", "  "), "bad-setting", "--prompt"),
        (("demo", "--no-such-option"), "usage", "--no-such-option"),
        (("demo", "--model"), "usage", "--model"),
        (("no-such-command",), "usage", "no-such-command"),
        (("calibrate", "--device", "toaster"), "unknown-device", "toaster"),
    ],
)
def test_a_mistake_is_one_line(arguments, slug, named, tmp_path):
    command, *options = arguments
    done = _run(command, *(("--out", str(tmp_path)) if command == "demo" else ()), *options)
    assert named in _one_error_line(done, slug, 2)


def test_a_missing_model_is_one_line(tmp_path):
    done = _run("demo", "--model", str(tmp_path / "missing"), "--out", str(tmp_path / "out"))
    assert "no such folder or file" in _one_error_line(done, "model-not-found", 2)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    done = _run("demo", "--out", str(blocked / "out"))
    assert "--out" in _one_error_line(done, "cache-unwritable", 3)


def test_a_wrong_variable_is_one_line(tmp_path):
    done = _run("calibrate", INFERSCOPE_KEEP_RESULTS="some", INFERSCOPE_CACHE_DIR=str(tmp_path))
    assert "INFERSCOPE_KEEP_RESULTS" in _one_error_line(done, "bad-setting", 2)


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_a_missing_extra_names_itself(absent):
    done = _run("demo", before=f"import sys; sys.modules[{absent!r}] = None\n")
    assert "extra [cli]" in _one_error_line(done, "missing-extra", 2)


def test_a_reader_that_goes_away_is_no_cause_for_complaint():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "demo", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            check=False,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def _failing(error):
    def run_demo(*_arguments, **_options):
        raise error

    return run_demo


def test_interrupting_is_told_and_exits_130(monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_demo", _failing(KeyboardInterrupt()))
    assert main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_defect_is_one_line_and_says_how_to_see_more(monkeypatch, capsys):
    monkeypatch.delenv("INFERSCOPE_TRACEBACK", raising=False)
    monkeypatch.setattr(demo, "run_demo", _failing(ValueError("boom\nand more")))
    assert main(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error[defect]: ValueError: boom and more (INFERSCOPE_TRACEBACK=1")


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("INFERSCOPE_TRACEBACK", "1")
    monkeypatch.setattr(demo, "run_demo", _failing(ValueError("boom")))
    with pytest.raises(ValueError, match="boom"):
        main(["demo"])


@pytest.fixture
def stored(tmp_path):
    """A cache folder that holds a calibration of this machine, made up, and what stands in it."""
    identity = probe.identify("cpu")

    def made_up(value):
        return Ceiling(value=value, source="measured", spread=0.01, note="made up")

    device = replace(
        identity,
        compute_flops_per_s={"bfloat16": made_up(8e11), "float32": made_up(2e11)},
        gemv_bytes_per_s={"bfloat16": made_up(2e10), "float32": made_up(2e10)},
        copy_bytes_per_s=made_up(3e10),
        cache_bytes_per_s=made_up(1.5e11),
        dispatch_ns=made_up(900.0),
        module_op_ns=made_up(1600.0),
        sync_ns=made_up(120.0),
        torch_version=str(torch.__version__),
        measured_unix_ns=1_789_000_000_000_000_000,
        rejected=("a ceiling of old: never steady",),
    )
    path = calibration_file.file_of(tmp_path / "calibration", identity.key)
    calibration_file.write(
        path,
        calibration_file.CalibrationFile(
            schema=calibration_file.SCHEMA, dtypes=("float32", "bfloat16"), device=device, provenance={}
        ),
    )
    return tmp_path, path, device


def test_calibrate_shows_what_is_stored_as_json(stored):
    folder, _, device = stored
    done = _run("calibrate", "--json", INFERSCOPE_CACHE_DIR=str(folder))
    assert (done.returncode, done.stderr) == (0, "")  # nothing was measured
    assert json.loads(done.stdout) == json.loads(json.dumps(asdict(device)))


def test_calibrate_shows_what_is_stored_as_a_table(stored):
    folder, _, device = stored
    done = _run("calibrate", INFERSCOPE_CACHE_DIR=str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["compute", "float32", "200", "GFLOP/s", "measured", "1.00", "%", "made", "up"] in rows
    assert ["memory", "copy", "30.0", "GB/s", "measured", "1.00", "%", "made", "up"] in rows
    assert "rejected: a ceiling of old: never steady" in done.stdout
    assert device.name in done.stdout


def test_a_terminal_without_our_letters_is_no_failure(stored):
    folder, *_ = stored
    done = _run("calibrate", PYTHONUTF8="0", PYTHONIOENCODING="ascii", INFERSCOPE_CACHE_DIR=str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "GFLOP/s" in done.stdout


def test_a_damaged_calibration_is_measured_again(stored):
    folder, path, _ = stored
    path.write_text("{ not json")
    done = _run("calibrate", "--json", INFERSCOPE_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "calibrating" in done.stderr
    measured = json.loads(done.stdout)
    assert measured["key"] == probe.identify("cpu").key
    # On a busy machine readings may be refused, each with its reason; nothing made up is left.
    assert measured["compute_flops_per_s"] or measured["rejected"]
    assert "made up" not in done.stdout
