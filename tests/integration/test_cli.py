import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from command_server import CommandServer, documented_fields

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


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """Runs of `inferscope` as processes that have torch from the start."""
    names = ("demo", "lint", "models", "checkup")
    loaded = ("torch", "transformers", *(f"inferscope.experiments.{name}" for name in names))
    server = CommandServer(tmp_path_factory.mktemp("runs"), loaded=loaded)
    yield server
    server.close()


def test_version():
    done = _run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"inferscope {inferscope.__version__}")


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
def test_a_mistake_is_one_line(forked, arguments, slug, named, tmp_path):
    command, *options = arguments
    done = forked(command, *(("--out", str(tmp_path)) if command == "demo" else ()), *options)
    done.refused(slug, 2, named)


def test_what_is_no_model_is_one_line(forked, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text('{"model_type": "lla')
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "binary.gguf").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    with (tmp_path / "long.gguf").open("wb") as file:  # sparse: 200 MB that take no room
        file.truncate(200 * 2**20)
    for name in ("missing", "folder", "cut", "empty.gguf", "binary.gguf", "cut.gguf", "long.gguf", "missing.gguf"):
        where = tmp_path / name
        forked("lint", where).refused("model-not-found", 2, name)
        forked("demo", "--model", where, "--out", tmp_path / "out").refused("model-not-found", 2, name)


def test_a_folder_that_cannot_be_made_is_one_line(forked, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    forked("demo", "--out", blocked / "out").refused("cache-unwritable", 3, "--out")


def test_a_wrong_variable_is_one_line(forked, tmp_path):
    done = forked("calibrate", INFERSCOPE_KEEP_RESULTS="some", INFERSCOPE_CACHE_DIR=str(tmp_path))
    done.refused("bad-setting", 2, "INFERSCOPE_KEEP_RESULTS")


def test_ctrl_c_ends_a_measurement_and_says_what_is_left(forked, tmp_path):
    def press(pid):
        end = time.monotonic() + 120
        while "calibrating" not in _said(tmp_path) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(pid, signal.SIGINT)

    def _said(folder):
        return (folder / "said").read_text() if (folder / "said").exists() else ""

    done = forked(
        "calibrate", "--json", during=press, stderr=tmp_path / "said", INFERSCOPE_CACHE_DIR=str(tmp_path / "cache")
    )
    assert done.code == 130
    assert _said(tmp_path).splitlines()[-1] == "interrupted: nothing was stored; the same command measures anew"
    assert not done.stdout
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_a_missing_extra_names_itself(absent):
    done = _run("demo", before=f"import sys; sys.modules[{absent!r}] = None\n")
    assert "extra [cli]" in _one_error_line(done, "missing-extra", 2)


def _failing(error):
    def run_demo(*_arguments, **_options):
        raise error

    return run_demo


def test_interrupting_is_told_and_exits_130(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run_demo", _failing(KeyboardInterrupt()))
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was recorded; the same command begins anew\n"


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


def test_calibrate_shows_what_is_stored_as_json(forked, stored):
    folder, _, device = stored
    done = forked("calibrate", "--json", INFERSCOPE_CACHE_DIR=str(folder))
    assert (done.code, done.stderr) == (0, "")  # nothing was measured
    assert json.loads(done.stdout) == {"schema": 1, **json.loads(json.dumps(asdict(device)))}
    ceilings = folder / "ceilings.json"
    ceilings.write_text(done.stdout)
    assert calibration_file.read_device(ceilings) == device


def test_calibrate_shows_what_is_stored_as_a_table(forked, stored):
    folder, _, device = stored
    done = forked("calibrate", INFERSCOPE_CACHE_DIR=str(folder))
    assert (done.code, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["compute", "float32", "200", "GFLOP/s", "measured", "1.00", "%", "made", "up"] in rows
    assert ["memory", "copy", "30.0", "GB/s", "measured", "1.00", "%", "made", "up"] in rows
    assert "rejected: a ceiling of old: never steady" in done.stdout
    assert device.name in done.stdout
    full = forked("calibrate", "--json", stdout="/dev/full", INFERSCOPE_CACHE_DIR=str(folder))
    full.refused("cache-unwritable", 3, "standard output")


def test_json_of_commands_that_run_a_model(forked, stored, model_folder):
    folder, *_ = stored
    told = {
        "doctor": ("doctor",),
        "lint": ("lint", model_folder, "--new-tokens", "3", "--prompt", "word001 word002"),
        "demo": ("demo", "--model", model_folder, "--max-new-tokens", "3", "--prompt", "word001 word002"),
    }
    for kind, arguments in told.items():
        done = forked(*arguments, "--json", cwd=folder, INFERSCOPE_CACHE_DIR=str(folder))
        assert done.code == 0, done
        found = json.loads(done.stdout)
        assert (found["kind"], found["schema"]) == (f"inferscope.{kind}", 1)
        assert set(found) == documented_fields(found["kind"])
        assert all(line.endswith(" ...") for line in done.stderr.splitlines()), done
    assert "word00" not in json.dumps(found)  # neither the prompt nor the answer
    assert json.loads((folder / found["records"]).read_text()) == found["record"]


def test_ctrl_c_amid_the_answer_leaves_whole_files_that_say_aborted(forked, stored, model_folder):
    folder, *_ = stored
    shown, said = folder / "shown", folder / "said"

    def press(pid):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            _, asked, answer = (shown.read_text() if shown.exists() else "").partition("> word001 word002\n")
            if asked and answer:
                break
            time.sleep(0.005)
        os.kill(pid, signal.SIGINT)

    asked = ("--max-new-tokens", "20000", "--prompt", "word001 word002", "--out", "out")
    done = forked(
        *("demo", "--model", model_folder, *asked),
        cwd=folder,
        during=press,
        stdout=shown,
        stderr=said,
        INFERSCOPE_CACHE_DIR=str(folder),
    )
    assert done.code == 130, said.read_text()
    assert said.read_text().splitlines()[-1] == (
        "interrupted: out/records.jsonl holds the requests up to here, the one that was cut off as aborted; "
        "the same command adds one"
    )
    (record,) = inferscope.read_records(folder / "out" / "records.jsonl")
    assert (record.status, record.error_type) == ("aborted", "KeyboardInterrupt")
    assert json.loads((folder / "out" / "spans.json").read_text())["resourceSpans"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["records.jsonl", "spans.json"]


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
