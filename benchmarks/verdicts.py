"""Whether verdicts and the ledger are right where the truth is known: planted causes on this machine.

    python benchmarks/verdicts.py

Calibrates afresh, then: SmolLM2 in float32 on a prompt of 256 tokens (prefill must be compute-bound at no less than
70 % of the measured GEMM peak, decode must not be called compute-bound), a two-layer Llama (decode must be
overhead-bound), and delays of known length in a logits processor (they must come back in `select`).
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

import inferscope
from inferscope.experiments.models import load
from machine import write
from overhead import tiny_llama

if TYPE_CHECKING:
    from inferscope import DeviceSpec, Result

DELAYS_MS = (0.6, 1.2, 3.6)
ROUNDS = 7
RUNS = 20


class Delay:
    """A logits processor that takes a known time, and notes how long it really took."""

    def __init__(self, delay_ms: float) -> None:
        """Take `delay_ms` per pass."""
        self.delay_ns = int(delay_ms * 1e6)
        self.taken_ns = 0

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Busy-wait: sleeping would add the scheduler's own time."""
        started = time.perf_counter_ns()
        while time.perf_counter_ns() - started < self.delay_ns:
            pass
        self.taken_ns += time.perf_counter_ns() - started
        return scores


def traced(model: Any, ids: torch.Tensor, device: DeviceSpec, tokens: int, **options: Any) -> Result:  # noqa: ANN401 - passed on to generate
    """One traced request."""
    with inferscope.trace(model, device=device, sinks=()) as session:
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)
    return session.last


def verdict(result: Result, phase: str) -> dict[str, Any]:
    """A phase's verdict with its evidence."""
    opinion = result.diagnosis.phase(phase)
    return {
        "bound": opinion.bound,
        "confidence": opinion.confidence,
        "reasons": opinion.reasons,
        "shares": opinion.shares,
        "mfu": opinion.mfu,
        "mbu": opinion.mbu,
        "roof_share": opinion.roof_share,
        "evidence": [asdict(row) for row in opinion.evidence],
        "findings": [finding.code for finding in result.findings if finding.phase == phase],
    }


def gemm_flops_per_s() -> float:
    """FLOP/s of a float32 matrix product of 1,024 cubed now: median of eleven."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times_s = []
    for _ in range(12):
        started = time.perf_counter()
        left @ right
        times_s.append(time.perf_counter() - started)
    return 2 * 1024**3 / statistics.median(times_s[1:])


def beside_gemm(model: Any, ids: torch.Tensor, device: DeviceSpec) -> list[float]:  # noqa: ANN401 - a model
    """Prefill's FLOP/s over those of a matrix product right before and after it, so that neighbours hit both."""
    ratios = []
    before = gemm_flops_per_s()
    for _ in range(3 * ROUNDS):
        prefill = traced(model, ids, device, 1).diagnosis.phase("prefill")
        after = gemm_flops_per_s()
        ratios.append(prefill.achieved_flops_per_s / ((before + after) / 2))
        before = after
    return ratios


def repeated(model: Any, ids: torch.Tensor, device: DeviceSpec, tokens: int) -> dict[str, Any]:  # noqa: ANN401 - a model
    """The verdicts of twenty runs of one workload, and the evidence of the one with the median prefill."""
    traced(model, ids, device, 4)
    results = [traced(model, ids, device, tokens) for _ in range(RUNS)]
    middle = sorted(results, key=lambda result: result.record.phase("prefill").wall_ns)[RUNS // 2]
    opinions = {phase: [result.diagnosis.phase(phase) for result in results] for phase in ("prefill", "decode")}
    return {
        "bounds": {phase: [opinion.bound for opinion in found] for phase, found in opinions.items()},
        "confidences": {phase: [opinion.confidence for opinion in found] for phase, found in opinions.items()},
        "prefill_mfu": [result.diagnosis.phase("prefill").mfu for result in results],
        "residual_share": max(result.record.ledger.residual_ns / result.record.wall_ns for result in results),
        "prefill": verdict(middle, "prefill"),
        "decode": verdict(middle, "decode"),
    }


def delays(model: Any, ids: torch.Tensor, device: DeviceSpec, tokens: int) -> list[dict[str, float]]:  # noqa: ANN401 - a model
    """Injected time per pass against what `select` gained, interleaved with runs without a delay.

    On the tiny model the wait itself cools the caches, so that the selection's own operators become slower as well:
    that is time in `select` too, and shows up as an excess there.
    """
    rows = []
    for delay_ms in DELAYS_MS:
        gained, taken = [], []
        for _ in range(ROUNDS):
            bare = traced(model, ids, device, tokens, logits_processor=[Delay(0)]).record.phase("decode")
            delay = Delay(delay_ms)
            slow = traced(model, ids, device, tokens, logits_processor=[delay]).record.phase("decode")
            gained.append((slow.ledger.select_ns / slow.passes - bare.ledger.select_ns / bare.passes) / 1e3)
            taken.append(delay.taken_ns / (slow.passes + 1) / 1e3)
        row = {
            "asked_us": delay_ms * 1e3,
            "taken_us": statistics.median(taken),
            "recovered_us": statistics.median(gained),
        }
        rows.append({**row, "error_share": row["recovered_us"] / row["taken_us"] - 1})
    return rows


def main() -> None:
    """Run all three and write the result file."""
    device = inferscope.calibrate(refresh=True)
    tiny, ids = tiny_llama(), torch.randint(1, 1000, (1, 16))
    with torch.inference_mode():
        results = {
            "device": asdict(device),
            "tiny_llama": repeated(tiny, ids, device, 64),
            "delays_tiny_llama": delays(tiny, ids, device, 32),
        }
        smollm2 = load(None).model
        results["smollm2"] = repeated(smollm2, torch.randint(10, 40_000, (1, 256)), device, 32)
        results["prefill_beside_gemm"] = beside_gemm(smollm2, torch.randint(10, 40_000, (1, 256)), device)
        results["delays_smollm2"] = delays(smollm2, torch.randint(10, 40_000, (1, 16)), device, 12)
    for name in ("smollm2", "tiny_llama"):
        for phase in ("prefill", "decode"):
            row = results[name][phase]
            print(f"{name} {phase}: {results[name]['bounds'][phase]} {row['confidence']} {row['reasons']}")
            print(f"  shares { ({key: round(value, 3) for key, value in row['shares'].items() if value}) }")
            print(f"  mfu {row['mfu']:.3f} mbu {row['mbu']:.3f} findings {row['findings']}")
            for entry in row["evidence"]:
                print(f"    {entry['metric']} {entry['value']:.4g} against {entry['threshold']} ({entry['note']})")
    print("prefill MFU", [round(value, 3) for value in results["smollm2"]["prefill_mfu"]])
    ratios = results["prefill_beside_gemm"]
    print("prefill beside a GEMM", statistics.median(ratios), [round(value, 2) for value in ratios])
    for name in ("delays_smollm2", "delays_tiny_llama"):
        for row in results[name]:
            taken, recovered, error = row["taken_us"], row["recovered_us"], 100 * row["error_share"]
            print(f"{name}: {taken:.0f} us -> select +{recovered:.0f} us ({error:+.1f} %)")
    write("verdicts-cpu", results)


if __name__ == "__main__":
    main()
