"""Programs that nobody changed: opentelemetry-instrument, and inferscope run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import inferscope
from inferscope.sinks.jsonl import read_records

pytest.importorskip("opentelemetry.instrumentation")

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-c", "import sys; from inferscope.cli.main import main; sys.exit(main())", "run"]
MODEL = """
import torch, transformers
torch.set_num_threads(1)
config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                  num_key_value_heads=2, vocab_size=1000)
model = transformers.LlamaForCausalLM(config).eval()
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0
ids = torch.arange(1, 10)[None]
"""


def run(*command, cwd=None, **variables):
    environment = {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100", **variables}
    return subprocess.run(
        [*command], capture_output=True, text=True, env=environment, cwd=cwd, timeout=300, check=False
    )


def script(folder, text, name="program.py"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def installed(tmp_path):
    """A folder that makes this package look installed as pyproject.toml describes it, whatever really is."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (entry,) = re.findall(r"\[project.entry-points.opentelemetry_instrumentor\]\n(.*)\n", text)
    (needs,) = re.findall(r"^instruments = \[\"(.*)\"\]$", text, re.MULTILINE)
    name, _, place = entry.partition(" = ")
    folder = tmp_path / "site" / f"inferscope-{inferscope.__version__}.dist-info"
    folder.mkdir(parents=True)
    (folder / "entry_points.txt").write_text(f"[opentelemetry_instrumentor]\n{name} = {place.strip(chr(34))}\n")
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: inferscope\nVersion: {inferscope.__version__}\nProvides-Extra: instruments\n"
        f'Requires-Dist: {needs} ; extra == "instruments"\n'
    )
    from inferscope.integrations import auto  # noqa: PLC0415 - needs the extra

    assert auto._instruments == (needs,)
    return f"{folder.parent}{os.pathsep}{Path(inferscope.__file__).parents[1]}"


INSTRUMENTED = f"""
import json, sys
early = sorted({{"torch", "transformers"}} & set(sys.modules))
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
if not hasattr(trace.get_tracer_provider(), "add_span_processor"):  # the distro sets one, where it is installed
    trace.set_tracer_provider(TracerProvider())
exporter = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
{MODEL}
with trace.get_tracer("application").start_as_current_span("handler") as handler:
    model.generate(ids, max_new_tokens=3)
import inferscope
inferscope.InferscopeInstrumentor()._every.session.wait()
spans = [span for span in exporter.get_finished_spans() if span.name != "handler"]
wanted = handler.get_span_context().span_id
inferscope.InferscopeInstrumentor().uninstrument()
generate = transformers.GenerationMixin.__dict__["generate"]
print(json.dumps({{
    "early": early,
    "names": [span.name for span in spans],
    "parent": spans[-1].parent.span_id == wanted,
    "tokens": spans[-1].attributes["gen_ai.usage.output_tokens"],
    "arguments": sys.argv[1:],
    "restored": type(generate).__name__,
}}))
"""


def test_opentelemetry_instrument_observes_a_program_that_knows_nothing_of_us(installed, tmp_path):
    command = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("opentelemetry-instrument is not installed beside this Python")
    done = run(
        command,
        sys.executable,
        script(tmp_path, INSTRUMENTED),
        "--port=1",
        PYTHONPATH=installed,
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "early": [],
        "names": ["prefill", "decode", "text_completion LlamaForCausalLM"],
        "parent": True,
        "tokens": 3,
        "arguments": ["--port=1"],
        "restored": "function",
    }


SERVING = f"""
import atexit, sys, threading, time
print("begins", __name__, sys.argv[1:], flush=True)
atexit.register(print, "the program's last words", flush=True)
{MODEL}
model.generate(ids, max_new_tokens=3)
def late():
    time.sleep(0.2)
    model.generate(ids, max_new_tokens=12)
threading.Thread(target=late).start()
print("to stderr", file=sys.stderr, flush=True)
sys.exit(7)
"""


def test_run_leaves_a_program_as_it_is_and_reports_at_the_end(tmp_path):
    records = tmp_path / "records.jsonl"
    program = script(tmp_path, SERVING)
    done = run(*RUN, "--out", str(records), "--json", program, "--out", "mine", "-h")
    assert done.returncode == 7, done.stderr[-2000:]
    assert done.stdout == "begins __main__ ['--out', 'mine', '-h']\nthe program's last words\n"
    assert done.stderr.splitlines()[0] == "to stderr"
    report = json.loads(done.stderr.splitlines()[-1])
    assert (report["requests"], report["aborted"]) == (2, 0)  # that of the thread, too
    assert report["tokens"] == {
        "input": {"sum": 18, "requests_without": 0},
        "output": {"sum": 15, "requests_without": 0},
    }
    written = read_records(records)
    assert [record.output_tokens for record in written] == [3, 12]
    assert report["wall_s"]["max"] == max(record.wall_ns for record in written) / 1e9
    assert report["last"]["request_id"] == written[-1].request_id
    assert sum(phase["time_s"] for phase in report["phases"]) == pytest.approx(
        sum(phase.wall_ns for record in written for phase in record.phases) / 1e9
    )


LEAVING = f"""
import os, pathlib, sys, time
{MODEL}
model.generate(ids, max_new_tokens=3)
record = pathlib.Path(sys.argv[1])
while not record.exists() or not record.read_bytes().endswith(b"\\n"):
    time.sleep(0.02)
os._exit(9)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_records_that_a_full_disk_refuses_are_told_of_and_the_program_ends_as_it_does(tmp_path):
    program = script(tmp_path, f"{MODEL}\nmodel.generate(ids, max_new_tokens=3)\nraise SystemExit(7)")
    done = run(*RUN, "--out", "/dev/full", program)
    assert done.returncode == 7, done.stderr
    assert "1 request of LlamaForCausalLM" in done.stderr
    assert "No space left" in done.stderr
    assert done.stderr.splitlines()[-1] == "records: /dev/full, 1 could not be written: a warning says why"


def test_what_is_written_before_a_program_leaves_at_once_is_whole(tmp_path):
    records = tmp_path / "records.jsonl"
    done = run(*RUN, "--out", str(records), script(tmp_path, LEAVING), str(records))
    assert (done.returncode, done.stdout) == (9, ""), done.stderr
    assert [record.output_tokens for record in read_records(records)] == [3]


MODULE = """
import json, sys
from . import base
print(json.dumps([__name__, __package__, __spec__.name, sys.argv[1:], sys.path[0], base.__name__, base.early]))
"""


def test_a_module_is_run_as_python_runs_it(tmp_path):
    package = tmp_path / "serving"
    package.mkdir()
    script(package, "", "__init__.py")
    script(package, MODULE, "__main__.py")
    script(package, "import sys\nearly = 'torch' in sys.modules\n", "base.py")
    plain = run(sys.executable, "-m", "serving", "-m", "x", cwd=tmp_path)
    ours = run(*RUN, "-m", "serving", "-m", "x", cwd=tmp_path)
    assert (ours.returncode, ours.stdout) == (0, plain.stdout), ours.stderr
    assert "false" in ours.stdout


QUICK = """
import json, os, signal, sys
mode = sys.argv[1]
if mode == "raise":
    raise ValueError("mine")
if mode == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
if mode == "terminate":
    os.kill(os.getpid(), signal.SIGTERM)
if mode == "message":
    sys.exit("a message")
if mode == "hook":
    sys.excepthook = lambda kind, error, trace: print("the program's hook:", error)
    raise ValueError("mine")
print(json.dumps([
    __name__, __file__, sys.path[0], sys.argv, sys.modules["__main__"].mode, __builtins__.len("ab"),
    sys.stdout.errors, "torch" in sys.modules, __spec__ is None,
]))
"""


@pytest.mark.parametrize("mode", ["raise", "interrupt", "terminate", "message", "hook", "plain"])
def test_a_program_under_run_ends_as_it_does_under_python(tmp_path, mode):
    program = script(tmp_path, QUICK)
    plain, ours = run(sys.executable, program, mode), run(*RUN, program, mode)
    assert ours.returncode == plain.returncode
    assert ours.stdout == plain.stdout
    told = plain.stderr if mode == "terminate" else f"{plain.stderr}\ninferscope  no generate() of a transformers "
    assert ours.stderr.startswith(told)
    assert (mode in {"interrupt", "terminate"}) == (plain.returncode < 0)
    assert plain.returncode in {0, 1, -signal.SIGINT, -signal.SIGTERM}


@pytest.mark.parametrize(
    ("arguments", "slug", "named"),
    [
        (("missing.py",), "script-unusable", "missing.py: no such file"),
        (("folder",), "script-unusable", "folder is a folder"),
        (("wrong.py",), "script-unusable", "wrong.py, line 2: this is not Python"),
        (("binary.py",), "script-unusable", "binary.py: this is not Python"),
        (("-m", "no_such_module"), "script-unusable", "-m no_such_module"),
        (("--out", "nowhere/records.jsonl", "fine.py"), "cache-unwritable", "nowhere/records.jsonl"),
        (("--endpoint", "::", "fine.py"), "bad-setting", "endpoint"),
        ((), "usage", "SCRIPT"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(tmp_path, arguments, slug, named, monkeypatch, capsys):
    from inferscope.cli import main as cli  # noqa: PLC0415 - needs an extra

    (tmp_path / "folder").mkdir()
    script(tmp_path, "fine = 1\ndef wrong(:\n", "wrong.py")
    (tmp_path / "binary.py").write_bytes(b"\x7fELF\0\0")
    script(tmp_path, "raise SystemExit('it ran')", "fine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert cli.main(["run", *arguments]) == (3 if slug == "cache-unwritable" else 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error[{slug}]: ")
    assert named in line
