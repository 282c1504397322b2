"""What was measured. Facts only: stored, versioned, never rewritten; opinions live in analysis/."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inferscope.specs import ModelSpec, Regime  # noqa: TC001 - the codec resolves annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "SCHEMA",
    "Contender",
    "DeepTime",
    "DeviceTime",
    "GenerationRecord",
    "Ledger",
    "OperatorTime",
    "OwnOverhead",
    "PassRun",
    "PassSample",
    "PhaseLedger",
    "PhaseRecord",
    "ProcessState",
    "QuantileSketch",
    "RequestOptions",
    "StepCount",
    "SyncSeen",
    "Work",
    "WorstPass",
]

SCHEMA = 1
_GAMMA = 1.02
_LOG_GAMMA = math.log(_GAMMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileSketch:
    """Quantiles of durations in bounded memory: logarithmic buckets, 1 % relative error.

    Source: the bucketing of DDSketch (Masson, Rim, Lee: VLDB 2019).

    Attributes:
        buckets: (index, count) in ascending order; bucket i holds values in (1.02^(i-1), 1.02^i] ns, and
            index 0 also everything up to 1 ns.
        count: Number of values.
        sum_ns: Exact sum.
        min_ns: Exact minimum, None when empty.
        max_ns: Exact maximum, None when empty.
    """

    buckets: tuple[tuple[int, int], ...]
    count: int
    sum_ns: int
    min_ns: int | None
    max_ns: int | None

    @classmethod
    def of(cls, values_ns: Iterable[int]) -> QuantileSketch:
        """Sketch of finished values in nanoseconds."""
        values = list(values_ns)
        counts = Counter(cls.bucket(value) for value in values)
        return cls(
            buckets=tuple(sorted(counts.items())),
            count=len(values),
            sum_ns=sum(values),
            min_ns=min(values, default=None),
            max_ns=max(values, default=None),
        )

    @staticmethod
    def bucket(value_ns: int) -> int:
        """Index of the bucket that holds a value in nanoseconds."""
        return math.ceil(math.log(value_ns) / _LOG_GAMMA) if value_ns > 1 else 0

    def quantile_ns(self, share: float) -> int | None:
        """Value below which `share` (0..1) of the values lie, within 1 %; None when empty."""
        if self.min_ns is None or self.max_ns is None:
            return None
        rank = share * (self.count - 1)
        seen = 0
        for index, count in self.buckets:
            seen += count
            if seen > rank:
                middle = 2 * _GAMMA**index / (_GAMMA + 1)
                return min(max(round(middle), self.min_ns), self.max_ns)
        return self.max_ns

    @property
    def p50(self) -> int | None:
        """Median in nanoseconds."""
        return self.quantile_ns(0.5)

    @property
    def p90(self) -> int | None:
        """90th percentile in nanoseconds."""
        return self.quantile_ns(0.9)

    @property
    def p99(self) -> int | None:
        """99th percentile in nanoseconds."""
        return self.quantile_ns(0.99)

    @property
    def max(self) -> int | None:
        """Largest value in nanoseconds."""
        return self.max_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTime:
    """Time the device worked on the forwards: an interval, with how it was obtained.

    The time between two events is only its upper end: a device that starves between its kernels is not working. What
    it takes by itself from one kernel to the next that already waits is part of its work.

    Attributes:
        low_ns: Not less than this.
        high_ns: Not more than this.
        provenance: "bound" (from the host's stamps and two events per pass), "saturated" (the same, where the device
            never ran dry, so that both ends nearly meet), "plug" or "deep" (passes of this kind were measured).
        passes: Forwards it covers; those of the phase that are not among them could not be timed.
        cycles_ns: Wall of those passes, with the selection after each.
        events_ns: From event to event, summed: the device's time and whatever it starved in between.
        lag_ns: Of that, what lay after the host had issued the pass, summed; near 0 where the device waits for it.
        start_ns: From the start of the request to where the device began with the first of them; None where unknown.
        end_ns: To where it ended the last.
    """

    low_ns: int
    high_ns: int
    provenance: Literal["bound", "saturated", "plug", "deep"]
    passes: int | None = None
    cycles_ns: int | None = None
    events_ns: int | None = None
    lag_ns: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None

    @property
    def lag_share(self) -> float | None:
        """Lag over event time (0..1): near 0 the host holds the device up, far from it the device the host."""
        if not self.events_ns or self.lag_ns is None:
            return None
        return min(1.0, self.lag_ns / self.events_ns)

    @property
    def host_exposed_ns(self) -> tuple[int, int] | None:
        """Least and most of the passes' wall in which the device did not work on a forward; None where unknown."""
        if self.cycles_ns is None:
            return None
        return max(0, self.cycles_ns - self.high_ns), max(0, self.cycles_ns - self.low_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRun:
    """Passes of one shape, behind caches that grow evenly.

    Attributes:
        batch_size: Sequences.
        q_len: New tokens per sequence.
        past_len: Tokens in the cache at the first of the passes, per sequence.
        logits: Positions per sequence whose logits were computed.
        passes: Number of passes.
        step: By how many tokens the cache is longer at each next pass.
    """

    batch_size: int
    q_len: int
    past_len: int
    logits: int
    passes: int = 1
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the passes of a phase were asked to do, summed so that any cost polynomial can be evaluated.

    Attributes:
        regime: Which polynomials apply.
        passes: Number of passes summed.
        monomials: Sums over the passes of `specs.BASIS`, in its order.
        runs: The same passes by shape, for models whose cost is not one polynomial of those; None where there were
            too many different ones to keep.
        encoder_len: Tokens of the encoder's output that was looked at; None where that is not known.
    """

    regime: Regime
    passes: int
    monomials: tuple[int, ...]
    runs: tuple[PassRun, ...] | None = None
    encoder_len: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSample:
    """One forward, kept when `detail="passes"` asks for it.

    Attributes:
        name: As the naming rule says ("prefill", "prefill/chunk", "decode", ...).
        start_ns: From the start of the request.
        host_ns: Entry to exit of the forward on the host.
        q_len: New tokens per sequence.
        past_len: Tokens already in the cache; None where that cannot be read without a sync.
        batch_size: Sequences in the forward, beams and copies included.
        device: Device time; None where it is unknown.
        pass_tokens: New tokens of all requests in the pass, where requests share it (continuous batching); else None.
    """

    name: str
    start_ns: int
    host_ns: int
    q_len: int | None
    past_len: int | None
    batch_size: int | None
    device: DeviceTime | None = None
    pass_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstPass:
    """One of the K slowest passes of a phase and what made it slow.

    Attributes:
        index: Number of the pass within its phase, from 0.
        start_ns: From the start of the request.
        cycle_ns: From the end of the pass before to the end of this one, selection included.
        cause: The part of the ledger that exceeds the phase's typical pass most ("gc", "offcpu", "shared",
            "deliver", "wait", "select" or "issue").
        excess_ns: By how much it does.
    """

    index: int
    start_ns: int
    cycle_ns: int
    cause: str
    excess_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLedger:
    """Where a phase's time went. issue + select + wait + deliver + shared = the phase's wall, exactly.

    Where requests share their passes (continuous batching), every part but `shared_ns` is this request's part of the
    pass by tokens.

    Attributes:
        issue_ns: Inside forwards, host side.
        select_ns: Between forwards: logits processors, sampling, input preparation, stopping criteria.
        wait_ns: Inside the per-token host read; None where there is no such mark (it is in `select_ns` then).
        deliver_ns: Inside the streamer.
        offcpu_ns: Overlay: time in which this thread did not run on a CPU; None where unknown.
        gc_ns: Overlay: pauses of Python's garbage collector on this thread.
        shared_ns: While it was the turn of other requests: their part of the passes this one was in, and whole passes
            without it. None where a pass has one request only.
    """

    issue_ns: int
    select_ns: int
    wait_ns: int | None
    deliver_ns: int
    offcpu_ns: int | None
    gc_ns: int
    shared_ns: int | None = None

    @property
    def total_ns(self) -> int:
        """Sum of the exclusive parts."""
        return self.issue_ns + self.select_ns + (self.wait_ns or 0) + self.deliver_ns + (self.shared_ns or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Another request that took time from this one while it ran.

    Attributes:
        request_id: The other record's.
        trace_id: Its trace, 32 hexadecimal digits; None where it has no span.
        span_id: Its request span, 16 hexadecimal digits; None where it has none.
        overlap_ns: Time that it took from this request's phases, as `PhaseRecord.contended_ns`.
    """

    request_id: str
    trace_id: str | None
    span_id: str | None
    overlap_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """Operators of one group, or of one name, in the passes that the deep tier recorded.

    Attributes:
        group: attention, linear, norm/elementwise, moe, kv-cache, copy, sampling, communication or other.
        name: As torch names it; None where it is the whole group.
        time_ns: Of the outermost operators on the host where the host computes; of their kernels on a GPU.
        wall_ns: Of the recorded passes, on the host.
        calls: Outermost operators.
        launches: Kernels; None where no device did the work.
    """

    group: str
    name: str | None = None
    time_ns: int
    wall_ns: int
    calls: int
    launches: int | None = None

    @property
    def share(self) -> float | None:
        """Of the recorded passes' wall (0..1); above 1 where several streams of a device work at once."""
        return self.time_ns / self.wall_ns if self.wall_ns else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLedger:
    """The host's side of recorded forwards, exclusive: python + dispatch + driver + sync = operators + python of them.

    Attributes:
        python_ns: Neither an operator nor a call into the driver ran.
        dispatch_ns: In an operator, outside the driver.
        driver_ns: In the driver, launching.
        sync_ns: In the driver, waiting for the device.
    """

    python_ns: int
    dispatch_ns: int
    driver_ns: int
    sync_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLedger:
    """The device's side of recorded forwards, exclusive: busy + starved + launch gap + drained = window.

    Attributes:
        window_ns: From each forward's beginning on the host to its last moment on either.
        busy_ns: Group and time, longest first; where streams overlap, what began first has the time.
        starved_ns: Idle, and the host had not launched what came next; what passes before a forward's first launch too.
        launch_gap_ns: Idle, although the next kernel had been launched.
        drained_ns: Idle until the next launch, after the host had waited for the device.
    """

    window_ns: int
    busy_ns: tuple[tuple[str, int], ...]
    starved_ns: int
    launch_gap_ns: int
    drained_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepTime:
    """Forwards of a phase whose operators were recorded. Of these passes alone: nothing is scaled to the phase.

    Recording makes a pass slower, between the operators more than inside them. operators + python + closure = wall.

    Attributes:
        passes: How many.
        wall_ns: Their duration by the host's clock.
        operators_ns: Union of their outermost operators' intervals on the host, by the profiler's clock.
        python_ns: Between those, before the first and after the last, by the profiler's clock.
        gaps: How many such stretches.
        closure_ns: What the two clocks differ by, and whatever the operators' intervals have lost: the error.
        cost_ns: What starting and stopping took; it is in the ledger's `self_ns`.
        device_busy_ns: Union of the kernels' intervals; None where no device did the work.
        largest: The operators that took longest by name, at most 20.
        host: The host's side in four parts; None where no call into a device's driver was seen.
        device: The device's side; None where no device did the work.
        provenance: "deep".
    """

    passes: int
    wall_ns: int
    operators_ns: int
    python_ns: int
    gaps: int
    closure_ns: int
    cost_ns: int
    device_busy_ns: int | None = None
    largest: tuple[OperatorTime, ...] = ()
    host: HostLedger | None = None
    device: DeviceLedger | None = None
    provenance: Literal["deep"] = "deep"

    @property
    def python_share(self) -> float | None:
        """Part of the wall in which no operator ran (0..1)."""
        return min(1.0, self.python_ns / self.wall_ns) if self.wall_ns else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCount:
    """What a forward of one kind starts on the device and waits for, as counted in measured forwards of that kind.

    Kinds are told apart by the forward's name, batch size, context (by powers of two), dtype, attention, class of the
    cache, and whether transformers ran it compiled.

    Attributes:
        name: As the naming rule says ("prefill", "prefill/chunk", "decode", ...).
        passes: Forwards of this kind in the phase.
        batch_size: Sequences in each.
        context_from: Fewest tokens behind one, its own included, that count as this kind.
        context_to: Most of them.
        launches: Of one forward, in `unit`; what a graph holds counts as the graph's launch alone.
        graph_launches: CUDA graphs that one forward launches; None where that was not counted.
        syncs: Waits of the host within one forward; None where they were not counted.
        unit: "kernel", or "operator" where the host computes: outermost operators play the launches' part.
        source: "native" (counted at the driver) or "deep" (recorded with torch's profiler).
        samples: Forwards of this kind that were counted, in this request and before.
        launches_before: What the count had settled at before it changed; None where it never has.
        varies: Whether forwards of this kind do not all launch as many, so that `launches` is the latest count.
    """

    name: str
    passes: int
    batch_size: int
    context_from: int
    context_to: int
    launches: int
    graph_launches: int | None = None
    syncs: int | None = None
    unit: Literal["kernel", "operator"]
    source: Literal["native", "deep"]
    samples: int
    launches_before: int | None = None
    varies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSeen:
    """A line at which the host waited for a CUDA device, in the passes that were looked at for it.

    Attributes:
        file: Innermost file that is not torch's own: relative to the folder of packages or to the working folder.
        line: Line in it.
        count: Waits there, over all passes looked at.
        caller_file: Innermost file that belongs to no installed package; None where that is `file`, or nobody's.
        caller_line: Line in it; None with `caller_file`.
    """

    file: str
    line: int
    count: int
    caller_file: str | None = None
    caller_line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnOverhead:
    """What inferscope itself costs, as far as was known when the record was made.

    Attributes:
        budget_share: What it may take of the time (0..1).
        observed_share: Share of requests that are observed at that moment (0..1).
        self_share: Its own measured time over the wall of the latest observed requests, what is sampled left out
            (0..1); None where too few were seen.
        per_token_ns: Difference per new token between requests that were and were not observed, chosen by chance and
            of equal shape: also what its own clock does not see. Negative where noise exceeds it. None where there
            were too few.
        low_ns: Lower end of its 95 % interval.
        high_ns: Upper end.
        observed: Requests that were, in that comparison.
        bare: Requests that were not.
        provenance: "randomised"; None with `per_token_ns`.
    """

    budget_share: float
    observed_share: float
    self_share: float | None = None
    per_token_ns: float | None = None
    low_ns: float | None = None
    high_ns: float | None = None
    observed: int = 0
    bare: int = 0
    provenance: Literal["randomised"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """All passes of one kind within a request.

    Attributes:
        name: encode, prefill, decode, verify, draft, mixed or unknown.
        start_ns: From the start of the request to the phase's first moment.
        end_ns: From the start of the request to its last; inferscope's own time inside is not in `wall_ns`.
        wall_ns: Time charged to the phase: the sum of its ledger.
        passes: Number of forwards.
        tokens: Processed: new tokens over all sequences, padding included; None where a shape was unknown.
        pass_ns: Forward durations on the host.
        worst: The slowest passes, slowest first.
        ledger: Where the wall went.
        work: Sums for the cost model; empty where a shape was unknown.
        device: Device time; None where it is unknown.
        launches: Kernels launched: passes of each kind times the count of one of that kind; None unless every pass is
            of a kind that was counted.
        syncs: Host reads seen at their seam: a lower bound; None where there is no such seam.
        contended_ns: Overlay: time that other traced requests took from this one: they were in a forward on the same
            device, or at work on the host while this thread did not run, since one thread at a time has the
            interpreter. A lower bound from host stamps; None where that was not looked at.
        mixed_passes: Those of the passes in which other requests did the other thing: prefilled while this one
            decoded, or decoded while it prefilled. None where a pass has one request only.
        deep: Forwards whose operators were recorded; None where none was.
        operators: Of those, by group, longest first.
        launches_source: How the counts behind `launches` were obtained; "deep" where any was recorded. None with it.
        steps: What one forward of each kind launches and waits for, as far as such a one was counted.
        sync_passes: Passes, with the selection after each where `generate` makes it, that were looked at for waits;
            None where none was.
        sync_points: Where the host waited in those, most frequent first, at most 32 places; of two or more syncs in
            one call of torch's one may be seen.
    """

    name: str
    start_ns: int
    end_ns: int
    wall_ns: int
    passes: int
    tokens: int | None
    pass_ns: QuantileSketch
    worst: tuple[WorstPass, ...]
    ledger: PhaseLedger
    work: tuple[Work, ...]
    device: DeviceTime | None = None
    launches: int | None = None
    syncs: int | None = None
    contended_ns: int | None = None
    mixed_passes: int | None = None
    deep: DeepTime | None = None
    operators: tuple[OperatorTime, ...] = ()
    launches_source: Literal["native", "deep"] | None = None
    steps: tuple[StepCount, ...] = ()
    sync_passes: int | None = None
    sync_points: tuple[SyncSeen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Closed accounting of a request: queue + setup + phases + tail + self + residual = wall, exactly.

    Attributes:
        setup_ns: From `generate`'s entry to the model's own first forward, encoders' forwards left out; with a queue,
            from where its first pass is prepared.
        phases_ns: Name and wall of each phase.
        tail_ns: After the last token.
        self_ns: inferscope's own measured time inside the request.
        residual_ns: What could not be placed.
        queue_ns: From `add_request`'s entry to where the request's first pass is prepared (continuous batching); None
            where requests do not queue.
    """

    setup_ns: int
    phases_ns: tuple[tuple[str, int], ...]
    tail_ns: int
    self_ns: int
    residual_ns: int
    queue_ns: int | None = None

    @property
    def total_ns(self) -> int:
        """Sum of all parts: the request's wall."""
        phases = sum(wall for _, wall in self.phases_ns)
        return (self.queue_ns or 0) + self.setup_ns + phases + self.tail_ns + self.self_ns + self.residual_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What the caller asked of `generate`, where it was said in the call; None where it was not.

    Attributes:
        max_new_tokens: Limit on new tokens.
        temperature: Sampling temperature.
        top_p: Nucleus share.
        top_k: Number of candidates.
        num_beams: Beams per sequence.
        streaming: Whether a streamer was given.
        seed: Of the sampling, where the call or its configuration names one.
        cache: `cache_implementation` in force, or the class of the cache that was handed in; None where neither was
            said, and transformers takes its default.
        processors: Classes of the logits processors, stopping criteria and streamer that the caller brought.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int | None = None
    streaming: bool = False
    seed: int | None = None
    cache: str | None = None
    processors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """What the process was set to, and what its compiler did, while a request ran.

    Attributes:
        intra_op_threads: Threads that torch uses within one operator, as the generating thread has it.
        usable_cpus: Processors that thread may run on; a quota of CPU time is not in this number.
        compiled_graphs: Graphs that torch's compiler made meanwhile, for whatever thread of the process; None where
            it is not loaded or does not say.
        compile_ns: Time it spent on them.
    """

    intra_op_threads: int | None = None
    usable_cpus: int | None = None
    compiled_graphs: int | None = None
    compile_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecord:
    """One request, as measured.

    Attributes:
        schema: Version of this layout.
        request_id: 16 hexadecimal digits.
        model: What ran.
        started_unix_ns: Wall-clock time of `generate`'s entry.
        wall_ns: Entry to exit of `generate`; under continuous batching, from `add_request`'s entry to where the last
            token is handed out.
        ttft_ns: Entry to the first token selected on the host (with a streamer: handed to it); None if none was.
        ttft_method: "stop_check", "streamer", "update" (continuous batching: the loop has taken the token in) or
            "next_pass" (an upper bound); None with `ttft_ns`.
        tpot_ns: (wall - TTFT) / (n - 1), n new tokens per sequence; None for n < 2.
        itl_ns: Gaps between consecutive tokens; None where tokens are not marked.
        batch_size: Sequences the caller asked for.
        input_tokens: Prompt tokens over the batch, padding excluded; None where counting would sync the device.
        output_tokens: New tokens over the batch, padding excluded; None where counting would sync the device.
        output_len: New tokens of the longest sequence, from the result's shape.
        finish_reasons: Per sequence "length" or "stop"; None where unknown.
        padding_tokens: Prompt positions over the batch that hold padding: computed, and of no use to anybody; None
            where counting would sync the device.
        drafted_tokens: Candidates that assisted decoding put to the model; None where none were, or it is not known.
        accepted_tokens: Those of them that became part of the result; None where that is not known.
        options: What the caller asked for.
        phases: In time order.
        ledger: Where the wall went.
        pass_samples: Every pass, when asked for, up to a cap.
        pass_samples_dropped: Passes beyond the cap.
        status: "ok", or "aborted" when an exception left `generate`.
        error_type: Class name of that exception; "cancelled" where a queued request was withdrawn.
        notes: What is missing from this record, and why.
        versions: (name, version) of what ran.
        device_key: Identity of the machine or GPU it ran on, as `DeviceSpec.key`; None where it is not known.
        rank: Of the process among those that run one model together; None where there is only one.
        contended_with: The other requests behind `contended_ns`, largest overlap first, at most eight.
        output_digest: Of the new tokens' ids, 32 hexadecimal digits: equal where the output is. None where that was
            not asked for (INFERSCOPE_OUTPUT_DIGEST), or reading them would sync the device.
        own_overhead: What inferscope costs; None where that was not looked at.
        process: What the process was set to, and what its compiler did meanwhile; None where that was not read.
        labels: (name, value) of what an experiment that made the request on purpose says of it; () for others.
    """

    schema: int = SCHEMA
    request_id: str
    model: ModelSpec
    started_unix_ns: int
    wall_ns: int
    ttft_ns: int | None
    ttft_method: Literal["stop_check", "streamer", "update", "next_pass"] | None
    tpot_ns: float | None
    itl_ns: QuantileSketch | None
    batch_size: int | None
    input_tokens: int | None
    output_tokens: int | None
    output_len: int | None
    finish_reasons: tuple[str, ...] | None
    padding_tokens: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    options: RequestOptions
    phases: tuple[PhaseRecord, ...]
    ledger: Ledger
    pass_samples: tuple[PassSample, ...] = ()
    pass_samples_dropped: int = 0
    status: Literal["ok", "aborted"] = "ok"
    error_type: str | None = None
    notes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    device_key: str | None = None
    rank: int | None = None
    contended_with: tuple[Contender, ...] = ()
    output_digest: str | None = None
    own_overhead: OwnOverhead | None = None
    process: ProcessState | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def acceptance_share(self) -> float | None:
        """Accepted over drafted tokens (0..1); None where nothing was drafted, or one of them is not known."""
        if not self.drafted_tokens or self.accepted_tokens is None:
            return None
        return self.accepted_tokens / self.drafted_tokens

    def phase(self, name: str) -> PhaseRecord | None:
        """The phase of that name, or None where the request had none."""
        return next((phase for phase in self.phases if phase.name == name), None)
