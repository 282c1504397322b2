"""What each exit code of the command line means: one table for all commands."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["MEANINGS", "ExitCode"]


class ExitCode(IntEnum):
    """How a command ended. `errors` says which of them an error has."""

    DONE = 0
    DEFECT = 1
    MISTAKE = 2
    MACHINE = 3
    LIMIT = 4
    CANNOT_TELL = 5
    INTERRUPTED = 130
    PIPE_CLOSED = 141


MEANINGS = {
    ExitCode.DONE: "done; every limit that was given is kept",
    ExitCode.DEFECT: "a defect of inferscope; please report it",
    ExitCode.MISTAKE: "a mistake in what was asked: an option, a file, a model that is not there, an absent extra",
    ExitCode.MACHINE: "this machine refuses: an output cannot be written, or `doctor` finds something broken",
    ExitCode.LIMIT: "a limit that was given is exceeded (`lint --max-...`, `compare --fail-if`)",
    ExitCode.CANNOT_TELL: "whether a limit is exceeded cannot be told: with `--strict`, or of work that differs",
    ExitCode.INTERRUPTED: "Ctrl-C; what was written is complete, or is not there (`watch` ends with 0: Ctrl-C ends it)",
    ExitCode.PIPE_CLOSED: "the reader of standard output has gone, such as `head`",
}
"""Each code in words. `inferscope run` ends as the program that it runs."""
