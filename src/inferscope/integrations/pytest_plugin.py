"""pytest plugin: the fixture `inferscope_budget`, baselines beside the tests, and what they could not tell.

pytest loads this in every run, so that it imports neither torch nor anything else of inferscope until the fixture is
used. What a budget has to say travels with the test's report, also from a worker of pytest-xdist.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.testing.budgets import Budget

__all__ = ["inferscope_budget"]

_TOLD = "inferscope"
_FOLDER = "inferscope_baselines"
_LONGEST_NAME = 80


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the plugin's options."""
    group = parser.getgroup("inferscope", "performance budgets")
    group.addoption(
        "--inferscope-update", action="store_true", help="write the baselines of budgets instead of comparing with them"
    )
    group.addoption(
        "--inferscope-strict",
        action="store_true",
        help="fail where a budget has no baseline, or cannot tell whether it holds",
    )
    parser.addini(
        "inferscope_baselines", "folder of the baselines; default: inferscope_baselines beside each test file"
    )


@pytest.fixture
def inferscope_budget(request: pytest.FixtureRequest) -> Callable[[object], Budget]:
    """What makes budgets: call it with a model for a context manager round `generate` calls.

    `budget.hold(syncs_per_token=1)` holds counts, `budget.fail_if("tpot>1.05")` times against the stored baseline.
    """
    made: list[Budget] = []

    def make(model: object) -> Budget:
        path = _baseline_of(request, len(made))
        made.append(_budget(model, path, request))
        return made[-1]

    return make


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401 - pytest's own class is not public
    """Say what budgets could not tell, and which baselines were written."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [
        (report.nodeid, said)
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, said in report.user_properties
        if name == _TOLD
    ]
    if told:
        terminalreporter.section("inferscope")
        for nodeid, said in sorted(told):
            terminalreporter.write_line(f"{nodeid}: {said}")


def _budget(model: object, path: Path, request: pytest.FixtureRequest) -> Budget:
    from inferscope.testing.pytest_budget import PytestBudget  # noqa: PLC0415 - only where the fixture is used

    return PytestBudget(
        model,
        baseline=path,
        update=request.config.getoption("--inferscope-update"),
        strict=request.config.getoption("--inferscope-strict"),
        tell=lambda said: request.node.user_properties.append((_TOLD, said)),
    )


def _baseline_of(request: pytest.FixtureRequest, number: int) -> Path:
    """Where the baseline of a test's budget is kept: a name that people can read and no other test has."""
    asked = request.config.getini("inferscope_baselines")
    test = Path(request.node.path)
    folder = request.config.rootpath / asked if asked else test.parent / _FOLDER
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", request.node.nodeid.partition("::")[2])
    if len(name) > _LONGEST_NAME or name != request.node.nodeid.partition("::")[2]:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"
    return folder / test.stem / f"{name}{f'-{number + 1}' if number else ''}.jsonl"
