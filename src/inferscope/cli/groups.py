"""How `inferscope --help` lists the commands: by what one wants to do, one line each, in plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

if TYPE_CHECKING:
    import typer

__all__ = ["GROUPS", "WORDS", "GroupedHelp"]

GROUPS: dict[str, dict[str, str]] = {
    "Start with": {
        "demo": "Ask a small model one question and see where the time went.",
        "doctor": "What is there on this machine, and what is missing.",
    },
    "Measure": {
        "run": "Your own program, unchanged, with its models observed.",
        "watch": "What holds this machine back, live.",
        "calibrate": "How fast this device can be.",
        "lint": "Launches and waits per token, without a GPU.",
        "sweep": "Batch sizes and prompt lengths, and their knees.",
    },
    "Look and compare": {
        "report": "Many requests as one page, text or data.",
        "compare": "Before and after, with intervals; a gate for CI.",
    },
    "Look ahead": {
        "predict": "How long it takes on a GPU you do not have.",
    },
    "From Nsight": {
        "import-ncu": "Hardware counters of Nsight Compute.",
        "import-nsys": "A timeline of Nsight Systems.",
    },
}
"""Commands by group, each in a few words. One that is not registered is left out."""
WORDS = {name: words for commands in GROUPS.values() for name, words in commands.items()}
"""The words of each command."""


class GroupedHelp(TyperGroup):
    """A group of commands whose help is in `GROUPS`' order."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer's own base has it narrower
        """Names of the commands, as they are listed."""
        there = super().list_commands(ctx)
        listed = [name for group in GROUPS.values() for name in group if name in there]
        return [*listed, *(name for name in there if name not in listed)]

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # noqa: ANN401 - typer's formatter moves between its versions
        """Write each group as a section."""
        there = super().list_commands(ctx)
        for title, commands in GROUPS.items():
            rows = [(name, words) for name, words in commands.items() if name in there]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
