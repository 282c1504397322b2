"""Verdicts on made records: the planted cause wins, units do not matter, missing evidence gives unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_requests import model as made_model
from made_requests import phase as made_phase
from made_requests import recorded, request, terms

from inferscope.analysis.diagnosis import diagnose
from inferscope.analysis.findings import find
from inferscope.records import PhaseLedger, QuantileSketch, Work
from inferscope.specs import BASIS, Ceiling, CostTerms, DeviceSpec, ModelSpec
from inferscope.testing import make_record

DEVICE = DeviceSpec(
    name="made",
    kind="cpu",
    compute_flops_per_s={
        "float32": Ceiling(value=100e9, source="measured", spread=0.01),
        "bfloat16": Ceiling(value=400e9, source="measured", spread=0.01),
    },
    copy_bytes_per_s=Ceiling(value=10e9, source="measured", spread=0.01),
    gemv_bytes_per_s={"float32": Ceiling(value=9e9, source="measured", spread=0.01)},
    cache_bytes_per_s=Ceiling(value=100e9, source="measured", spread=0.01),
    cache_bytes=1_000_000,
    dispatch_ns=Ceiling(value=1_000.0, source="measured", spread=0.01),
    module_op_ns=Ceiling(value=1_500.0, source="measured", spread=0.01),
)


def model(*, flops=0, weight_bytes=0, activation_bytes=0, calls=1, device="cpu"):
    """A model whose every pass costs the same."""
    counted = terms(
        "linear 1x1", flops=flops, weight_bytes=weight_bytes, activation_bytes=activation_bytes, calls=calls
    )
    every = tuple(replace(counted, regime=regime) for regime in ("prefill", "decode", "continuation"))
    cost = CostTerms(operators=every, kv_bytes_per_token=0, logits_bytes=0, supports_logits_to_keep=True)
    return ModelSpec(name="made", model_class="Made", dtype="float32", device=device, cost=cost)


def record(spec, *, forward_ns, between_ns=0, passes=10, phase="decode", deliver_ns=0, pass_ns=None, away_ns=0):
    source = make_record().phase("decode")
    ledger = PhaseLedger(
        issue_ns=passes * forward_ns,
        select_ns=passes * between_ns,
        wait_ns=0,
        deliver_ns=passes * deliver_ns,
        offcpu_ns=passes * away_ns,
        gc_ns=0,
    )
    made = replace(
        source,
        name=phase,
        start_ns=0,
        end_ns=ledger.total_ns,
        wall_ns=ledger.total_ns,
        passes=passes,
        tokens=passes,
        pass_ns=QuantileSketch.of(pass_ns or [forward_ns] * passes),
        worst=(),
        ledger=ledger,
        work=(Work(regime="decode", passes=passes, monomials=(passes, *[0] * (len(BASIS) - 1))),),
        syncs=passes,
    )
    return make_record(model=spec, phases=(made,))


def verdict(*args, device=DEVICE, **kwargs):
    made = record(*args, **kwargs)
    return diagnose(made, device=device).phases[0]


def codes(*args, device=DEVICE, **kwargs):
    made = record(*args, **kwargs)
    return [finding.code for finding in find(made, diagnose(made, device=device))]


COMPUTE = {"flops": 80_000_000, "weight_bytes": 2_000_000, "calls": 10}  # 0.8 ms at the roof, 0.2 ms of bytes
MEMORY = {"flops": 1_000_000, "weight_bytes": 9_000_000, "calls": 10}  # 0.9 ms at the roof
TINY = {"flops": 1_000, "weight_bytes": 2_000_000, "calls": 500}  # 0.2 ms of bytes, 0.75 ms of dispatch


@pytest.mark.parametrize(
    ("work", "forward_ns", "between_ns", "bound"),
    [
        (COMPUTE, 1_000_000, 10_000, "compute"),
        (MEMORY, 1_000_000, 10_000, "memory"),
        (TINY, 1_000_000, 10_000, "overhead"),
        ({"flops": 1_000, "weight_bytes": 900_000, "calls": 1}, 11_000, 0, "cache"),
        (MEMORY, 5_000_000, 10_000, "inefficient"),
        (COMPUTE, 1_000_000, 3_000_000, "overhead"),
    ],
)
def test_the_planted_cause_is_the_verdict(work, forward_ns, between_ns, bound):
    found = verdict(model(**work), forward_ns=forward_ns, between_ns=between_ns)
    assert (found.bound, found.confidence) == (bound, "high"), found.reasons
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert {row.metric for row in found.evidence} >= {"achieved_flops_per_s", "achieved_bytes_per_s"}


@pytest.mark.parametrize(
    ("spec", "device", "reason"),
    [
        (replace(model(**COMPUTE), cost=None, cost_note="counted nothing"), DEVICE, "counted nothing"),
        (model(**COMPUTE), None, "calibrate"),
        (model(**COMPUTE), DeviceSpec(name="bare", kind="cpu"), "no compute ceiling"),
        (replace(model(**COMPUTE), dtype="float16"), DEVICE, "float16"),
        (model(**COMPUTE, device="cuda:0"), DEVICE, "device time was not measured"),
    ],
)
def test_missing_evidence_gives_unknown_with_the_reason(spec, device, reason):
    found = verdict(spec, forward_ns=1_000_000, device=device)
    assert (found.bound, found.confidence, found.shares) == ("unknown", "low", {})
    assert reason in found.reasons[0]
    assert found.mfu is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"work": {**COMPUTE, "flops": 52_000_000, "calls": 300}}, "balanced"),
        ({"forward_ns": 500_000}, "faster than the measured roofs"),
        ({"pass_ns": [1_000_000] * 8 + [9_000_000] * 2}, "spread"),
        ({"device": replace(DEVICE, copy_bytes_per_s=Ceiling(value=10e9, source="datasheet"))}, "datasheet"),
    ],
)
def test_doubt_lowers_the_confidence_and_says_why(change, reason):
    options = {"forward_ns": 1_000_000, "device": DEVICE, **change}
    found = verdict(model(**options.pop("work", COMPUTE)), **options)
    assert found.confidence == "low"
    assert any(reason in text for text in found.reasons), found.reasons


def test_a_beaten_roof_is_scaled_so_that_shares_stay_shares():
    found = verdict(model(**COMPUTE), forward_ns=400_000)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.roof_share > 1


amounts = st.integers(1, 10**9)


@given(flops=amounts, extra=amounts, weight_bytes=amounts, calls=st.integers(1, 5000), forward_ns=amounts)
def test_more_flops_at_equal_bytes_never_move_compute_to_memory(flops, extra, weight_bytes, calls, forward_ns):
    before = verdict(model(flops=flops, weight_bytes=weight_bytes, calls=calls), forward_ns=forward_ns)
    assume(before.bound == "compute")
    after = verdict(model(flops=flops + extra, weight_bytes=weight_bytes, calls=calls), forward_ns=forward_ns)
    assert after.bound == "compute"


@given(flops=amounts, weight_bytes=amounts, calls=st.integers(1, 5000), forward_ns=amounts, between_ns=amounts)
def test_shares_sum_to_one_and_none_is_negative(flops, weight_bytes, calls, forward_ns, between_ns):
    found = verdict(
        model(flops=flops, weight_bytes=weight_bytes, calls=calls), forward_ns=forward_ns, between_ns=between_ns
    )
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert min(found.shares.values()) >= 0
    assert found.shares[found.bound] == max(found.shares.values())


jitters_of_twenty = st.lists(
    st.tuples(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02)), min_size=20, max_size=20, unique=True
)


def confident_bounds(spec, forward_ns, between_ns, jitters):
    """What runs of one workload that differ by jitter are said to be bound by, where the confidence is not low."""
    runs = [
        verdict(spec, forward_ns=round(forward_ns * (1 + inside)), between_ns=round(between_ns * (1 + outside)))
        for inside, outside in jitters
    ]
    return {run.bound for run in runs if run.confidence != "low"}


@given(
    flops=amounts,
    weight_bytes=amounts,
    calls=st.integers(1, 5000),
    forward_ns=st.integers(1_000, 10**9),
    between_ns=amounts,
    jitters=jitters_of_twenty,
)
@settings(max_examples=50)
def test_twenty_runs_of_one_workload_have_one_verdict_or_a_low_confidence(
    flops, weight_bytes, calls, forward_ns, between_ns, jitters
):
    spec = model(flops=flops, weight_bytes=weight_bytes, calls=calls)
    assert len(confident_bounds(spec, forward_ns, between_ns, jitters)) <= 1


@given(
    flops=st.floats(6, 9).map(lambda power: round(10**power)),
    weight_bytes=st.floats(6, 9).map(lambda power: round(10**power)),
    calls=st.integers(1, 30),
    slack=st.floats(1.0, 3.0),
    jitters=jitters_of_twenty,
)
@settings(max_examples=50)
def test_twenty_runs_at_the_border_of_two_verdicts_have_none_of_them_with_confidence(
    flops, weight_bytes, calls, slack, jitters
):
    """Overhead as large as the largest other share: jitter alone decides which of the two is the largest."""
    spec = model(flops=flops, weight_bytes=weight_bytes, calls=calls)
    forward_ns = round(slack * max(flops / 100, weight_bytes / 9))
    shares = verdict(spec, forward_ns=forward_ns).shares
    others = max(share for name, share in shares.items() if name != "overhead")
    between_ns = max(0.0, others - shares["overhead"]) * forward_ns
    assert len(confident_bounds(spec, forward_ns, between_ns, jitters)) <= 1


@given(
    flops=amounts,
    weight_bytes=st.integers(2_000_000, 10**9),
    calls=st.integers(1, 5000),
    forward_ns=amounts,
    scale=st.integers(2, 1000),
)
def test_a_slower_machine_in_every_respect_has_the_same_verdict(flops, weight_bytes, calls, forward_ns, scale):
    """Time is relative: stretching every duration and every ceiling alike must change nothing."""
    slow = replace(
        DEVICE,
        compute_flops_per_s={
            name: replace(peak, value=peak.value / scale) for name, peak in DEVICE.compute_flops_per_s.items()
        },
        copy_bytes_per_s=replace(DEVICE.copy_bytes_per_s, value=DEVICE.copy_bytes_per_s.value / scale),
        gemv_bytes_per_s={},
        dispatch_ns=replace(DEVICE.dispatch_ns, value=DEVICE.dispatch_ns.value * scale),
        module_op_ns=replace(DEVICE.module_op_ns, value=DEVICE.module_op_ns.value * scale),
    )
    spec = model(flops=flops, weight_bytes=weight_bytes, calls=calls)
    fast = verdict(spec, forward_ns=forward_ns, device=replace(DEVICE, gemv_bytes_per_s={}))
    stretched = verdict(spec, forward_ns=forward_ns * scale, device=slow)
    assert stretched.shares == pytest.approx(fast.shares, rel=1e-9, abs=1e-12)


def test_weight_bound_decode_fires_and_stays_silent():
    assert "decode-weight-bound" in codes(model(**MEMORY), forward_ns=1_000_000)
    assert "decode-weight-bound" not in codes(model(**COMPUTE), forward_ns=1_000_000)
    activations = {"flops": 1_000_000, "weight_bytes": 3_000_000, "activation_bytes": 6_000_000}
    assert "decode-weight-bound" not in codes(model(**activations), forward_ns=1_000_000)


def test_compute_bound_prefill_fires_and_stays_silent():
    assert "prefill-compute-bound" in codes(model(**COMPUTE), forward_ns=1_000_000, phase="prefill")
    assert "prefill-compute-bound" not in codes(model(**COMPUTE), forward_ns=1_000_000, phase="decode")
    assert "prefill-compute-bound" not in codes(model(**MEMORY), forward_ns=1_000_000, phase="prefill")


def test_a_faster_dtype_is_only_promised_where_one_was_measured():
    one_dtype = replace(DEVICE, compute_flops_per_s={"float32": DEVICE.compute_flops_per_s["float32"]})
    for device, severity in ((DEVICE, "OPT"), (one_dtype, "INFO")):
        made = record(model(**COMPUTE), forward_ns=1_000_000, phase="prefill")
        finding = find(made, diagnose(made, device=device))[0]
        assert (finding.code, finding.severity) == ("prefill-compute-bound", severity)
        assert (finding.saves is None) == (severity == "INFO")


def test_overhead_bound_fires_inside_forwards_and_python_between_them():
    inside = codes(model(**TINY), forward_ns=1_000_000)
    assert "overhead-bound-passes" in inside
    assert "python-between-passes" not in inside
    between = codes(model(**COMPUTE), forward_ns=1_000_000, between_ns=3_000_000)
    assert "python-between-passes" in between
    assert "overhead-bound-passes" not in between


def test_what_others_or_nobody_explains_is_not_put_down_to_operators():
    away = codes(model(**TINY), forward_ns=1_000_000, away_ns=900_000)
    assert "overhead-bound-passes" not in away
    few = {**TINY, "calls": 10}  # ten operators at 1.5 us, and up to thrice that, in a millisecond
    assert "overhead-bound-passes" not in codes(model(**few), forward_ns=1_000_000)


def test_a_slow_streamer_is_named():
    made = record(model(**COMPUTE), forward_ns=1_000_000, deliver_ns=900_000)
    finding = next(
        entry for entry in find(made, diagnose(made, device=DEVICE)) if entry.code == "python-between-passes"
    )
    assert "the streamer" in finding.claim


def test_kernel_inefficient_fires_and_stays_silent():
    assert "kernel-inefficient" in codes(model(**MEMORY), forward_ns=5_000_000)
    assert "kernel-inefficient" not in codes(model(**MEMORY), forward_ns=1_000_000)


def test_sync_per_token_is_only_worth_knowing_on_a_cpu_and_silent_without_marks():
    made = record(model(**MEMORY), forward_ns=1_000_000)
    finding = next(entry for entry in find(made, diagnose(made, device=DEVICE)) if entry.code == "sync-per-token")
    assert finding.severity == "INFO"
    phase = replace(made.phases[0], syncs=None)
    silent = make_record(model=made.model, phases=(phase,))
    assert "sync-per-token" not in [entry.code for entry in find(silent, diagnose(silent, device=DEVICE))]


def test_findings_are_ranked_by_what_they_save_of_the_request():
    made = record(model(**TINY), forward_ns=1_000_000, between_ns=500_000)
    found = find(made, diagnose(made, device=DEVICE))
    shares = [finding.saves.request_share for finding in found if finding.saves is not None]
    assert shares == sorted(shares, reverse=True)
    assert found[-1].severity == "INFO"
    for finding in found:
        if finding.saves is not None:
            assert 0 <= finding.saves.low <= finding.saves.request_share <= finding.saves.high <= 1


def test_time_off_the_cpu_is_no_kernel_s_fault_and_named_first():
    made = record(model(**MEMORY), forward_ns=5_000_000, away_ns=4_000_000)
    opinion = diagnose(made, device=DEVICE)
    found = opinion.phases[0]
    assert (found.bound, found.confidence) == ("overhead", "low")
    assert any("off the CPU" in reason for reason in found.reasons)
    assert find(made, opinion)[0].code == "cpu-contention"
    assert "cpu-contention" not in codes(model(**MEMORY), forward_ns=5_000_000, away_ns=100_000)
    assert "cpu-contention" not in codes(model(**MEMORY, device="cuda:0"), forward_ns=5_000_000, away_ns=4_000_000)


def test_a_disturbed_calibration_is_told_from_a_missing_one():
    disturbed = DeviceSpec(name="bare", kind="cpu", rejected=("matrix product in float32: disturbed",))
    assert "nothing else runs" in verdict(model(**COMPUTE), forward_ns=1_000_000, device=disturbed).reasons[0]


def test_a_balance_names_both_sides():
    found = verdict(model(**{**COMPUTE, "flops": 52_000_000, "calls": 300}), forward_ns=1_000_000)
    reason = next(text for text in found.reasons if text.startswith("balanced"))
    ranked = sorted(found.shares, key=lambda name: -found.shares[name])[:2]
    assert reason.startswith(f"balanced between {ranked[0]} (")
    assert f" and {ranked[1]} (" in reason


def test_a_ceiling_whose_readings_were_spread_lowers_the_confidence():
    work = {"flops": 55_000_000, "weight_bytes": 2_000_000, "calls": 10}  # 0.55 ms of compute, the rest is slow kernels
    steady = verdict(model(**work), forward_ns=1_000_000)
    shaky = replace(DEVICE, compute_flops_per_s={"float32": Ceiling(value=100e9, source="measured", spread=0.15)})
    spread = verdict(model(**work), forward_ns=1_000_000, device=shaky)
    assert spread.bound == steady.bound
    assert not any("readings were spread" in reason for reason in steady.reasons)
    assert any("readings were spread" in reason for reason in spread.reasons)
    assert spread.confidence == "low"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wall_ns": 0, "passes": 0, "ledger": PhaseLedger(issue_ns=0, select_ns=0, wait_ns=0, deliver_ns=0,
                                                           offcpu_ns=0, gc_ns=0)}, "no length"),
        ({"passes": 0}, "no length"),
        ({"wall_ns": -5}, "negative or not a number"),
        ({"wall_ns": float("nan")}, "negative or not a number"),
        ({"wall_ns": 123}, "does not add up"),
    ],
)  # fmt: skip
def test_times_that_are_none_give_unknown_and_say_why(change, reason):
    made = record(model(**COMPUTE), forward_ns=1_000_000)
    broken = replace(made, phases=(replace(made.phases[0], **change),))
    found = diagnose(broken, device=DEVICE).phases[0]
    assert (found.bound, found.confidence, found.shares) == ("unknown", "low", {})
    assert reason in found.reasons[0]
    assert not [each.code for each in find(broken, diagnose(broken, device=DEVICE)) if each.severity == "WARN"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
@pytest.mark.parametrize("name", ["compute", "memory"])
def test_a_ceiling_that_is_no_positive_number_gives_unknown(name, value):
    wrong = Ceiling(value=value, source="measured")
    changes = {"compute": {"compute_flops_per_s": {"float32": wrong}}, "memory": {"copy_bytes_per_s": wrong}}
    device = replace(DEVICE, gemv_bytes_per_s={}, **changes[name])
    found = verdict(model(**COMPUTE), forward_ns=1_000_000, device=device)
    assert (found.bound, found.mfu, found.mbu) == ("unknown", None, None)
    assert f"{name} ceiling" in found.reasons[0]


def test_recorded_operators_decide_what_host_stamps_leave_open():
    """The same ledger: operators that fill the forwards mean slow kernels, operators that do not mean overhead."""
    made = record(model(**MEMORY), forward_ns=5_000_000)
    guessed = diagnose(made, device=DEVICE).phases[0]
    verdicts = {}
    for linear_ns in (4_800_000, 1_000_000):
        phase = recorded(made.phases[0], linear=linear_ns)
        verdicts[linear_ns] = diagnose(replace(made, phases=(phase,)), device=DEVICE).phases[0]
    assert guessed.bound == "inefficient"  # the roofs explain 0.9 ms, and nothing else is known
    assert verdicts[4_800_000].bound == "inefficient"
    assert verdicts[1_000_000].bound == "overhead"
    for found in verdicts.values():
        assert sum(found.shares.values()) == pytest.approx(1.0)
        assert {row.metric for row in found.evidence} >= {"recorded_kernel_share", "recorded_python_share"}


def test_recorded_communication_is_a_share_of_its_own():
    made = record(model(**MEMORY), forward_ns=5_000_000)
    phase = recorded(made.phases[0], other=3_500_000)
    named = replace(phase.deep, largest=tuple(replace(each, name="c10d::allreduce_") for each in phase.deep.largest))
    found = diagnose(replace(made, phases=(replace(phase, deep=named),)), device=DEVICE).phases[0]
    assert found.bound == "communication"
    assert found.shares["communication"] == pytest.approx(0.7, abs=0.02)
    assert sum(found.shares.values()) == pytest.approx(1.0)


@given(
    heavy=st.integers(0, 10**7), light=st.integers(0, 10**7), flops=amounts, weight_bytes=amounts,
    forward_ns=st.integers(1, 10**7), passes=st.integers(1, 50),
)  # fmt: skip
def test_shares_sum_to_one_with_recorded_operators_too(heavy, light, flops, weight_bytes, forward_ns, passes):
    made = record(model(flops=flops, weight_bytes=weight_bytes), forward_ns=forward_ns, passes=passes)
    phase = recorded(made.phases[0], linear=heavy, copy=light)
    found = diagnose(replace(made, phases=(phase,)), device=DEVICE).phases[0]
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert min(found.shares.values()) >= 0


@given(flops=amounts, weight_bytes=amounts, calls=st.integers(1, 5000), forward_ns=amounts, factor=st.integers(2, 64))
def test_the_sum_over_operators_does_not_depend_on_how_they_are_cut(flops, weight_bytes, calls, forward_ns, factor):
    """Twice the passes of the same kind, twice the time: no share moves."""
    spec = model(flops=flops, weight_bytes=weight_bytes, calls=calls)
    few, many = (verdict(spec, forward_ns=forward_ns, passes=passes) for passes in (3, 3 * factor))
    assert many.shares == pytest.approx(few.shares, rel=1e-9, abs=1e-9)


def test_a_phase_is_the_sum_over_its_operators_and_not_the_longer_of_two_sums():
    """Half a millisecond of arithmetic in one group, 0.4 ms of bytes in another: a maximum of sums would hide one."""
    head = terms("lm_head 64x1000", weight_bytes=4_000_000)
    spec = made_model({"flops": 50_000_000, "weight_bytes": 1_000_000}, groups=(head,))
    found = diagnose(request(spec, made_phase("decode", 930_000)), device=DEVICE).phases[0]
    assert found.shares["compute"] == pytest.approx(0.5 / 0.93, abs=0.01)
    assert found.shares["memory"] == pytest.approx(0.4 / 0.93, abs=0.01)
    assert found.roof_share == pytest.approx(0.9 / 0.93, abs=0.01)
