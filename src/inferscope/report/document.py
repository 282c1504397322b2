"""The report as JSON, for programs. docs/reference/report.md describes it; fields are added, never changed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inferscope.report import story
from inferscope.report.phase_sums import median

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from inferscope.report.digest import Digest, SetupSum
    from inferscope.report.phase_sums import PhaseSum, SketchSum
    from inferscope.report.story import Report

__all__ = ["SCHEMA", "document", "document_text"]

SCHEMA = 1
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def document_text(report: Report) -> Iterator[str]:
    """The document as text, in pieces."""
    encoder = json.JSONEncoder(indent=2, allow_nan=False, ensure_ascii=True)
    yield from encoder.iterencode(document(report))
    yield "\n"


def document(report: Report) -> dict[str, Any]:
    """The document as plain values; what is unknown is None."""
    found = report.found
    lead, help_ = story.headline(found)
    return {
        "kind": "inferscope.report",
        "schema": SCHEMA,
        "inferscope": report.version,
        "headline": lead,
        "most_to_gain": help_ or None,
        "records": _records(report),
        "setups": [_setup(each) for each in sorted(found.setups.values(), key=lambda each: -each.wall_ns)],
        "findings": [
            {
                "model": each.model,
                "requests": each.requests,
                "request_id": each.request_id,
                "saves_low": median(each.low),
                "saves_high": median(each.high),
                "finding": asdict(each.finding),
            }
            for each in found.ranked_findings
        ],
        "slow_passes": [asdict(each) for each in found.slow_passes],
        "operators": _operators(found),
        "launches": _launches(found),
        "waits": _waits(found),
        "own_overhead": None if found.launches.own is None else asdict(found.launches.own),
        "devices": [asdict(device) for device in report.devices],
        "datasheets": [asdict(device) for device in report.datasheets.values()],
        "changes": None if report.changes is None else asdict(report.changes),
        "notes": dict(found.notes),
        "versions": sorted(found.versions),
    }


def _records(report: Report) -> dict[str, Any]:
    found = report.found
    return {
        "count": found.count,
        "diagnosed": found.diagnosed,
        "aborted": sum(each.aborted for each in found.setups.values()),
        "setups_merged": found.level,
        "first_unix_ns": found.first_unix_ns,
        "last_unix_ns": found.last_unix_ns,
        "files": [asdict(each) for each in report.sources],
        "baseline_files": [asdict(each) for each in report.baseline_sources],
        "unjudged": list(report.unjudged),
    }


def _setup(each: SetupSum) -> dict[str, Any]:
    return {
        **asdict(each.setup),
        "requests": each.requests,
        "aborted": each.aborted,
        "diagnosed": each.diagnosed,
        "wall_ns": each.wall_ns,
        "self_ns": each.parts["", "self"],
        "output_tokens": each.output_tokens if each.output_wall_ns else None,
        "request_wall_ns": _values(each.walls_ns),
        "ttft_ns": _values(each.ttfts_ns),
        "tpot_ns": _values(each.tpots_ns),
        "itl_ns": _sketch(each.itl),
        "ledger": [{"phase": phase, "part": kind, "time_ns": time_ns} for (phase, kind), time_ns in each.parts.items()],
        "phases": [_phase(phase) for phase in each.phases.values()],
    }


def _phase(phase: PhaseSum) -> dict[str, Any]:
    return {
        "name": phase.name,
        "requests": phase.requests,
        "wall_ns": phase.wall_ns,
        "passes": phase.passes,
        "pass_ns": _sketch(phase.pass_ns),
        "bound": phase.bound,
        "shares": phase.shares,
        "verdicts": dict(phase.bounds),
        "low_confidence": phase.low_confidence,
        "reasons": dict(phase.reasons),
        "medians": {name: phase.middle(name) for name in phase.values},
    }


def _operators(found: Digest) -> list[dict[str, Any]]:
    return [
        {
            **asdict(key),
            "recorded_passes": each.passes,
            "wall_ns": each.wall_ns,
            "time_ns": each.time_ns,
            "calls": each.calls,
            "launches": each.launches,
            "flops_per_s": each.middle("flops_per_s"),
            "roof_share": each.middle("roof_share"),
        }
        for key, each in found.operators.by_key.items()
    ]


def _launches(found: Digest) -> list[dict[str, Any]]:
    return [
        {
            **asdict(each.latest),
            "model": kind.model,
            "phase": kind.phase,
            "passes": each.passes,
            "change": each.alarm or None,
        }
        for kind, each in found.launches.steps.items()
    ]


def _waits(found: Digest) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "phase": phase,
            "place": place,
            "count": number,
            "passes_looked_at": found.launches.looked[model, phase],
        }
        for (model, phase, place), number in found.launches.waits.most_common()
    ]


def _values(values: array[float]) -> dict[str, float | int | None]:
    ordered = sorted(values)
    quantiles = {name: ordered[math.ceil(share * len(ordered)) - 1] if ordered else None for name, share in _QUANTILES}
    return {"count": len(ordered), **quantiles, "max": ordered[-1] if ordered else None}


def _sketch(sketch: SketchSum) -> dict[str, int | None]:
    one = sketch.finished()
    return {"count": one.count, "p50": one.p50, "p90": one.p90, "p99": one.p99, "max": one.max}
