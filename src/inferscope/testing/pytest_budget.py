"""A budget whose baseline belongs to a test: written on demand, and told of where it decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.gates import parse_gate
from inferscope.testing.budgets import Budget, BudgetExceededError, write_baseline

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from inferscope.analysis.gates import GateResult

__all__ = ["PytestBudget"]


class PytestBudget(Budget):
    """A budget that `inferscope_budget` makes.

    Attributes:
        baseline: File of the test's baseline.
    """

    def __init__(
        self, model: object, *, baseline: Path, update: bool, strict: bool, tell: Callable[[str], None]
    ) -> None:
        """Prepare.

        Args:
            model: A model with `generate`.
            baseline: File of the test's baseline.
            update: Write it instead of comparing with it.
            strict: Fail where it does not exist, or nothing can be told from it.
            tell: Called with what the run's summary should say.
        """
        super().__init__(model, baseline=baseline)
        self.baseline = baseline
        self._update = update
        self._strict = strict
        self._tell = tell

    def fail_if(self, *conditions: str, accept: Collection[str] = ()) -> tuple[GateResult, ...]:
        """As `Budget.fail_if`; writes the baseline where that was asked for, and says what cannot be told."""
        for condition in conditions:
            parse_gate(condition)
        if self._update:
            write_baseline(self.baseline, self.results)
            self._tell(f"baseline of {len(self.results)} requests written: {self.baseline}")
            return ()
        if not self.baseline.is_file():
            self._open_question(f"no baseline at {self.baseline}: write it with pytest --inferscope-update")
            return ()
        results = super().fail_if(*conditions, accept=accept)
        unsure = [f"{one.gate.text}: {one.said}" for one in results if one.outcome == "cannot tell"]
        if unsure:
            self._open_question(f"cannot tell: {'; '.join(unsure)}")
        return results

    def _open_question(self, said: str) -> None:
        if self._strict:
            raise BudgetExceededError(said)
        self._tell(said)
