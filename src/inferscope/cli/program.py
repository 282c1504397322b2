"""A Python program run in this process as if Python had been given it, and what is said of it at the end.

Nothing of the command line stands around it: Ctrl-C, exceptions, exits and broken pipes reach Python as the program
raises them.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from inferscope.cli.documents import headed
from inferscope.errors import ScriptError
from inferscope.report.requests import RequestTally
from inferscope.sinks.jsonl import JsonlSink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType

    from inferscope.integrations.auto import EveryModel
    from inferscope.session import EverySession

__all__ = ["FinalReport", "Program"]

RESULT_WAIT_S = 30.0
"""How long the end of the process waits for results that are still being made."""
_HERE = os.path.realpath(__file__)


class Program:
    """A script or module, found and compiled, that `__call__` runs as `__main__`."""

    def __init__(self, name: str, arguments: Sequence[str], *, module: bool) -> None:
        """Find and compile it; sets `sys.argv` and `sys.path` as Python does.

        Args:
            name: A file; with `module`, the name of a module or package.
            arguments: What the program finds behind its name in `sys.argv`.
            module: Whether `name` is a module's.

        Raises:
            ScriptError: It is not there, or is not Python.
        """
        found = _found_module if module else _found_script
        self._main, self._code = found(name)
        sys.argv[:] = [str(self._main.__file__), *arguments]

    def __call__(self) -> int:
        """Run it.

        Returns:
            0. A program that exits or fails raises what it raised: Python makes its exit code of it, as ever.
        """
        sys.modules["__main__"] = self._main
        try:
            exec(self._code, self._main.__dict__)  # noqa: S102 - what the user asked to run
        except SystemExit:
            raise
        except BaseException as error:
            error.__traceback__ = _own_part(error.__traceback__)
            sys.excepthook(type(error), error, error.__traceback__)
            sys.excepthook = _said_already  # Python would tell it again, with our frames
            raise
        return 0


def _said_already(*_error: object) -> None:
    """In place of the hook that has told the error that ends the process."""


def _own_part(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that run the program."""
    while frames is not None and os.path.realpath(frames.tb_frame.f_code.co_filename) == _HERE:
        frames = frames.tb_next
    return frames


def _found_script(name: str) -> tuple[ModuleType, CodeType]:
    path = Path(name)
    if path.is_dir():
        raise ScriptError(f"{name} is a folder; give a Python file, or a module with -m")
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise ScriptError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise ScriptError(f"{name}: cannot be read: {error}") from error
    code = _compiled(source, name)
    _first_on_path(str(path.resolve().parent))
    loader = importlib.machinery.SourceFileLoader("__main__", name)
    return _main_module(name, None, loader, None), code


def _compiled(source: bytes, name: str) -> CodeType:
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise ScriptError(f"{name}{where}: this is not Python: {error.msg}") from error
    except ValueError as error:  # null bytes
        raise ScriptError(f"{name}: this is not Python: {error}") from error


def _found_module(name: str) -> tuple[ModuleType, CodeType]:
    _first_on_path(str(Path.cwd()))
    spec = _spec_of(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec_of(f"{name}.__main__")
    loader: Any = None if spec is None else spec.loader
    if spec is None or not hasattr(loader, "get_code"):
        raise ScriptError(f"-m {name}: no module of that name can be run")
    try:
        code = loader.get_code(spec.name)
    except SyntaxError as error:
        raise ScriptError(f"-m {name}, line {error.lineno}: this is not Python: {error.msg}") from error
    if code is None:
        raise ScriptError(f"-m {name}: it has no Python code")
    return _main_module(spec.origin or name, spec.parent, loader, spec), code


def _spec_of(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ScriptError(f"-m {name}: cannot be imported: {error}") from error


def _main_module(
    file: str, package: str | None, loader: object, spec: importlib.machinery.ModuleSpec | None
) -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__file__=file, __package__=package, __loader__=loader, __spec__=spec, __cached__=None)
    main.__dict__["__builtins__"] = builtins
    return main


def _first_on_path(folder: str) -> None:
    """In the place where Python has put the folder of whatever started us."""
    if getattr(sys.flags, "safe_path", False):
        return
    sys.path[0:1] = [folder]


class FinalReport:
    """Says on standard error, when all threads and handlers of the program have ended, what there was.

    Attributes:
        every: What observes the models; set once it is there.
    """

    def __init__(self, out: Path | None, *, as_json: bool) -> None:
        """Prepare, and have it told at the end of this process.

        Args:
            out: File that a record of each request is appended to; None for none.
            as_json: One line of JSON in place of the table.

        Raises:
            CacheUnwritableError: `out` cannot be written.
        """
        self.every: EveryModel | None = None
        self._tally = RequestTally()
        self._records = None if out is None else JsonlSink(out)
        self._as_json = as_json
        self._pid = os.getpid()
        atexit.register(self._tell)

    def session(self) -> EverySession:
        """A session that adds up what it sees, and tells the program's own tracer provider, if it has one."""
        from inferscope.session import observe_every  # noqa: PLC0415 - loads torch

        return observe_every(keepers=[self._tally, *filter(None, [self._records])])

    def _tell(self) -> None:
        if os.getpid() != self._pid:  # a forked child ends for itself
            return
        with contextlib.suppress(Exception):  # the program has ended; nothing of ours changes how
            session = None if self.every is None else self.every.session
            if session is not None:
                session.wait(RESULT_WAIT_S)
            text = (
                json.dumps(headed("requests", self._tally.as_json()), allow_nan=False)
                if self._as_json
                else self._table()
            )
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def _table(self) -> str:
        text = self._tally.to_text(width=min(shutil.get_terminal_size().columns, 100))
        return f"\n{text}" + ("" if self._records is None else f"\n\nrecords: {self._written(self._records)}")

    @staticmethod
    def _written(records: JsonlSink) -> str:
        lost = f", {records.dropped} could not be written: a warning says why" if records.dropped else ""
        return f"{records.path}{lost}"
