"""Public fakes for testing code that consumes results: a made record, a made result, a sink that collects.

Nothing here needs torch, a model or a tracer provider.
"""

from __future__ import annotations

import threading
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from inferscope.analysis.cost import ByteTriple, GroupCost, PassCost
from inferscope.analysis.verdict import (
    Diagnosis,
    Evidence,
    Finding,
    PhaseDiagnosis,
    Result,
    Savings,
)
from inferscope.records import (
    DeviceTime,
    GenerationRecord,
    Ledger,
    PhaseLedger,
    PhaseRecord,
    QuantileSketch,
    RequestOptions,
    Work,
    WorstPass,
)
from inferscope.samples import GpuReading, GpuSample
from inferscope.specs import Ceiling, DeviceSpec, ModelSpec, monomials
from inferscope.testing.budgets import Budget, BudgetExceededError, budget, write_baseline
from inferscope.testing.timeline import Timeline, read_timeline, timeline_of, write_timeline
from inferscope.testing.twin import DeviceTwin, FakeClock, TwinEvents
from inferscope.testing.twin_request import TwinRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inferscope.analysis.verdict import Bound

__all__ = [
    "Budget",
    "BudgetExceededError",
    "CapturingSink",
    "DeviceTwin",
    "FakeClock",
    "ReplayedGpus",
    "Timeline",
    "TwinEvents",
    "TwinRequest",
    "budget",
    "make_gpu_sample",
    "make_record",
    "make_result",
    "read_timeline",
    "timeline_of",
    "write_baseline",
    "write_timeline",
]

_SETUP_NS = 1_900_000
_TAIL_NS = 45_000
_RESIDUAL_NS = 7_000
_PREFILL_SELF_NS = 4_200
_DECODE_SELF_NS = 51_800
_PREFILL_PASS_NS = 88_400_000
_FLOPS_PER_S = 1.52e11
_COPY_BYTES_PER_S = 1.8e10
_DECODE_PASSES_NS = (*(41_000_000 + 37_000 * index for index in range(14)), 47_600_000)


class CapturingSink:
    """A sink that keeps every result it is given, from any thread.

    sink = CapturingSink()
    with inferscope.trace(model, sinks=[sink]):
        model.generate(**inputs)
    assert sink.last.record.status == "ok"
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: list[Result] = []

    def __call__(self, result: Result) -> None:
        """Keep one result."""
        with self._lock:
            self._results.append(result)

    def __len__(self) -> int:
        with self._lock:
            return len(self._results)

    @property
    def results(self) -> tuple[Result, ...]:
        """Everything collected so far, oldest first."""
        with self._lock:
            return tuple(self._results)

    @property
    def last(self) -> Result:
        """The newest result.

        Raises:
            LookupError: Nothing has been collected yet.
        """
        with self._lock:
            if not self._results:
                raise LookupError("the sink has received no result yet")
            return self._results[-1]

    def clear(self) -> None:
        """Forget everything collected."""
        with self._lock:
            self._results.clear()


class ReplayedGpus:
    """GPUs for a monitor on a machine without any: recorded readings in order, the last one again and again.

    monitor = inferscope.BottleneckMonitor(gpus=ReplayedGpus(make_gpu_sample(sm_activity=0.2)), interval_s=0.1)
    assert monitor.classify(monitor.sample()).bound == "overhead"
    """

    def __init__(self, *readings: GpuReading | GpuSample) -> None:
        """Take at least one reading; a single sample stands for a machine with one GPU."""
        if not readings:
            raise ValueError("at least one reading is needed")
        self._readings = [one if isinstance(one, GpuReading) else GpuReading(gpus=(one,)) for one in readings]
        self.reads = 0

    def read(self) -> GpuReading:
        """The next reading."""
        self.reads += 1
        return self._readings[min(self.reads, len(self._readings)) - 1]


def make_gpu_sample(**overrides: Any) -> GpuSample:  # noqa: ANN401 - fields have their own types
    """A made-up window of an H100 that decodes at batch 1; overrides are fields of `GpuSample`.

    Raises:
        TypeError: An override is not a field of `GpuSample`.
    """
    _check_fields(overrides, GpuSample)
    made: dict[str, Any] = {
        "uuid": "GPU-00000000-0000-0000-0000-000000000000",
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "driver_version": "580.00",
        "unix_ns": 1_790_000_000_000_000_000,
        "window_s": 1.0,
        "time_share": 1.0,
        "memory_time_share": 0.8,
        "engine_activity": 0.98,
        "sm_activity": 0.93,
        "sm_occupancy": 0.4,
        "tensor_activity": 0.02,
        "fp64_activity": 0.0,
        "fp32_activity": 0.05,
        "fp16_activity": 0.01,
        "dram_activity": 0.71,
        "pcie_tx_bytes_per_s": 2e7,
        "pcie_rx_bytes_per_s": 3e7,
        "pcie_limit_bytes_per_s": 63e9,
        "sm_clock_hz": 1.98e9,
        "sm_clock_max_hz": 1.98e9,
        "memory_clock_hz": 2.619e9,
        "clock_reasons": (),
        "memory_used_bytes": 20 * 2**30,
        "memory_total_bytes": 80 * 2**30,
        "power_w": 430.0,
        "power_limit_w": 700.0,
        "energy_j": 1_000_000.0,
        "temperature_c": 55.0,
        "mig": False,
    }
    return GpuSample(**(made | overrides))


def make_record(**overrides: Any) -> GenerationRecord:  # noqa: ANN401 - fields have their own types
    """A plausible record: SmolLM2-135M in float32 on a CPU, 32 prompt tokens, 16 new ones, batch 1.

    The ledger closes exactly. It is made anew from `phases` where those are overridden, and an overridden
    `wall_ns` moves the residual, unless `ledger` itself is given; times that follow from the phases
    (`ttft_ns`, `tpot_ns`) are kept in step in the same way.

    Args:
        **overrides: Fields of `GenerationRecord`, taken as they are.

    Raises:
        TypeError: An override is not a field of `GenerationRecord`.
    """
    _check_fields(overrides, GenerationRecord)
    phases = overrides.get("phases", (_prefill(), _decode()))
    ledger = overrides.get("ledger") or _ledger(phases, overrides.get("wall_ns"))
    wall_ns = overrides.get("wall_ns", ledger.total_ns)
    output_len = overrides.get("output_len", len(_DECODE_PASSES_NS) + 1)
    ttft_ns = overrides.get("ttft_ns", phases[0].end_ns if phases else None)
    known = ttft_ns is not None and output_len is not None and output_len > 1
    made: dict[str, Any] = {
        "request_id": "00c0ffee00c0ffee",
        "model": _model(),
        "started_unix_ns": 1_790_000_000_000_000_000,
        "wall_ns": wall_ns,
        "ttft_ns": ttft_ns,
        "ttft_method": None if ttft_ns is None else "stop_check",
        "tpot_ns": (wall_ns - ttft_ns) / (output_len - 1) if known else None,
        "itl_ns": QuantileSketch.of(duration + 460_000 for duration in _DECODE_PASSES_NS),
        "batch_size": 1,
        "input_tokens": 32,
        "output_tokens": 16,
        "output_len": output_len,
        "finish_reasons": ("length",),
        "options": RequestOptions(max_new_tokens=16),
        "phases": phases,
        "ledger": ledger,
        "versions": (("inferscope", "0.1.0"), ("torch", "2.13.0"), ("transformers", "5.23.0")),
    }
    return GenerationRecord(**(made | overrides))


def make_result(**overrides: Any) -> Result:  # noqa: ANN401 - fields have their own types
    """A plausible result around `make_record()`: prefill bound by compute, decode by memory, two findings.

    Args:
        **overrides: Fields of `Result`, taken as they are. With another `record`, the diagnosis keeps to the
            phases that the record has.

    Raises:
        TypeError: An override is not a field of `Result`.
    """
    _check_fields(overrides, Result)
    record = overrides.get("record") or make_record()
    names = {phase.name for phase in record.phases}
    diagnosis = _diagnosis()
    made: dict[str, Any] = {
        "record": record,
        "diagnosis": replace(diagnosis, phases=tuple(p for p in diagnosis.phases if p.name in names)),
        "findings": tuple(finding for finding in _findings() if finding.phase in names),
    }
    return Result(**(made | overrides))


def _check_fields(overrides: Mapping[str, object], kind: type[GenerationRecord | Result | GpuSample]) -> None:
    unknown = sorted(overrides.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(unknown)}")


def _model() -> ModelSpec:
    return ModelSpec(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        model_class="LlamaForCausalLM",
        model_type="llama",
        digest="5a1e0f7d3c9b2846",
        parameters=134_515_008,
        weight_bytes=538_060_032,
        dtype="float32",
        device="cpu",
        attention="sdpa",
    )


def _prefill() -> PhaseRecord:
    ledger = PhaseLedger(
        issue_ns=_PREFILL_PASS_NS,
        select_ns=612_000,
        wait_ns=9_000,
        deliver_ns=0,
        offcpu_ns=310_000,
        gc_ns=0,
    )
    return PhaseRecord(
        name="prefill",
        start_ns=_SETUP_NS,
        end_ns=_SETUP_NS + ledger.total_ns + _PREFILL_SELF_NS,
        wall_ns=ledger.total_ns,
        passes=1,
        tokens=32,
        pass_ns=QuantileSketch.of([_PREFILL_PASS_NS]),
        worst=(),
        ledger=ledger,
        work=(Work(regime="prefill", passes=1, monomials=monomials(1, 32, 0, 1)),),
        device=DeviceTime(low_ns=9_000, high_ns=_PREFILL_PASS_NS, provenance="bound"),
        syncs=1,
    )


def _decode() -> PhaseRecord:
    passes = len(_DECODE_PASSES_NS)
    ledger = PhaseLedger(
        issue_ns=sum(_DECODE_PASSES_NS),
        select_ns=6_780_000,
        wait_ns=120_000,
        deliver_ns=0,
        offcpu_ns=2_040_000,
        gc_ns=5_900_000,
    )
    start_ns = _prefill().end_ns
    per_pass = (monomials(1, 1, past_len, 1) for past_len in range(32, 32 + passes))
    return PhaseRecord(
        name="decode",
        start_ns=start_ns,
        end_ns=start_ns + ledger.total_ns + _DECODE_SELF_NS,
        wall_ns=ledger.total_ns,
        passes=passes,
        tokens=passes,
        pass_ns=QuantileSketch.of(_DECODE_PASSES_NS),
        worst=_worst(start_ns),
        ledger=ledger,
        work=(
            Work(
                regime="decode",
                passes=passes,
                monomials=tuple(map(sum, zip(*per_pass, strict=True))),
            ),
        ),
        device=DeviceTime(low_ns=120_000, high_ns=ledger.issue_ns, provenance="bound"),
        syncs=passes,
    )


def _worst(phase_start_ns: int) -> tuple[WorstPass, ...]:
    starts_ns = [phase_start_ns]
    for duration_ns in _DECODE_PASSES_NS:
        starts_ns.append(starts_ns[-1] + duration_ns + 460_000)
    rows = (
        (14, 48_060_000, "gc", 5_900_000),
        (13, 41_941_000, "issue", 222_000),
        (12, 41_904_000, "select", 185_000),
    )
    return tuple(
        WorstPass(index=index, start_ns=starts_ns[index], cycle_ns=cycle_ns, cause=cause, excess_ns=excess_ns)
        for index, cycle_ns, cause, excess_ns in rows
    )


def _ledger(phases: Iterable[PhaseRecord], wall_ns: int | None) -> Ledger:
    walls = tuple((phase.name, phase.wall_ns) for phase in phases)
    closed = Ledger(
        setup_ns=_SETUP_NS,
        phases_ns=walls,
        tail_ns=_TAIL_NS,
        self_ns=_PREFILL_SELF_NS + _DECODE_SELF_NS,
        residual_ns=_RESIDUAL_NS,
    )
    if wall_ns is None:
        return closed
    return replace(closed, residual_ns=closed.residual_ns + wall_ns - closed.total_ns)


def _diagnosis() -> Diagnosis:
    prefill = _verdict(
        _prefill(),
        bound="compute",
        shares={"compute": 0.78, "memory": 0.06, "overhead": 0.16},
        cost=_cost(linear_flops=6_853_754_880, attention_flops=36_495_360, passes=1, kv_read_tokens=32, tokens=32),
        roof_share=0.81,
    )
    decode = _verdict(
        _decode(),
        bound="memory",
        shares={"compute": 0.02, "memory": 0.84, "overhead": 0.14},
        cost=_cost(linear_flops=4_035_450_240, attention_flops=41_472_000, passes=15, kv_read_tokens=600, tokens=15),
        roof_share=0.86,
    )
    return Diagnosis(device=_device(), phases=(prefill, decode))


def _verdict(
    phase: PhaseRecord, *, bound: Bound, shares: dict[str, float], cost: PassCost, roof_share: float
) -> PhaseDiagnosis:
    seconds = phase.ledger.issue_ns / 1e9
    flops_per_s, bytes_per_s = cost.flops / seconds, cost.bytes.model / seconds
    kv_and_weights = cost.weight_bytes + cost.kv_read_bytes + cost.kv_write_bytes
    flops = Evidence(metric="achieved_flops_per_s", value=flops_per_s, source="measured", threshold=_FLOPS_PER_S)
    traffic = Evidence(metric="achieved_bytes_per_s", value=bytes_per_s, source="measured", threshold=_COPY_BYTES_PER_S)
    return PhaseDiagnosis(
        name=phase.name,
        bound=bound,
        confidence="high",
        shares=shares,
        cost=cost,
        mfu=flops_per_s / _FLOPS_PER_S,
        mbu=kv_and_weights / seconds / _COPY_BYTES_PER_S,
        achieved_flops_per_s=flops_per_s,
        achieved_bytes_per_s=bytes_per_s,
        roof_share=roof_share,
        evidence=(flops,) if bound == "compute" else (traffic,),
    )


def _cost(*, linear_flops: int, attention_flops: int, passes: int, kv_read_tokens: int, tokens: int) -> PassCost:
    weight_bytes = passes * 538_060_032
    kv_read_bytes, kv_write_bytes = kv_read_tokens * 46_080, tokens * 46_080
    linear_bytes, attention_bytes = tokens * 1_900_000, tokens * 140_000
    minimum = weight_bytes + kv_read_bytes + kv_write_bytes + passes * 196_608 + tokens * 8
    model = weight_bytes + kv_read_bytes + kv_write_bytes + linear_bytes + attention_bytes
    groups = (
        _group("linear", linear_flops, weight_bytes + linear_bytes, launches=passes * 211),
        _group("attention", attention_flops, kv_read_bytes + attention_bytes, launches=passes * 30),
        _group("kv-cache", 0, kv_write_bytes, launches=passes * 60),
    )
    return PassCost(
        flops=linear_flops + attention_flops,
        flops_full=linear_flops + 2 * attention_flops,
        weight_bytes=weight_bytes,
        kv_read_bytes=kv_read_bytes,
        kv_write_bytes=kv_write_bytes,
        activation_bytes=linear_bytes + attention_bytes,
        bytes=ByteTriple(minimum=minimum, model=model, executed=model + tokens * 6_500_000),
        calls=passes * 1_390,
        launches=sum(group.launches for group in groups),
        groups=groups,
    )


def _group(name: str, flops: int, model_bytes: int, *, launches: int) -> GroupCost:
    return GroupCost(
        group=name,
        flops=flops,
        flops_full=2 * flops if name == "attention" else flops,
        bytes=model_bytes,
        executed_bytes=model_bytes,
        calls=3 * launches,
        launches=launches,
    )


def _device() -> DeviceSpec:
    return DeviceSpec(
        name="AMD EPYC",
        kind="cpu",
        key="made-up-device",
        compute_flops_per_s={"float32": Ceiling(value=_FLOPS_PER_S, source="measured", spread=0.01)},
        copy_bytes_per_s=Ceiling(value=_COPY_BYTES_PER_S, source="measured", spread=0.02),
        dispatch_ns=Ceiling(value=1_900.0, source="measured", spread=0.03),
        threads=2,
        torch_version="2.13.0",
        measured_unix_ns=1_789_000_000_000_000_000,
    )


def _findings() -> tuple[Finding, ...]:
    weights = Finding(
        code="decode-reads-weights",
        severity="OPT",
        phase="decode",
        claim="Decode reads every weight once per token: 84 % of its time is memory traffic.",
        evidence=(Evidence(metric="mbu", value=0.72, source="measured", threshold=0.6),),
        saves=Savings(phase_share=0.42, request_share=0.37, low=0.3, high=0.42, basis="half the bytes per weight"),
        action="Load the model in bfloat16, if its output stays acceptable.",
        not_helping="A faster tokenizer: it is outside this request's wall.",
        verify="decode's pass.p50 falls, mbu stays.",
    )
    collector = Finding(
        code="gc-pauses",
        severity="INFO",
        phase="decode",
        claim="Python's garbage collector paused one decode pass by 5.9 ms.",
        evidence=(Evidence(metric="gc_share", value=0.0095, source="measured", threshold=0.005),),
        saves=Savings(phase_share=0.009, request_share=0.008, low=0.0, high=0.009, basis="no pauses at all"),
        action="Call gc.freeze() after loading the model.",
        not_helping="More threads.",
        verify="ledger.gc_ns falls to 0.",
    )
    return weights, collector
