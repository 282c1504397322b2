"""Trace one request of a small model with random weights and print what came of it.

python examples/trace_generate.py

Nothing is downloaded. Put your own model in place of `tiny_model` to see something real.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inferscope


def tiny_model() -> LlamaForCausalLM:
    """Two layers with random weights."""
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


def main() -> None:
    """Trace one request."""
    model = tiny_model()
    prompt = torch.randint(1, 1000, (1, 32))
    with inferscope.trace(model, sinks=["log"]) as session:
        model.generate(prompt, max_new_tokens=32, do_sample=False)
    print(session.last)


if __name__ == "__main__":
    main()
