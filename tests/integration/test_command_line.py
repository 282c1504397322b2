"""The command line as one: what holds for every command, each run a process of its own.

The commands here need no torch, and each run says that it has loaded none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")

from command_server import CommandServer, documented_fields

from inferscope.cli.application import app
from inferscope.cli.exit_codes import MEANINGS, ExitCode
from inferscope.cli.groups import GROUPS, WORDS
from inferscope.sinks.jsonl import JsonlSink, read_records
from inferscope.testing import make_result

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "integrations"))
from nsight_files import CALLS, GEMV, KERNELS, PROJECTED, raw_page, stack

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "examples" / "records"
GOOD = RECORDS / "requests.jsonl"
OTHER = RECORDS / "eager.jsonl"
COMMANDS = [command.name for command in app.registered_commands]
EXAMPLES = {command.name: command.epilog for command in app.registered_commands}
START = [sys.executable, "-c", "import sys; from inferscope.cli.main import main; sys.exit(main())"]
LIGHT = tuple(
    f"inferscope.{name}"
    for name in (
        *("comparing", "predicting", "monitor", "integrations.ncu", "integrations.nsys", "experiments.configs"),
        *("report.comparison_view", "report.counters", "report.systems", "analysis.residuals"),
    )
)


@pytest.fixture(scope="module")
def inferscope(tmp_path_factory):
    server = CommandServer(tmp_path_factory.mktemp("runs"), loaded=LIGHT)
    yield server
    server.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, inferscope):
    """A folder with the files that the examples name, of every kind that a command reads."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "decode.csv").write_text(raw_page([("gemv", stack("request", "decode", payload=7), GEMV)]))
    for name, text in (("kern", KERNELS), ("api", CALLS), ("nvtx", PROJECTED)):
        (folder / f"out_{name}.csv").write_text(text)
    (folder / "runs").mkdir()
    (folder / "inferscope-out").mkdir()
    for name in ("runs.jsonl", "before.jsonl", "traces.jsonl", "inferscope-out/records.jsonl", "runs/a.jsonl"):
        shutil.copy(GOOD, folder / name)
    for name in ("after.jsonl", "runs/b.jsonl"):
        shutil.copy(OTHER, folder / name)
    made = inferscope("predict", GOOD, "--gpu", "L40S", "--save-spec", folder / "spec.json")
    assert (made.code, made.loaded) == (0, ()), made
    return folder


@pytest.fixture(scope="module")
def good(inputs):
    """One command line of each command that needs no torch."""
    return {
        "report": ("report", GOOD, "--format", "md"),
        "compare": ("compare", GOOD, OTHER),
        "import-ncu": ("import-ncu", inputs / "decode.csv"),
        "import-nsys": ("import-nsys", *sorted(inputs.glob("out_*.csv"))),
        "predict": ("predict", inputs / "spec.json", "--gpu", "L40S"),
    }


def test_help_lists_each_command_once_by_group_in_one_line(inferscope):
    done = inferscope("--help")
    assert (done.code, done.stderr, done.loaded) == (0, "", ())
    listed = re.findall(r"^  ([a-z][a-z-]*)  +(\S.*)$", done.stdout, re.MULTILINE)
    assert dict(listed) == {name: WORDS[name] for name in COMMANDS}
    assert [name for name, _ in listed] == [name for name in WORDS if name in COMMANDS]
    for title in GROUPS:
        assert f"\n{title}:\n" in done.stdout
    assert "Start with: inferscope demo" in " ".join(done.stdout.split())
    assert inferscope().stdout == done.stdout


def test_each_help_has_examples_and_fits_a_narrow_terminal(inferscope):
    for name in COMMANDS:
        done = inferscope(name, "--help")
        assert (done.code, done.stderr, done.loaded) == (0, "", ()), done
        assert f"\n    inferscope {name}" in done.stdout, done
    narrow = inferscope("--help", COLUMNS="40").stdout
    assert max(map(len, narrow.splitlines())) <= 40, narrow


def _example_lines(name):
    lines = [line.strip() for line in EXAMPLES[name].splitlines() if line.startswith("  ")]
    assert lines
    return lines


def test_every_example_is_one_that_its_command_takes():
    import typer  # noqa: PLC0415

    group = typer.main.get_command(app)
    for name in COMMANDS:
        own = 0
        for line in _example_lines(name):
            words = shlex.split(line)
            if words[0] != "inferscope":
                assert words[0] in {"ncu", "nsys"}, line
                continue
            own += 1
            words = words[: next((at for at, word in enumerate(words) if word.startswith(">")), len(words))]
            with group.make_context("inferscope", words[1:], resilient_parsing=False) as context:
                called, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
                assert called == name
                with command.make_context(called, list(rest), parent=context):
                    pass  # an option that it does not have, or a value of another kind, has raised
        assert own, name


@pytest.mark.parametrize("name", ["report", "compare", "import-ncu", "import-nsys"])
def test_the_examples_of_commands_without_torch_run(inferscope, inputs, name):
    for line in _example_lines(name):
        if not line.startswith("inferscope "):
            continue
        words = shlex.split(re.sub(r" > \S+$", "", line))
        arguments = [str(path) for word in words[1:] for path in (sorted(inputs.glob(word)) if "*" in word else [word])]
        done = inferscope(*arguments, cwd=inputs)
        assert done.code in {ExitCode.DONE, ExitCode.LIMIT, ExitCode.CANNOT_TELL}, (line, done)
        assert "Traceback" not in done.stderr
        assert not {"torch", "transformers"} & set(done.loaded), done


def test_exit_codes_are_one_table():
    assert set(MEANINGS) == set(ExitCode)
    errors = __import__("inferscope.errors", fromlist=["errors"])
    for name in errors.__all__:
        assert getattr(errors, name).exit_code in {ExitCode.MISTAKE, ExitCode.MACHINE, ExitCode.LIMIT, 5}, name
    for name in COMMANDS:
        _, _, told = EXAMPLES[name].partition("Exit codes: ")
        for code in re.findall(r"(?<!\S)(\d+) ", told):
            assert int(code) in set(ExitCode), name


# What the shell is offered


def test_the_shell_is_offered_commands_and_values(inferscope):
    def offered(*words):
        done = inferscope(
            _INFERSCOPE_COMPLETE="complete_bash", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1)
        )
        assert (done.code, done.stderr, done.loaded) == (0, "", ())
        return done.stdout.split()

    assert offered("inferscope", "co") == ["compare"]
    assert offered("inferscope", "im") == ["import-ncu", "import-nsys"]
    assert offered("inferscope", "compare", "--fail") == ["--fail-if"]
    assert offered("inferscope", "report", "--format", "p") == ["perfetto"]
    assert "H100-SXM5-80GB" in offered("inferscope", "predict", "x", "--gpu", "H1")
    for shell in ("bash", "zsh", "fish"):
        script = inferscope(_INFERSCOPE_COMPLETE=f"source_{shell}")
        assert f"_INFERSCOPE_COMPLETE=complete_{shell}" in script.stdout, shell
    with_words = inferscope(_INFERSCOPE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="inferscope dem")
    assert WORDS["demo"] in with_words.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_installs_itself_for_the_shell_it_is_called_from(tmp_path):
    start = shlex.join(START)
    script = f"{start} --show-completion && {start} --install-completion; exit $?"
    done = subprocess.run(
        [shutil.which("bash"), "--norc", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    assert "complete -o default -F _inferscope_completion inferscope" in done.stdout
    installed = (tmp_path / ".bash_completions" / "inferscope.sh").read_text()
    assert "_INFERSCOPE_COMPLETE=complete_bash" in installed


# What stands on standard output


@pytest.mark.parametrize("name", ["report", "compare", "import-ncu", "import-nsys", "predict"])
def test_json_is_one_document_that_says_what_it_is(inferscope, inputs, good, name):
    arguments = (*good[name][:2], "--json") if name == "report" else (*good[name], "--json")
    done = inferscope(*arguments)
    assert done.code == 0, done
    found = json.loads(done.stdout)
    assert found["kind"].startswith("inferscope.")
    assert found["schema"] == 1
    assert set(found) == documented_fields(found["kind"])
    assert not [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert not {"torch", "transformers"} & set(done.loaded)


def test_a_number_that_no_json_has_is_not_written(inferscope):
    done = inferscope("watch", "--once", "--json")
    assert done.code == 0, done
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert set(found) == documented_fields("inferscope.window")


@pytest.mark.parametrize("name", ["report", "compare", "import-ncu", "import-nsys", "predict"])
def test_standard_output_may_be_full_closed_or_left(inferscope, good, name):
    full = inferscope(*good[name], stdout="/dev/full")
    full.refused("cache-unwritable", 3, "standard output", "No space left")
    left = inferscope(*good[name], stdout="no reader")
    assert left.code == ExitCode.PIPE_CLOSED, left
    assert "error" not in left.stderr
    assert "Traceback" not in left.stderr
    closed = inferscope(*good[name], stdout=None)
    assert closed.code in {ExitCode.DONE, ExitCode.MACHINE}, closed
    assert "Traceback" not in closed.stderr
    assert "defect" not in closed.stderr


def test_help_into_a_full_or_left_output(inferscope):
    inferscope("--help", stdout="/dev/full").refused("cache-unwritable", 3, "standard output")
    left = inferscope("demo", "--help", stdout="no reader")
    assert (left.code, left.stderr) == (141, "")


def test_terminals_without_colour_or_width_are_kept_to(inferscope, good):
    import pty  # noqa: PLC0415

    def shown(arguments, **variables):
        ours, theirs = pty.openpty()
        try:
            done = inferscope(*arguments, stdout=os.ttyname(theirs), **variables)
            assert done.code == 0, done
            os.set_blocking(ours, False)
            said = b""
            try:
                while piece := os.read(ours, 65536):
                    said += piece
            except BlockingIOError:
                return said.decode()
        finally:
            os.close(ours)
            os.close(theirs)

    table = good["compare"]
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]")
    assert colour.search(shown(table, TERM="xterm"))
    assert not colour.search(shown(table, TERM="xterm", NO_COLOR="1"))
    assert "\x1b" not in shown(table, TERM="dumb")
    for name in ("compare", "predict", "import-ncu", "import-nsys"):
        text = inferscope(*good[name], COLUMNS="40").stdout
        assert max(map(len, text.splitlines())) <= 40, text
    narrow = inferscope(*good["predict"], COLUMNS="40").stdout
    assert re.search(r"tokens/s +[\d,.]+ \([\d,.]+ to [\d,.]+\)", narrow), narrow


def test_a_locale_without_our_letters(good):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name in ("compare", "report"):
        done = subprocess.run(
            [*START, *map(str, good[name])],
            capture_output=True,
            env={**os.environ, **ascii_only},
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b""), done
        assert done.stdout.isascii()


def test_progress_is_drawn_on_a_terminal_beside_output_that_stays_whole(inferscope, good, tmp_path):
    """Standard error is a terminal, standard output a file: the bar must not take what belongs to the file."""
    import pty  # noqa: PLC0415

    ours, theirs = pty.openpty()
    with (tmp_path / "out.md").open("wb") as out:
        done = subprocess.run(
            [*START, *map(str, good["report"])],
            stdout=out,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            timeout=120,
            check=False,
        )
    os.close(theirs)
    drawn = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 0
    assert b"\x1b[" in drawn
    assert (tmp_path / "out.md").read_text(encoding="utf-8") == inferscope(*good["report"]).stdout


# Mistakes


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Files that are none of what a command reads, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    line = GOOD.read_bytes().splitlines(keepends=True)[0]
    contents = {
        "empty": b"",
        "cut": line + line[: len(line) // 2],
        "schema": line.replace(b'"schema":1', b'"schema":99', 1),
        "binary": bytes(range(256)) * 40,
        "text": b"once upon a time\n",
        "deep": b"[" * 100_000,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with (folder / "long").open("wb") as file:  # sparse: 200 MB that take no room
        file.truncate(200 * 2**20)
    (folder / "folder").mkdir()
    return folder


RECORD_FAULTS = {
    "missing": "no such file",
    "folder": "not a file",
    "cut": "line 2: the last line is cut off",
    "schema": "line 1: schema 99",
    "binary": "line 1: binary data",
    "text": "line 1: not JSON",
    "deep": "line 1: not a record",
    "long": "line 1: longer than 64 MiB",
}


@pytest.mark.parametrize(
    "before",
    [
        ("report", "{}", "--json"),
        ("report", "{good}", "--baseline", "{}", "--json"),
        ("compare", "{}", "{good}"),
        ("compare", "{good}", "{}"),
        ("predict", "{}", "--gpu", "L40S"),
        ("import-ncu", "{csv}", "--record", "{}"),
    ],
    ids=["report", "baseline", "compare", "candidate", "predict", "record"],
)
def test_what_is_no_file_of_records_is_one_line(inferscope, inputs, bad, before, tmp_path):
    for fault, words in RECORD_FAULTS.items():
        if fault == "long" and before[0] != "report":
            continue  # it takes half a second, and the reader is the same
        path = tmp_path / f"{fault}.jsonl"
        if fault != "missing":
            path.symlink_to(bad / fault)
        places = {"good": GOOD, "csv": inputs / "decode.csv"}
        done = inferscope(*(part.format(path, **places) for part in before))
        done.refused("record-format", 2, f"{path}", words)
        assert not {"torch", "transformers"} & set(done.loaded), done


def test_empty_files_of_records_are_one_line(inferscope, bad):
    empty = bad / "empty"
    inferscope("report", empty).refused("record-format", 2, "no records in it")
    inferscope("compare", empty, GOOD).refused("nothing-to-compare", 2, "given as the baseline")
    inferscope("compare", GOOD, empty).refused("nothing-to-compare", 2, "given as the candidate")


@pytest.mark.parametrize("command", ["import-ncu", "import-nsys"])
def test_what_is_no_csv_of_nsight_is_one_line(inferscope, inputs, bad, command, tmp_path):
    faults = {
        "missing": "no such file",
        "folder": "not a file",
        "empty": "no header found",
        "cut": "no header found",
        "binary": "binary data",
        "text": "no header found",
        "deep": "no header found",
        "long": "longer than 4 MiB",
    }
    for fault, words in faults.items():
        inferscope(command, bad / fault).refused("record-format", 2, f"{bad / fault}", words)
    whole = (inputs / ("decode.csv" if command == "import-ncu" else "out_kern.csv")).read_text()
    lines = whole.splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if line.count(",") > 5)
    torn = tmp_path / "torn.csv"
    torn.write_text("".join(lines[:last]) + lines[last][: len(lines[last]) // 2])
    inferscope(command, torn).refused("record-format", 2, "torn.csv, line")


def test_what_is_no_model_and_no_calibration_is_one_line(inferscope, inputs, bad, tmp_path):
    spec = (inputs / "spec.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(spec[: len(spec) // 2])
    (tmp_path / "schema.json").write_bytes(spec.replace(b'"schema":1', b'"schema":99', 1))
    for fault, words in (("cut", "truncated"), ("schema", "schema 99")):
        done = inferscope("predict", tmp_path / f"{fault}.json", "--gpu", "L40S")
        done.refused("record-format", 2, f"{fault}.json, line 1", words)
    for fault in ("missing", "folder", "empty", "schema", "binary", "text", "deep", "long"):
        path = tmp_path / f"model-{fault}.json"
        if fault != "missing":
            path.symlink_to(bad / fault)
        done = inferscope("predict", path, "--gpu", "L40S")
        done.refused("model-not-found", 2, str(path))
        assert not done.loaded, done
        inferscope("report", GOOD, "--ceilings", path).refused("calibration-unusable", 2, str(path))


def test_what_is_no_program_is_one_line(inferscope, bad):
    pytest.importorskip("opentelemetry.instrumentation")
    for fault, words in (("missing", "no such"), ("folder", "folder"), ("binary", "null bytes"), ("text", "line 1")):
        inferscope("run", bad / fault).refused("script-unusable", 2, str(bad / fault), words)
    inferscope("run", "--out", bad / "none" / "r.jsonl", bad / "empty").refused("cache-unwritable", 3, "r.jsonl")
    fine = inferscope("run", "--json", bad / "empty")
    assert (fine.code, fine.stdout) == (0, "")
    found = json.loads(fine.stderr)
    assert set(found) == documented_fields(found["kind"])


@pytest.mark.parametrize(
    ("arguments", "slug", "words"),
    [
        ("report {good} --format pdf", "bad-setting", "--format pdf"),
        ("report {good} --json --format md", "bad-setting", "--json and --format md"),
        ("report {good} --gpu L40Z", "unknown-device", "L40S"),
        ("report", "usage", "FILES"),
        ("compare {good} {good} --fail-if tpot>>1", "bad-setting", "position 6"),
        ("compare {good}", "usage", "CANDIDATE"),
        ("import-ncu {good} --kernels 0", "bad-setting", "--kernels 0"),
        ("import-nsys {good} --rows -1", "bad-setting", "--rows -1"),
        ("predict {spec} --gpu L40Z", "unknown-device", "L40S"),
        ("predict {spec}", "bad-setting", "--gpu"),
        ("predict {spec} --gpu L40S --batch 0", "bad-setting", "--batch 0"),
        ("predict {spec} --gpu L40S --input-tokens 0", "bad-setting", "input_tokens"),
        ("predict {spec} --gpu L40S --quantization int3", "prediction-unsupported", "int3"),
        ("predict {spec} --gpu L40S --kv-dtype int3", "prediction-unsupported", "int3"),
        ("watch --every 0", "bad-setting", "0"),
        ("watch --every soon", "usage", "--every"),
        ("watch --once --pid 999999999", "bad-setting", "999999999"),
        ("lint --new-tokens 2", "bad-setting", "--new-tokens 2"),
        ("calibrate --refresh=yes", "usage", "--refresh"),
        ("doctor now", "usage", "now"),
        ("demo --out", "usage", "--out"),
        ("run", "usage", "SCRIPT"),
        ("sweeep", "usage", "sweeep"),
        ("--verson", "usage", "--verson"),
    ],
)
def test_a_mistake_in_what_was_asked_is_one_line(inferscope, inputs, arguments, slug, words):
    done = inferscope(*arguments.format(good=GOOD, spec=inputs / "spec.json").split())
    done.refused(slug, 2, words)
    assert "torch" not in done.loaded, done


# What is written is whole, or is not there


def test_an_output_that_cannot_be_written_leaves_nothing(inferscope, inputs, tmp_path):
    (tmp_path / "folder").mkdir()
    for place, words in (("none/out", "No such file"), ("folder", "folder"), ("/dev/full", "No space left")):
        to = tmp_path / place
        inferscope("report", GOOD, "--json", "-o", to).refused("cache-unwritable", 3, str(to), words)
        done = inferscope("predict", inputs / "spec.json", "--gpu", "L40S", "--save-spec", to)
        done.refused("cache-unwritable", 3, str(to), "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert not list((tmp_path / "folder").iterdir())
    assert Path("/dev/full").is_char_device()


def _many_records(path):
    sink = JsonlSink(path)
    record = read_records(GOOD)[0]
    sink(make_result(record=record))
    sink.close()
    line = path.read_bytes()
    with path.open("ab") as file:
        for _ in range(3000):
            file.write(line)
    return path


def test_ctrl_c_while_a_file_is_written_leaves_the_one_that_was_there(inferscope, tmp_path):
    records = _many_records(tmp_path / "many.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    (out / "trace.json").write_text("as it was")

    def press(pid):
        end = time.monotonic() + 60
        while len(list(out.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.005)
        os.kill(pid, signal.SIGINT)

    done = inferscope("report", records, "--format", "perfetto", "-o", out / "trace.json", during=press)
    assert (done.code, done.stderr) == (130, "interrupted\n")
    assert [path.name for path in out.iterdir()] == ["trace.json"]
    assert (out / "trace.json").read_text() == "as it was"
