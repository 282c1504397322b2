"""Record the requests that the report's pictures, tests and how-to show: real runs on this machine's CPU.

python benchmarks/report_records.py
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inferscope
from inferscope.experiments import models
from inferscope.hardware import calibration

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).parent.parent / "examples" / "records"
PROMPT_TOKENS = (64, 512)
BATCH_SIZES = (1, 2, 4, 8, 16)
NEW_TOKENS = 17
REPEATS = 2


def main() -> None:
    """Write requests.jsonl and eager.jsonl (one model, two ways of attention), sweep.jsonl and ceilings.json."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    device = calibration.calibrate("cpu", dtypes=("float32", "bfloat16"))
    (FOLDER / "ceilings.json").write_text(json.dumps(asdict(device), indent=2, allow_nan=False) + "\n")
    loaded = models.load(None)
    asked = [(prompt, 1, 24) for prompt in (48, 64, 96, 256, 40, 64)]
    _record("requests.jsonl", loaded.model, asked, detail="passes", deep_every=6)
    loaded.model.set_attn_implementation("eager")
    _record("eager.jsonl", loaded.model, asked, detail="passes")
    shapes = [(*shape, NEW_TOKENS) for shape in itertools.product(PROMPT_TOKENS, BATCH_SIZES)]
    _record("sweep.jsonl", _tiny_llama(), shapes * REPEATS)


def _record(name: str, model: Any, shapes: Iterable[tuple[int, int, int]], **options: Any) -> None:  # noqa: ANN401
    path = FOLDER / name
    path.unlink(missing_ok=True)
    shapes = list(shapes)
    _generate(model, *shapes[0])
    with inferscope.trace(model, sinks=[f"jsonl:{path}"], **options) as session:
        for shape in shapes:
            _generate(model, *shape)
        session.wait()
    print(f"{path}: {len(shapes)} requests")


def _generate(model: Any, prompt_tokens: int, batch_size: int, new_tokens: int) -> None:  # noqa: ANN401
    ids = torch.randint(3, model.config.vocab_size, (batch_size, prompt_tokens))
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)


def _tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        name_or_path="tiny-llama",
    )
    return LlamaForCausalLM(config).eval()


if __name__ == "__main__":
    main()
