"""Record some requests to a file, for `inferscope compare`.

python examples/ci/bench.py before.jsonl

Run it several times, before and after in turns: each run adds its requests to the file, and what differs from process
to process is spread over both sides.
"""

from __future__ import annotations

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inferscope

REQUESTS = 5


def tiny_model() -> LlamaForCausalLM:
    """Two layers with random weights, which never end by themselves."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=1000,
        pad_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def prompt() -> torch.Tensor:
    """The same 32 tokens each time: only requests of equal length are compared."""
    return torch.arange(1, 33)[None]


def main(path: str) -> None:
    """Warm up, then record."""
    model = tiny_model()
    asked = {"max_new_tokens": 32, "do_sample": False}
    model.generate(prompt(), **asked)
    with inferscope.trace(model, sinks=[f"jsonl:{path}"]) as session:
        for _ in range(REQUESTS):
            model.generate(prompt(), **asked)
    session.wait()


if __name__ == "__main__":
    main(sys.argv[1])
