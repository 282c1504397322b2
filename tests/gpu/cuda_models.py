"""Models with random weights on a CUDA device, requests to them, and the truth about their kernels."""

from __future__ import annotations

import torch
import transformers


def llama(*, hidden, layers, dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=32_000,
    )
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def ask(model, tokens=24, batch=1, prompt=64):
    torch.manual_seed(1)
    ids = torch.randint(1, 1_000, (batch, prompt), device="cuda")
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)


def kernels_ns(model, **options):
    """Union of the kernel intervals of a request, in nanoseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        ask(model, **options)
        torch.cuda.synchronize()
    events = profiled.profiler.kineto_results.events()
    spans = sorted((e.start_ns(), e.end_ns()) for e in events if e.device_type() == torch.autograd.DeviceType.CUDA)
    total = reached = 0
    for start, end in spans:
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
