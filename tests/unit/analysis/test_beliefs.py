"""What is commonly believed about inference, and what the code says instead: one function per row of the page."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from made_requests import COMPUTE, DEVICE, MEMORY, MS, TINY, measured, model, phase, recorded, request, terms

from inferscope.analysis.advice import recommend
from inferscope.analysis.cost import pass_cost
from inferscope.analysis.diagnosis import diagnose
from inferscope.analysis.findings import find
from inferscope.analysis.roofline import Roofs, demand
from inferscope.analysis.utilisation import WindowSample, classify
from inferscope.analysis.verdict import Diagnosis
from inferscope.hardware.catalog import catalog, lookup
from inferscope.records import DeviceTime
from inferscope.specs import BASIS, CacheTerms, CostTerms, OperatorTerms
from inferscope.testing import make_gpu_sample

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "common-beliefs.md"
H100 = lookup("H100-SXM5-80GB")
PEAK, BANDWIDTH = H100.compute_flops_per_s["bfloat16"].value, H100.copy_bytes_per_s.value
ROOFS = Roofs(compute=measured(PEAK), memory=measured(BANDWIDTH), memory_class="memory", kernel=None)
PARAMETERS = 6_607_077_376  # of Llama-2-7B in matrices: 32 layers and the head
ATTENTION = 4 * 4096 * 32  # FLOPs per pair: 32 layers, all heads together 4096 wide


def over(**coefficients):
    return tuple(coefficients.get(f"m{name}", 0) for name in BASIS)


def llama(*, weight_bytes=2 * PARAMETERS, kv_heads=32):
    """Llama-2-7B as terms: matrices once per token, attention by pairs, weights once per pass."""
    nothing = over()
    rest = {"calls": over(m1=1), "launches": over(m1=1), "activation_bytes": nothing}
    matrices = {"flops": over(mbq=2 * PARAMETERS), "weight_bytes": over(m1=weight_bytes)}
    pairs = {"flops": over(mbqk=ATTENTION, mbqq=-ATTENTION // 2, mbq=ATTENTION // 2), "weight_bytes": nothing}
    groups = (
        ("linear 4096x4096", matrices),
        ("attention", pairs),
        ("kv-cache", {"flops": nothing, "weight_bytes": nothing}),
    )
    operators = tuple(
        OperatorTerms(
            group=group, regime=regime, flops_full=own["flops"], executed_bytes=own["weight_bytes"], **own, **rest
        )
        for group, own in groups
        for regime in ("prefill", "decode", "continuation")
    )
    per_token = 2 * kv_heads * 128 * 32 * 2
    caches = (CacheTerms(kind="tokens", unit_bytes=per_token),)
    return CostTerms(
        operators=operators, kv_bytes_per_token=per_token, logits_bytes=0, supports_logits_to_keep=True, caches=caches
    )


def forward(batch, q=1, past=0, **options):
    return pass_cost(llama(**options), batch_size=batch, q_len=q, past_len=past)


def needed(cost, roofs=ROOFS):
    return demand(cost, roofs)


def binds(cost):
    both = needed(cost)
    return "compute" if both.compute_ns > both.memory_ns else "memory"


def tokens_per_s(batch, past=0):
    return batch / needed(forward(batch, past=past)).total_ns


def verdict(record, device=DEVICE):
    return diagnose(record, device=device).phases[0]


def finding(record, code, device=DEVICE):
    return next(each for each in find(record, diagnose(record, device=device)) if each.code == code)


def decode(work, forward_ns=MS, **options):
    return request(model(work), phase("decode", forward_ns, **options))


def window(**sample):
    return classify(WindowSample(gpus=(make_gpu_sample(**sample),)))


def sparse_peaks():
    assert pytest.approx(989.4e12) == PEAK
    assert pytest.approx(295, abs=1) == PEAK / BANDWIDTH
    for name, device in catalog().items():
        for dtype, peak in device.compute_flops_per_s.items():
            assert peak.value <= 2.6e15 or dtype.startswith(("float8", "int8", "float4", "int4")), (name, dtype)


def slope_and_flat():
    """What is reached grows with intensity below the ridge, where memory binds, and not above it."""
    reached = {}
    for tokens in (8, 16, 2048, 4096):
        cost = replace(
            forward(1), flops=tokens, groups=(replace(forward(1).groups[0], flops=int(1e9) * tokens, bytes=10**9),)
        )
        reached[tokens] = tokens / needed(cost).total_ns
    assert reached[16] == pytest.approx(2 * reached[8])
    assert reached[4096] == pytest.approx(reached[2048])
    assert binds(forward(1)) == "memory"


def saturated_not_idle():
    found = verdict(decode(COMPUTE))
    assert found.bound == "compute"
    assert found.mfu > 0.7


def scaling_with_batch():
    assert binds(forward(8)) == "memory"
    assert tokens_per_s(8) == pytest.approx(8 * tokens_per_s(1), rel=0.01)
    assert binds(forward(1024)) == "compute"
    assert tokens_per_s(2048) == pytest.approx(tokens_per_s(1024), rel=0.05)
    # Bound by the cache it plateaus as well, and is not bound by compute.
    assert binds(forward(512, past=4096)) == "memory"
    assert tokens_per_s(1024, past=4096) < 1.2 * tokens_per_s(512, past=4096)


def memory_utilisation_is_time():
    assert window(memory_time_share=1.0, dram_activity=0.1, tensor_activity=0.8).bound == "compute"


def sm_share_is_time():
    assert window(time_share=0.95, sm_activity=0.9, memory_time_share=0.3, dram_activity=0.75).bound == "memory"


def mfu_of_decode():
    cost = forward(1, past=512)
    assert 0.002 < cost.flops / (needed(cost).total_ns * 1e-9 * PEAK) < 0.004


def narrower_weights_help():
    wide, narrow = needed(forward(1, past=128)), needed(forward(1, past=128, weight_bytes=PARAMETERS))
    assert narrow.total_ns < 0.52 * wide.total_ns
    assert finding(decode(MEMORY), "decode-weight-bound").saves.low > 0.2


def attention_is_small():
    def share(tokens):
        cost = forward(1, q=tokens)
        return next(group.flops for group in cost.groups if group.group == "attention") / cost.flops

    assert share(512) == pytest.approx(0.01, abs=0.002)
    assert share(49_000) == pytest.approx(0.5, abs=0.02)


def size_of_the_cache():
    assert forward(8, past=1023).kv_read_bytes == 8 * forward(1, past=1023).kv_read_bytes
    assert forward(1, past=1023, kv_heads=8).kv_read_bytes * 4 == forward(1, past=1023).kv_read_bytes


def batching_amortises_weights():
    one, many = forward(1, past=1023), forward(16, past=1023)
    assert many.weight_bytes == one.weight_bytes
    assert many.kv_read_bytes == 16 * one.kv_read_bytes


def paging_saves_memory():
    spec = model({"weight_bytes": 1}, groups=(terms("attention"), terms("kv-cache")), kv_bytes_per_token=300_000)
    assert "it saves memory, not traffic" in finding(request(spec, phase("decode", MS)), "decode-kv-bound").not_helping


def event_time_includes_gaps():
    made = decode(MEMORY)
    wall = made.phases[0].wall_ns
    device_time = DeviceTime(
        low_ns=0, high_ns=wall, provenance="bound", passes=10, cycles_ns=wall, events_ns=wall, lag_ns=0
    )
    on_gpu = replace(
        made, model=replace(made.model, device="cuda:0"), phases=(replace(made.phases[0], device=device_time),)
    )
    assert wall - device_time.high_ns == 0
    assert verdict(on_gpu, replace(DEVICE, kind="cuda")).bound == "overhead"


def graphs_reduce():
    overhead = finding(decode(TINY), "overhead-bound-passes")
    assert overhead.saves.high < overhead.saves.phase_share / overhead.saves.request_share
    assert "cheaper, not free" in overhead.not_helping
    assert "Pipeline parallelism" in finding(decode(TINY, syncs=10), "sync-per-token").not_helping


def fusion_removes_traffic():
    spec = model(MEMORY, groups=(terms("attention scores", extra_bytes=5_000_000),), attention="eager")
    made = request(spec, phase("prefill", MS + MS // 2))
    assert verdict(made).bound == "memory"
    assert finding(made, "attention-unfused").saves.low > 0.1


def gaps_are_overhead():
    made = decode(MEMORY, 5 * MS)
    gaps = replace(made, phases=(recorded(made.phases[0], linear=MS),))
    assert verdict(gaps).bound == "overhead"


def quantised_weights_keep_the_flops():
    wide, narrow = forward(1, q=4096), forward(1, q=4096, weight_bytes=PARAMETERS // 2)
    assert narrow.flops == wide.flops
    assert needed(narrow).compute_ns == needed(wide).compute_ns
    made = request(model(COMPUTE), phase("prefill", MS))
    assert "the FLOPs stay" in finding(made, "prefill-compute-bound").not_helping


def tokens_decide_prefill():
    assert binds(forward(1, q=2048)) == "compute"
    assert binds(forward(8, q=4)) == "memory"


def pipes_are_apart():
    found = window(tensor_activity=0.0, fp64_activity=0.9, dram_activity=0.1)
    assert [each.code for each in recommend(found)] == ["window-compute-without-tensor-cores"]


def gpu_util_is_time():
    found = window(time_share=1.0, sm_activity=0.2, dram_activity=0.1)
    assert "gpu-util-misleads" in [each.code for each in found.warnings]


def phases_are_apart():
    both = diagnose(request(model(COMPUTE), phase("prefill", MS), phase("decode", 4 * MS)), device=DEVICE)
    assert [each.bound for each in both.phases] == ["compute", "inefficient"]
    assert "bound" not in {field.name for field in fields(Diagnosis)}


def the_batch_decides():
    assert binds(forward(1)) != binds(forward(1024))
    assert "another batch than production's" in finding(decode(MEMORY), "decode-weight-bound").not_helping


def more_flops_for_decode():
    twice = replace(ROOFS, compute=measured(2 * PEAK))
    cost = forward(1, past=512)
    assert needed(cost, twice).total_ns == pytest.approx(needed(cost).total_ns, rel=0.001)
    assert "more FLOP/s" in finding(decode(MEMORY), "decode-weight-bound").not_helping


BELIEFS = {
    "An H100 has 1979 TFLOP/s, its ridge is at 590": sparse_peaks,
    "In a roofline the flat part is memory and the slope compute": slope_and_flat,
    "Compute-bound means that cores are under-used": saturated_not_idle,
    "Throughput that grows with the batch means compute-bound; a plateau, memory-bound": scaling_with_batch,
    "`dmon -s m`, or NVML's memory utilisation, is bandwidth": memory_utilisation_is_time,
    "SM% above 80 and mem% below 50 mean compute-bound": sm_share_is_time,
    "Decode uses 20 to 40 % of the arithmetic": mfu_of_decode,
    "TPOT does not improve with quantised weights": narrower_weights_help,
    "Prefill is dominated by attention": attention_is_small,
    "The cache takes 2·s·L·H·d·bytes": size_of_the_cache,
    "Batching amortises reading the cache": batching_amortises_weights,
    "PagedAttention cuts traffic": paging_saves_memory,
    "Wall less event time is Python's overhead": event_time_includes_gaps,
    "CUDA graphs eliminate launch cost; pipeline parallelism cures synchronisation": graphs_reduce,
    "Fusion is useless when memory-bound": fusion_removes_traffic,
    "Idle between operators means memory-bound": gaps_are_overhead,
    "Quantised weights mean fewer FLOPs": quantised_weights_keep_the_flops,
    "Small-batch prefill is memory-bound": tokens_decide_prefill,
    "`dmma` counts tensor cores; memory efficiency is sectors over 4 times the requests": pipes_are_apart,
    "GPU-Util 100 % means that the GPU is busy": gpu_util_is_time,
    "One verdict on the whole request will do": phases_are_apart,
    "A benchmark at any batch will do": the_batch_decides,
    "More TFLOP/s make decode faster": more_flops_for_decode,
}


@pytest.mark.parametrize("belief", BELIEFS)
def test_the_code_says_what_is_true(belief):
    BELIEFS[belief]()


def test_the_page_has_the_same_rows():
    rows = re.findall(r"^\| (?!belief|---)(.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [belief for belief, _ in rows] == list(BELIEFS)
    assert all(len(truth) > 30 for _, truth in rows)
