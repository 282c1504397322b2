"""Assisted decoding that costs more than it brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_SLOWER = 1.0


def look(whole: Whole) -> Finding | None:
    """Fires where drafting and verifying take longer per token than one verifying pass does.

    A pass without candidates takes no longer than one with: what is above it is loss for certain.
    """
    record, verify, draft = whole.record, whole.case("verify"), whole.case("draft")
    share = record.acceptance_share
    if verify is None or verify.phase.passes <= 0 or share is None or not record.output_len:
        return None
    walls_ns = verify.phase.wall_ns + (draft.phase.wall_ns if draft is not None else 0)
    # What was drafted before the first pass was verified in it.
    tokens = verify.phase.passes + (record.accepted_tokens or 0)
    per_token_ns = walls_ns / tokens
    plain_ns = verify.phase.wall_ns / verify.phase.passes
    if per_token_ns <= _SLOWER * plain_ns:
        return None
    loss_ns = (per_token_ns - plain_ns) * tokens
    high_ns = min(float(walls_ns), (per_token_ns - 0.5 * plain_ns) * tokens)
    return whole.finding(
        "speculation-not-paying",
        "OPT",
        f"Assisted decoding loses: {share:.0%} of the drafted tokens are accepted, and a token takes "
        f"{per_token_ns / plain_ns:.1f} verifying passes' time.",
        Evidence(metric="acceptance_share", value=share, source="measured"),
        Evidence(
            metric="token_ns",
            value=per_token_ns,
            threshold=plain_ns,
            source="measured",
            note="drafting and verifying, against one verifying pass",
        ),
        saving=whole.stretch(
            loss_ns,
            high_ns,
            "that a pass without candidates takes 50 to 100 % of one with",
            phases=("draft", "verify"),
            terms=("forward", "select", "deliver", "offcpu"),
        ),
        action="Draft fewer tokens (num_assistant_tokens), take an assistant that agrees more often or is smaller, or "
        "decode without one. Precondition: none; the tokens stay the same.",
        not_helping="A faster verifying model: drafting is what it does not make up for.",
        verify="run the same request without the assistant; TPOT falls, the tokens are equal.",
    )
