"""`inferscope report` as a process, on what people give it by accident."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "examples" / "records"
GOOD = RECORDS / "requests.jsonl"
CEILINGS = RECORDS / "ceilings.json"
PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"


def _run(*arguments, stdout=subprocess.PIPE, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "report", *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100"},
        timeout=300,
        check=False,
        cwd=cwd,
    )


def _refused(done, slug, code, *words):
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error[{slug}]: ")
    for word in words:
        assert word in lines[0]


def test_a_page_is_written_where_one_stands_and_needs_no_torch(tmp_path):
    check = f"import sys; sys.argv[1:] = ['report', {str(GOOD)!r}]; {PROGRAM[len('import sys; ') :]}"
    check = check.replace("sys.exit(main())", "code = main(); assert 'torch' not in sys.modules; sys.exit(code)")
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("report.html: ")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_text_goes_to_standard_output(tmp_path):
    done = _run(GOOD, "--format", "md", "--baseline", RECORDS / "eager.jsonl", "--ceilings", CEILINGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "### Before and after" in done.stdout
    assert "held back most by" in done.stdout
    made = _run(GOOD, "--format", "json", "--ceilings", CEILINGS, cwd=tmp_path)
    assert json.loads(made.stdout)["records"]["count"] == 6
    traced = _run(GOOD, "--format", "perfetto", "-o", "trace.json", cwd=tmp_path)
    assert traced.returncode == 0, traced.stderr
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def _bad_files(folder):
    line = GOOD.read_bytes().splitlines(keepends=True)[0]
    made = {
        "empty": b"",
        "cut": line + line[: len(line) // 2],
        "schema": line.replace(b'"schema":1', b'"schema":99', 1),
        "binary": bytes(range(256)) * 40,
        "text": b"once upon a time\n",
        "list": b"[1, 2, 3]\n",
    }
    for name, content in made.items():
        (folder / f"{name}.jsonl").write_bytes(content)
    with (folder / "long.jsonl").open("wb") as file:  # sparse: 200 MB that take no room
        file.truncate(200 * 2**20)


def test_what_is_no_record_file_is_refused_in_one_line_and_leaves_nothing(tmp_path, capsys):
    # One process start costs more than all of this: the same entry is called here, and as a process below.
    from inferscope.cli.main import main  # noqa: PLC0415

    _bad_files(tmp_path)
    out = tmp_path / "out.html"
    cases = {
        tmp_path / "none.jsonl": ("record-format", "no such file"),
        tmp_path: ("record-format", "not a file"),
        Path("/dev/zero"): ("record-format", "not a file"),
        tmp_path / "empty.jsonl": ("record-format", "no records"),
        tmp_path / "cut.jsonl": ("record-format", "line 2"),
        tmp_path / "schema.jsonl": ("record-format", "schema 99"),
        tmp_path / "binary.jsonl": ("record-format", "line 1"),
        tmp_path / "text.jsonl": ("record-format", "line 1"),
        tmp_path / "list.jsonl": ("record-format", "line 1"),
        tmp_path / "long.jsonl": ("record-format", "longer than 64 MiB"),
    }
    for path, (slug, words) in cases.items():
        for form in ("html", "perfetto") if path.name == "cut.jsonl" else ("html",):
            assert main(["report", str(path), "-o", str(out), "--format", form]) == 2, path
            said = capsys.readouterr().err
            assert said.startswith(f"error[{slug}]: {path}"), said
            assert words in said
            assert said.count("\n") == 1
            assert not list(tmp_path.glob("*.html*")), path
            assert not list(tmp_path.glob(".*")), path


def test_a_mistake_is_one_line_of_a_process(tmp_path):
    _refused(_run(tmp_path / "none.jsonl"), "record-format", 2, "none.jsonl", "no such file")


@pytest.mark.parametrize(
    ("arguments", "slug", "code", "words"),
    [
        ([GOOD, GOOD], "bad-setting", 2, "given twice"),
        ([GOOD, "--format", "pdf"], "bad-setting", 2, "expected one of html, md, json, perfetto"),
        ([GOOD, "--gpu", "L40Z"], "unknown-device", 2, "L40S"),
        ([GOOD, "--ceilings", GOOD], "calibration-unusable", 2, "calibrate --json"),
        ([GOOD, "--ceilings", "/nowhere.json"], "calibration-unusable", 2, "no such file"),
        ([GOOD, "--baseline", "/nowhere.jsonl"], "record-format", 2, "no such file"),
        ([GOOD, "-o", "/nowhere/report.html"], "cache-unwritable", 3, "No such file"),
        ([GOOD, "-o", "/"], "cache-unwritable", 3, "a folder"),
        ([GOOD, "-o", "/dev/full"], "cache-unwritable", 3, "No space left"),
        ([], "usage", 2, "FILES"),
    ],
)
def test_a_mistake_in_what_was_asked_is_named(arguments, slug, code, words, capsys):
    from inferscope.cli.main import main  # noqa: PLC0415

    assert main(["report", *map(str, arguments)]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"error[{slug}]: "), said
    assert words.lower() in said.lower()
    assert not list(Path("/dev").glob(".full*"))


def test_a_full_disk_behind_standard_output_is_told_once():
    with Path("/dev/full").open("w") as full:
        _refused(_run(GOOD, "--format", "json", stdout=full), "cache-unwritable", 3, "No space left")


def test_ceilings_of_another_device_are_not_used(tmp_path, capsys):
    from inferscope.cli.main import main  # noqa: PLC0415

    other = json.loads(CEILINGS.read_text(encoding="utf-8")) | {"key": "cpu:another"}
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    assert main(["report", str(GOOD), "--format", "json", "--ceilings", str(tmp_path / "other.json")]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["devices"] == []
    assert "of another device" in made["records"]["unjudged"][0]
    assert {phase["bound"] for setup in made["setups"] for phase in setup["phases"]} == {"unknown"}
