"""What the process was set to, and what its compiler did, while a request ran. Read at both ends of a request."""

from __future__ import annotations

import os
import sys
from typing import Any

from inferscope.records import ProcessState

__all__ = ["compiled_so_far", "state_since"]

_WHOLE_COMPILATION = ("entire_frame_compile", "_compile.compile_inner")
"""The compiler's own names, newer first, for one frame from bytecode to code; its other entries are parts of it."""


def compiled_so_far() -> tuple[int, int] | None:
    """Graphs that torch's compiler has made in this process, and the nanoseconds spent; None where it is not loaded."""
    compiler: Any = sys.modules.get("torch._dynamo.utils")
    if compiler is None:
        return None
    try:
        spent = compiler.cumulative_time_spent_ns
        spent_ns = int(next((spent[name] for name in _WHOLE_COMPILATION if name in spent), 0))
        return int(compiler.counters.get("stats", {}).get("unique_graphs", 0)), spent_ns
    except Exception:  # noqa: BLE001 - the compiler's own books, which other versions may keep otherwise
        return None


def state_since(before: tuple[int, int] | None) -> ProcessState:
    """The process as it stands, on the thread that generates.

    Args:
        before: What `compiled_so_far` said when the request began.
    """
    torch: Any = sys.modules.get("torch")  # recorded courses are replayed without it
    after = compiled_so_far()
    if before is None and "torch._dynamo.utils" in sys.modules:
        before = 0, 0  # the compiler was loaded meanwhile, and counts from nothing
    graphs = compile_ns = None
    if before is not None and after is not None and after[0] >= before[0] and after[1] >= before[1]:
        graphs, compile_ns = after[0] - before[0], after[1] - before[1]
    return ProcessState(
        intra_op_threads=None if torch is None else int(torch.get_num_threads()),
        usable_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        compiled_graphs=graphs,
        compile_ns=compile_ns,
    )
