"""Many runs of `inferscope`, each a process of its own, at the price of one start of Python.

A server has the command line loaded and forks for each run: exit code, output and end of the interpreter are those of
a process, without the second that each start takes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CommandServer", "Done", "documented_fields"]

_TIME_LIMIT_S = 240
_SERVER = """
import gc, json, os, sys
import typer
from inferscope.cli.application import app
from inferscope.cli.main import main
for name in sys.argv[1:]:
    __import__(name)
with typer.main.get_command(app).make_context("inferscope", ["doctor", "--json"]) as context:
    context.command.get_command(context, "doctor").make_context("doctor", ["--json"], parent=context)
gc.collect()
gc.freeze()  # the child's last collection has nothing to look through, and copies no pages
case = None
while line := sys.stdin.readline():
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(json.dumps({"pid": child}), flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"status": status}), flush=True)
else:
    os._exit(0)
writing = os.O_WRONLY | os.O_CREAT
for number, name, flags in (
    (0, os.devnull, os.O_RDONLY), (1, case["stdout"], writing), (2, case["stderr"], writing)
):
    if name is None:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)
    elif name == "no reader":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)
    else:
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
os.environ.update(case["env"])
os.chdir(case["cwd"])
sys.argv[:] = ["inferscope", *case["arguments"]]
code = None
try:
    code = main()
finally:
    heavy = [name for name in ("torch", "transformers", "opentelemetry.sdk", "plotly") if name in sys.modules]
    with open(case["loaded"], "w") as file:
        file.write(json.dumps(heavy))
sys.exit(code)
"""


_COLOURS = frozenset({"NO_COLOR", "FORCE_COLOR", "TERM"})
"""What the tests themselves say of these is all that is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a run ended. A negative code is the signal that ended it."""

    code: int
    stdout: str
    stderr: str
    loaded: tuple[str, ...]

    def refused(self, slug: str, code: int, *words: str) -> None:
        """It was told as a user's mistake is: in one line that names the slug, after nothing on standard output."""
        lines = [line for line in self.stderr.splitlines() if not line.endswith(" ...")]  # stages are told that way
        assert self.code == code, self
        assert len(lines) == 1, self
        assert lines[0].startswith(f"error[{slug}]: "), self
        assert lines[0].endswith(f" (see docs/reference/messages.md#{slug})"), self
        for word in words:
            assert word.lower() in lines[0].lower(), (word, self)
        assert not self.stdout, self


def documented_fields(kind: str) -> set[str]:
    """Top-level fields of a JSON document, as docs/reference/json.md has them."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    _, _, section = page.partition(f"\n## {kind}\n")
    table = section.partition("\n## ")[0]
    return {"kind", "schema", "inferscope", *re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)}


class CommandServer:
    """Forks a process for each run.

    Args:
        folder: For what the runs print.
        loaded: Modules that stand loaded before any run, such as torch where each run needs it.
    """

    def __init__(self, folder: Path, *, loaded: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *loaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={
                **{name: value for name, value in os.environ.items() if name not in _COLOURS},
                "PYTHONUTF8": "1",
                "COLUMNS": "100",
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,
        )

    def __call__(self, *arguments, cwd=None, stdout="", stderr="", during=None, **variables) -> Done:
        """Run `inferscope` with these arguments.

        Args:
            arguments: As the user types them.
            cwd: Its folder; the server's own without one.
            stdout: A file in place of the captured output; None for a closed one, "no reader" for a pipe that nobody
                reads any more.
            stderr: Likewise a file.
            during: Called with the process id while it runs.
            variables: Of its environment.
        """
        self._number += 1
        paths = {name: str(self._folder / f"{self._number}.{name}") for name in ("stdout", "stderr", "loaded")}
        captured = dict(paths)
        paths |= {name: to for name, to in (("stdout", stdout), ("stderr", stderr)) if to != ""}
        case = {
            **{name: None if path is None else str(path) for name, path in paths.items()},
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or self._folder),
            "env": variables,
        }
        watchdog = threading.Timer(_TIME_LIMIT_S, os.killpg, (self._process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps(case) + "\n")
            self._process.stdin.flush()
            pid = json.loads(self._process.stdout.readline())["pid"]
            if during is not None:
                during(pid)
            status = json.loads(self._process.stdout.readline())["status"]
        finally:
            watchdog.cancel()
        return Done(
            code=os.waitstatus_to_exitcode(status),
            stdout=_text(captured["stdout"]),
            stderr=_text(captured["stderr"]),
            loaded=tuple(json.loads(_text(paths["loaded"]) or "[]")),
        )

    def close(self) -> None:
        """End the server."""
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def _text(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
