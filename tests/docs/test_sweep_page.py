"""The commands that the pages on sweeps show are commands that there are."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

typer = pytest.importorskip("typer")

from inferscope.cli.application import app  # noqa: E402 - after it is known to be there

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "find-the-batch-size.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_is_understood():
    commands = typer.main.get_command(app).commands
    shown = [shlex.split(line) for line in PAGE.splitlines() if line.startswith("    inferscope ")]
    assert len(shown) >= 4
    for _, name, *arguments in shown:
        with commands[name].make_context(name, arguments) as context:
            assert context.params


def test_every_label_of_a_record_is_in_the_reference():
    from inferscope.analysis.sweep_points import OUTCOME, Job, labels_of  # noqa: PLC0415
    from inferscope.experiments.sweep import SweepOptions, sweep_labels  # noqa: PLC0415

    options = SweepOptions()
    labels = (*labels_of(Job(point=options.points()[0], round_number=0)), *sweep_labels(options, 1), (OUTCOME, ""))
    page = (ROOT / "docs" / "reference" / "sweep.md").read_text(encoding="utf-8")
    assert [name for name, _ in labels if f"`{name}`" not in page] == []
