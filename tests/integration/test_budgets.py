"""Budgets on a real model, by hand and through the pytest plugin, and the digest of what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import inferscope
from conftest import build_llama
from inferscope.errors import NotAModelError, SettingError
from inferscope.testing import BudgetExceededError, budget, write_baseline
from inferscope.testing.pytest_budget import PytestBudget

torch = pytest.importorskip("torch")

PLUGIN = ("-p", "no:inferscope", "-p", "inferscope.integrations.pytest_plugin", "-p", "no:cacheprovider")

SUITE = """
import pytest, torch, transformers

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=2, vocab_size=100)
    made = transformers.LlamaForCausalLM(config).eval()
    made.generation_config.eos_token_id = None
    return made


def ask(model, times, **changed):
    for _ in range(times):
        model.generate(torch.tensor([[1, 2, 3]]), do_sample=False, **{"max_new_tokens": 4, **changed})


def test_counts(model, inferscope_budget):
    with inferscope_budget(model) as spent:
        ask(model, 1)
    spent.hold(syncs_per_token=1, spans_per_request=3)


def test_too_many(model, inferscope_budget):
    with inferscope_budget(model) as spent:
        ask(model, 1)
    spent.hold(syncs_per_token=0)


def test_times(model, inferscope_budget):
    with inferscope_budget(model) as spent:
        ask(model, 6)
    spent.fail_if("tpot>1000")


def test_slower(model, inferscope_budget):
    with inferscope_budget(model) as spent:
        ask(model, 6)
    spent.fail_if("tpot>1e-6")


@pytest.mark.parametrize("new", [5])
def test_one_is_too_few(model, inferscope_budget, new):
    with inferscope_budget(model) as spent:
        ask(model, 1, max_new_tokens=new)
    spent.fail_if("tpot>1.05")
"""


@pytest.fixture(scope="module")
def model(transformers):
    return build_llama(transformers)


@pytest.fixture(scope="module")
def spent(model):
    """Six greedy requests, the prompt given by position."""
    with budget(model) as made:
        for _ in range(6):
            model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False)
    return made


def test_counts_are_those_of_the_lint_and_the_cost_model(model, spent):
    report = inferscope.lint(model, input_ids=torch.tensor([[1, 2, 3]]), new_tokens=6, do_sample=False)
    assert spent.launches_per_token == report.launches_per_token > 50
    assert (spent.syncs_per_token, spent.syncs_per_request) == (1, report.syncs_per_request)
    cost = spent.results[-1].diagnosis.phase("decode").cost
    assert spent.operators_per_token == cost.calls / 5
    assert spent.bytes_per_token == cost.bytes.model / 5
    assert spent.spans_per_request == 3  # the request, prefill, decode
    assert spent.compilations == 0
    assert spent.missing == {}
    assert len(spent.results) == 6


def test_a_limit_that_is_exceeded_names_every_one_and_the_lines(spent):
    spent.hold(syncs_per_token=1, operators_per_token=10_000, compilations=0)
    with pytest.raises(BudgetExceededError) as error:
        spent.hold(syncs_per_token=0.5, spans_per_request=2, bound="communication")
    assert "syncs_per_token is 1, at most 0.5 allowed; spans_per_request is 3, at most 2" in str(error.value)
    assert "expected communication" in str(error.value)
    assert "transformers/generation/utils.py" in str(error.value)
    assert isinstance(error.value, AssertionError)
    with pytest.raises(SettingError, match="sync_per_token: expected some of launches_per_token"):
        spent.hold(sync_per_token=1)


def test_the_model_is_as_before_and_a_block_s_exception_passes(model):
    before = dict(model.__dict__)
    with pytest.raises(ZeroDivisionError), budget(model) as made:
        raise ZeroDivisionError
    assert model.__dict__ == before
    assert made.results == ()
    with pytest.raises(BudgetExceededError, match="syncs_per_token is not known: generate was not called"):
        made.hold(syncs_per_token=1)
    with pytest.raises(BudgetExceededError, match="bytes_per_token is not known: no request"):
        made.hold(bytes_per_token=1e12)
    with pytest.raises(SettingError, match="one block"), made:
        pass
    with pytest.raises(NotAModelError, match="Linear"):
        budget(torch.nn.Linear(2, 2))


def test_what_is_asked_too_early_or_cannot_be_had_says_so(model, spent):
    with budget(model) as made, pytest.raises(SettingError, match="after its block"):
        made.hold(syncs_per_token=1)
    with pytest.raises(SettingError, match="needs a baseline"):
        spent.fail_if("tpot>1.05")
    with pytest.raises(SettingError, match=r"hold\(syncs_per_token=...\)"):
        spent.fail_if("syncs_per_token>1")


def test_a_baseline_is_small_and_decides(model, spent, tmp_path):
    path = tmp_path / "new" / "baseline.jsonl"
    write_baseline(path, spent.results)
    assert path.stat().st_size < 6 * 4096
    assert [entry.name for entry in path.parent.iterdir()] == ["baseline.jsonl"]
    with budget(model, baseline=path) as made:
        for _ in range(6):
            model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False)
    (result,) = made.fail_if("tpot>1000")
    assert result.outcome == "held"
    with pytest.raises(BudgetExceededError, match="tpot>1e-6: ratio"):
        made.fail_if("tpot>1e-6")
    with pytest.raises(SettingError, match="no request was observed"):
        write_baseline(path, [])
    assert len(inferscope.read_records(path)) == 6


def test_strict_fails_where_nothing_can_be_told(model, tmp_path):
    path, told = tmp_path / "baseline.jsonl", []

    def asked(**options):
        made = PytestBudget(model, baseline=path, **{"update": False, "strict": True, "tell": told.append, **options})
        with made:
            model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
        return made

    with pytest.raises(BudgetExceededError, match="no baseline at"):
        asked().fail_if("tpot>1.05")
    with pytest.raises(SettingError, match="no metric is called"):
        asked(update=True).fail_if("topt>1.05")
    assert not path.exists()
    assert asked(update=True).fail_if("tpot>1.05") == ()
    assert [said.partition(":")[0] for said in told] == ["baseline of 1 requests written"]
    with pytest.raises(BudgetExceededError, match=r"cannot tell: tpot>1\.05: ratio"):
        asked().fail_if("tpot>1.05")


def test_outputs_have_a_digest_only_where_it_is_asked_for(model, monkeypatch):
    def digests():
        with inferscope.trace(model, sinks=[]) as session:
            for last, new in ((3, 4), (3, 4), (4, 4)):
                model.generate(torch.tensor([[1, 2, last]]), max_new_tokens=new, do_sample=False)
        return [result.record.output_digest for result in session.results]

    assert digests() == [None, None, None]
    monkeypatch.setenv("INFERSCOPE_OUTPUT_DIGEST", "1")
    one, again, other = digests()
    assert one == again != other
    assert len(one) == 32


def run(folder: Path, *arguments):
    environment = {**os.environ, "INFERSCOPE_CACHE_DIR": str(folder / "cache"), "PYTHONUTF8": "1", "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(inferscope.__file__).parents[1]), os.environ.get("PYTHONPATH")))
    )
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGIN, "-q", *arguments],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=300,
        check=False,
    )


def test_the_plugin_writes_baselines_compares_and_says_what_it_cannot_tell(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_speed.py").write_text(SUITE, encoding="utf-8")
    first = run(tmp_path, "--inferscope-update", "-k", "times or slower or too_few")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "test_speed.py::test_times: baseline of 6 requests written" in first.stdout
    folder = tmp_path / "inferscope_baselines" / "test_speed"
    written = sorted(path.name for path in folder.iterdir())
    assert [name for name in written if "-" not in name] == ["test_slower.jsonl", "test_times.jsonl"]
    assert len(written) == 3
    assert all(json.loads(line)["schema"] == 1 for name in written for line in (folder / name).read_text().splitlines())

    (folder / "test_times.jsonl").unlink()
    second = run(tmp_path, "-n", "1")  # what is told comes from a worker
    assert second.returncode == 1, second.stdout + second.stderr
    assert "3 passed" in second.stdout
    assert "2 failed" in second.stdout
    assert "syncs_per_token is 1, at most 0 allowed" in second.stdout
    assert "tpot>1e-6: ratio" in second.stdout
    summary = second.stdout.partition("= inferscope =")[2]
    assert "test_speed.py::test_one_is_too_few[5]: cannot tell: tpot>1.05: ratio" in summary
    assert "3 more requests of each length" in summary
    assert "test_speed.py::test_times: no baseline at" in summary


def test_a_run_that_does_not_use_the_plugin_loads_nothing(tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\n\ndef test_nothing():\n"
        "    loaded = {name for name in sys.modules if name.partition('.')[0] in "
        "{'torch', 'opentelemetry', 'msgspec', 'structlog', 'inferscope'}}\n"
        "    assert loaded == {'inferscope', 'inferscope.integrations', 'inferscope.integrations.pytest_plugin'}\n",
        encoding="utf-8",
    )
    done = run(tmp_path, "-p", "no:xdist")
    assert done.returncode == 0, done.stdout
    assert "inferscope ===" not in done.stdout
