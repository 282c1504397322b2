"""The command line's entry: how a failure, an interruption and a full disk are told in one line."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from typing import TYPE_CHECKING

from inferscope.cli import interruption
from inferscope.cli.exit_codes import ExitCode
from inferscope.errors import InferscopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import typer

__all__ = ["main"]

_MESSAGES = "docs/reference/messages.md"
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_NARROWEST = 20
_TYPER_NARROWEST = 52


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; None: those of this process.

    Returns:
        The exit code, one of `ExitCode`; the program's own after `inferscope run`.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    as_they_were = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")  # a terminal without "µ" must not end the report
    try:
        outcome = _guarded(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    except KeyboardInterrupt:
        outcome = ExitCode.INTERRUPTED
    if isinstance(outcome, int):
        if outcome == ExitCode.INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code themselves
            _say(f"interrupted{interruption.hint()}")
        return int(outcome)
    for stream, errors in zip(streams, as_they_were, strict=True):  # the program's own, as Python gives them to it
        stream.reconfigure(errors=errors)
    return outcome()


def _guarded(arguments: list[str]) -> int | Callable[[], int]:
    """The exit code, or what is still to be done where nothing of the command line's stands around it."""
    try:
        from inferscope.cli.application import app  # noqa: PLC0415 - its absence can be told
    except ImportError as error:
        return _fail("missing-extra", f"{error}: install inferscope with its extra [cli]", ExitCode.MISTAKE)
    try:
        return _run(app, arguments)
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer and rich make an exit of it
            return _reader_gone()
        raise
    except Exception as error:  # the last place where it can be told in one line
        if os.environ.get("INFERSCOPE_TRACEBACK") == "1":
            raise
        return _explain(error)


def _run(app: typer.Typer, arguments: list[str]) -> int | Callable[[], int]:
    import typer  # noqa: PLC0415 - an extra, found present by now

    try:
        code = typer.main.get_command(app).main(
            arguments, prog_name="inferscope", standalone_mode=False, terminal_width=_narrow_width()
        )
    except typer.Abort:
        return ExitCode.INTERRUPTED
    if sys.stdout is not None:
        sys.stdout.flush()
    if callable(code):
        program: Callable[[], int] = code
        return program
    if code == ExitCode.DEFECT:  # no command of ours ends so: typer, asked to complete for a shell it does not know
        return ExitCode.MISTAKE
    return code if isinstance(code, int) else ExitCode.DONE


def _narrow_width() -> int | None:
    """Characters per line of help where a terminal has fewer than typer believes it to have at least; else None."""
    columns = shutil.get_terminal_size().columns
    return max(columns - 2, _NARROWEST) if columns < _TYPER_NARROWEST else None


def _reader_gone() -> int:
    _let_go_of_stdout()
    return ExitCode.PIPE_CLOSED


def _let_go_of_stdout() -> None:
    """What is still buffered would fail once more at exit, and be told as a crash."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _explain(error: Exception) -> int:
    if isinstance(error, InferscopeError):
        return _fail(error.slug, str(error), error.exit_code)
    usage = getattr(error, "format_message", None)  # what typer raises for a wrong option, in all its versions
    if usage is not None:
        return _fail("usage", str(usage()), ExitCode.MISTAKE)
    if isinstance(error, OSError) and error.filename is None and error.errno in _REFUSED:
        _let_go_of_stdout()  # every file has its own error: what is left is standard output
        return _fail("cache-unwritable", f"standard output: cannot be written: {error.strerror}", ExitCode.MACHINE)
    message = f"{type(error).__name__}: {error} (INFERSCOPE_TRACEBACK=1 shows the traceback)"
    return _fail("defect", message, ExitCode.DEFECT)


def _fail(slug: str, message: str, code: int) -> int:
    line = " ".join(message.split())
    _say(f"error[{slug}]: {line} (see {_MESSAGES}#{slug})")
    return int(code)


def _say(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed or full: the exit code still tells
        return
