"""Which shapes to count, so that all coefficients are determined and the surplus can contradict them."""

# ruff: noqa: ANN401 - transformers' configs have no common type
from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferscope.capture.tally import ForwardShape
from inferscope.capture.twin import text_config
from inferscope.specs import SHORT, Structure, columns_of, regime_of, segment_of

if TYPE_CHECKING:
    import torch

    from inferscope.specs import Regime

__all__ = ["Plan", "declared_limits", "widths_of"]

_SURPLUS = 4
_TRIES = 4000


@dataclass(frozen=True, slots=True)
class Plan:
    """Which shapes to count.

    Batches determine and single sequences contradict, because a few layouts take fewer copies for one sequence.
    Lengths are numbers that no width of the model is, and so are recognised in attention scores. What is longer than
    `most_tokens` is left out where the others suffice: a model may hold tables that end there.
    """

    structure: Structure
    widths: frozenset[int]
    keeps_logits: bool
    most_tokens: int | None = None

    def segments(self, *, cached: bool) -> list[tuple[Regime, str]]:
        """Every regime and segment that some lengths lie in."""
        lengths = [0, 1, 2, 3]
        for window in self.structure.windows:
            lengths += [window - 2, window - 1, window, window + 1, 2 * window]
        if self.structure.scan_chunk:
            lengths += [self.structure.scan_chunk, 3 * self.structure.scan_chunk - 1]
        found: dict[tuple[Regime, str], None] = {}
        for q in sorted({length for length in (*lengths, 7) if length > 0}):
            for past in sorted({length for length in (*lengths, 5) if length >= 0}):
                regime = regime_of(q, past)
                if cached or past == 0:
                    found[regime, segment_of(self.structure, regime, q, past)] = None
        return list(found)

    def rows(self, regime: Regime, segment: str) -> list[ForwardShape]:
        """As many different shapes as there are monomials, and some more."""
        within = self._rows(regime, segment, self.most_tokens)
        wanted = len(columns_of(self.structure, regime, segment, keeps_logits=self.keeps_logits)) + _SURPLUS
        return within if len(within) == wanted or self.most_tokens is None else self._rows(regime, segment, None)

    def _rows(self, regime: Regime, segment: str, most_tokens: int | None) -> list[ForwardShape]:
        structure = self.structure
        columns = columns_of(structure, regime, segment, keeps_logits=self.keeps_logits)
        source = random.Random(f"{regime} {segment}")  # noqa: S311 - the same shapes every time, no secret
        rows: dict[tuple[object, ...], ForwardShape] = {}
        wanted = len(columns) + _SURPLUS
        for attempt in range(_TRIES):
            q, past = self._lengths(regime, source)
            if regime != "encode" and (
                regime_of(q, past) != regime or segment_of(structure, regime, q, past) != segment
            ):
                continue
            if most_tokens is not None and past + q > most_tokens:
                continue
            if self._ambiguity(q, past) > 3 * attempt // _TRIES and SHORT not in segment:
                continue
            row = self._row(regime, q, past, source, single=len(rows) == wanted - 1)
            rows.setdefault((row.batch_size, q, past, row.logits, row.encoder_len, row.experts), row)
            if len(rows) == wanted:
                break
        return list(rows.values())

    def followed(self, regime: Regime, segment: str) -> list[ForwardShape]:
        """Batches whose memory is to be followed: some at both ends of the segment or of what runs, the others between.

        A moment that is below another one at all ends is below it everywhere between them, since bytes are a
        product of powers of one in each letter.
        """
        rows = [row for row in self.rows(regime, segment) if row.batch_size > 1]
        ends = self._ends(regime, segment)
        corners = [
            replace(rows[0], batch_size=batch, q_len=q, past_len=past, logits=1)
            for batch in (2, 64)
            for q, past in ends
        ]
        enough = len(columns_of(self.structure, regime, segment, keeps_logits=self.keeps_logits)) + 2
        return [*corners, *rows[: max(enough - len(corners) + 2, 4)]]

    def _ends(self, regime: Regime, segment: str) -> list[tuple[int, int]]:
        """The shortest and the longest lengths in a segment, of those tried."""
        chunk = self.structure.scan_chunk or 0
        limits = {1, 2, 3, 4, 5, chunk - 1, chunk + 1, 4001}
        if self.most_tokens is not None:
            limits |= {self.most_tokens - 1, self.most_tokens}
        for window in self.structure.windows:
            limits |= {window - 2, window - 1, window, window + 1, 2 * window + 1, 4 * window + 1}
        lengths = sorted(limit for limit in limits if limit > 0 and not (chunk and limit % chunk == 0))
        if regime == "encode":
            return []
        found = [
            (q, past)
            for q in ([1] if regime == "decode" else lengths)
            for past in ([0] if regime == "prefill" or segment == "first" else lengths)
            if regime_of(q, past) == regime and segment_of(self.structure, regime, q, past) == segment
        ]
        if self.most_tokens is not None:
            found = [lens for lens in found if sum(lens) <= self.most_tokens] or found
        by_length = sorted(found, key=sum)
        return [by_length[0], by_length[-1]] if len(by_length) > 1 else by_length

    def _lengths(self, regime: Regime, source: random.Random) -> tuple[int, int]:
        def length(least: int, before: int = 0) -> int:
            near = source.choice((0, 0, *self.structure.windows, *(w - before for w in self.structure.windows)))
            shortest = min(self.structure.windows, default=0)
            reach = source.choice((shortest, 90)) if 1 < shortest < 90 else 90  # noqa: PLR2004 - of the lengths tried
            return source.randint(
                max(least, near - reach), max(least, near) + reach + 3 * (self.structure.scan_chunk or 0)
            )

        if regime == "encode":
            return self.structure.encoder_len or source.randint(11, 120), 0
        past = 0 if regime == "prefill" else length(0 if regime == "decode" else 1)
        return 1 if regime == "decode" else length(2, past), past

    def _ambiguity(self, q: int, past: int) -> int:
        """How much these lengths can be taken for something else: 0 for nothing, 2 for one another."""
        windows = self.structure.windows
        lens = {past + q} | {min(past, window - 1) + q for window in windows}
        beside = {length + 1 for length in lens}  # scores with a column for a sink
        whole_chunks = self.structure.scan_chunk is not None and q % self.structure.scan_chunk == 0
        if 1 in lens or lens & beside or whole_chunks:
            return 2
        return 1 if (lens | {q}) & (self.widths - {*windows}) else 0

    def _row(self, regime: Regime, q: int, past: int, source: random.Random, *, single: bool) -> ForwardShape:
        structure = self.structure
        own = {q, past + q} | {min(past, window - 1) + q for window in structure.windows}
        encoders = [length for length in range(29, 131) if length not in own | self.widths]
        encoder_len = 0
        if structure.encoder:
            encoder_len = structure.encoder_len or source.choice(encoders)
        return ForwardShape(
            batch_size=1 if single else source.choice((2, 3, 4)),
            q_len=q,
            past_len=past,
            logits=0 if regime == "encode" else max(1, q // 2) if single else source.choice((1, q)),
            regime="encode" if regime == "encode" else None,
            encoder_len=encoder_len if regime != "encode" else 0,
            windows=structure.windows,
            experts=tuple((kind, source.randint(1, kind[0])) for kind in structure.experts),
        )


def widths_of(module: torch.nn.Module) -> frozenset[int]:
    """Numbers that are sizes of the model, and so tell nothing about lengths."""
    sizes = {
        int(size) for tensor in module.state_dict(keep_vars=True).values() for size in getattr(tensor, "shape", ())
    }
    config = text_config(module.config)
    sizes |= {value for value in vars(config).values() if type(value) is int}
    sizes |= {int(size) for tensor in module.buffers() for size in tensor.shape}
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if type(heads) is int and type(width) is int and heads > 0:
        sizes.add(width // heads)
    sizes |= {size // part for size in sizes for part in (2, 4)}  # halves that are rotated, quarters of them
    return frozenset(size for size in sizes if size > 1)


def declared_limits(config: Any) -> list[int]:
    """Longest sequences that a config declares: what is longer may not run."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions")
    limits = (getattr(config, name, None) for name in names)
    return [value - 1 for value in limits if type(value) is int and value > 1]  # slices of all of a buffer are none
