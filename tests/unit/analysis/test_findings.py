"""Every rule fires on its cause and stays silent without it, and every finding says what a finding must."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_requests import (
    COMPUTE,
    DEVICE,
    MEMORY,
    MS,
    TINY,
    TWO_DTYPES,
    measured,
    model,
    phase,
    recorded,
    request,
    terms,
)

from inferscope.analysis.diagnosis import diagnose
from inferscope.analysis.findings import CODES, Surroundings, find
from inferscope.analysis.roofline import roofs_for
from inferscope.analysis.savings import Change, Term, change_phase, terms_of
from inferscope.analysis.workload import Workload
from inferscope.records import Contender, DeviceTime, ProcessState, RequestOptions, SyncSeen, WorstPass
from inferscope.specs import BASIS, PeakTerms
from inferscope.syncs import LintReport, SyncPoint
from inferscope.testing import make_gpu_sample

SCORES = terms("attention scores", extra_bytes=8_000_000)
GROWTH = terms("kv-cache", extra_bytes=8_000_000)
REPEATS = terms("kv-repeat", extra_bytes=8_000_000)
ATTENTION = terms("attention", flops=80_000_000)
CACHED = {"weight_bytes": 1_000_000, "flops": 1_000}
KV = model(CACHED, groups=(terms("attention"), terms("kv-cache")), kv_bytes_per_token=300_000)
GPU = replace(
    DEVICE, kind="cuda", compute_flops_per_s={"bfloat16": measured(100e9)}, cache_bytes=None, cache_bytes_per_s=None
)


def on_gpu(made):
    """The same phase with device time: the device never ran dry."""
    wall = made.wall_ns
    return replace(
        made,
        device=DeviceTime(
            low_ns=int(0.95 * wall), high_ns=wall, provenance="saturated", passes=made.passes, cycles_ns=wall,
            events_ns=wall, lag_ns=int(0.8 * wall),
        ),
    )  # fmt: skip


def slow_pass(index, excess_ns, cause="issue"):
    return WorstPass(index=index, start_ns=0, cycle_ns=MS + excess_ns, cause=cause, excess_ns=excess_ns)


def padded(padding, tokens):
    prefill = phase("prefill", 10 * MS, passes=1, q=8, regime="prefill")
    return request(model({**COMPUTE, "flops": 900_000_000}), prefill, padding_tokens=padding, input_tokens=tokens)


def speculating(drafted, accepted, draft_ns):
    phases = (phase("draft", draft_ns), phase("verify", MS, q=4))
    return request(model(MEMORY), *phases, drafted_tokens=drafted, accepted_tokens=accepted, output_len=11 + accepted)


def of_process(**fields):
    return request(model(MEMORY), phase("decode", 5 * MS), process=ProcessState(**fields))


def odd(group):
    spec = model(groups=(terms(group, flops=80_000_000, weight_bytes=1),), dtype="bfloat16", device="cuda:0")
    return request(spec, on_gpu(phase("prefill", MS)))


def beamed(count):
    return request(model(MEMORY), phase("decode", MS, between_ns=2 * MS), options=RequestOptions(num_beams=count))


def grown(cache):
    return request(model(MEMORY, groups=(GROWTH,)), phase("decode", 2 * MS), options=RequestOptions(cache=cache))


def eager(attention):
    return request(model(MEMORY, groups=(SCORES,), attention=attention), phase("prefill", 2 * MS))


def holding():
    """A model whose weights and highest moments are 1,000,000 bytes."""
    spec = model(MEMORY, weight_bytes=600_000)
    peaks = tuple(
        PeakTerms(regime=regime, segment="", live_bytes=(400_000, *[0] * (len(BASIS) - 1)))
        for regime in ("prefill", "decode", "continuation")
    )
    spec = replace(spec, cost=replace(spec.cost, peaks=peaks))
    return request(spec, phase("decode", MS), batch_size=1, input_tokens=8, output_len=4)


def decode(work, forward_ns=MS, **options):
    return request(model(work), phase("decode", forward_ns, **options))


def prefill(work, **options):
    return request(model(work), phase("prefill", MS, **options))


CASES = {
    "cpu-contention": (decode(MEMORY, 5 * MS, away_ns=4 * MS), decode(MEMORY, 5 * MS, away_ns=MS // 10)),
    "neighbour-requests": (decode(MEMORY, contended_ns=3 * MS), decode(MEMORY, contended_ns=MS // 10)),
    "recompute-without-cache": (decode(COMPUTE, q=20, regime="prefill"), decode(COMPUTE)),
    "decode-weight-bound": (decode(MEMORY), decode(COMPUTE)),
    "decode-kv-bound": (request(KV, phase("decode", int(1.2 * MS))), decode(MEMORY)),
    "prefill-compute-bound": (prefill(COMPUTE), prefill(MEMORY)),
    "prefill-attention-bound": (
        request(model({"flops": 8_000_000}, groups=(ATTENTION,)), phase("prefill", MS)),
        prefill(COMPUTE),
    ),
    "prefill-below-ridge": (prefill(MEMORY), prefill(COMPUTE)),
    "overhead-bound-passes": (decode(TINY), decode(COMPUTE)),
    "python-between-passes": (decode(COMPUTE, between_ns=3 * MS), decode(COMPUTE, between_ns=MS // 100)),
    "gc-pauses": (decode(MEMORY, gc_ns=MS // 5), decode(MEMORY, gc_ns=MS // 100)),
    "kv-cache-concatenated": (grown(None), grown("static")),
    "attention-unfused": (eager("eager"), eager("sdpa")),
    "kv-heads-repeated": (request(model(MEMORY, groups=(REPEATS,)), phase("decode", 2 * MS)), decode(MEMORY, 2 * MS)),
    "copies-in-forward": (
        request(model(MEMORY), recorded(phase("decode", 2 * MS), linear=MS, copy=MS // 2)),
        request(model(MEMORY), recorded(phase("decode", 2 * MS), linear=MS, copy=MS // 20)),
    ),
    "kernel-inefficient": (decode(MEMORY, 5 * MS), decode(MEMORY)),
    "matrix-shapes-odd": (odd("linear 577x1000"), odd("linear 576x1000")),
    "tail-passes": (decode(MEMORY, worst=(slow_pass(3, 9 * MS),)), decode(MEMORY, worst=(slow_pass(3, MS // 10),))),
    "cache-resident": (decode({"weight_bytes": 900_000}, 11_000), decode(MEMORY)),
    "sync-per-token": (decode(MEMORY, syncs=10), decode(MEMORY)),
    "weights-offloaded": (
        request(model(MEMORY, weight_bytes=9_000_000, offloaded_bytes=3_000_000), phase("decode", 5 * MS)),
        request(model(MEMORY, weight_bytes=9_000_000, offloaded_bytes=0), phase("decode", MS)),
    ),
    "thread-oversubscription": (
        of_process(intra_op_threads=8, usable_cpus=2),
        of_process(intra_op_threads=2, usable_cpus=2),
    ),
    "compilation-in-request": (
        of_process(compiled_graphs=3, compile_ns=20 * MS),
        of_process(compiled_graphs=3, compile_ns=MS // 10),
    ),
    "speculation-not-paying": (speculating(30, 2, draft_ns=2 * MS), speculating(30, 28, draft_ns=MS // 10)),
    "padding-waste": (padded(90, 10), padded(1, 99)),
    "beams-multiply-work": (beamed(8), beamed(1)),
    "faster-dtype-unused": (decode(MEMORY), request(model(MEMORY, dtype="bfloat16"), phase("decode", MS))),
    "allocator-retries": (decode(MEMORY), decode(MEMORY)),
    "memory-nearly-full": (holding(), holding()),
    "server-underloaded": (decode(MEMORY), decode(MEMORY)),
}
DEVICES = {
    "memory-nearly-full": tuple(replace(DEVICE, memory_bytes=size) for size in (1_020_000, 4_000_000)),
    "matrix-shapes-odd": (GPU, GPU),
    "faster-dtype-unused": (TWO_DTYPES, TWO_DTYPES),
}
LOADS = [Workload(horizon_s=60.0, requests=3, busy_share=share) for share in (0.1, 0.9)]
AROUND = {
    "allocator-retries": (Surroundings(allocator_retries=2), Surroundings(allocator_retries=0)),
    "server-underloaded": (Surroundings(workload=LOADS[0]), Surroundings(workload=LOADS[1])),
}


def found(record, device=DEVICE, surroundings=None):
    return find(record, diagnose(record, device=device), surroundings=surroundings)


def found_in(code, which):
    return found(CASES[code][which], DEVICES.get(code, (DEVICE,) * 2)[which], AROUND.get(code, (None,) * 2)[which])


@pytest.mark.parametrize("code", CODES)
def test_each_rule_fires_on_its_cause_and_is_silent_without_it(code):
    assert code in [each.code for each in found_in(code, 0)]
    assert code not in [each.code for each in found_in(code, 1)]


@pytest.mark.parametrize("code", CODES)
def test_each_finding_says_what_a_finding_must(code):
    finding = next(each for each in found_in(code, 0) if each.code == code)
    assert finding.evidence
    assert len({row.metric for row in finding.evidence}) == len(finding.evidence)
    assert all(text.endswith(".") or text[-1].isalnum() for text in (finding.claim, finding.action))
    assert finding.not_helping
    assert "inferscope compare before.jsonl after.jsonl" in finding.verify
    if finding.saves is not None:
        saves = finding.saves
        assert 0 <= saves.low <= saves.request_share <= saves.high <= 1
        assert saves.high > 0
        assert saves.basis.startswith("that ")
        assert f"{saves.high:.1%}" in finding.verify
        assert finding.touches


def test_a_healthy_request_has_what_is_true_of_it_and_nothing_else():
    """Prefill at the arithmetic's roof, decode at memory's: no rule beyond the two that say so."""
    prompt, tokens = phase("prefill", MS, passes=1, q=32, regime="prefill"), phase("decode", MS, syncs=10)
    spec = model(MEMORY, groups=(terms("attention", flops=1_000), terms("kv-cache")), kv_bytes_per_token=1_000)
    spec = replace(spec, attention="sdpa", weight_bytes=9_000_000, offloaded_bytes=0)
    every = found(
        request(
            spec,
            prompt,
            tokens,
            padding_tokens=0,
            process=ProcessState(intra_op_threads=2, usable_cpus=2, compiled_graphs=0, compile_ns=0),
        )
    )
    assert {(each.phase, each.code, each.severity) for each in every} == {
        ("prefill", "prefill-below-ridge", "OPT"),
        ("decode", "decode-weight-bound", "OPT"),
        ("decode", "sync-per-token", "INFO"),
    }


def test_every_rule_has_a_case():
    assert set(CASES) == set(CODES)


def test_findings_without_a_verdict_rest_on_what_was_measured_alone():
    """No cost, no ceilings: the ledger still tells of collections, selection and neighbours, and of nothing else."""
    spec = replace(model(MEMORY), cost=None)
    made = phase("decode", MS, between_ns=MS, gc_ns=MS // 2, contended_ns=5 * MS)
    codes = {each.code for each in found(request(spec, made), device=None)}
    assert codes == {"python-between-passes", "gc-pauses", "neighbour-requests"}


def test_findings_on_the_same_time_say_so_and_others_do_not():
    spec = model(
        {"weight_bytes": 6_000_000}, groups=(terms("attention"), terms("kv-cache")), kv_bytes_per_token=100_000
    )
    every = found(request(spec, phase("decode", MS, between_ns=MS // 2)), device=TWO_DTYPES)
    by_code = {each.code: each for each in every}
    assert "faster-dtype-unused" in by_code["decode-weight-bound"].overlaps
    assert "decode-weight-bound" in by_code["faster-dtype-unused"].overlaps
    assert by_code["python-between-passes"].overlaps == ()


def test_a_named_cause_comes_before_slow_kernels_without_one():
    spec = model(MEMORY, groups=(SCORES,), attention="eager")
    codes = [each.code for each in found(request(spec, phase("prefill", 6 * MS)))]
    assert codes.index("attention-unfused") + 1 == codes.index("kernel-inefficient")
    small = model(MEMORY, groups=(SCORES,), attention="eager")
    codes = [each.code for each in found(request(small, phase("prefill", 15 * MS)))]
    assert codes.index("kernel-inefficient") == 0  # what 5 % explains does not come before the other 95 %


def test_findings_of_different_phases_do_not_overlap():
    both = request(model(MEMORY), phase("prefill", MS), phase("decode", MS))
    by_code = {each.code: each for each in found(both)}
    assert by_code["prefill-below-ridge"].overlaps == by_code["decode-weight-bound"].overlaps == ()


def test_what_is_explained_by_one_cause_is_not_put_down_to_another():
    threads = ProcessState(intra_op_threads=8, usable_cpus=2)
    made = decode(MEMORY, 5 * MS, away_ns=4 * MS)
    assert found(replace(made, process=threads))[0].code == "thread-oversubscription"
    assert "cpu-contention" not in [each.code for each in found(replace(made, process=threads))]
    shared = decode(MEMORY, 5 * MS, away_ns=4 * MS, contended_ns=38 * MS)
    neighbour = Contender(request_id="beef", trace_id=None, span_id=None, overlap_ns=38 * MS)
    first = found(replace(shared, contended_with=(neighbour,)))[0]
    assert (first.code, "beef" in first.claim) == ("neighbour-requests", True)
    assert "python-between-passes" not in [each.code for each in found(beamed(8))]


def test_a_processor_that_sleeps_is_not_taken_for_other_work_and_other_work_not_for_one():
    brought = RequestOptions(processors=("SleepyProcessor",))
    slept = phase("decode", MS, between_ns=3 * MS, away_ns=3 * MS)
    codes = [each.code for each in found(request(model(COMPUTE), slept, options=brought))]
    assert codes[0] == "python-between-passes"
    assert "cpu-contention" not in codes
    disturbed = phase("decode", 4 * MS, between_ns=MS, away_ns=4 * MS)
    codes = [each.code for each in found(request(model(COMPUTE), disturbed))]
    assert "cpu-contention" in codes
    assert "python-between-passes" not in codes


def test_recorded_concatenations_bound_what_the_growing_cache_takes():
    grown = phase("decode", 2 * MS)
    spec = model(MEMORY, groups=(GROWTH,))
    unseen = next(each for each in found(request(spec, grown)) if each.code == "kv-cache-concatenated")
    assert unseen.evidence[0].source == "analytic"
    for joined_ns, fires in ((MS // 4, True), (MS // 50, False)):
        seen = recorded(grown, linear=MS, copy=joined_ns)
        named = replace(seen.deep, largest=tuple(replace(each, name="aten::cat") for each in seen.deep.largest[1:]))
        every = found(request(spec, replace(seen, deep=named)))
        findings = [each for each in every if each.code == "kv-cache-concatenated"]
        assert bool(findings) == fires
        assert not [each for each in every if each.code == "copies-in-forward"]  # the same time is named once
        assert all(each.evidence[0].value == pytest.approx(0.125) for each in findings)


def test_the_callers_processors_are_named():
    options = RequestOptions(processors=("SlowProcessor",))
    record = request(model(COMPUTE), phase("decode", MS, between_ns=3 * MS), options=options)
    assert "SlowProcessor" in found(record)[0].claim


def test_lines_that_wait_are_named_where_a_lint_knows_them():
    points = [
        SyncPoint(operator=name, file="x.py", line=line, per_token=each, per_request=0.0, why="", certainty="certain")
        for name, line, each in (("Tensor.item", 7, 3.0), ("Tensor.cpu", 9, 0.0))
    ]
    lint = LintReport(
        model="made", unit="token", batch_size=1, counted_tokens=(2, 4), device="cpu", launches_per_token=1.0,
        launches_per_request=0.0, syncs_per_token=3.0, syncs_per_request=0.0, possible_syncs_per_token=0.0,
        possible_syncs_per_request=0.0, sync_points=tuple(points), launches=(), notes=(), versions=(),
    )  # fmt: skip
    finding = next(
        each
        for each in found(decode(MEMORY, syncs=10), surroundings=Surroundings(lint=lint))
        if each.code == "sync-per-token"
    )
    assert "x.py:7 (Tensor.item)" in finding.claim
    assert "x.py:9" not in finding.claim


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"clock_reasons": ("hw_thermal_slowdown",)}, "gpu-throttled-thermal"),
        ({"memory_used_bytes": 79 * 2**30}, "gpu-memory-nearly-full"),
        ({"sm_activity": 0.1, "dram_activity": 0.05}, "gpu-util-misleads"),
    ],
)
def test_a_window_of_the_gpu_adds_what_it_warns_of(change, code):
    plain = Surroundings(gpu=make_gpu_sample())
    changed = Surroundings(gpu=make_gpu_sample(**change))
    assert code in [each.code for each in found(decode(MEMORY), surroundings=changed)]
    assert code not in [each.code for each in found(decode(MEMORY), surroundings=plain)]


amounts = st.integers(0, 10**8)


@given(sizes=st.tuples(amounts, amounts, st.integers(0, 10**6), amounts), calls=st.integers(1, 5000),
       forward_ns=st.integers(1, 10**9), between_ns=amounts)  # fmt: skip
def test_terms_that_share_no_time_add_up_to_no_more_than_the_wall(sizes, calls, forward_ns, between_ns):
    flops, weight_bytes, kv, attention = sizes
    groups = (terms("attention", flops=attention), terms("kv-cache"))
    spec = model({"flops": flops, "weight_bytes": weight_bytes, "calls": calls}, groups=groups, kv_bytes_per_token=kv)
    record = request(spec, phase("decode", forward_ns, between_ns=between_ns))
    verdict = diagnose(record, device=DEVICE).phases[0]
    from inferscope.analysis.findings.case import case_of  # noqa: PLC0415 - what the rules see

    case = case_of(record, record.phases[0], verdict, DEVICE, Surroundings())
    apart = ("weights", "kv", "activations", "linear arithmetic", "attention arithmetic", "kernels", "communication",
             "dispatch", "select", "deliver", "wait")  # fmt: skip
    total = sum(case.part(name) for name in apart)
    assert total <= 1 + 1e-9
    assert sum(case.part(name) for name in ("weights", "kv", "activations")) == pytest.approx(
        verdict.shares["memory"] + verdict.shares["cache"], abs=1e-9
    )


@given(st.lists(st.tuples(st.floats(0, 2e7), st.floats(0, 1), st.floats(0, 1)), max_size=5))
def test_savings_are_an_interval_within_the_request(rows):
    record = decode(MEMORY)
    made = {str(index): Term(name=str(index), time_ns=row[0]) for index, row in enumerate(rows)}
    changes = [Change(str(index), min(row[1:]), max(row[1:])) for index, row in enumerate(rows)]
    saves = change_phase(record, record.phases[0], made, changes, "that")
    if saves is not None:
        assert 0 <= saves.low <= saves.request_share <= saves.high <= 1
        assert 0 <= saves.phase_share <= 1


def test_a_change_of_the_cache_saves_of_the_cache_alone():
    """Weights and cache share the memory time as their bytes do, and each finding promises of its own part."""
    finding = next(each for each in found(CASES["decode-kv-bound"][0]) if each.code == "decode-kv-bound")
    record = CASES["decode-kv-bound"][0]
    verdict = diagnose(record, device=DEVICE).phases[0]
    cost = verdict.cost
    kv_bytes = cost.kv_read_bytes + cost.kv_write_bytes
    of_memory = verdict.shares["memory"] * kv_bytes / (kv_bytes + cost.weight_bytes)
    assert finding.saves.high == pytest.approx(0.5 * of_memory * record.phases[0].wall_ns / record.wall_ns, rel=0.01)


def test_an_unknown_term_saves_nothing_that_is_known():
    record = decode(MEMORY)
    known = terms_of(record.phases[0], diagnose(record, device=None).phases[0], None)
    assert change_phase(record, record.phases[0], known, [Change("weights", 0.5, 1.0)], "that") is None


def test_what_could_save_next_to_nothing_asks_for_nothing():
    """A slow prefill of a hundredth of the request is worth knowing, and not more."""
    slow = phase("prefill", MS // 10, passes=1, q=8, regime="prefill")
    every = found(request(model(MEMORY), slow, phase("decode", 5 * MS)))
    severities = {(each.phase, each.code): each.severity for each in every}
    assert severities["decode", "kernel-inefficient"] == "OPT"
    assert {severity for (where, _), severity in severities.items() if where == "prefill"} == {"INFO"}


def test_a_warning_whose_cost_is_not_known_comes_first():
    first, *others = found(decode(MEMORY), surroundings=Surroundings(allocator_retries=3))
    assert first.code == "allocator-retries"
    assert any(each.severity == "OPT" for each in others)


def test_a_named_cause_of_most_of_it_leaves_nothing_to_do_about_the_unnamed_one():
    made = request(model(COMPUTE), phase("decode", 5 * MS, q=20, regime="prefill"))
    severities = {each.code: each.severity for each in found(made)}
    assert severities["recompute-without-cache"] == "WARN"
    assert severities["kernel-inefficient"] == "INFO"


def test_time_off_the_cpu_does_not_hide_what_the_rest_waits_for():
    made = decode(MEMORY, 4 * MS, away_ns=3 * MS)
    codes = [each.code for each in found(made)]
    assert codes[:2] == ["cpu-contention", "decode-weight-bound"]
    assert "kernel-inefficient" not in codes


def test_collections_inside_forwards_are_no_kernel_s_fault():
    codes = [each.code for each in found(decode(MEMORY, 5 * MS, gc_ns=4 * MS))]
    assert codes[0] == "gc-pauses"
    assert "kernel-inefficient" not in codes


def test_clocks_that_are_held_down_are_no_kernel_s_fault():
    spec = replace(model(MEMORY, dtype="bfloat16", device="cuda:0"))
    slow = request(spec, on_gpu(phase("decode", 2 * MS)))
    gpu = make_gpu_sample(clock_reasons=("hw_thermal_slowdown",), sm_clock_hz=0.9e9)
    assert "kernel-inefficient" in [each.code for each in found(slow, GPU)]
    assert "kernel-inefficient" not in [each.code for each in found(slow, GPU, Surroundings(gpu=gpu))]


def test_waiting_for_a_device_that_works_is_no_loss():
    spec = model(MEMORY, dtype="bfloat16", device="cuda:0")
    made = replace(on_gpu(phase("decode", MS // 10, wait_ns=MS)), syncs=10)
    finding = next(each for each in found(request(spec, made), GPU) if each.code == "sync-per-token")
    assert finding.severity == "INFO"
    assert {row.metric: row.value for row in finding.evidence}["wait_share"] > 0.8


def test_waits_inside_passes_are_counted_and_named_and_leave_the_verdict_in_doubt():
    spec = model(MEMORY, dtype="bfloat16", device="cuda:0")
    starved = replace(on_gpu(phase("decode", 3 * MS)).device, low_ns=0, lag_ns=0)
    seen = SyncSeen(file="layers.py", line=7, count=240)
    made = replace(phase("decode", 3 * MS), device=starved, syncs=10, sync_passes=10, sync_points=(seen,))
    record = request(spec, made)
    finding = next(each for each in found(record, GPU) if each.code == "sync-per-token")
    assert finding.severity == "OPT"
    assert "24 times per token" in finding.claim
    assert "layers.py:7" in finding.claim
    own = replace(made, syncs=None, sync_points=(replace(seen, count=10),))  # a loop of somebody's own
    claim = next(each for each in found(request(spec, own), GPU) if each.code == "sync-per-token").claim
    assert "generate" not in claim
    assert "1 times per pass" in claim
    reasons = diagnose(record, device=GPU).phase("decode").reasons
    assert any("waits about 24 times in each pass" in reason for reason in reasons)


def test_beams_multiply_the_prompt_where_it_was_read_once_for_each():
    def saved(tokens):
        prompt = replace(phase("prefill", 50 * MS, passes=1, q=64, regime="prefill"), tokens=tokens)
        options = RequestOptions(num_beams=8)
        record = request(model(COMPUTE), prompt, phase("decode", MS), options=options, input_tokens=8)
        finding = next(each for each in found(record) if each.code == "beams-multiply-work")
        return finding.saves.high

    assert saved(64) > 2 * saved(8)


def test_a_tail_is_held_against_whole_cycles():
    """Selection takes nine times the forward in every pass: none is slow."""
    slow = tuple(
        WorstPass(index=index, start_ns=0, cycle_ns=10 * MS, cause="select", excess_ns=5 * MS) for index in (0, 1)
    )
    codes = [each.code for each in found(decode(MEMORY, between_ns=9 * MS, worst=slow))]
    assert "tail-passes" not in codes


def test_another_dtype_is_no_advice_where_only_the_cache_is_read():
    spec = model(CACHED, groups=(terms("attention"), terms("kv-cache")), kv_bytes_per_token=300_000)
    assert "faster-dtype-unused" not in [
        each.code for each in found(request(spec, phase("decode", int(1.2 * MS))), TWO_DTYPES)
    ]


def test_recorded_concatenations_say_what_the_cache_takes():
    made = phase("decode", 4 * MS)
    deep = recorded(made, linear=MS, cat=2 * MS)
    joined = replace(
        deep.deep, largest=tuple(replace(one, name="aten::cat", calls=10) for one in deep.deep.largest[1:])
    )
    shares = [
        terms_of(one, verdict, roofs)["cache growth"].time_ns / one.wall_ns
        for one in (made, replace(deep, deep=joined))
        for record in (request(model(MEMORY, groups=(GROWTH,)), one),)
        for verdict, roofs in ((diagnose(record, device=DEVICE).phases[0], roofs_for(DEVICE, "float32", 1e8)),)
    ]
    assert shares[0] < 0.3
    assert 0.45 < shares[1] < 0.55


def test_operators_that_wait_for_too_many_threads_are_not_too_many_operators():
    process = ProcessState(intra_op_threads=16, usable_cpus=2)
    severities = {
        each.code: each.severity for each in found(request(model(TINY), phase("decode", MS), process=process))
    }
    assert severities["thread-oversubscription"] == "WARN"
    assert severities["overhead-bound-passes"] == "INFO"


def test_scores_that_are_most_of_the_traffic_explain_slow_kernels():
    scores = terms("attention scores", extra_bytes=20_000_000)
    work = {"weight_bytes": 2_000_000, "flops": 1_000}

    def codes(attention):
        record = request(model(work, groups=(scores,), attention=attention), phase("prefill", 60 * MS))
        return [(each.code, each.severity) for each in found(record) if each.severity != "INFO"]

    assert codes("eager")[0] == ("attention-unfused", "OPT")
    assert ("kernel-inefficient", "OPT") not in codes("eager")
    assert ("kernel-inefficient", "OPT") in codes("sdpa")
