"""The command line's entry: which commands there are, and how a failure is told in one line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from inferscope.errors import InferscopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import typer

__all__ = ["main"]

_MESSAGES = "docs/reference/messages.md"
_DEFECT = 1
_PIPE_CLOSED = 1  # as typer has it
_USAGE = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; None: those of this process.

    Returns:
        The exit code: 0, 2 for a mistake in what was asked, 3 for what this machine refuses, 4 for a limit that is
        exceeded, 5 for one of which that cannot be told, 130 after Ctrl-C, 1 for a defect.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    as_they_were = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")  # a terminal without "µ" must not end the report
    try:
        from inferscope.cli.application import app  # noqa: PLC0415 - its absence can be told
    except ImportError as error:
        return _fail("missing-extra", f"{error}: install inferscope with its extra [cli]", _USAGE)
    try:
        outcome = _run(app, list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    except Exception as error:  # the last place where it can be told in one line
        if os.environ.get("INFERSCOPE_TRACEBACK") == "1":
            raise
        return _explain(error)
    if isinstance(outcome, int):
        return outcome
    for stream, errors in zip(streams, as_they_were, strict=True):  # the program's own, as Python gives them to it
        stream.reconfigure(errors=errors)
    return outcome()


def _run(app: typer.Typer, arguments: list[str]) -> int | Callable[[], int]:
    """The exit code, or what is still to be done where nothing of the command line's stands around it."""
    import typer  # noqa: PLC0415 - an extra, found present by now

    try:
        code = typer.main.get_command(app).main(arguments, prog_name="inferscope", standalone_mode=False)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`); flushing once more at exit would only complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    if code == _INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code themselves
        sys.stderr.write("interrupted\n")
    if callable(code):
        program: Callable[[], int] = code
        return program
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    if isinstance(error, InferscopeError):
        return _fail(error.slug, str(error), error.exit_code)
    usage = getattr(error, "format_message", None)  # what typer raises for a wrong option, in all its versions
    if usage is not None:
        return _fail("usage", str(usage()), _USAGE)
    return _fail("defect", f"{type(error).__name__}: {error} (INFERSCOPE_TRACEBACK=1 shows the traceback)", _DEFECT)


def _fail(slug: str, message: str, code: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"error[{slug}]: {line} (see {_MESSAGES}#{slug})\n")
    return code
