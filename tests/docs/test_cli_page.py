"""docs/reference/cli.md is made from the commands themselves: run this file to write it."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import pytest

typer = pytest.importorskip("typer")

from inferscope.cli.application import app  # noqa: E402 - after it is known to be there
from inferscope.cli.exit_codes import MEANINGS  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
LEAD = """\
# Command line

`inferscope --help` lists the commands, `inferscope COMMAND --help` says what stands here. `--json` prints [one JSON
document](json.md). A failure is one line on standard error, never a traceback; [Messages](messages.md) explains each.

Bars with the time left are drawn on standard error where that is a terminal; elsewhere long commands write a line per
stage. `NO_COLOR=1` leaves colours out, `TERM=dumb` everything but text, `COLUMNS` sets the width. Files are written
beside their place and moved there when they are complete. Records are appended line by line, each whole.

`inferscope --install-completion` teaches the shell it is called from (bash, zsh, fish, PowerShell) to complete
commands, options and values such as `--gpu`; `--show-completion` prints the script.

## Exit codes

| code | meaning |
|---|---|
"""
CODES_END = """
`inferscope run` ends as the program does that it runs. `INFERSCOPE_TRACEBACK=1` shows where a defect lies.
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
    codes = "".join(f"| {code.value} | {meaning} |\n" for code, meaning in MEANINGS.items())
    return LEAD + codes + CODES_END + "".join(map(section, app.registered_commands)) + END


def test_the_page_says_what_the_commands_say():
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
