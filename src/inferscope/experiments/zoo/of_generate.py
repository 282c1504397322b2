"""Causes in how `generate` was asked: no cache, padding, beams, a bad draft."""

from __future__ import annotations

import torch

from inferscope.experiments.zoo.exhibit import Live
from inferscope.experiments.zoo.models import fixed, llama, prompt


def no_cache(dtype=torch.bfloat16) -> Live:
    """Everything anew for each token."""
    return Live(model=llama(dtype=dtype), inputs=prompt(256), options=lambda: fixed(8, use_cache=False))


def padded(dtype=torch.bfloat16) -> Live:
    """Eight prompts, seven of them nearly empty."""
    inputs = prompt(512, batch=8)
    inputs["attention_mask"][1:, :-16] = 0
    return Live(model=llama(dtype=dtype), inputs=inputs, options=lambda: fixed(1))


def beams(dtype=torch.bfloat16) -> Live:
    """Sixteen beams."""
    return Live(model=llama(dtype=dtype), inputs=prompt(16), options=lambda: fixed(12, num_beams=16))


def bad_draft() -> Live:
    """A draft that is no smaller, and guesses."""
    model, draft = llama(), llama(hidden_size=128, intermediate_size=256, num_hidden_layers=8)
    draft.generation_config.num_assistant_tokens = 8
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return Live(model=model, inputs=prompt(32), options=lambda: fixed(12, assistant_model=draft))
