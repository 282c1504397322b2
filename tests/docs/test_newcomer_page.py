"""The tutorial from a clone to a gate: its commands are those that benchmarks/newcomer.py times, and they work."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inferscope.sinks.jsonl import read_records

pytest.importorskip("typer")
pytest.importorskip("opentelemetry.instrumentation")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial" / "from-clone-to-gate.md"
PROGRAMS = {
    ".venv/bin/inferscope": [
        sys.executable,
        "-c",
        "import sys; from inferscope.cli.main import main; sys.exit(main())",
    ],
    ".venv/bin/python": [sys.executable],
}


@pytest.fixture(scope="module")
def steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        spec = importlib.util.spec_from_file_location("newcomer", ROOT / "benchmarks" / "newcomer.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "newcomer", module)
        spec.loader.exec_module(module)
    return {step.name: step.command for step in module.STEPS}


def test_the_page_shows_the_commands_that_are_timed(steps):
    page = PAGE.read_text(encoding="utf-8")
    pasted = re.findall(r"^    (\S.*)$", re.sub(r"```text\n.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    assert pasted == [command for name, command in steps.items() if name != "again"]
    timed = re.findall(r"^\| .* \| `(.*)` \| [\d.]+ (?:s|min) \|$", page, re.MULTILINE)
    assert timed == list(steps.values())


def test_it_is_the_first_page_that_the_readme_names():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, section = readme.partition("\n## Documentation\n")
    assert re.findall(r"\(([^)]*\.md)\)", section)[0] == str(PAGE.relative_to(ROOT))


def test_its_commands_lead_from_a_program_to_a_gate(steps, tmp_path):
    """All but the demo, which has a test of its own: in a folder where examples/ lies, as in a clone."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("run", "report", "change", "compare", "budget"):
        program, *arguments = shlex.split(steps[name])
        done = subprocess.run(
            [*PROGRAMS[program], *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100"},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        if name == "run":
            assert "recompute-without-cache in 4 of 4" in done.stderr
        if name == "compare":
            assert re.search(r"tpot > 5 %: ratio 0\.\d", done.stdout), done.stdout
        if name == "budget":
            assert "1 passed" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 100_000
    for path in ("before.jsonl", "after.jsonl"):
        records = read_records(tmp_path / path)
        assert len(records) == 4
        assert {record.model.name for record in records} == {"LlamaForCausalLM"}  # also after its main is over
        assert all(record.model.cost is not None for record in records)
