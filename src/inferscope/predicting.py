"""Prediction as users ask for it: models, configurations and saved specs in, a `Prediction` out.

A saved `ModelSpec` or a record needs no torch; a model or a configuration is counted on the meta device first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from inferscope.analysis import anchors as anchoring
from inferscope.analysis.formats import DTYPE_BYTES, format_of
from inferscope.analysis.machine import machine_of
from inferscope.analysis.prediction import predict_request
from inferscope.errors import PredictionError, SettingError
from inferscope.hardware.catalog import lookup
from inferscope.records import GenerationRecord
from inferscope.specs import DeviceSpec, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferscope.analysis.anchors import Anchor
    from inferscope.analysis.kernels import KernelTimes
    from inferscope.analysis.prediction import Prediction
    from inferscope.specs import CostTerms, OperatorTerms

__all__ = ["model_spec", "predict"]


def predict(  # noqa: PLR0913 - each one changes the answer
    model_or_config: object,
    *,
    gpu: str | None = None,
    device: DeviceSpec | None = None,
    batch_size: int = 1,
    input_tokens: int = 512,
    output_tokens: int = 128,
    dtype: str | None = None,
    quantization: str | None = None,
    kv_dtype: str | None = None,
    execution: Literal["eager", "compiled"] = "eager",
    record: GenerationRecord | Sequence[GenerationRecord] | None = None,
    record_device: DeviceSpec | None = None,
    kernels: KernelTimes | None = None,
) -> Prediction:
    """How long a request would take, what would hold it back, and whether it fits; nothing is run.

    Args:
        model_or_config: A transformers model or configuration, a `ModelSpec`, or a `GenerationRecord`, which is
            then also what the prediction is anchored on.
        gpu: A GPU of the catalogue ("H100-SXM5-80GB").
        device: A device with its ceilings, such as `inferscope.calibrate()` returns; instead of `gpu`.
        batch_size: Sequences.
        input_tokens: Prompt tokens of each.
        output_tokens: New tokens of each.
        dtype: Of weights and activations ("bfloat16"); None: the model's own.
        quantization: Of the weights of linear layers: "int8" or "int4"; None for the dtype.
        kv_dtype: Of the cache; None for the dtype.
        execution: "eager" as `generate` runs by itself, or "compiled": fused, with a graph and a static cache.
        record: One or several traces of the model, whose measured times replace assumed ones.
        record_device: The device they were measured on; None where that is `device`.
        kernels: Measured times of the model's own operators on `device`.

    Raises:
        PredictionError: Nothing supports the prediction; the message names what is missing.
        UnknownDeviceError: The catalogue has no such GPU.
        CostUnavailableError: The operators of this model cannot be counted exactly.
        SettingError: An argument has a value it cannot have.
    """
    _check(batch_size=batch_size, input_tokens=input_tokens, output_tokens=output_tokens)
    if execution not in {"eager", "compiled"}:
        raise SettingError(f"execution={execution!r}: expected eager or compiled")
    target = _device(gpu, device)
    records = _records(model_or_config, record)
    plain = None if dtype is None else str(dtype).removeprefix("torch.")
    spec = model_spec(model_or_config, dtype=plain)
    stored = format_of(spec, spec.dtype or "unknown", quantization, kv_dtype)
    machine = machine_of(target, stored.dtype, execution=execution, kernels=kernels)
    anchors, same = _anchors(spec, records, target, record_device, kernels)
    return predict_request(
        spec,
        machine,
        stored,
        batch_size=batch_size,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        anchors=anchors,
        same_device=same,
    )


def model_spec(model_or_config: object, *, dtype: str | None = None) -> ModelSpec:
    """What is predicted from: the model's facts and its counted operators, as plain data that may be stored.

    Args:
        model_or_config: A transformers model or configuration, a `ModelSpec` or a `GenerationRecord`.
        dtype: Of weights and activations; None: the model's own.

    Raises:
        CostUnavailableError: The operators of this model cannot be counted exactly.
        PredictionError: A stored spec cannot be had in that dtype.
        SettingError: It is none of these.
    """
    spec = model_or_config.model if isinstance(model_or_config, GenerationRecord) else model_or_config
    if isinstance(spec, ModelSpec):
        return _in_dtype(spec, dtype)
    if isinstance(spec, (str, bytes, int, float, dict, list, tuple)) or spec is None:
        raise SettingError(f"{spec!r}: expected a model, a configuration, a ModelSpec or a record")
    from inferscope import costing  # noqa: PLC0415 - loads torch

    return costing.spec_of(spec, dtype=dtype)


def _check(**lengths: object) -> None:
    for name, value in lengths.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SettingError(f"{name}={value!r}: expected a whole number of at least 1")


def _device(gpu: str | None, device: DeviceSpec | None) -> DeviceSpec:
    if (gpu is None) == (device is None):
        raise SettingError("expected either gpu= (a name of the catalogue) or device= (a DeviceSpec), and one of them")
    if gpu is not None:
        if not isinstance(gpu, str):
            raise SettingError(f"gpu={gpu!r}: expected a name such as H100-SXM5-80GB")
        return lookup(gpu)
    if not isinstance(device, DeviceSpec):
        raise SettingError(f"device={device!r}: expected a DeviceSpec, such as inferscope.calibrate() returns")
    return device


def _records(
    model: object, record: GenerationRecord | Sequence[GenerationRecord] | None
) -> tuple[GenerationRecord, ...]:
    if record is None:
        return (model,) if isinstance(model, GenerationRecord) else ()
    found = (record,) if isinstance(record, GenerationRecord) else tuple(record)
    if not found or not all(isinstance(one, GenerationRecord) for one in found):
        raise SettingError(f"record={record!r}: expected a GenerationRecord, or several")
    return found


def _anchors(
    spec: ModelSpec,
    records: tuple[GenerationRecord, ...],
    target: DeviceSpec,
    measured_on: DeviceSpec | None,
    kernels: KernelTimes | None,
) -> tuple[tuple[Anchor, ...], bool]:
    """What the traces say, and whether they are of the device that is asked about."""
    if not records:
        return (), True
    source = measured_on or target
    same = source.name == target.name and source.key == target.key
    for one in records:
        if one.model.cost is None or (spec.model_type, spec.name) != (one.model.model_type, one.model.name):
            raise PredictionError(f"the trace is of {one.model.name}, or has no counted work, not of {spec.name}")
        kind = "cpu" if (one.model.device or "cpu").partition(":")[0] == "cpu" else "cuda"
        if kind != source.kind:
            raise PredictionError(
                f"the trace was taken on a {kind} device, {source.name} is {source.kind}: "
                "say with record_device= what it was measured on"
            )
        if source.key and one.device_key and one.device_key != source.key:
            raise PredictionError(f"the trace was taken on {one.device_key}, not on {source.key}")
    own = machine_of(source, records[0].model.dtype or "unknown", kernels=kernels if same else None)
    return anchoring.anchors_of(records, own), same


def _in_dtype(spec: ModelSpec, dtype: str | None) -> ModelSpec:
    """A stored spec, its bytes scaled where another dtype is asked for."""
    if dtype is None or dtype == spec.dtype or spec.cost is None:
        return spec
    if spec.dtype not in DTYPE_BYTES or dtype not in DTYPE_BYTES:
        raise PredictionError(f"a stored spec in {spec.dtype} cannot be had in {dtype}: count the model anew")
    return replace(spec, dtype=dtype, weight_bytes=None, cost=_scaled(spec.cost, DTYPE_BYTES[spec.dtype], dtype))


def _scaled(terms: CostTerms, from_bytes: int, dtype: str) -> CostTerms:
    to_bytes = DTYPE_BYTES[dtype]

    def resized(value: int) -> int:
        return value * to_bytes // from_bytes

    def entry(one: OperatorTerms) -> OperatorTerms:
        return replace(
            one,
            weight_bytes=tuple(map(resized, one.weight_bytes)),
            activation_bytes=tuple(map(resized, one.activation_bytes)),
            executed_bytes=tuple(map(resized, one.executed_bytes)),
        )

    return replace(
        terms,
        operators=tuple(entry(one) for one in terms.operators),
        kv_bytes_per_token=resized(terms.kv_bytes_per_token),
        logits_bytes=resized(terms.logits_bytes),
        caches=tuple(replace(cache, unit_bytes=resized(cache.unit_bytes)) for cache in terms.caches),
        hidden_bytes=resized(terms.hidden_bytes),
        peaks=tuple(
            replace(peak, live_bytes=tuple(resized(value) for value in peak.live_bytes)) for peak in terms.peaks
        ),
        stored_bytes=None if terms.stored_bytes is None else resized(terms.stored_bytes),
        notes=(*terms.notes, f"bytes were counted in another dtype and scaled to {dtype}, casts included"),
    )
