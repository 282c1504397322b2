"""docs/reference/cli.md is made from the commands themselves: run this file to write it."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import pytest

typer = pytest.importorskip("typer")

from inferscope.cli.application import app  # noqa: E402 - after it is known to be there

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
LEAD = """\
# Command line

`inferscope COMMAND --help` says the same. A mistake in what was asked is one line on standard error and exit code 2; 3
is what this machine refuses, 4 a limit that was given and is exceeded, 130 Ctrl-C, 1 a defect.
[Messages](messages.md) explains each.
"""
END = "\nThis page is made from the commands by `python tests/docs/test_cli_page.py`.\n"


def plain(text):
    return re.sub(r"\s+", " ", (text or "").replace("\b", " ")).strip().replace("|", "\\|")


def options(function):
    """Name as it is typed, default and meaning of each option of a command."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])[:2]
        yield shown(name, kind, info), default(parameter.default), plain(info.help)


def shown(name, kind, info):
    if isinstance(info, typer.models.ArgumentInfo):
        return info.metavar or name.upper()
    # Within Annotated, typer takes the first name of an option where a default stood otherwise.
    first = [info.default] if isinstance(info.default, str) and info.default.startswith("-") else []
    said = [*first, *(info.param_decls or ())]
    written = ", ".join(said) or f"--{name.replace('_', '-')}"
    inner = [part for part in typing.get_args(kind) if part is not type(None)]
    kind = inner[0] if inner else kind
    if kind is bool:
        return written if said else f"{written}, --no-{written.removeprefix('--')}"
    names = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
    return f"{written} {info.metavar or names.get(kind, 'TEXT')}"


def default(value):
    if value is inspect.Parameter.empty or value is ...:
        return "needed"
    return "" if value is None or value is False else f"`{value}`"


def section(command):
    function = command.callback
    about = [plain(part) for part in inspect.getdoc(function).split("\n\n")]
    rows = [f"| `{name}` | {value} | {meaning} |" for name, value, meaning in options(function)]
    examples = (command.epilog or "").replace("\b", "").strip("\n")
    head = [f"\n## {command.name}\n", "\n\n".join(about), ""]
    return "\n".join(
        [*head, "| what | default | meaning |", "|---|---|---|", *rows, "", "```text", examples, "```", ""]
    )


def page():
    commands = sorted(app.registered_commands, key=lambda command: command.name)
    return LEAD + "".join(map(section, commands)) + END


def test_the_page_says_what_the_commands_say():
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
