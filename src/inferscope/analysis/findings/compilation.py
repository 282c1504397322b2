"""torch's compiler at work inside a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscope.analysis.verdict import Evidence

if TYPE_CHECKING:
    from inferscope.analysis.findings.case import Whole
    from inferscope.analysis.verdict import Finding

__all__ = ["look"]

_WORTH_SAYING = 0.05


def look(whole: Whole) -> Finding | None:
    """Fires where graphs were compiled while the request ran, and that took a sizeable share of it."""
    record, process = whole.record, whole.record.process
    if process is None or not process.compiled_graphs or not process.compile_ns or record.wall_ns <= 0:
        return None
    share = min(1.0, process.compile_ns / record.wall_ns)
    if share < _WORTH_SAYING:
        return None
    return whole.finding(
        "compilation-in-request",
        "OPT",
        f"torch compiled {process.compiled_graphs} graphs while this request ran, for {share:.0%} of its time: a first "
        "run, or shapes that have not been seen before.",
        Evidence(
            metric="compile_share",
            value=share,
            threshold=_WORTH_SAYING,
            source="measured",
            note="by the compiler's own books, for all threads of the process",
        ),
        Evidence(metric="compiled_graphs", value=float(process.compiled_graphs), source="measured"),
        saving=whole.stretch(
            0.8 * process.compile_ns,
            float(process.compile_ns),
            "that these shapes are compiled before",
            phases=[phase.name for phase in record.phases],
            terms=("compilation",),
        ),
        action="Warm up with the shapes that will come, keep them few (a static cache, lengths rounded up, "
        "`dynamic=True`), and see what changes with TORCH_LOGS=recompiles. Precondition: warm-up has time before "
        "traffic.",
        not_helping="Compiling harder (max-autotune): each new shape takes longer then.",
        verify="send the request a second time; compiled_graphs is 0, and TTFT falls.",
    )
