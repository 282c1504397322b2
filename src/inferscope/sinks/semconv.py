"""Every attribute inferscope sends: its name, type, unit, meaning and where its value comes from.

One table, so that what is sent, what is documented and what is tested cannot differ. The names of the `gen_ai`
and `error` namespaces are written out: their constants in the conventions package are marked as moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from inferscope.analysis.verdict import BOUNDS
from inferscope.sinks.attributes import Attribute
from inferscope.sinks.readers import (
    TOP_FINDINGS,
    PhaseSubject,
    RequestSubject,
    codes,
    cut_passes,
    error,
    first_chunk_s,
    get,
    method,
    own_s,
    phase_seconds,
    seconds,
    top_group,
    usage,
    wall_s,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.records import Contender, PassSample, QuantileSketch, WorstPass
    from inferscope.sinks.readers import AskedSubject

__all__ = [
    "CONTENDER",
    "PASS",
    "PASS_SPAN",
    "PHASE",
    "REQUEST_END",
    "REQUEST_START",
    "RESOURCE",
    "USAGE_ELSEWHERE",
    "WORST_PASS",
    "WORST_PASS_EVENT",
]

_Subject = TypeVar("_Subject")

WORST_PASS_EVENT = "inferscope.worst_pass"  # noqa: S105 - not a password
PASS_SPAN = "pass"  # noqa: S105 - the same
USAGE_ELSEWHERE = "inferscope.usage.elsewhere"
_PHASE_NAMES = ("encode", "prefill", "decode", "verify", "draft", "mixed", "unknown")
_TOP_NOTES = 5


def _share(bound: str) -> Attribute[PhaseSubject]:
    def read(subject: PhaseSubject) -> float | None:
        return None if subject.verdict is None else subject.verdict.shares.get(bound)

    meaning = f"Part of the phase's wall that is {bound} (0..1)."
    return Attribute(f"inferscope.share.{bound}", "double", "1", meaning, read)


def _latency(name: str) -> Attribute[PhaseSubject]:
    def read(subject: PhaseSubject) -> float | None:
        return wall_s([subject.phase]) if subject.phase.name == name else None

    meaning = f"Time charged to the phase; only on spans named `{name}`."
    return Attribute(f"gen_ai.latency.time_in_model_{name}", "double", "s", meaning, read)


def _quantiles(prefix: str, path: str, of: str) -> tuple[Attribute[_Subject], ...]:
    sketch: Callable[[Any], Any] = get(path)

    def row(name: str, meaning: str) -> Attribute[_Subject]:
        def read(subject: _Subject) -> float | None:
            found: QuantileSketch | None = sketch(subject)
            value_ns = None if found is None else getattr(found, name)
            return None if value_ns is None else value_ns / 1e9

        return Attribute(f"{prefix}.{name}", "double", "s", f"{meaning} of {of}.", read)

    return (
        row("p50", "Median, within 1 %,"),
        row("p90", "90th percentile, within 1 %,"),
        row("p99", "99th percentile, within 1 %,"),
        row("max", "Largest"),
    )


_R = "result.record"

# fmt: off
# A table reads as rows.
REQUEST_START: tuple[Attribute[AskedSubject], ...] = (
    Attribute("gen_ai.operation.name", "string", "", "`text_completion`, or `chat`.", get("operation")),
    Attribute("gen_ai.provider.name", "string", "", "Always `huggingface`.", lambda _: "huggingface"),
    Attribute("gen_ai.request.model", "string", "", "The model's name.", get("model_name")),
    Attribute(
        "gen_ai.request.max_tokens", "int", "{token}", "Limit on new tokens, where the call set one.",
        get("options.max_new_tokens"),
    ),
    Attribute(
        "gen_ai.request.temperature", "double", "1", "Sampling temperature, where the call set one.",
        get("options.temperature"),
    ),
    Attribute("gen_ai.request.top_p", "double", "1", "Nucleus share, where set.", get("options.top_p")),
    Attribute("gen_ai.request.top_k", "int", "{token}", "Candidates, where set.", get("options.top_k")),
    Attribute("gen_ai.request.seed", "int", "", "Seed of sampling, where the call names one.", get("options.seed")),
    Attribute(
        "gen_ai.request.stream", "boolean", "", "Whether a streamer was given.", get("options.streaming")
    ),
)
"""Given to `start_span`, where samplers see them."""

CONTENDER: tuple[Attribute[Contender], ...] = (
    Attribute("inferscope.request.id", "string", "", "The other request, as on its own span.", get("request_id")),
    Attribute(
        "inferscope.contended", "double", "s", "Time that the other took from this request.",
        seconds("overlap_ns"),
    ),
)
"""On the links to the requests that held this one up."""

REQUEST_END: tuple[Attribute[RequestSubject], ...] = (
    Attribute(
        "inferscope.rank", "int", "1", "Of the process, where several run one model together.", get(f"{_R}.rank")
    ),
    Attribute("error.type", "string", "", "Class of the exception that left `generate`.", error),
    Attribute("gen_ai.response.model", "string", "", "The model's name.", get(f"{_R}.model.name")),
    Attribute(
        "gen_ai.response.finish_reasons", "string[]", "", "`length` or `stop`, one per sequence.",
        get(f"{_R}.finish_reasons"),
    ),
    Attribute(
        "gen_ai.usage.input_tokens", "int", "{token}", "Prompt tokens over the batch, padding excluded.",
        usage("input_tokens"),
    ),
    Attribute(
        "gen_ai.usage.output_tokens", "int", "{token}", "New tokens over the batch, padding excluded.",
        usage("output_tokens"),
    ),
    Attribute(
        USAGE_ELSEWHERE, "string", "",
        "The instrumentation whose span, linked, reports this call too: `gen_ai.usage.*` is left to it.",
        get("usage_elsewhere"),
    ),
    Attribute(
        "gen_ai.response.time_to_first_chunk", "double", "s", "`generate`'s entry to the first token streamed.",
        first_chunk_s,
    ),
    Attribute(
        "gen_ai.server.time_to_first_token", "double", "s", "`generate`'s entry to the first token selected.",
        seconds(f"{_R}.ttft_ns"),
    ),
    Attribute(
        "gen_ai.latency.time_to_first_token", "double", "s", "The same, under the key serving engines use.",
        seconds(f"{_R}.ttft_ns"),
    ),
    Attribute("gen_ai.latency.e2e", "double", "s", "Wall of `generate`.", seconds(f"{_R}.wall_ns")),
    Attribute(
        "gen_ai.latency.time_in_queue", "double", "s",
        "From `add_request` to where the first pass is prepared; only under continuous batching.",
        seconds(f"{_R}.ledger.queue_ns"),
    ),
    Attribute(
        "gen_ai.latency.time_in_model_prefill", "double", "s", "Time charged to prefill.",
        phase_seconds("prefill"),
    ),
    Attribute(
        "gen_ai.latency.time_in_model_decode", "double", "s", "Time charged to decode.",
        phase_seconds("decode"),
    ),
    Attribute(
        "gen_ai.latency.time_in_model_inference", "double", "s", "Time charged to all phases.",
        lambda subject: wall_s(subject.result.record.phases),
    ),
    Attribute(
        "inferscope.finding.top", "string", "", "Code of the finding that would save most.",
        lambda subject: next(iter(codes(subject)), None),
    ),
    Attribute(
        "inferscope.finding.codes", "string[]", "", f"Codes of up to {TOP_FINDINGS} findings, by what they save.",
        codes,
    ),
    Attribute("inferscope.status", "string", "", "`ok` or `aborted`.", get(f"{_R}.status")),
    Attribute(
        "inferscope.ttft.method", "string", "", "How it was seen: `stop_check`, `streamer`, `update`, `next_pass`.",
        get(f"{_R}.ttft_method"),
    ),
    Attribute("inferscope.request.id", "string", "", "16 hexadecimal digits.", get(f"{_R}.request_id")),
    Attribute("inferscope.model.class", "string", "", "Class of the model.", get(f"{_R}.model.model_class")),
    Attribute("inferscope.model.dtype", "string", "", "Of the weights.", get(f"{_R}.model.dtype")),
    Attribute("inferscope.model.device", "string", "", "Where the weights are.", get(f"{_R}.model.device")),
    Attribute(
        "inferscope.model.attention", "string", "", "Attention implementation.", get(f"{_R}.model.attention")
    ),
    Attribute(
        "inferscope.device.name", "string", "", "The device whose ceilings the verdict used.",
        get("result.diagnosis.device.name"),
    ),
    Attribute(
        "inferscope.notes", "string[]", "", f"What is missing from the record, up to {_TOP_NOTES}.",
        lambda subject: subject.result.record.notes[:_TOP_NOTES],
    ),
    Attribute("inferscope.batch_size", "int", "{sequence}", "Sequences asked for.", get(f"{_R}.batch_size")),
    Attribute(
        "inferscope.num_beams", "int", "{beam}", "Beams per sequence, where set.", get(f"{_R}.options.num_beams")
    ),
    Attribute(
        "inferscope.output_len", "int", "{token}", "New tokens of the longest sequence.", get(f"{_R}.output_len")
    ),
    Attribute(
        "inferscope.padding", "int", "{token}", "Prompt positions over the batch that hold padding.",
        get(f"{_R}.padding_tokens"),
    ),
    Attribute(
        "inferscope.draft.tokens", "int", "{token}", "Candidates that assisted decoding put to the model.",
        get(f"{_R}.drafted_tokens"),
    ),
    Attribute(
        "inferscope.draft.accepted", "int", "{token}", "Those of them that became part of the result.",
        get(f"{_R}.accepted_tokens"),
    ),
    Attribute(
        "inferscope.draft.acceptance", "double", "1", "Accepted over drafted tokens (0..1).",
        get(f"{_R}.acceptance_share"),
    ),
    Attribute(
        "inferscope.model.parameters", "int", "{parameter}", "Number of parameters, shared ones once.",
        get(f"{_R}.model.parameters"),
    ),
    Attribute(
        "inferscope.model.weights", "int", "By", "Size of the parameters, shared ones once.",
        get(f"{_R}.model.weight_bytes"),
    ),
    Attribute(
        "inferscope.tpot", "double", "s", "(wall - TTFT) / (n - 1), n new tokens per sequence.",
        seconds(f"{_R}.tpot_ns"),
    ),
    *_quantiles("inferscope.itl", f"{_R}.itl_ns", "the gaps between consecutive tokens"),
    Attribute(
        "inferscope.ledger.setup", "double", "s", "Before the model's own first forward, without encoders' forwards.",
        seconds(f"{_R}.ledger.setup_ns"),
    ),
    Attribute("inferscope.ledger.tail", "double", "s", "After the last token.", seconds(f"{_R}.ledger.tail_ns")),
    Attribute(
        "inferscope.ledger.residual", "double", "s", "What could not be placed.",
        seconds(f"{_R}.ledger.residual_ns"),
    ),
    Attribute(
        "inferscope.self", "double", "s", "inferscope's own measured time inside the request.",
        seconds(f"{_R}.ledger.self_ns"),
    ),
    Attribute(
        "inferscope.overhead.per_token", "double", "s",
        "What observing costs per new token, from requests that chance left unobserved.",
        seconds(f"{_R}.own_overhead.per_token_ns"),
    ),
    Attribute(
        "inferscope.overhead.per_token.low", "double", "s", "Lower end of its 95 % interval.",
        seconds(f"{_R}.own_overhead.low_ns"),
    ),
    Attribute(
        "inferscope.overhead.per_token.high", "double", "s", "Upper end of it.",
        seconds(f"{_R}.own_overhead.high_ns"),
    ),
    Attribute(
        "inferscope.overhead.observed_share", "double", "1", "Share of requests that are observed (0..1).",
        get(f"{_R}.own_overhead.observed_share"),
    ),
)
"""Set once the request has ended. queue + setup + time_in_model_inference + tail + self + residual = e2e, exactly."""

PHASE: tuple[Attribute[PhaseSubject], ...] = (
    Attribute("inferscope.phase", "string", "", "The phase, as the span is named.", get("phase.name")),
    Attribute(
        "inferscope.bound", "string", "", f"What holds the phase back: {', '.join(f'`{b}`' for b in BOUNDS)}.",
        get("verdict.bound"),
    ),
    Attribute("inferscope.confidence", "string", "", "`high` or `low`.", get("verdict.confidence")),
    Attribute(
        "inferscope.method", "string", "",
        "How device time was obtained: `bound` (host stamps), `saturated`, `plug`, `deep`; `host`: not at all.",
        method,
    ),
    *(_latency(name) for name in _PHASE_NAMES),
    Attribute("inferscope.passes", "int", "{pass}", "Forwards.", get("phase.passes")),
    Attribute(
        "inferscope.passes.mixed", "int", "{pass}",
        "Those in which other requests prefilled while this one decoded, or the reverse; only where passes are shared.",
        get("phase.mixed_passes"),
    ),
    Attribute(
        "inferscope.passes.cut", "int", "{pass}",
        "Those that have no span of their own; only where passes have spans.", cut_passes,
    ),
    Attribute(
        "inferscope.tokens", "int", "{token}", "New tokens processed over all sequences, padding included.",
        get("phase.tokens"),
    ),
    *_quantiles("inferscope.pass", "phase.pass_ns", "the forwards' durations on the host"),
    Attribute("inferscope.ledger.issue", "double", "s", "Inside forwards.", seconds("phase.ledger.issue_ns")),
    Attribute(
        "inferscope.ledger.select", "double", "s", "Between forwards: logits processors, sampling, preparation.",
        seconds("phase.ledger.select_ns"),
    ),
    Attribute(
        "inferscope.ledger.wait", "double", "s", "Inside the per-token host read.", seconds("phase.ledger.wait_ns")
    ),
    Attribute(
        "inferscope.ledger.deliver", "double", "s", "Inside the streamer.", seconds("phase.ledger.deliver_ns")
    ),
    Attribute(
        "inferscope.ledger.shared", "double", "s",
        "While it was the turn of other requests; only where passes are shared.",
        seconds("phase.ledger.shared_ns"),
    ),
    Attribute(
        "inferscope.ledger.offcpu", "double", "s", "Overlay: forward time in which the thread did not run.",
        seconds("phase.ledger.offcpu_ns"),
    ),
    Attribute(
        "inferscope.ledger.gc", "double", "s", "Overlay: pauses of Python's garbage collector.",
        seconds("phase.ledger.gc_ns"),
    ),
    Attribute("inferscope.self", "double", "s", "inferscope's own time between the phase's borders.", own_s),
    Attribute(
        "inferscope.device.time.low", "double", "s", "The device worked on forwards at least this long.",
        seconds("phase.device.low_ns"),
    ),
    Attribute(
        "inferscope.device.time.high", "double", "s", "And at most this long.", seconds("phase.device.high_ns")
    ),
    Attribute(
        "inferscope.device.events", "double", "s", "From event to event, summed: not the time the device worked.",
        seconds("phase.device.events_ns"),
    ),
    Attribute(
        "inferscope.device.lag", "double", "1",
        "Part of that after the host had issued the pass (0..1): near 0 the host holds the device up.",
        get("phase.device.lag_share"),
    ),
    Attribute(
        "inferscope.device.passes", "int", "{pass}", "Forwards that were timed on the device.",
        get("phase.device.passes"),
    ),
    Attribute(
        "inferscope.device.start", "double", "s", "From the request's start to where the device began.",
        seconds("phase.device.start_ns"),
    ),
    Attribute(
        "inferscope.device.end", "double", "s", "From the request's start to where the device ended.",
        seconds("phase.device.end_ns"),
    ),
    Attribute(
        "inferscope.deep.passes", "int", "{pass}", "Forwards whose operators were recorded.", get("phase.deep.passes")
    ),
    Attribute(
        "inferscope.deep.python_share", "double", "1",
        "Part of those forwards' wall in which no operator ran on the host (0..1).", get("phase.deep.python_share"),
    ),
    Attribute(
        "inferscope.deep.top_group", "string", "", "Group of operators that took longest in those forwards.",
        top_group,
    ),
    Attribute(
        "inferscope.launches", "int", "{launch}", "Kernels launched, of passes whose kind was counted.",
        get("phase.launches"),
    ),
    Attribute(
        "inferscope.launches.source", "string", "",
        "How they were counted: `native` (at the driver), `deep` (recorded).", get("phase.launches_source"),
    ),
    Attribute(
        "inferscope.launches.per_pass", "int", "{launch}",
        "Of one pass of the phase's most frequent counted kind; on a CPU its outermost operators.",
        lambda subject: subject.phase.steps[0].launches if subject.phase.steps else None,
    ),
    Attribute(
        "inferscope.launches.changed_from", "int", "{launch}",
        "What that was before it changed (a recompilation, a graph break, another attention); absent if it never has.",
        lambda subject: subject.phase.steps[0].launches_before if subject.phase.steps else None,
    ),
    Attribute(
        "inferscope.sync_points", "int", "{line}", "Lines at which the host waited in a pass that was looked at.",
        lambda subject: len(subject.phase.sync_points) if subject.phase.sync_passes else None,
    ),
    Attribute("inferscope.syncs", "int", "{sync}", "Host reads seen: a lower bound.", get("phase.syncs")),
    Attribute(
        "inferscope.contended", "double", "s",
        "Time that other traced requests took, on the same device or with the interpreter: a lower bound.",
        seconds("phase.contended_ns"),
    ),
    Attribute(
        "inferscope.mfu", "double", "1", "Achieved FLOP/s over the dense peak of the dtype (0..1).",
        get("verdict.mfu"),
    ),
    Attribute(
        "inferscope.mbu", "double", "1", "Weight and KV bytes per second over copy bandwidth (0..1).",
        get("verdict.mbu"),
    ),
    Attribute(
        "inferscope.roof_share", "double", "1", "Time the roofs demand over the time inside forwards (0..1).",
        get("verdict.roof_share"),
    ),
    Attribute(
        "inferscope.achieved.flops", "double", "{flop}/s", "Operations per second inside forwards.",
        get("verdict.achieved_flops_per_s"),
    ),
    Attribute(
        "inferscope.achieved.bytes", "double", "By/s", "Model bytes per second inside forwards.",
        get("verdict.achieved_bytes_per_s"),
    ),
    *(_share(bound) for bound in BOUNDS),
    Attribute(
        "inferscope.flops", "int", "{flop}", "Operations of the phase, masked pairs not counted.",
        get("verdict.cost.flops"),
    ),
    Attribute(
        "inferscope.bytes.minimum", "int", "By", "Least possible traffic: weights, KV, token ids, logits.",
        get("verdict.cost.bytes.minimum"),
    ),
    Attribute(
        "inferscope.bytes.model", "int", "By", "With inputs and outputs of matrix products and attention.",
        get("verdict.cost.bytes.model"),
    ),
    Attribute(
        "inferscope.bytes.executed", "int", "By", "With inputs and outputs of every operator.",
        get("verdict.cost.bytes.executed"),
    ),
    Attribute(
        "inferscope.arithmetic_intensity", "double", "{flop}/By", "`flops` over `bytes.model`.",
        get("verdict.cost.arithmetic_intensity"),
    ),
)
"""Set on the span of a phase. issue + select + wait + deliver + shared = time_in_model, exactly."""

WORST_PASS: tuple[Attribute[WorstPass], ...] = (
    Attribute("inferscope.worst_pass.index", "int", "", "Number of the pass in its phase, from 0.", get("index")),
    Attribute(
        "inferscope.worst_pass.cause", "string", "",
        "The part of the ledger that exceeds the typical pass most.", get("cause"),
    ),
    Attribute("inferscope.worst_pass.excess", "double", "s", "By how much it does.", seconds("excess_ns")),
    Attribute(
        "inferscope.worst_pass.cycle", "double", "s", "From the end of the pass before to its own end.",
        seconds("cycle_ns"),
    ),
)
"""On the event `inferscope.worst_pass`, at most three per phase, at the pass's start."""

PASS: tuple[Attribute[PassSample], ...] = (
    Attribute("inferscope.pass.name", "string", "", "What the pass was, such as `decode` or `prefill/chunk`.",
              get("name")),
    Attribute("inferscope.pass.host", "double", "s", "Inside the forward, on the host.", seconds("host_ns")),
    Attribute("inferscope.pass.q_len", "int", "{token}", "New tokens per sequence.", get("q_len")),
    Attribute("inferscope.pass.past_len", "int", "{token}", "Tokens already in the cache.", get("past_len")),
    Attribute("inferscope.pass.batch_size", "int", "{sequence}", "Sequences, beams and copies included.",
              get("batch_size")),
    Attribute("inferscope.pass.tokens", "int", "{token}", "New tokens of all requests that share the pass.",
              get("pass_tokens")),
    Attribute("inferscope.pass.device.low", "double", "s", "The device worked on it at least this long.",
              seconds("device.low_ns")),
    Attribute("inferscope.pass.device.high", "double", "s", "And at most this long.", seconds("device.high_ns")),
    Attribute("inferscope.method", "string", "", "How that was obtained.", get("device.provenance")),
)
"""On the span of a pass."""
# fmt: on

RESOURCE = (
    ("service.name", "string", "As given to `setup`, else OTEL_SERVICE_NAME, else `inferscope`."),
    ("service.instance.id", "string", "Random, one per call of `setup`."),
    ("host.name", "string", "Name of the machine; without it Jaeger's clock-skew adjuster warns."),
    ("process.pid", "int", "Process id."),
)
"""Set where `setup` made the provider; otherwise the resource is the application's own."""
