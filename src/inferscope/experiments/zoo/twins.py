"""Exhibits on a GPU that is not there: a device twin works off launches whose length follows from a datasheet.

How long the twin works is put down by hand, from sizes and rates, and not by the cost model that is on trial.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferscope import opinion
from inferscope.analysis.findings import Surroundings
from inferscope.hardware.catalog import lookup
from inferscope.predicting import model_spec
from inferscope.records import SyncSeen
from inferscope.testing import TwinRequest, make_gpu_sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.analysis.verdict import Result
    from inferscope.specs import DeviceSpec, ModelSpec

__all__ = ["BIG", "MIDDLE", "SMALL", "WAITS_AT", "Sizes", "Twin", "around"]

GPU = "H100-SXM5-80GB"
_FLOPS_PER_S = 989e12
_BYTES_PER_S = 3.35e12
_REACHED = 0.85
"""Part of these rates that the twin's kernels reach."""
_LAUNCHES_PER_LAYER = 12
_US = 1_000
_S_TO_NS = 1e9
_VOCABULARY = 32_000
WAITS_AT = ("my_layers.py", 42)
"""The line of nobody's model at which the twin's host waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a Llama in bfloat16 whose queries share no keys."""

    hidden: int
    inner: int
    layers: int

    @property
    def parameters(self) -> int:
        """Read for each pass."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner) + _VOCABULARY * self.hidden

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of so many."""
        return 4 * self.hidden * self.layers * tokens

    def pass_ns(self, new: int, behind: int, sequences: int) -> float:
        """What a pass takes the twin: arithmetic of many tokens, or bytes of few."""
        moved = 2 * self.parameters + self.kv_bytes(sequences * (behind + new))
        computed = 2 * self.parameters * new * sequences
        return _S_TO_NS * max(moved / _BYTES_PER_S, computed / _FLOPS_PER_S) / _REACHED


BIG = Sizes(hidden=8192, inner=28_672, layers=4)
MIDDLE = Sizes(hidden=2048, inner=8192, layers=24)
SMALL = Sizes(hidden=1024, inner=4096, layers=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A request on a simulated GPU.

    Attributes:
        sizes: Of the model.
        issue_ns: What one launch takes the host.
        slower: How many times longer the device works than its rates demand.
        input_tokens: Of the prompt.
        new_tokens: To be made.
        batch_size: Sequences.
        cached: Tokens of each that are in the cache already.
        reads: Times a pass waits for the device.
        surroundings: What else is known of it.
    """

    sizes: Sizes = BIG
    issue_ns: int = 8 * _US
    slower: float = 1.0
    input_tokens: int = 32
    new_tokens: int = 48
    batch_size: int = 1
    cached: int = 0
    reads: int = 0
    surroundings: Callable[[], Surroundings] = Surroundings

    def observe(self, _device: DeviceSpec | None = None) -> Result:
        """The record of it, judged by the datasheet of the GPU that the twin plays."""
        run = TwinRequest(batch_size=self.batch_size, cached=self.cached)
        run.clock.advance(50 * _US)
        for index in range(self.new_tokens):
            tokens = self.input_tokens if index == 0 else 1
            work_ns = self.slower * self.sizes.pass_ns(tokens, run.cache.tokens, self.batch_size)
            run.forward(functools.partial(self._pass, run, int(work_ns)), q=tokens)
            run.select()
        record = run.record(_spec(self.sizes))
        phases = tuple(replace(phase, **self._looked_at(phase.passes)) for phase in record.phases)
        record = replace(record, batch_size=self.batch_size, output_len=self.new_tokens, phases=phases)
        return opinion.diagnose(record, device=lookup(GPU), surroundings=self.surroundings())

    def _pass(self, run: TwinRequest, work_ns: int) -> None:
        """Launches of equal length; the host waits after each part where it reads."""
        count = _LAUNCHES_PER_LAYER * self.sizes.layers
        parts = max(1, self.reads)
        for _ in range(parts):
            run.issue([(self.issue_ns, work_ns // count)] * (count // parts))
            if self.reads:
                run.twin.synchronize()

    def _looked_at(self, passes: int) -> dict[str, Any]:
        """What looking for waits in every pass would have seen."""
        if not self.reads:
            return {}
        seen = SyncSeen(file=WAITS_AT[0], line=WAITS_AT[1], count=self.reads * passes)
        return {"sync_passes": passes, "sync_points": (seen,)}


@functools.cache
def _spec(sizes: Sizes) -> ModelSpec:
    """The model's operators, counted; no weights."""
    from transformers import LlamaConfig  # noqa: PLC0415 - heavy

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.hidden // 128,
        max_position_embeddings=131_072,
    )
    return replace(model_spec(config, dtype="bfloat16"), device="cuda:0", attention="sdpa")


def around(*, allocator_retries: int | None = None, **gpu: Any) -> Callable[[], Surroundings]:  # noqa: ANN401
    """Surroundings with a window of the GPU.

    Args:
        allocator_retries: Of torch's allocator during the request.
        **gpu: Fields of `GpuSample` that are not as usual; none for no window.
    """

    def made() -> Surroundings:
        sample = make_gpu_sample(**gpu) if gpu else None
        return Surroundings(gpu=sample, allocator_retries=allocator_retries)

    return made
