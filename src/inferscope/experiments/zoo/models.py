"""Models of the zoo: random weights, sizes that make one thing large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from inferscope.specs import DeviceSpec

__all__ = ["fastest", "fixed", "llama", "prompt"]

_SEED = 7
_VOCABULARY = 512


def llama(*, dtype: torch.dtype = torch.float32, attention: str = "sdpa", **sizes: Any) -> Any:  # noqa: ANN401 - a model
    """A Llama with random weights that never ends by itself; the caller's random state stays as it was.

    Args:
        dtype: Of the weights.
        attention: Implementation.
        **sizes: Fields of `LlamaConfig`.
    """
    config = LlamaConfig(
        **{
            "vocab_size": _VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 16_384,
            **sizes,
        }
    )
    config._attn_implementation = attention  # noqa: SLF001 - where transformers looks for it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = LlamaForCausalLM(config).to(dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompt(length: int, batch: int = 1) -> dict[str, torch.Tensor]:
    """Random tokens without padding."""
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(3, _VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def fixed(new_tokens: int, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - generate's own
    """Options of `generate` for exactly so many tokens."""
    return {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, **options}


def fastest(device: DeviceSpec) -> torch.dtype:
    """bfloat16 where this device's measured peak is higher in it, else float32: so that the dtype is not the cause."""
    peaks = device.compute_flops_per_s
    wide, narrow = peaks.get("float32"), peaks.get("bfloat16")
    return torch.bfloat16 if wide is not None and narrow is not None and narrow.value > wide.value else torch.float32
