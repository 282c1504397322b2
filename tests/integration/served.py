"""An example run as its documentation says, in a process of its own, and what its clients need."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Served:
    """A running server.

    Attributes:
        process: Its process.
        lines: What it has printed.
        address: Where it listens; set once it has said so.
    """

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.address = ""
        self.ready = threading.Event()

    def read(self, said):
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(said, line):
                self.address = found[1]
                self.ready.set()
        self.ready.set()

    @property
    def printed(self):
        return "".join(self.lines)

    def interrupt(self, timeout_s=30):
        """Ctrl-C, and the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout_s)


@contextmanager
def serving(*command, said, timeout_s=120, **env):
    """A server, from the moment it says where it listens."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
    )
    served = Served(process)
    reader = threading.Thread(target=served.read, args=(said,))
    reader.start()
    try:
        if not served.ready.wait(timeout_s) or not served.address:
            raise TimeoutError(served.printed)
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(30)
        process.stdout.close()


def traceparent():
    """A client's span: its trace id, its span id, and the header that carries them."""
    trace_id, span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    return trace_id, span_id, {"traceparent": f"00-{trace_id.hex()}-{span_id.hex()}-01"}


def ancestors(span, spans):
    """Ids of the spans above one, nearest first; the last is its client's."""
    above, found = {other.span_id: other.parent_span_id for other in spans}, []
    parent = span.parent_span_id
    while parent:
        found.append(parent)
        parent = above.get(parent, b"")
    return found


def wait_until(holds, timeout_s=30):
    """What `holds` returns, once that is something."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := holds()):
        if time.monotonic() > deadline_s:
            raise TimeoutError("it did not come true")
        time.sleep(0.02)
    return found


def curl_of(page, address):
    """The page's curl command as arguments, for a server at another address."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl "))
    return shlex.split(re.sub(r"http://127\.0\.0\.1:8000", address, line))
