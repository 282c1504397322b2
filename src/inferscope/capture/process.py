"""What the process was set to, and what its compiler did, while a request ran.

Read when a request begins, what the compiler has done also when it ends; made into a record afterwards.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

from inferscope.records import ProcessState

__all__ = ["Standing", "compiled_so_far", "process_state", "standing"]

_WHOLE_COMPILATION = ("entire_frame_compile", "_compile.compile_inner")
"""The compiler's own names, newer first, for one frame from bytecode to code; its other entries are parts of it."""


class Standing(NamedTuple):
    """How the process stands when a request begins.

    Attributes:
        threads: Threads of torch within one operator, as this thread has it; None without torch.
        cpus: Processors that this thread may run on; None where nobody says.
        compiled: What `compiled_so_far` said.
    """

    threads: int | None
    cpus: int | None
    compiled: tuple[int, int] | None


def standing() -> Standing:
    """How it stands now; to be called on the thread that generates."""
    torch: Any = sys.modules.get("torch")  # recorded courses are replayed without it
    return Standing(
        None if torch is None else torch.get_num_threads(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        compiled_so_far(),
    )


def compiled_so_far() -> tuple[int, int] | None:
    """Graphs that torch's compiler has made in this process, and the nanoseconds spent; None where it is not loaded."""
    compiler: Any = sys.modules.get("torch._dynamo.utils")
    if compiler is None:
        return None
    try:
        stats, spent = compiler.counters.get("stats"), compiler.cumulative_time_spent_ns
        spent_ns = spent.get(_WHOLE_COMPILATION[0]) or spent.get(_WHOLE_COMPILATION[1]) or 0
        return int(stats.get("unique_graphs", 0)) if stats else 0, int(spent_ns)
    except Exception:  # noqa: BLE001 - the compiler's own books, which other versions may keep otherwise
        return None


def process_state(begun: Standing, ended: tuple[int, int] | None) -> ProcessState:
    """The process during a request.

    Args:
        begun: How it stood when the request began.
        ended: What `compiled_so_far` said when it ended.
    """
    # A compiler that was loaded meanwhile counts from nothing.
    before = (0, 0) if begun.compiled is None else begun.compiled
    graphs = compile_ns = None
    if ended is not None and ended[0] >= before[0] and ended[1] >= before[1]:
        graphs, compile_ns = ended[0] - before[0], ended[1] - before[1]
    return ProcessState(
        intra_op_threads=begun.threads, usable_cpus=begun.cpus, compiled_graphs=graphs, compile_ns=compile_ns
    )
