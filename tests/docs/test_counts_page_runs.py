"""What the page on launches and waits shows does run, here without a GPU: then there is less to tell."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "count-launches-and-waits.md"
PREPARED = """
import inferscope
import torch
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                     num_attention_heads=2, vocab_size=100)).eval()
model.generation_config.eos_token_id = None
inputs = {"input_ids": torch.randint(3, 100, (1, 8)), "pad_token_id": 0}
"""


def test_the_page_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(PREPARED + "\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"decode 1 8 15 \d+ operator deep", done.stdout)
