"""Performance budgets: what a block of `generate` calls costs, held against numbers that a test allows.

    with budget(model) as spent:
        model.generate(**inputs)
    spent.hold(syncs_per_token=1, launches_per_token=500)

Launches and syncs are counted by `inferscope.lint` after the block, from the arguments that `generate` had: they are
the same on every machine, and need no GPU. Operators and bytes come from the cost model, which is exact. Times do
flicker: they are held against a stored baseline with an interval, and "cannot tell" is told and fails nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import inferscope
from inferscope.analysis.gates import GateResult, hold, parse_gate
from inferscope.analysis.measures import COUNTS
from inferscope.drafts import draft
from inferscope.errors import CacheUnwritableError, InferscopeError, LimitExceededError, NotAModelError, SettingError
from inferscope.sinks.jsonl import JsonlSink

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from types import TracebackType

    from inferscope.analysis.verdict import Result
    from inferscope.syncs import LintReport

__all__ = ["Budget", "BudgetExceededError", "budget", "write_baseline"]

_DECODING = frozenset({"decode", "verify", "draft", "mixed"})
_LINT_TOKENS = 8
_FEWEST_LINT_TOKENS = 3
_STRIPPED = "left out of the baseline, which needs times only"


class BudgetExceededError(LimitExceededError, AssertionError):
    """A test's block of `generate` calls cost more than the test allows."""


def budget(model: object, *, baseline: str | Path | None = None) -> Budget:
    """Observe the `generate` calls of a block, to hold what they cost against limits.

    Args:
        model: A model with `generate`.
        baseline: File of records that `fail_if` compares with; None where only counts are held.

    Raises:
        NotAModelError: `model` has no `generate`.
    """
    return Budget(model, baseline=baseline)


class Budget:
    """What a block cost. Numbers can be asked for after the block; what is not known is None.

    Attributes:
        results: One for each request, oldest first.
        missing: Name of a number that is None, and why.
        compilations: Graphs that torch.compile made within the block; after a warm-up outside, each is a recompilation.
    """

    def __init__(self, model: object, *, baseline: str | Path | None = None) -> None:
        """Prepare; nothing is attached before the block begins."""
        if not callable(getattr(model, "generate", None)):
            raise NotAModelError(
                f"a budget needs a model with generate, not a {type(model).__name__}; inferscope.lint counts one pass "
                "of anything that can be called"
            )
        self.results: tuple[Result, ...] = ()
        self.missing: dict[str, str] = {}
        self.compilations: int | None = None
        self._model: Any = model
        self._baseline = None if baseline is None else Path(baseline)
        self._open: contextlib.ExitStack | None = None
        self._asked: list[dict[str, Any]] = []
        self._spans: int | None = None
        self._lint: LintReport | None = None
        self._ended = False

    def __enter__(self) -> Budget:
        """Begin to observe."""
        if self._open is not None or self._ended:
            raise SettingError("a budget is for one block: make another one")
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._traced())
            stack.enter_context(_remembered(self._model, self._asked))  # last, to call what tracing has put there
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; the block's own exception passes through."""
        opened, self._open, self._ended = self._open, None, True
        if opened is not None:
            opened.close()

    @property
    def lint(self) -> LintReport | None:
        """Launches and syncs of the last request in the block, counted once, when first asked for; None if unknown."""
        self._check_ended()
        if self._lint is None and "lint" not in self.missing:
            self._count()
        return self._lint

    @property
    def launches_per_token(self) -> float | None:
        """Operators that start work on a device, per further token: a lower bound, the same each time."""
        return self._of_lint("launches_per_token")

    @property
    def syncs_per_token(self) -> float | None:
        """Certain waits of the host for a device, per further token."""
        return self._of_lint("syncs_per_token")

    @property
    def syncs_per_request(self) -> float | None:
        """Certain waits beside those, once per request."""
        return self._of_lint("syncs_per_request")

    @property
    def operators_per_token(self) -> float | None:
        """Operators that decoding runs per further token, by the cost model: the largest of all requests."""
        return self._of_costs("operators_per_token", "calls")

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes that decoding moves per further token, by the cost model: the largest of all requests."""
        return self._of_costs("bytes_per_token", "bytes")

    @property
    def spans_per_request(self) -> float | None:
        """OpenTelemetry spans that one request becomes."""
        self._check_ended()
        if not self.results or self._spans is None:
            self.missing["spans_per_request"] = "no request was observed"
            return None
        return self._spans / len(self.results)

    def bound(self, phase: str = "decode") -> str:
        """What holds that phase back, where all requests agree on it; else "unknown"."""
        self._check_ended()
        verdicts = [result.diagnosis.phase(phase) for result in self.results]
        bounds = {verdict.bound for verdict in verdicts if verdict is not None}
        return bounds.pop() if len(bounds) == 1 else "unknown"

    def hold(self, *, bound: str | Mapping[str, str] | None = None, **limits: float) -> None:
        """Fail where a number is above its limit, or is not known.

        Args:
            bound: What decode has to be held back by; by phase, where it is a mapping.
            **limits: The most that is allowed, by name: launches_per_token, syncs_per_token, syncs_per_request,
                operators_per_token, bytes_per_token, spans_per_request, compilations.

        Raises:
            BudgetExceededError: It does; the message names all that is wrong, and the sync points where syncs are.
            SettingError: A name is not among these.
        """
        self._check_ended()
        unknown = sorted(limits.keys() - set(_LIMITED))
        if unknown:
            raise SettingError(f"{', '.join(unknown)}: expected some of {', '.join(_LIMITED)}, bound")
        wrong = [said for name, limit in limits.items() if (said := self._above(name, limit))]
        wanted = {"decode": bound} if isinstance(bound, str) else dict(bound or {})
        found = {phase: self.bound(phase) for phase in wanted}
        wrong += [f"{p} is held back by: {found[p]}, expected {wanted[p]}" for p in wanted if found[p] != wanted[p]]
        if wrong:
            where = f"\n{self._lint}" if self._lint is not None and any("syncs" in said for said in wrong) else ""
            raise BudgetExceededError("; ".join(wrong) + where)

    def fail_if(self, *conditions: str, accept: Collection[str] = ()) -> tuple[GateResult, ...]:
        """Hold times against the baseline, with intervals.

        Args:
            *conditions: What must not be, as `inferscope compare --fail-if` takes it: "tpot>1.05".
            accept: Differences ("device", ...) in spite of which ratios are believed.

        Returns:
            What became of each condition, "held" or "cannot tell".

        Raises:
            BudgetExceededError: A condition holds for certain.
            SettingError: A condition cannot be read, is about a count, or there is no baseline.
            InferscopeError: The baseline cannot be read, or has nothing in common with the block.
        """
        self._check_ended()
        gates = [parse_gate(condition) for condition in conditions]
        for gate in gates:
            if gate.metric in COUNTS:
                raise SettingError(f"{gate.text!r}: counts need no baseline: hold({gate.metric}=...)")
        if self._baseline is None:
            raise SettingError("fail_if needs a baseline: budget(model, baseline=PATH)")
        found = inferscope.compare(self._baseline, [result.record for result in self.results])
        results = hold(found, gates, accept=accept)
        failed = [f"{one.gate.text}: {one.said}" for one in results if one.outcome == "failed"]
        if failed:
            raise BudgetExceededError("; ".join(failed) + f"\n{found}")
        return results

    def _check_ended(self) -> None:
        if not self._ended:
            raise SettingError("a budget is known after its block: ask below the with statement")

    @contextlib.contextmanager
    def _traced(self) -> Iterator[None]:
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - only where a budget is used
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415 - likewise
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415 - likewise

        from inferscope.sinks.spans import SpanSink  # noqa: PLC0415 - likewise

        kept: list[Result] = []
        exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ALWAYS_ON)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        graphs = _graphs()
        session = inferscope.trace(self._model, sinks=[SpanSink(tracer_provider=provider), kept.append])
        try:
            with session:
                yield
        finally:
            session.wait()
            self.results = tuple(kept)
            self._spans = len(exporter.get_finished_spans())
            self.compilations = _made_between(graphs, _graphs())
            provider.shutdown()

    def _count(self) -> None:
        if not self._asked:
            self.missing["lint"] = "generate was not called in the block"
            return
        inputs = dict(self._asked[-1])
        if inputs.get("past_key_values") is not None:
            self.missing["lint"] = (
                "generate was given a cache, which it has changed: use inferscope.lint with a new one"
            )
            return
        wanted = inputs.pop("max_new_tokens", None)
        tokens = min(wanted, _LINT_TOKENS) if isinstance(wanted, int) else _LINT_TOKENS
        try:
            self._lint = inferscope.lint(self._model, new_tokens=max(tokens, _FEWEST_LINT_TOKENS), **inputs)
        except InferscopeError as error:
            self.missing["lint"] = str(error)

    def _of_lint(self, name: str) -> float | None:
        report = self.lint
        if report is None:
            self.missing[name] = self.missing["lint"]
            return None
        return cast("float", getattr(report, name))

    def _of_costs(self, name: str, what: str) -> float | None:
        self._check_ended()
        found = []
        for result in self.results:
            costs = [verdict.cost for verdict in result.diagnosis.phases if verdict.name in _DECODING]
            further = (result.record.output_len or 0) - 1
            if further < 1 or not costs or None in costs:
                self.missing[name] = result.record.model.cost_note or "a request has no decoding whose cost is known"
                return None
            known = [cost for cost in costs if cost is not None]
            found.append(sum(cost.calls if what == "calls" else cost.bytes.model for cost in known) / further)
        if not found:
            self.missing[name] = "no request was observed"
        return max(found, default=None)

    def _above(self, name: str, limit: float) -> str | None:
        value = getattr(self, name)
        if value is None:
            return f"{name} is not known: {self.missing.get(name, 'it was not recorded')}"
        return f"{name} is {value:g}, at most {limit:g} allowed" if value > limit else None


_LIMITED = (
    "launches_per_token",
    "syncs_per_token",
    "syncs_per_request",
    "operators_per_token",
    "bytes_per_token",
    "spans_per_request",
    "compilations",
)


def write_baseline(path: str | Path, results: Sequence[Result]) -> None:
    """Write the records of results to a file that `fail_if` can be held against, whole or not at all.

    What times do not need (operator costs, single passes) is left out, so that the file can be committed.

    Args:
        path: Replaced where it exists; its folder is made.
        results: At least one.

    Raises:
        SettingError: There are none.
        CacheUnwritableError: The file cannot be written.
    """
    if not results:
        raise SettingError(f"{path}: no request was observed, so there is nothing to write")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft(path) as unfinished, contextlib.closing(JsonlSink(unfinished)) as sink:
            for result in results:
                sink(_stripped(result))
    except OSError as error:
        raise CacheUnwritableError(f"{path}: cannot be written: {error.strerror or error}") from error


def _stripped(result: Result) -> Result:
    """Without what times do not need."""
    record = result.record
    model = replace(record.model, cost=None, cost_note=_STRIPPED)
    phases = tuple(replace(phase, work=(), worst=()) for phase in record.phases)
    return replace(result, record=replace(record, model=model, phases=phases, pass_samples=()))


@contextlib.contextmanager
def _remembered(model: Any, asked: list[dict[str, Any]]) -> Iterator[None]:  # noqa: ANN401 - any model
    """Keep the arguments of the last call of `generate`; the model is as before afterwards."""
    original: Callable[..., Any] = model.generate
    names = list(inspect.signature(original).parameters)
    attributes = model.__dict__
    before = attributes.get("generate")

    def generate(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever generate takes and gives
        asked[:] = [{**dict(zip(names, args, strict=False)), **kwargs}]
        return original(*args, **kwargs)

    attributes["generate"] = generate
    try:
        yield
    finally:
        if attributes.get("generate") is generate:
            if before is None:
                del attributes["generate"]
            else:
                attributes["generate"] = before


def _graphs() -> int | None:
    """Graphs that torch.compile has made in this process; None where that cannot be read."""
    if "torch._dynamo.utils" not in sys.modules:  # nothing is compiled before it is loaded
        return 0
    counters = getattr(sys.modules["torch._dynamo.utils"], "counters", None)
    return None if counters is None else int(counters["stats"]["unique_graphs"])


def _made_between(before: int | None, after: int | None) -> int | None:
    if before is None or after is None or after < before:  # torch._dynamo.reset counts anew
        return None
    return after - before
