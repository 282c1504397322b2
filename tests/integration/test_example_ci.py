"""examples/ci: the workflow is valid and asks for nothing that does not exist; the bench and the budget run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import inferscope
from inferscope.analysis.gates import hold, parse_gate
from inferscope.testing import BudgetExceededError, budget

yaml = pytest.importorskip("yaml", reason="reads the workflow: install the extra [dev]")
typer = pytest.importorskip("typer")

FOLDER = Path(__file__).parents[2] / "examples" / "ci"


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((FOLDER / "performance.yml").read_text(encoding="utf-8"))


@pytest.fixture
def example(monkeypatch):
    """Modules of the folder, as Python finds them beside each other."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(importlib.import_module("sys").modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def commands(workflow):
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def test_the_workflow_has_what_github_asks_for(workflow):
    assert workflow["name"] == "performance"
    assert workflow[True] == "pull_request"  # YAML 1.1 reads the key `on` as true; GitHub does not mind
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_its_commands_and_conditions_exist(workflow):
    from inferscope.cli.application import app  # noqa: PLC0415 - needs the extra cli

    (line,) = (run for run in commands(workflow) if "inferscope compare" in run)
    program, command, *arguments = shlex.split(line.replace("\\\n", " "))
    assert (program, command) == ("inferscope", "compare")
    parsed = typer.main.get_command(app).commands["compare"].make_context("compare", list(arguments))
    gates = [parse_gate(text) for text in parsed.params["fail_if"]]
    assert [gate.metric for gate in gates] == ["tpot", "ttft", "syncs_per_token", "token_agreement"]
    paths = re.findall(r"examples/ci/\w+\.py", " ".join(commands(workflow)))
    assert sorted(set(paths)) == ["examples/ci/bench.py", "examples/ci/test_budget.py"]
    assert all((FOLDER / Path(path).name).is_file() for path in paths)


def test_the_bench_s_records_compare_and_the_budget_holds(example, tmp_path, monkeypatch):
    monkeypatch.setenv("INFERSCOPE_OUTPUT_DIGEST", "1")
    bench = example("bench")
    path = str(tmp_path / "before.jsonl")
    bench.main(path)
    found = inferscope.compare(path, path)
    outcomes = [
        result.outcome for result in hold(found, [parse_gate("syncs_per_token > 1"), parse_gate("token_agreement < 1")])
    ]
    assert (found.baseline.requests, found.same_work, outcomes) == (bench.REQUESTS, True, ["held", "held"])
    test_budget = example("test_budget")
    test_budget.test_decoding_stays_lean(budget)
    monkeypatch.setattr(test_budget, "tiny_model", lambda: _deeper(bench))
    with pytest.raises(BudgetExceededError, match="launches_per_token"):
        test_budget.test_decoding_stays_lean(budget)


def _deeper(bench):
    """The same model with a third layer: more operators per token."""
    model = bench.tiny_model()
    config = model.config.__class__(**{**model.config.to_dict(), "num_hidden_layers": 3})
    return type(model)(config).eval()
