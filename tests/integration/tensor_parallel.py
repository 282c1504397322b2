"""One rank of a tensor-parallel generate; run by torchrun from test_wrappers.py."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import transformers
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import inferscope
from inferscope.sinks.spans import SpanSink


def main() -> None:
    """Shard a tiny model over the ranks, generate, and write down what was seen."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module  # noqa: PLC0415

    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        parallelize_module(
            layer.mlp,
            mesh,
            {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()},
        )
    torch.manual_seed(1)
    ids = torch.randint(1, 1000, (1, 9))
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with inferscope.trace(model, sinks=[SpanSink(tracer_provider=provider)], detail="passes") as session:
        model.generate(ids, max_new_tokens=3)
        samples = session.last.record.pass_samples
    names = [(entry.name, entry.q_len, entry.past_len, entry.batch_size) for entry in samples]
    root = next(span for span in exporter.get_finished_spans() if span.name.startswith("text_completion"))
    lines = [repr(names), f"{root.context.trace_id:032x}", str(root.attributes["inferscope.rank"])]
    (Path(os.environ["OUT"]) / f"rank{rank}.txt").write_text("\n".join(lines), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
