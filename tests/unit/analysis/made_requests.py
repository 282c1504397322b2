"""Requests made up piece by piece: models with chosen costs, phases with chosen times, and a device to judge by."""

from __future__ import annotations

from dataclasses import replace

from inferscope.records import DeepTime, OperatorTime, PhaseLedger, QuantileSketch, Work
from inferscope.specs import BASIS, CacheTerms, Ceiling, CostTerms, DeviceSpec, ModelSpec, OperatorTerms, monomials
from inferscope.testing import make_record

MS = 1_000_000


def measured(value):
    return Ceiling(value=value, source="measured", spread=0.01)


DEVICE = DeviceSpec(
    name="made",
    kind="cpu",
    compute_flops_per_s={"float32": measured(100e9)},
    copy_bytes_per_s=measured(10e9),
    cache_bytes_per_s=measured(100e9),
    cache_bytes=1_000_000,
    dispatch_ns=measured(1_000.0),
    module_op_ns=measured(1_500.0),
)
TWO_DTYPES = replace(DEVICE, compute_flops_per_s={"float32": measured(100e9), "bfloat16": measured(400e9)})
COMPUTE = {"flops": 80_000_000, "weight_bytes": 2_000_000, "calls": 10}  # 0.8 ms at the roof, 0.2 ms of bytes
MEMORY = {"flops": 1_000_000, "weight_bytes": 9_000_000, "calls": 10}  # 0.9 ms at the roof
TINY = {"flops": 1_000, "weight_bytes": 2_000_000, "calls": 500}  # 0.2 ms of bytes, 0.75 ms of dispatch


def constant(value):
    return (value, *[0] * (len(BASIS) - 1))


def terms(group, *, flops=0, weight_bytes=0, activation_bytes=0, extra_bytes=0, calls=1):
    """A group of operators that costs the same in every pass; `extra_bytes` is traffic beyond the model's."""
    return OperatorTerms(
        group=group,
        regime="decode",
        calls=constant(calls),
        launches=constant(calls),
        flops=constant(flops),
        flops_full=constant(flops),
        weight_bytes=constant(weight_bytes),
        activation_bytes=constant(activation_bytes),
        executed_bytes=constant(weight_bytes + activation_bytes + extra_bytes),
    )


def model(linear=None, *, groups=(), kv_bytes_per_token=0, dtype="float32", device="cpu", **fields):
    """A model of one linear group and whatever other groups are given."""
    every = [terms("linear 64x64", **(linear or {})), *groups]
    operators = tuple(
        replace(entry, regime=regime) for entry in every for regime in ("prefill", "decode", "continuation")
    )
    caches = (CacheTerms(kind="tokens", unit_bytes=kv_bytes_per_token),) if kv_bytes_per_token else ()
    cost = CostTerms(
        operators=operators,
        kv_bytes_per_token=kv_bytes_per_token,
        logits_bytes=0,
        supports_logits_to_keep=True,
        caches=caches,
    )
    return ModelSpec(name="made", model_class="Made", dtype=dtype, device=device, cost=cost, **fields)


def phase(name, forward_ns, *, passes=10, q=1, past=32, regime=None, **each):
    """A phase whose passes are all alike.

    Further arguments that end in `_ns` and belong to the ledger are per pass, as `forward_ns` is; others are fields.
    """
    parts = ("between_ns", "deliver_ns", "away_ns", "gc_ns", "wait_ns")
    between_ns, deliver_ns, away_ns, gc_ns, wait_ns = (passes * each.pop(part, 0) for part in parts)
    ledger = PhaseLedger(
        issue_ns=passes * forward_ns,
        select_ns=between_ns,
        wait_ns=wait_ns,
        deliver_ns=deliver_ns,
        offcpu_ns=away_ns,
        gc_ns=gc_ns,
    )
    one = monomials(1, q, 0 if regime == "prefill" else past, 1)
    made = replace(
        make_record().phases[1],
        name=name,
        start_ns=0,
        end_ns=ledger.total_ns,
        wall_ns=ledger.total_ns,
        passes=passes,
        tokens=passes * q,
        pass_ns=QuantileSketch.of([forward_ns] * passes),
        worst=(),
        ledger=ledger,
        work=(Work(regime=regime or "decode", passes=passes, monomials=tuple(passes * value for value in one)),),
        device=None,
        syncs=None,
    )
    return replace(made, **each)


def request(spec, *phases, **fields):
    """A request of these phases, nothing before, between or after them."""
    return make_record(model=spec, phases=phases, **fields)


def recorded(made, **groups_ns):
    """A phase with recorded operators: nanoseconds per pass by group, over all of its passes."""
    wall_ns = made.ledger.issue_ns
    inside_ns = sum(groups_ns.values()) * made.passes
    entries = tuple(
        OperatorTime(
            group=name.replace("_", "-"), time_ns=time_ns * made.passes, wall_ns=wall_ns, calls=10 * made.passes
        )
        for name, time_ns in groups_ns.items()
    )
    deep = DeepTime(
        passes=made.passes,
        wall_ns=wall_ns,
        operators_ns=inside_ns,
        python_ns=wall_ns - inside_ns,
        gaps=10,
        closure_ns=0,
        cost_ns=1,
        largest=tuple(replace(entry, name=f"aten::{entry.group}") for entry in entries),
    )
    return replace(made, deep=deep, operators=entries)
