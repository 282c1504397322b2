"""Passes as moments: the sums from which cost polynomials are evaluated, and the cache traffic of those passes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from inferscope.errors import CostUnavailableError
from inferscope.records import PassRun
from inferscope.specs import (
    BASIS,
    EXPERT_LETTERS,
    CacheTerms,
    Structure,
    block_pairs,
    distinct_experts,
    segment_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from inferscope.records import Work
    from inferscope.specs import CostTerms, Regime

__all__ = ["Moments", "letters_of", "moment"]


def letters_of(
    structure: Structure,
    *,
    batch_size: int,
    q_len: int,
    past_len: int,
    logits: int,
    encoder_len: int | None = None,
    experts: Sequence[float] | None = None,
) -> dict[str, float]:
    """What each letter of a monomial stands for at one shape.

    Args:
        structure: Of the model.
        batch_size: Sequences.
        q_len: New tokens per sequence.
        past_len: Tokens already cached, per sequence.
        logits: Positions per sequence with logits.
        encoder_len: Tokens of the encoder's output; None where the model has none or fixes it.
        experts: Distinct experts read, of each kind; None takes as many as uniform routing reaches.

    Raises:
        CostUnavailableError: A decoder looks at an encoder's output, and nobody says how long that is.
    """
    length = (structure.encoder_len if structure.encoder else None) or encoder_len
    if structure.encoder and length is None:
        raise CostUnavailableError(
            "this model's decoder looks at an encoder's output: how long that is must be said (encoder_len)"
        )
    values: dict[str, float] = {"b": batch_size, "q": q_len, "k": past_len + q_len, "n": logits, "e": length or 0}
    if structure.scan_chunk:
        values["c"] = -(-q_len // structure.scan_chunk)
    if structure.attention_chunk:
        values["t"] = block_pairs(structure.attention_chunk, q_len, past_len)
    if experts is None:
        experts = [distinct_experts(*kind, batch_size * q_len) for kind in structure.experts]
    return {**values, **dict(zip(EXPERT_LETTERS, experts, strict=False))}


def moment(name: str, letters: Mapping[str, float]) -> float:
    """Value of a monomial, a product of letters."""
    result: float = 1
    for letter in name.replace("1", ""):
        result *= letters[letter]
    return result


class Moments:
    """Moments of passes by regime and segment, and the cache traffic of those passes."""

    def __init__(self, terms: CostTerms) -> None:
        self.moments: dict[tuple[Regime, str], list[float]] = {}
        self.kv_read = 0
        self.kv_write = 0
        self.ids = 0
        self.kept = 0
        self.encoded = 0
        self.longest = 0
        self._terms = terms
        self._structure = terms.structure
        self._plain = terms.structure == Structure() and tuple(terms.basis) == BASIS
        self._caches = terms.caches or (CacheTerms(kind="tokens", unit_bytes=terms.kv_bytes_per_token),)

    def add(self, entry: Work) -> None:
        """Take the passes of one regime."""
        if len(entry.monomials) != len(BASIS):
            raise CostUnavailableError(
                f"work was summed over {len(entry.monomials)} monomials, not over {len(BASIS)}: {BASIS}"
            )
        moment = dict(zip(BASIS, entry.monomials, strict=True))
        if entry.regime == "encode":
            self.encoded += moment["bq"]
        else:
            self.ids += moment["bq"]
            self.kept += moment["bn"] if self._terms.supports_logits_to_keep else moment["bq"]
        for run in entry.runs or ():
            self.longest = max(self.longest, run.past_len + run.q_len + run.step * (run.passes - 1))
        if self._plain and entry.regime != "encode":
            self._accumulate((entry.regime, ""), entry.monomials)
            self._carry_tokens(moment)
            return
        if entry.runs is None:
            raise CostUnavailableError(
                "this model's cost depends on each pass's own lengths, and the record kept only sums over passes"
            )
        for run in entry.runs:
            for part in _parts(run, self._structure):
                self._add_part(entry, part)

    def _accumulate(self, key: tuple[Regime, str], values: Sequence[float]) -> None:
        total = self.moments.setdefault(key, [0] * len(values))
        for index, value in enumerate(values):
            total[index] += value

    def _carry_tokens(self, moment: dict[str, int]) -> None:
        unit = sum(cache.unit_bytes for cache in self._caches)
        self.kv_read += unit * moment["bk"]
        self.kv_write += unit * moment["bq"]

    def _add_part(self, entry: Work, part: PassRun) -> None:
        regime = entry.regime
        segment = segment_of(self._structure, regime, part.q_len, part.past_len)
        letters = self._letters(part, entry)
        powers = _sums_of_powers(part)
        values = [_moment_sum(name, letters, powers) for name in self._terms.basis]
        self._accumulate((regime, segment), values)
        if regime != "encode":
            self._carry(part, powers, letters["e"])

    def _letters(self, part: PassRun, entry: Work) -> dict[str, float]:
        length = entry.encoder_len if entry.regime != "encode" else 0
        return letters_of(
            self._structure,
            batch_size=part.batch_size,
            q_len=part.q_len,
            past_len=part.past_len,
            logits=part.logits,
            encoder_len=length,
        )

    def _carry(self, part: PassRun, powers: tuple[int, int, int], encoder_len: float) -> None:
        passes, lengths = powers[0], powers[1]
        b, q = part.batch_size, part.q_len
        for cache in self._caches:
            unit = cache.unit_bytes
            if cache.kind == "tokens" or (cache.kind == "window" and part.past_len < (cache.window or 1) - 1):
                self.kv_read += unit * b * lengths
                self.kv_write += unit * b * q * passes
            elif cache.kind == "window":
                self.kv_read += unit * b * ((cache.window or 1) - 1 + q) * passes
                self.kv_write += unit * b * q * passes
            elif cache.kind == "state":
                self.kv_read += unit * b * passes if part.past_len else 0
                self.kv_write += unit * b * passes
            else:
                self.kv_read += unit * b * int(encoder_len) * passes
                self.kv_write += 0 if part.past_len else unit * b * int(encoder_len) * passes


def _parts(run: PassRun, structure: Structure) -> Iterator[PassRun]:
    """The run cut where a pass enters another segment; into single passes where only these can be evaluated."""
    cuts = {0, run.passes}
    if structure.attention_chunk:
        cuts.update(range(run.passes))
    elif run.step:
        limits = [1] if structure.starts_apart or structure.scan_chunk else []
        limits += [limit for window in structure.windows for limit in (window - run.q_len, window - 1)]
        cuts.update(-(-(limit - run.past_len) // run.step) for limit in (1, *limits))
    inside = sorted(cut for cut in cuts if 0 <= cut <= run.passes)
    for first, end in pairwise(inside):
        yield PassRun(
            batch_size=run.batch_size,
            q_len=run.q_len,
            past_len=run.past_len + first * run.step,
            logits=run.logits,
            passes=end - first,
            step=run.step,
        )


def _sums_of_powers(part: PassRun) -> tuple[int, int, int]:
    """Sums over the passes of 1, k and k squared, k tokens attended to."""
    n, first, step = part.passes, part.past_len + part.q_len, part.step
    ones = n * (n - 1) // 2
    squares = (n - 1) * n * (2 * n - 1) // 6
    return n, n * first + step * ones, n * first * first + 2 * first * step * ones + step * step * squares


def _moment_sum(name: str, letters: Mapping[str, float], powers: tuple[int, int, int]) -> float:
    """Sum of a monomial over passes that differ in k alone; 0 where a letter has no meaning in their segment."""
    if any(letter not in letters for letter in name.replace("1", "")):
        return 0
    return powers[name.count("k")] * moment(name.replace("k", ""), letters)
