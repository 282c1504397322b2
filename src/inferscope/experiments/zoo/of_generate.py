"""Causes in how `generate` was asked: no cache, padding, beams, a bad draft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.experiments.zoo.exhibit import Live
from inferscope.experiments.zoo.models import fastest, fixed, llama, prompt

if TYPE_CHECKING:
    from inferscope.specs import DeviceSpec

__all__ = ["bad_draft", "beams", "no_cache", "padded"]


def no_cache(device: DeviceSpec) -> Live:
    """Everything anew for each token."""
    return Live(
        model=llama(dtype=fastest(device), hidden_size=512, intermediate_size=2048),
        inputs=prompt(256),
        options=lambda: fixed(32, use_cache=False),
    )


def padded(device: DeviceSpec) -> Live:
    """Eight prompts of 512 positions, seven of them nearly empty."""
    inputs = prompt(512, batch=16)
    inputs["attention_mask"][1:, :-16] = 0
    return Live(model=llama(dtype=fastest(device)), inputs=inputs, options=lambda: fixed(1))


def beams(device: DeviceSpec) -> Live:
    """Sixteen beams, whose prompts are computed as often."""
    model = llama(dtype=fastest(device), hidden_size=512, intermediate_size=2048)
    return Live(model=model, inputs=prompt(256), options=lambda: fixed(4, num_beams=16))


def bad_draft(_device: DeviceSpec) -> Live:
    """A draft that has more layers than the model, and guesses."""
    model, draft = llama(), llama(hidden_size=128, intermediate_size=256, num_hidden_layers=8)
    draft.generation_config.num_assistant_tokens = 8
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return Live(model=model, inputs=prompt(32), options=lambda: fixed(12, assistant_model=draft))
