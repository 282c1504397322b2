"""A program that knows nothing of inferscope: a small model with random weights answers four times.

python examples/answer.py
python examples/answer.py --no-cache    # as people write it by accident: each token computes all before it anew

Nothing is downloaded. docs/tutorial/from-clone-to-gate.md goes from this program to a limit that holds in CI.
"""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ANSWERS = 4


def tiny_model() -> LlamaForCausalLM:
    """Four layers with random weights, which never end by themselves."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=1000,
        pad_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def main() -> None:
    """Answer, and say how long the answers are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-cache", action="store_true", help="compute all tokens again for each new one")
    cache = not parser.parse_args().no_cache
    model = tiny_model()
    prompt = torch.arange(1, 257)[None]
    for number in range(ANSWERS):
        tokens = model.generate(prompt, max_new_tokens=32, do_sample=False, use_cache=cache)
        print(f"answer {number + 1}: {tokens.shape[1] - prompt.shape[1]} tokens")


if __name__ == "__main__":
    main()
