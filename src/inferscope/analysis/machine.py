"""How fast a device is in practice for one dtype: its ceilings, and which part of them operators reach.

Whatever was not measured is assumed, and each assumption is a sentence that goes with the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from inferscope.errors import PredictionError

if TYPE_CHECKING:
    from inferscope.analysis.kernels import KernelTimes
    from inferscope.specs import DeviceSpec

__all__ = ["IN_MODEL", "QUANTIZATIONS", "Basis", "Execution", "Machine", "Quantization", "machine_of"]

Execution = Literal["eager", "compiled"]
Basis = Literal["datasheet", "calibrated", "kernels", "anchored"]

IN_MODEL = 1.07
"""An operator takes longer between others than right after itself: 7 to 10 % in prefill and decode of dense models."""
_COMPUTE_SHARE = 0.75
_MEMORY_SHARE = 0.8
_LAUNCH_NS = 3_000.0
# Of a matrix product's rate, what fused attention kernels reach.
_ATTENTION_SHARE = 0.7
# A measured roof is the best of its shapes; a model's are not all the best.
_OF_MEASURED_PRODUCT = 0.9
_OF_MEASURED_STREAM = 0.95
# Host time of one operator of transformers' modules on a server's processor: 5 to 13 µs have been seen.
_OPERATOR_NS = 8_000.0
# What generate does between two forwards: 0.45 ms where an operator takes 2.6 µs.
_BETWEEN_OPERATORS = 170
_CPU_ROOF_SPREAD = 0.85
"""How far a CPU's roofs alone may be off, as a logarithm: a small matrix is far from the best of all shapes.

Source: 280 readings of four models, benchmarks/results/prediction-cpu.json: 0.79 holds 80 % of them.
"""
_CERTAINTY_SPREAD = {"high": 0.0, "medium": 0.05, "low": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Weights in fewer bits: what they take, and how fast they are read.

    Attributes:
        name: As it is asked for.
        weight_bits: Of one weight, its share of scales and zero points included.
        read_share: Of the memory rate that plain weights reach, what kernels that dequantise reach.
        source: Where `read_share` comes from.
    """

    name: str
    weight_bits: float
    read_share: float
    source: str


_GPT_FAST = "fitted to gpt-fast, Llama-2-7B on A100-80GB: {} times the tokens of bfloat16"
QUANTIZATIONS = {
    "int8": Quantization(name="int8", weight_bits=8, read_share=0.80, source=_GPT_FAST.format("1.48")),
    "int4": Quantization(name="int4", weight_bits=5, read_share=0.72, source=_GPT_FAST.format("1.88")),
}
"""Weight-only formats with a formula: one scale per row (int8), a scale and a zero point per 32 weights (int4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Rates that operators reach on a device.

    Attributes:
        device: Its ceilings.
        dtype: Of the arithmetic.
        basis: What the rates rest on.
        on_host: The host computes: operators take their turn with the Python around them.
        execution: "eager", each operator by itself, or "compiled": fused and replayed as a graph.
        compute_flops_per_s: In matrix products.
        attention_flops_per_s: In attention.
        memory_bytes_per_s: Weights and cache streamed.
        cache_bytes_per_s: The same where they fit into the last-level cache; None where that is not known.
        launch_ns: Of the device, per kernel, beyond what the rates say.
        operator_ns: Of the host, per dispatched operator, Python included.
        dispatch_ns: The part of it that measured kernel times contain.
        between_ns: Of the host, between two passes.
        kernels: Measured times of the model's own operators.
        device_spread: Half width of the interval of device time, as a logarithm.
        host_spread: The same of host time.
        device_factor: By which a trace was slower than these rates say.
        host_factor: The same for the host.
        assumptions: What was not measured, in words.
    """

    device: DeviceSpec
    dtype: str
    basis: Basis
    on_host: bool
    execution: Execution
    compute_flops_per_s: float
    attention_flops_per_s: float
    memory_bytes_per_s: float
    cache_bytes_per_s: float | None
    launch_ns: float
    operator_ns: float
    dispatch_ns: float
    between_ns: float
    kernels: KernelTimes | None
    device_spread: float
    host_spread: float
    device_factor: float = 1.0
    host_factor: float = 1.0
    assumptions: tuple[str, ...] = ()


def machine_of(
    device: DeviceSpec, dtype: str, *, execution: Execution = "eager", kernels: KernelTimes | None = None
) -> Machine:
    """The rates of a device.

    Args:
        device: A catalogue row, or a calibrated device.
        dtype: Of weights and activations.
        execution: How the model runs.
        kernels: Measured times of the model's own operators on that device.

    Raises:
        PredictionError: A ceiling is not known, or the kernels are of another device or dtype.
    """
    compute = device.compute_flops_per_s.get(dtype)
    if compute is None:
        known = ", ".join(sorted(device.compute_flops_per_s)) or "none"
        raise PredictionError(f"no peak for {dtype} is known of {device.name} (known: {known})")
    stream = device.gemv_bytes_per_s.get(dtype) or device.copy_bytes_per_s
    if stream is None:
        raise PredictionError(f"the memory bandwidth of {device.name} is not known")
    if kernels is not None and (kernels.dtype, kernels.device_key) != (dtype, device.key):
        raise PredictionError(
            f"the operators were measured in {kernels.dtype} on {kernels.device_key or 'an unnamed device'}, "
            f"not in {dtype} on {device.key or device.name}"
        )
    measured = compute.source == "measured"
    product = compute.value * (_OF_MEASURED_PRODUCT if measured else _COMPUTE_SHARE)
    streamed = stream.value * (_OF_MEASURED_STREAM if stream.source == "measured" else _MEMORY_SHARE)
    on_host = device.kind == "cpu"
    cache = device.cache_bytes_per_s
    machine = Machine(
        device=device,
        dtype=dtype,
        basis="kernels" if kernels is not None else "calibrated" if measured else "datasheet",
        on_host=on_host,
        execution=execution,
        compute_flops_per_s=product,
        attention_flops_per_s=product * _ATTENTION_SHARE,
        memory_bytes_per_s=streamed,
        cache_bytes_per_s=cache.value if cache is not None else None,
        launch_ns=0.0 if on_host else _LAUNCH_NS,
        operator_ns=0.0,
        dispatch_ns=device.dispatch_ns.value if device.dispatch_ns is not None else 0.0,
        between_ns=0.0,
        kernels=kernels,
        device_spread=_spread(device, measured=measured, kernels=kernels),
        host_spread=0.5,
        assumptions=_assumptions(device, dtype, measured=measured, kernels=kernels),
    )
    return _with_host(machine)


def _spread(device: DeviceSpec, *, measured: bool, kernels: KernelTimes | None) -> float:
    if kernels is not None:
        return 0.15
    if measured:
        return 0.25 if device.kind == "cuda" else _CPU_ROOF_SPREAD
    return 0.20 + _CERTAINTY_SPREAD.get(device.certainty or "low", 0.15)


def _with_host(machine: Machine) -> Machine:
    """The same machine with what its host pays for operators, by how it runs them."""
    operator = machine.device.module_op_ns or machine.device.dispatch_ns
    host_ns = operator.value if operator is not None else _OPERATOR_NS
    between_ns = _BETWEEN_OPERATORS * host_ns
    notes = [
        (
            f"between two passes the host takes as long as for {_BETWEEN_OPERATORS} operators (greedy selection), "
            f"{between_ns / 1e3:.0f} µs"
        )
    ]
    if machine.execution == "compiled":
        notes = ["compiled: elementwise work is fused into one kernel per two matrix products, a graph replays them"]
        notes += ["compiled: the host is never waited for, and the cache is written in place"]
        return replace(
            machine,
            operator_ns=0.0,
            between_ns=0.0,
            host_spread=0.0,
            assumptions=(*machine.assumptions, *notes),
        )
    if operator is None:
        what = "the host's own: no host was measured"
    else:
        what = "measured" if machine.on_host else "measured on this host"
    notes.insert(0, f"the host takes {host_ns / 1e3:.1f} µs per dispatched operator ({what})")
    return replace(
        machine,
        operator_ns=host_ns,
        between_ns=between_ns,
        host_spread=0.5 if operator is None else 0.2,
        assumptions=(*machine.assumptions, *notes),
    )


def _assumptions(device: DeviceSpec, dtype: str, *, measured: bool, kernels: KernelTimes | None) -> tuple[str, ...]:
    if kernels is not None:
        return (
            f"operator times: measured on {device.name} for this model's shapes, interpolated in between",
            f"{IN_MODEL - 1:.0%} longer inside a model than one after the other",
        )
    attention = f"attention reaches {_ATTENTION_SHARE:.0%} of the rate of matrix products"
    if measured:
        return (
            (
                f"matrix products reach {_OF_MEASURED_PRODUCT:.0%} of the measured {dtype} peak, weights and cache "
                f"{_OF_MEASURED_STREAM:.0%} of the measured stream; no shape of this model was measured"
            ),
            attention,
        )
    return (
        (
            f"matrix products reach {_COMPUTE_SHARE:.0%} of the datasheet's dense {dtype} peak, weights and cache "
            f"{_MEMORY_SHARE:.0%} of its bandwidth, each kernel takes {_LAUNCH_NS / 1e3:g} µs more"
        ),
        attention,
        f"datasheet of {device.name}: certainty {device.certainty or 'unknown'}",
    )
