"""Every exhibit of the zoo, in the order of the tour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.findings import dtypes
from inferscope.experiments.zoo import around_passes, of_generate, of_the_model, twins
from inferscope.experiments.zoo.exhibit import Exhibit, Expected, Proof, Truth
from inferscope.experiments.zoo.models import fastest
from inferscope.experiments.zoo.twins import Twin, around

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.experiments.zoo.exhibit import Scene
    from inferscope.specs import DeviceSpec

__all__ = ["EXHIBITS"]

_SLOW = 0.35
"""Part of a roof up to which a kernel is slow beyond doubt: most of its time is not what the roof asks for."""
_NEAR = 0.65
"""Part of a roof from which on the roof is most of a kernel's time beyond doubt; between the two, either may be."""
_REACHED = 0.15
"""Part of it that a request must have reached to be called bound by memory; other work on the machine included."""
_GIB = 2**30
_HEALTHY = {"decode-weight-bound": "the twin's decode reads its weights at the memory's rate, as it should"}


_SMALL = "calling the operators of a model this small takes long, longer where others use the caches"


def _always(*expected: Expected, **beside: str) -> Callable[[DeviceSpec], Truth]:
    """The same truth on every device; what is true beside it by code, `_` for `-`."""
    named = {code.replace("_", "-"): why for code, why in beside.items()}
    return lambda _device: Truth(expected=expected, beside=named)


def _twin(twin: Twin) -> Callable[[DeviceSpec], Scene]:
    return lambda _device: twin


def _between(name: str, planted: str, build: Callable[[DeviceSpec], Scene], share: str, cause: str) -> Exhibit:
    """An exhibit with Python between the passes, found by its share and named by its class."""
    return Exhibit(
        name=name,
        planted=planted,
        build=build,
        truth=_always(
            Expected(
                code="python-between-passes",
                phase="decode",
                proofs=(Proof(metric=share, least=0.4),),
                says=(cause,),
            )
        ),
    )


def _weights_truth(device: DeviceSpec) -> Truth:
    """Memory, or a kernel that does not reach it: by this machine's own rates."""
    name = str(fastest(device)).removeprefix("torch.")
    copy, kernel = device.copy_bytes_per_s, device.gemv_bytes_per_s.get(name)
    rate = kernel.value if kernel is not None else 0.0
    return _memory_truth(rate, copy.value if copy is not None else 0.0, "decode-weight-bound", "weight_bytes_share")


def _cache_truth(device: DeviceSpec) -> Truth:
    """The same of keys and values, by what attention reaches here."""
    copy = device.copy_bytes_per_s
    rate = of_the_model.attention_bytes_per_s()
    return _memory_truth(rate, copy.value if copy is not None else 0.0, "decode-kv-bound", "kv_bytes_share")


def _memory_truth(kernel_bytes_per_s: float, copy_bytes_per_s: float, code: str, share: str) -> Truth:
    roof = max(kernel_bytes_per_s, copy_bytes_per_s)
    reached = kernel_bytes_per_s / roof if roof else 0.0
    proofs = (Proof(metric=share, least=0.5), Proof(metric="achieved_bytes_per_s", least=_REACHED * roof))
    bound = Expected(code=code, phase="decode", proofs=proofs)
    slow = Expected(
        code="kernel-inefficient", phase="decode", proofs=(Proof(metric="roof_per_pass_ns", least=200_000.0),)
    )
    beside = {slow.code: f"the kernels reach {reached:.0%} of the memory roof on this machine"}
    return Truth(expected=_of_the_two(reached, bound, slow), beside=beside)


def _of_the_two(reached: float, bound: Expected, slow: Expected) -> tuple[Expected, ...]:
    """A roof, the kernels below it, or either, by the part of the roof that the kernels reach."""
    if reached < _SLOW:
        return (slow,)
    return (bound,) if reached >= _NEAR else (bound, slow)


def _products_truth(device: DeviceSpec) -> Truth:
    """Arithmetic, or a kernel that does not reach its peak, by what the exhibit's own product reaches here."""
    kind = fastest(device)
    peak = device.compute_flops_per_s.get(str(kind).removeprefix("torch."))
    reached = of_the_model.product_flops_per_s(kind) / peak.value if peak is not None else 1.0
    compute = Expected(
        code="prefill-compute-bound", phase="prefill", proofs=(Proof(metric="compute_share", least=0.15),)
    )
    slow = Expected(code="kernel-inefficient", phase="prefill", proofs=(Proof(metric="inefficient_share", least=0.2),))
    beside = {slow.code: f"the product reaches {reached:.0%} of the peak on this machine"} if reached < 1 else {}
    return Truth(expected=_of_the_two(reached, compute, slow), beside=beside)


def _dtype_truth(device: DeviceSpec) -> Truth:
    """float32 is a cause only where something is faster."""
    compute = Expected(
        code="prefill-compute-bound", phase="prefill", proofs=(Proof(metric="compute_share", least=0.15),)
    )
    now = device.compute_flops_per_s.get("float32")
    if now is None or not dtypes.faster_dtype(device, "float32")[1]:
        return Truth(expected=(compute,))
    faster = Expected(
        code="faster-dtype-unused",
        proofs=(Proof(metric="peak_flops_per_s", least=0.99 * now.value, most=1.01 * now.value),),
        says=("float32",),
    )
    return Truth(expected=(faster,), beside={compute.code: "arithmetic is what the narrower dtype makes shorter"})


EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit(
        name="big-gemm-prefill",
        planted="a prompt of 512 tokens through large matrices, in the fastest dtype there is",
        build=of_the_model.big_prefill,
        truth=_products_truth,
    ),
    Exhibit(
        name="float32",
        planted="the same prompt in float32, where bfloat16 may be faster",
        build=of_the_model.wide_dtype,
        truth=_dtype_truth,
    ),
    Exhibit(
        name="weight-bound-decode",
        planted="weights beyond any cache, read for one token at a time",
        build=of_the_model.weight_decode,
        truth=_weights_truth,
    ),
    Exhibit(
        name="kv-bound-decode",
        planted="eight sequences with 4,096 tokens behind them, and few weights",
        build=of_the_model.long_context_decode,
        truth=_cache_truth,
    ),
    Exhibit(
        name="growing-cache",
        planted="the same cache, which torch.cat copies whole for each token",
        build=of_the_model.growing_cache,
        truth=_always(
            Expected(
                code="kv-cache-concatenated",
                phase="decode",
                proofs=(Proof(metric="cache_growth_share", least=0.05), Proof(metric="cache_growth_bytes", least=1e8)),
            ),
            kernel_inefficient="attention over the cache does not reach the memory roof on a CPU",
        ),
    ),
    Exhibit(
        name="eager-attention",
        planted="attention that writes the scores of 32 heads over 768 tokens to memory",
        build=of_the_model.eager_attention,
        truth=_always(
            Expected(
                code="attention-unfused",
                phase="prefill",
                proofs=(Proof(metric="attention_scores_traffic_share", least=0.5),),
            )
        ),
    ),
    Exhibit(
        name="tiny-model",
        planted="a model whose operators cost more to call than to compute",
        build=of_the_model.tiny,
        truth=_always(
            Expected(
                code="overhead-bound-passes",
                phase="decode",
                proofs=(Proof(metric="operator_overhead_share", least=0.1),),
            )
        ),
    ),
    Exhibit(
        name="many-operators",
        planted="a layer that adds two vectors element by element, in hundreds of operators",
        build=of_the_model.many_operators,
        truth=_always(
            Expected(
                code="overhead-bound-passes",
                phase="decode",
                proofs=(Proof(metric="operator_overhead_share", least=0.1), Proof(metric="operators", least=1_000)),
            )
        ),
    ),
    Exhibit(
        name="copied-weights",
        planted="each layer copies its weights before it runs, as offloading to the CPU does",
        build=of_the_model.copied_weights,
        truth=_always(
            Expected(code="copies-in-forward", phase="decode", proofs=(Proof(metric="copy_share", least=0.1),)),
            kernel_inefficient="products of a few tokens with weights that no cache holds do not reach the roof",
        ),
    ),
    Exhibit(
        name="offloaded-weights",
        planted="accelerate keeps the weights elsewhere and brings them in for each layer",
        build=of_the_model.offloaded,
        truth=_always(Expected(code="weights-offloaded", proofs=(Proof(metric="offloaded_bytes", least=1e7),))),
    ),
    _between(
        "python-logits-processor",
        "a logits processor that loops in Python",
        around_passes.slow_processor,
        "select_share",
        "SlowProcessor",
    ),
    _between(
        "slow-stopping-criterion",
        "a stopping criterion that loops in Python",
        around_passes.slow_criterion,
        "select_share",
        "SlowCriterion",
    ),
    _between(
        "slow-streamer",
        "a streamer that works while the model waits",
        around_passes.slow_streamer,
        "deliver_share",
        "SlowStreamer",
    ),
    Exhibit(
        name="gc-storm",
        planted="each layer collects garbage among 150,000 objects",
        build=around_passes.collections_of_garbage,
        truth=_always(
            Expected(code="gc-pauses", phase="decode", proofs=(Proof(metric="gc_share", least=0.3),)),
            overhead_bound_passes=_SMALL,
        ),
    ),
    Exhibit(
        name="gil-hog",
        planted="two threads that compute in Python beside the generating one",
        build=around_passes.busy_interpreter,
        truth=_always(
            Expected(code="cpu-contention", phase="decode", proofs=(Proof(metric="offcpu_share", least=0.5),)),
            overhead_bound_passes=_SMALL,
        ),
    ),
    Exhibit(
        name="noisy-neighbour",
        planted="two other requests in the same process",
        build=around_passes.neighbour,
        truth=_always(
            Expected(code="neighbour-requests", phase="decode", proofs=(Proof(metric="contended_share", least=0.3),)),
            overhead_bound_passes=_SMALL,
        ),
    ),
    Exhibit(
        name="thread-oversubscription",
        planted="eight intra-op threads for each processor",
        build=around_passes.many_threads,
        truth=_always(
            Expected(code="thread-oversubscription", proofs=(Proof(metric="intra_op_threads", least=8),)),
            overhead_bound_passes=_SMALL,
        ),
    ),
    Exhibit(
        name="recompilation",
        planted="a compiled layer that meets a new length with each token",
        build=around_passes.compilation_per_shape,
        truth=_always(
            Expected(
                code="compilation-in-request",
                proofs=(Proof(metric="compile_share", least=0.2), Proof(metric="compiled_graphs", least=3)),
            ),
            gc_pauses="what compiles makes garbage, and Python collects it meanwhile",
        ),
    ),
    Exhibit(
        name="no-cache",
        planted="use_cache=False: 256 tokens computed anew for each one",
        build=of_generate.no_cache,
        truth=_always(
            Expected(
                code="recompute-without-cache", phase="decode", proofs=(Proof(metric="tokens_per_pass", least=256),)
            )
        ),
    ),
    Exhibit(
        name="padding",
        planted="a batch of which nine tenths are padding",
        build=of_generate.padded,
        truth=_always(Expected(code="padding-waste", proofs=(Proof(metric="padding_share", least=0.9, most=0.92),))),
    ),
    Exhibit(
        name="beams",
        planted="sixteen beams for one sequence",
        build=of_generate.beams,
        truth=_always(
            Expected(code="beams-multiply-work", proofs=(Proof(metric="beams", least=16, most=16),)),
            overhead_bound_passes=_SMALL,
        ),
    ),
    Exhibit(
        name="bad-draft",
        planted="assisted decoding with a slow draft that is never right",
        build=of_generate.bad_draft,
        truth=_always(
            Expected(code="speculation-not-paying", proofs=(Proof(metric="acceptance_share", least=0.0, most=0.2),)),
            overhead_bound_passes=_SMALL,
        ),
    ),
    Exhibit(
        name="gpu-starved",
        planted="a GPU that waits for the host: a small model, launched kernel by kernel (twin)",
        build=_twin(Twin(sizes=twins.SMALL)),
        truth=_always(
            Expected(
                code="overhead-bound-passes",
                phase="decode",
                proofs=(Proof(metric="operator_overhead_share", least=0.8),),
            )
        ),
        twin=True,
    ),
    Exhibit(
        name="gpu-saturated",
        planted="a GPU that reads large weights without a pause (twin)",
        build=_twin(Twin()),
        truth=_always(
            Expected(
                code="decode-weight-bound",
                phase="decode",
                proofs=(Proof(metric="memory_share", least=0.8), Proof(metric="weight_bytes_share", least=0.9)),
            )
        ),
        twin=True,
    ),
    Exhibit(
        name="gpu-long-cache",
        planted="a GPU that reads the keys and values of sixteen sequences of 30,000 tokens (twin)",
        build=_twin(Twin(batch_size=16, cached=30_000, input_tokens=1)),
        truth=_always(
            Expected(
                code="decode-kv-bound",
                phase="decode",
                proofs=(Proof(metric="memory_share", least=0.8), Proof(metric="kv_bytes_share", least=0.7)),
            )
        ),
        twin=True,
    ),
    Exhibit(
        name="gpu-item-per-layer",
        planted=".item() in each of 24 layers: host and device take turns (twin)",
        build=_twin(Twin(sizes=twins.MIDDLE, reads=24, issue_ns=4_000)),
        truth=_always(
            Expected(
                code="sync-per-token",
                phase="decode",
                proofs=(Proof(metric="syncs_per_pass", least=24),),
                says=(f"{twins.WAITS_AT[0]}:{twins.WAITS_AT[1]}",),
            )
        ),
        twin=True,
    ),
    Exhibit(
        name="gpu-throttled",
        planted="a hot GPU at less than half of its clock (twin)",
        build=_twin(
            Twin(
                input_tokens=4096,
                new_tokens=2,
                slower=2.0,
                surroundings=around(clock_reasons=("hw_thermal_slowdown",), sm_clock_hz=0.9e9, temperature_c=92.0),
            )
        ),
        truth=_always(
            Expected(code="gpu-throttled-thermal", proofs=(Proof(metric="sm_clock_share", least=0.1, most=0.5),))
        ),
        twin=True,
    ),
    Exhibit(
        name="gpu-memory-nearly-full",
        planted="79 of 80 GiB of device memory in use (twin)",
        build=_twin(Twin(surroundings=around(memory_used_bytes=79 * _GIB, memory_total_bytes=80 * _GIB))),
        truth=lambda _device: Truth(
            expected=(
                Expected(code="gpu-memory-nearly-full", proofs=(Proof(metric="memory_used_share", least=0.98),)),
            ),
            beside=_HEALTHY,
        ),
        twin=True,
    ),
    Exhibit(
        name="gpu-allocator-retries",
        planted="torch's allocator gave its pool back four times during the request (twin)",
        build=_twin(Twin(surroundings=around(allocator_retries=4))),
        truth=lambda _device: Truth(
            expected=(Expected(code="allocator-retries", proofs=(Proof(metric="allocator_retries", least=4),)),),
            beside=_HEALTHY,
        ),
        twin=True,
    ),
)
