"""What acting on a finding would save: a what-if over the phase's own terms, the one place where `saves` comes from.

A term is a part of the phase's wall with a name: weights read at the memory roof, the cache read, arithmetic of the
linear layers, dispatch, selection, and so on. A change takes away a part of some terms, between a least and a most, and
leaves the others as they are; what the phase takes then is the sum of what is left. Terms share nanoseconds where one
is inside another (a collector's pause lies within selection or a forward): their pools tell which findings address the
same time, and such findings are never added up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferscope.analysis.roofline import demand
from inferscope.analysis.verdict import Savings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.roofline import Roofs
    from inferscope.analysis.verdict import PhaseDiagnosis
    from inferscope.records import GenerationRecord, PhaseRecord

__all__ = ["Change", "Term", "change_phase", "change_request", "pools_of", "span", "terms_of"]

_S_TO_NS = 1e9
_ATTENTION = "attention"
_EXTRAS = {
    "kv-cache": "cache growth",
    "kv-repeat": "repeated heads",
    "attention": "attention scores",
    "attention scores": "attention scores",
    "mask": "attention scores",
}
"""Traffic beyond the model's, by the group that causes it: which term it is."""
_CALL_NS = 20_000
"""More than a call of an operator on one token's data takes, recorded, on any host."""
_CONCATENATIONS = {"aten::cat", "aten::concat"}
_POOLS: dict[str, frozenset[str]] = {
    "gc": frozenset({"select", "deliver", "dispatch", "gc"}),
    "compilation": frozenset({"dispatch", "kernels", "compilation"}),
    "neighbours": frozenset({"offcpu"}),
    "offcpu inside": frozenset({"offcpu"}),
    "cache growth": frozenset({"kernels", "kv", "copies"}),
    "repeated heads": frozenset({"kernels", "kv", "copies"}),
    "attention scores": frozenset({"kernels", "attention arithmetic"}),
    "copies": frozenset({"kernels", "copies"}),
    "tail": frozenset({"select", "deliver", "dispatch", "gc", "offcpu"}),
    "forward": frozenset(
        {"weights", "kv", "activations", "linear arithmetic", "attention arithmetic", "kernels", "dispatch"}
    ),
}
"""Which nanoseconds a term lies in, where that is not its own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A part of a phase's wall.

    Attributes:
        name: What takes it.
        time_ns: How long.
        measured: Whether a clock said so; else it follows from the verdict's shares, or from bytes at a roof.
    """

    name: str
    time_ns: float
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """A part of a term that goes away.

    Attributes:
        term: Its name.
        low: Least part of it (0..1).
        high: Largest part.
    """

    term: str
    low: float
    high: float


def terms_of(phase: PhaseRecord, verdict: PhaseDiagnosis, roofs: Roofs | None) -> dict[str, Term]:
    """The terms of a phase that are known, by name.

    Args:
        phase: What was measured.
        verdict: On it; without shares only what the ledger and the recorded operators say is known.
        roofs: The phase's; None where they are not known.
    """
    found = _ledger_terms(phase)
    if verdict.shares:
        found |= _share_terms(phase, verdict)
        if verdict.cost is not None and roofs is not None:
            found |= _work_terms(phase, verdict, verdict.cost, roofs)
            found |= _extra_terms(phase, verdict, verdict.cost, roofs)
    found |= _recorded_terms(phase, found.get("cache growth"))
    wall_ns = max(phase.wall_ns, 0)
    return {
        name: Term(name=name, time_ns=min(term.time_ns, wall_ns), measured=term.measured)
        for name, term in found.items()
        if term.time_ns > 0
    }


def change_phase(
    record: GenerationRecord, phase: PhaseRecord, terms: Mapping[str, Term], changes: Iterable[Change], basis: str
) -> Savings | None:
    """What a phase would be shorter by.

    Args:
        record: The request.
        phase: Of it.
        terms: The phase's.
        changes: What goes away, at most one for each term.
        basis: What the estimate assumes.

    Returns:
        The savings; None where none of the changed terms is known.
    """
    return change_request(record, ((phase, terms, tuple(changes)),), basis)


def change_request(
    record: GenerationRecord,
    parts: Iterable[tuple[PhaseRecord, Mapping[str, Term], tuple[Change, ...]]],
    basis: str,
) -> Savings | None:
    """The same for changes to several phases of a request: they take different time, and add up.

    Returns:
        The savings, `phase_share` of the changed phases together; None where none of the changed terms is known.
    """
    low_ns = high_ns = walls_ns = 0.0
    for phase, terms, changes in parts:
        known = [(terms[change.term].time_ns, change) for change in changes if change.term in terms]
        if known and phase.wall_ns > 0:
            walls_ns += phase.wall_ns
            low_ns += min(phase.wall_ns, sum(time_ns * change.low for time_ns, change in known))
            high_ns += min(phase.wall_ns, sum(time_ns * change.high for time_ns, change in known))
    if walls_ns <= 0 or record.wall_ns <= 0 or high_ns <= 0:
        return None
    whole_ns = max(float(record.wall_ns), walls_ns)
    middle_ns = (low_ns + high_ns) / 2
    return Savings(
        phase_share=middle_ns / walls_ns,
        request_share=middle_ns / whole_ns,
        low=low_ns / whole_ns,
        high=high_ns / whole_ns,
        basis=basis,
    )


def span(record: GenerationRecord, low_ns: float, high_ns: float, basis: str) -> Savings | None:
    """What it saves to take a stretch of time out of a request that belongs to no phase's terms.

    Args:
        record: The request.
        low_ns: Least of it.
        high_ns: Most of it.
        basis: What the estimate assumes.

    Returns:
        The savings, with the phases together as the phase; None where the request or the stretch has no length.
    """
    walls_ns = float(sum(phase.wall_ns for phase in record.phases))
    if record.wall_ns <= 0 or high_ns <= 0:
        return None
    low_ns, high_ns = max(0.0, min(low_ns, record.wall_ns)), min(high_ns, float(record.wall_ns))
    middle_ns = (low_ns + high_ns) / 2
    return Savings(
        phase_share=min(1.0, middle_ns / walls_ns) if walls_ns > 0 else 0.0,
        request_share=middle_ns / record.wall_ns,
        low=low_ns / record.wall_ns,
        high=high_ns / record.wall_ns,
        basis=basis,
    )


def pools_of(phase: str, names: Iterable[str]) -> frozenset[str]:
    """Which nanoseconds of a phase some terms lie in ("decode/weights"): findings that share one address the same."""
    pools: frozenset[str] = frozenset().union(*(_POOLS.get(name, frozenset({name})) for name in names))
    return frozenset(f"{phase}/{pool}" for pool in pools)


def _ledger_terms(phase: PhaseRecord) -> dict[str, Term]:
    """Parts of the ledger; "offcpu inside" is what of the time off the CPU must have been inside forwards."""
    ledger = phase.ledger
    rows = {
        "select": ledger.select_ns,
        "deliver": ledger.deliver_ns,
        "wait": ledger.wait_ns,
        "gc": ledger.gc_ns,
        "offcpu": ledger.offcpu_ns,
        "offcpu inside": max(0, (ledger.offcpu_ns or 0) - (phase.wall_ns - ledger.issue_ns)),
        "neighbours": phase.contended_ns,
        "forward": ledger.issue_ns,
        "tail": sum(max(0, worst.excess_ns) for worst in phase.worst),
    }
    return {name: Term(name=name, time_ns=value) for name, value in rows.items() if value}


def _share_terms(phase: PhaseRecord, verdict: PhaseDiagnosis) -> dict[str, Term]:
    wall_ns = phase.wall_ns
    rows = {
        "kernels": verdict.shares.get("inefficient", 0.0) * wall_ns,
        "communication": verdict.shares.get("communication", 0.0) * wall_ns,
        "dispatch": _dispatch_ns(phase, verdict),
    }
    return {name: Term(name=name, time_ns=value, measured=False) for name, value in rows.items()}


def _dispatch_ns(phase: PhaseRecord, verdict: PhaseDiagnosis) -> float:
    """Time of the phase that calling operators inside forwards explains.

    Time off the CPU is no operator's, and no more is theirs than they cost at most by their measured fixed cost.
    """
    between_ns = phase.wall_ns - phase.ledger.issue_ns
    beside_ns = between_ns + (phase.ledger.offcpu_ns or 0)
    inside_ns = verdict.shares.get("overhead", 0.0) * phase.wall_ns - beside_ns
    known = next((row for row in verdict.evidence if row.metric == "dispatch_per_pass_ns"), None)
    if known is None:  # on a device the lag has told that it waits for the host
        return max(0.0, inside_ns)
    most_ns = (known.high if known.high is not None else known.value) * phase.passes
    return max(0.0, min(inside_ns, most_ns))


def _work_terms(phase: PhaseRecord, verdict: PhaseDiagnosis, cost: PassCost, roofs: Roofs) -> dict[str, Term]:
    """The shares of compute and memory, each divided as the roofs' demand is."""
    needed = demand(cost, roofs)
    by_memory = {entry.group for entry in needed.groups if entry.binds == "memory"}
    moved = sum(entry.bytes for entry in cost.groups if entry.group in by_memory)
    kv = (cost.kv_read_bytes if _ATTENTION in by_memory else 0) + (
        cost.kv_write_bytes if "kv-cache" in by_memory else 0
    )
    others = sum(entry.bytes for entry in cost.groups if entry.group in by_memory - {_ATTENTION, "kv-cache"})
    weights = min(cost.weight_bytes, others)
    memory_ns = (verdict.shares.get("memory", 0.0) + verdict.shares.get("cache", 0.0)) * phase.wall_ns
    compute_ns = verdict.shares.get("compute", 0.0) * phase.wall_ns
    of_attention = sum(
        entry.compute_ns
        for entry in needed.groups
        if entry.group.startswith(_ATTENTION) and entry.group not in by_memory
    )
    attention = of_attention / needed.compute_ns if needed.compute_ns > 0 else 0.0
    kv_share, weight_share = (kv / moved, weights / moved) if moved else (0.0, 0.0)
    rows = {
        "weights": memory_ns * weight_share,
        "kv": memory_ns * kv_share,
        "activations": memory_ns * max(0.0, 1 - weight_share - kv_share),
        "attention arithmetic": compute_ns * attention,
        "linear arithmetic": compute_ns * (1 - attention),
    }
    return {name: Term(name=name, time_ns=value, measured=False) for name, value in rows.items()}


def _extra_terms(phase: PhaseRecord, verdict: PhaseDiagnosis, cost: PassCost, roofs: Roofs) -> dict[str, Term]:
    """Traffic that operators cause beyond what the model needs, at the memory roof: within what is not explained."""
    room_ns = (verdict.shares.get("inefficient", 0.0) + verdict.shares.get("overhead", 0.0)) * phase.ledger.issue_ns
    rows: dict[str, float] = {}
    for extra in cost.extras:
        name = _EXTRAS.get(extra.group)
        if name is not None and extra.bytes > 0:
            rows[name] = rows.get(name, 0.0) + _S_TO_NS * extra.bytes / roofs.memory.value
    return {name: Term(name=name, time_ns=min(value, room_ns), measured=False) for name, value in rows.items()}


def _recorded_terms(phase: PhaseRecord, growth: Term | None) -> dict[str, Term]:
    """What recorded operators say of copies, carried over to the phase's forwards by share.

    Concatenations are the cache's and others' (rotary embeddings are put together by them), so that they bound what the
    growing cache takes from above. In decode the others are small, and what they leave is the cache's.
    """
    if phase.deep is None or phase.deep.wall_ns <= 0:
        return {}
    scale = phase.ledger.issue_ns / phase.deep.wall_ns
    copies_ns = scale * sum(entry.time_ns for entry in phase.operators if entry.name is None and entry.group == "copy")
    if growth is None:
        return {"copies": Term(name="copies", time_ns=copies_ns)}
    joined_ns = scale * sum(entry.time_ns for entry in phase.deep.largest if entry.name in _CONCATENATIONS)
    grown_ns = min(growth.time_ns, joined_ns)
    # What else is put together in a pass of one token is small: its cost is that of calling.
    if phase.work and all(work.regime == "decode" for work in phase.work):
        calls = sum(entry.calls for entry in phase.deep.largest if entry.name in _CONCATENATIONS)
        grown_ns = max(grown_ns, joined_ns - scale * calls * _CALL_NS)
    return {
        "copies": Term(name="copies", time_ns=max(0.0, copies_ns - grown_ns)),
        growth.name: Term(name=growth.name, time_ns=grown_ns, measured=grown_ns != growth.time_ns),
    }
