"""`inferscope sweep --ray` as a process: the points of a sweep on a cluster's benches, resumed without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from inferscope import read_records
from inferscope.analysis.sweep_points import point_of
from inferscope.cli.main import main

pytest.importorskip("ray", reason="its benches need Ray: install the extra [ray], or `make test-ray`")

PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 100,
}
ASKED = ("--batch", "1,2,4", "--input-tokens", "4,8", "--output-tokens", "3", "--rounds", "2", "--adaptive", "0")


def sweep(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "sweep", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=300,
        check=False,
    )


def test_every_point_is_measured_once_on_the_cluster_and_a_mistake_there_is_one_line(tmp_path, capsys):
    config, out = tmp_path / "config.json", tmp_path / "sweep.jsonl"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    done = sweep(config, *ASKED, "--out", out, "--ray", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["status"] for one in found["series"][0]["points"]} == {"measured"}
    jobs = [point_of(record) for record in read_records(out)]
    assert len(jobs) == len(set(jobs)) == 12
    # Without the cluster nothing is missing any more, and the answer is the same.
    assert main(["sweep", str(config), *ASKED, "--out", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    wrong = sweep(config, *ASKED, "--attention", "nonsense", "--out", tmp_path / "other.jsonl", "--ray")
    assert wrong.returncode == 2, wrong.stderr
    assert wrong.stderr.splitlines()[-1].startswith("error[bad-setting]: --attention nonsense")
    nothing = sweep(config, *ASKED, "--device", "cuda", "--out", tmp_path / "other.jsonl", "--ray")
    assert nothing.returncode == 2, nothing.stderr
    assert "has no GPU" in nothing.stderr
