"""Count the operators of forwards on a twin of the model, at enough shapes to solve for its cost."""

# ruff: noqa: ANN401 - transformers' models, outputs and caches have no common type
from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from inferscope.capture.caches import CacheSizes, cache_of, cache_tensors, resized, state_len_of, windows_of
from inferscope.capture.lifetimes import Lifetimes, highest_steps
from inferscope.capture.mirror import first_line
from inferscope.capture.operators import Seen, storage_key
from inferscope.capture.runner import Runner
from inferscope.capture.shapes import Plan, declared_limits, widths_of
from inferscope.capture.tally import ForwardShape, Tally, Weights, expert_kind
from inferscope.capture.twin import Twin, build_twin
from inferscope.errors import CostUnavailableError
from inferscope.specs import ONE_CHUNK, SHORT, CountTable, ShapeCount, Structure, regime_of, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inferscope.specs import GroupCount, Regime

__all__ = ["count"]

LONG_TOKENS = 1_048_573
"""Length of the longest forwards counted: there, what the polynomial does not know contradicts it."""
_LONG_LOOP_TOKENS = 521
_TEMPLATE = ForwardShape(batch_size=2, q_len=19, past_len=0, logits=1, encoder_len=23)


def count(model_or_config: object, *, dtype: str | None = None, idle: Callable[[], None] | None = None) -> CountTable:
    """Count the operators of some thirty forwards on a twin without memory; more where a model has more variables.

    Consumes no random numbers and changes no process-wide default, so that results of a concurrent `generate` stay
    the same bit for bit.

    Args:
        model_or_config: A transformers model, or the config of one.
        dtype: Of the weights ("bfloat16"); None for the model's own.
        idle: Called before each forward, so that the caller can wait for a quiet moment.

    Returns:
        Counts at enough shapes for `analysis.cost.fit` and its check.

    Raises:
        CostUnavailableError: The model cannot be built from its config, or not be run on shapes alone.
    """
    wait = idle or _go_on
    wait()
    try:
        twin = build_twin(model_or_config, dtype)
        try:
            return _Counting(twin, wait).table()
        except CostUnavailableError:
            limits = declared_limits(twin.config)
            if not limits:
                raise
        # Masks and biases that a model holds as tables end with its context: then nothing longer runs.
        return _Counting(build_twin(model_or_config, dtype), wait, most_tokens=min(limits)).table()
    except CostUnavailableError:
        raise
    except Exception as error:
        name = type(model_or_config).__name__
        raise CostUnavailableError(f"{name} cannot be counted: {first_line(error)}") from error


class _Counting:
    """The counted forwards of one twin."""

    def __init__(self, twin: Twin, wait: Callable[[], None], most_tokens: int | None = None) -> None:
        self._twin = twin
        self._most_tokens = most_tokens
        self._runner = Runner(twin, wait)
        self._uncounted: set[str] = set()
        self._notes = set(twin.notes)
        self._sizes = CacheSizes()
        self._filled: dict[tuple[int, int, int], Any] = {}
        self._checked: set[tuple[Regime, str]] = set()
        self._may_skip = True  # until a segment shows that it makes a difference
        self._begin()

    def _begin(self) -> None:
        """Learn from one forward what the cost will depend on."""
        runner, twin = self._runner, self._twin
        output, recorder = runner.run(_TEMPLATE)
        seen = recorder.seen
        self._template = cache_of(output)
        self._keeps_cache = any(True for _ in cache_tensors(self._template))
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise CostUnavailableError("the forward returns no logits")
        self._logits_bytes = logits.shape[-1] * logits.element_size()
        kinds = (expert_kind(entry, _TEMPLATE) for entry in seen if _multiplies(entry, runner.weights))
        experts = tuple(dict.fromkeys(kind for kind in kinds if kind is not None))
        windows = {scope.window for scope in twin.scopes if scope.window} | set(windows_of(self._template))
        blocks = {scope.block for scope in twin.scopes if scope.block}
        stateful = self._sizes.has_states(self._template)
        self.structure = Structure(
            windows=tuple(sorted(windows)),
            starts_apart=stateful or runner.encoder is not None,
            scan_chunk=twin.scan_chunk if stateful else None,
            state_len=state_len_of(self._template),
            attention_chunk=next(iter(blocks), None),
            experts=experts,
            encoder=runner.encoder is not None,
            encoder_len=runner.fixed_encoder_len,
        )
        if len(blocks) > 1 or len(experts) > 3:  # noqa: PLR2004 - letters of specs.EXPERT_LETTERS
            raise CostUnavailableError(
                f"attention blocks {sorted(blocks)}, experts {experts}: more kinds than are known"
            )
        self._scoped = bool(twin.scopes) or stateful
        longer = replace(_TEMPLATE, q_len=2 * _TEMPLATE.q_len + 3 * (self.structure.scan_chunk or 0))
        self._loops = len(runner.run(longer)[1].seen) > len(seen)
        if self.structure.scan_chunk:
            self._notes.add(f"sequences of whole scan chunks ({twin.scan_chunk} tokens) take some copies fewer")

    def table(self) -> CountTable:
        """Everything counted."""
        shapes = [*self._decoder_shapes(), *self._encoder_shapes()]
        lives = tuple(self._lives())
        caches = self._sizes.terms(self.structure)
        return CountTable(
            shapes=tuple(shapes),
            kv_bytes_per_token=sum(cache.unit_bytes for cache in caches if cache.kind in {"tokens", "window"}),
            logits_bytes=self._logits_bytes,
            supports_logits_to_keep=self._runner.keeps_logits is not None,
            uncounted=tuple(sorted(self._uncounted)),
            notes=tuple(sorted(self._notes)),
            structure=self.structure,
            caches=caches,
            hidden_bytes=self._runner.hidden_bytes,
            counted_tokens=max(shape.past_len + shape.q_len for shape in shapes if shape.regime is None),
            lives=lives,
            stored_bytes=sum(self._runner.weights.whole_bytes.values()),
        )

    def _decoder_shapes(self) -> Iterator[ShapeCount]:
        plan = self._plan()
        for regime, segment in plan.segments(cached=self._keeps_cache):
            rows = plan.rows(regime, segment)
            for row in rows:
                yield self._counted(row)
            yield from self._longest(regime, segment, rows[-1])
        if not self._keeps_cache:
            self._notes.add("the model keeps no cache: only forwards over whole sequences are counted")

    def _longest(self, regime: Regime, segment: str, row: ForwardShape) -> Iterator[ShapeCount]:
        """The forward that is as long as can be, in the segment that has no end."""
        if "0" in segment or "1" in segment or segment == "first" or ONE_CHUNK in segment or SHORT in segment:
            return
        windows, chunk = self.structure.windows, self.structure.scan_chunk or 0
        least = max(211, 5 * chunk - 4, 2 * max(windows, default=0))
        limits = [_LONG_LOOP_TOKENS] if self._loops else [*declared_limits(self._twin.config), LONG_TOKENS]
        failed, counted = None, False
        tried = {max(limit, least) for limit in limits} if self._most_tokens is None else {self._most_tokens}
        for limit in sorted(tried):
            lens = {"prefill": (limit, 0), "decode": (1, limit - 1)}.get(regime, (61, limit - 61))
            shape = replace(row, batch_size=5, q_len=lens[0], past_len=lens[1], logits=lens[0])
            try:
                yield self._counted(shape)
                counted = True
            except CostUnavailableError as error:  # what is longer than a buffer of the model does not run
                failed = error
                break
        if failed is not None and not counted:
            raise failed

    def _lives(self) -> Iterator[ShapeCount]:
        """How much memory forwards use at their highest moments; nothing of segments whose steps differ by shape."""
        self._runner.layers.skip = False
        plan = self._plan()
        for regime, segment in plan.segments(cached=self._keeps_cache):
            if regime == "continuation" or self._loops:
                continue
            followed = [(row, self._lifetimes(row)) for row in map(self._as_kept, plan.followed(regime, segment))]
            steps = highest_steps([history for _, history in followed])
            for row, history in followed if steps else ():
                live = tuple(history[step] for step in steps or ())
                yield replace(_shape_count(row, ()), live_bytes=live)

    def _lifetimes(self, shape: ForwardShape) -> list[int]:
        cache = self._filled_cache(shape)
        lifetimes = Lifetimes((tensor for _, tensor in cache_tensors(cache)), self._runner.weights.whole_bytes)
        self._runner.run(shape, cache, write=False, lifetimes=lifetimes)
        return lifetimes.history_bytes

    def _as_kept(self, shape: ForwardShape) -> ForwardShape:
        """The shape, with logits at all positions where the model cannot keep fewer."""
        keeps = self._runner.keeps_logits is not None or shape.regime == "encode"
        return shape if keeps else replace(shape, logits=shape.q_len)

    def _plan(self) -> Plan:
        keeps_logits = self._runner.keeps_logits is not None
        widths = widths_of(self._twin.module)
        return Plan(self.structure, widths, keeps_logits=keeps_logits, most_tokens=self._most_tokens)

    def _encoder_shapes(self) -> Iterator[ShapeCount]:
        if not self._runner.encodes:
            return
        plan = Plan(self.structure, widths_of(self._twin.module), keeps_logits=False)
        for row in plan.rows("encode", ""):
            try:
                yield self._counted(row)
            except CostUnavailableError as error:
                self._notes.add(f"the encoder's own forward is not counted: {error}")
                return

    def _counted(self, shape: ForwardShape) -> ShapeCount:
        shape = self._as_kept(shape)
        regime = shape.regime or regime_of(shape.q_len, shape.past_len)
        segment = (regime, segment_of(self.structure, regime, shape.q_len, shape.past_len))
        self._runner.layers.skip = self._may_skip
        groups = self._tallied(shape)
        if self._may_skip and segment not in self._checked:
            self._checked.add(segment)
            self._runner.layers.skip = False
            whole = self._tallied(shape)
            self._may_skip, groups = whole == groups, whole
        return _shape_count(shape, groups)

    def _tallied(self, shape: ForwardShape) -> tuple[GroupCount, ...]:
        cache = self._filled_cache(shape) if shape.regime != "encode" else None
        held = [tensor for _, tensor in cache_tensors(cache)]  # alive until tallied: a freed storage's key is reused
        output, recorder = self._runner.run(shape, cache)
        after = cache_of(output)
        keys = {storage_key(tensor) for _, tensor in cache_tensors(after)} | {*map(storage_key, held)}
        tally = Tally(weights=self._runner.weights, shape=shape, cache_keys=keys, scoped=self._scoped)
        groups = tally.add_all(recorder.seen, recorder.times())
        if shape.regime != "encode":
            self._sizes.add(shape, after)
        self._uncounted |= tally.uncounted
        self._notes |= tally.notes
        return groups

    def _filled_cache(self, shape: ForwardShape) -> Any:
        """A cache of the tokens before; None for no past."""
        if not shape.past_len:
            return None
        made = resized(self._template, shape.batch_size, shape.past_len)
        if made is not None:
            return made
        key = (shape.batch_size, shape.past_len, shape.encoder_len)
        if key not in self._filled:
            past = replace(shape, q_len=shape.past_len, past_len=0, logits=1)
            output, _ = self._runner.run(past, write=False)
            self._filled[key] = cache_of(output)
        return copy.deepcopy(self._filled[key])


def _shape_count(shape: ForwardShape, groups: tuple[GroupCount, ...]) -> ShapeCount:
    return ShapeCount(
        batch_size=shape.batch_size,
        q_len=shape.q_len,
        past_len=shape.past_len,
        logits=shape.logits,
        groups=groups,
        regime=shape.regime,
        encoder_len=shape.encoder_len,
        experts=tuple(read for _, read in shape.experts),
    )


def _multiplies(seen: Seen, weights: Weights) -> bool:
    """Whether the operator takes stacked weights of the model: products with experts, or gathers of them."""
    stacked = seen.operands[1:2] if seen.kind == "matmul" else seen.inputs[:1]
    return any(storage_key(tensor) in weights.whole_bytes for tensor in stacked)


def _go_on() -> None:
    """Wait for nothing."""
