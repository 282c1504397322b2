"""A budget for what does not flicker: it holds on any machine, with or without a GPU.

pytest examples/ci/test_budget.py

The fixture comes with inferscope. Put your own model and inputs in place of `tiny_model` and `prompt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import prompt, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.testing import Budget


def test_decoding_stays_lean(inferscope_budget: Callable[[object], Budget]) -> None:
    """One wait per token is generate's own stop flag; the other limits are what this model needs today."""
    model = tiny_model()
    with inferscope_budget(model) as budget:
        model.generate(prompt(), max_new_tokens=8, do_sample=False)
    budget.hold(syncs_per_token=1, launches_per_token=110, operators_per_token=180, spans_per_request=3, compilations=0)
