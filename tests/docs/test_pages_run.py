"""What the README, the tutorial and the examples show does run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREPARED = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                     num_attention_heads=2, vocab_size=100)).eval()
inputs = {"input_ids": torch.randint(3, 100, (1, 8)), "max_new_tokens": 4, "pad_token_id": 0}
"""


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run(code, folder):
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=folder, timeout=300
    )


def test_the_tutorial_runs_from_top_to_bottom(tmp_path):
    done = run("\n".join(blocks("docs/tutorial/first-trace.md")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prefill" in done.stdout
    assert "decode" in done.stdout


@pytest.mark.parametrize("index", [0, 1])
def test_the_readme_s_code_runs(tmp_path, index):
    code = blocks("README.md")[index]
    done = run(PREPARED + code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if index == 0:
        assert "prefill" in done.stdout
    else:
        assert (tmp_path / "requests.jsonl").read_text(encoding="utf-8").count("\n") == 1


# The others serve until they are stopped: tests/integration/test_example_*.py run them.
SERVERS = {"fastapi_server.py", "ray_serve.py"}


@pytest.mark.parametrize("example", sorted({path.name for path in (ROOT / "examples").glob("*.py")} - SERVERS))
def test_an_example_runs(example, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
