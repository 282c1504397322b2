"""docs/reference/telemetry.md, written from the tables of what is sent."""

from __future__ import annotations

from inferscope.sinks.hardware_semconv import hardware_markdown
from inferscope.sinks.log import EVENT, REQUEST_EVENT
from inferscope.sinks.metric_semconv import metrics_markdown
from inferscope.sinks.metrics import MAX_ERRORS, MAX_MODELS
from inferscope.sinks.semconv import (
    CONTENDER,
    PASS,
    PASS_SPAN,
    PHASE,
    REQUEST_END,
    REQUEST_START,
    RESOURCE,
    WORST_PASS,
    WORST_PASS_EVENT,
)
from inferscope.sinks.spans import MAX_PASS_SPANS

__all__ = ["reference_markdown"]


def reference_markdown() -> str:
    """The tables as docs/reference/telemetry.md: generated, never edited."""
    parts = [_PREAMBLE]
    for title, lead, rows in (
        ("The request's span: given at its start", _START_LEAD, REQUEST_START),
        ("The request's span: set at its end", _END_LEAD, REQUEST_END),
        ("The phases' spans", _PHASE_LEAD, PHASE),
        (f"The event `{WORST_PASS_EVENT}`", _EVENT_LEAD, WORST_PASS),
        (f"Spans of passes, named `{PASS_SPAN}`", _PASS_LEAD, PASS),
        ("Links to contending requests", _LINK_LEAD, CONTENDER),
    ):
        parts += [f"## {title}\n", f"{lead}\n", "| attribute | type | unit | meaning |", "|---|---|---|---|"]
        parts += [f"| `{row.name}` | {row.type} | {row.unit} | {row.meaning} |" for row in rows]
        parts.append("")
    parts += [metrics_markdown(MAX_MODELS, MAX_ERRORS), "", hardware_markdown(), ""]
    parts += [
        f"## The log event `{EVENT}`\n",
        f"{_LOG_LEAD}\n",
        "| field | type | unit | meaning |",
        "|---|---|---|---|",
    ]
    parts += [f"| `{row.name}` | {row.type} | {row.unit} | {row.meaning} |" for row in REQUEST_EVENT]
    parts += ["", "## The resource\n", f"{_RESOURCE_LEAD}\n", "| attribute | type | meaning |", "|---|---|---|"]
    parts += [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in RESOURCE]
    return "\n".join(parts) + "\n"


_PREAMBLE = """# Telemetry reference

Generated from the tables in `inferscope.sinks` by `benchmarks/tables.py`; a test holds the two together.

One call of `generate` becomes one span named `{operation} {model}` (kind INTERNAL) and one child per phase, named
exactly `prefill`, `decode`, `encode`, `verify`, `draft` or `mixed`. Children are siblings and lie inside their
parent's time range. The request's span begins with the request; its children are built after the call has returned,
with the times that were measured in it.

What is unknown is left out: an attribute that is absent was not measured. Durations are doubles in seconds.
Prompt and completion text is never sent.
"""
_START_LEAD = "Given when the request begins, so that samplers see them."
_LINK_LEAD = (
    "A request from which other traced requests took time links to the spans of those "
    "others, at most eight, largest overlap first."
)
_END_LEAD = (
    "`latency.time_in_queue` + `ledger.setup` + `time_in_model_inference` + `ledger.tail` + `self` + "
    "`ledger.residual` = `latency.e2e`; without a queue, the others are. "
    "A request that an exception ended has the status ERROR."
)
_PHASE_LEAD = (
    "`ledger.issue` + `ledger.select` + `ledger.wait` + `ledger.deliver` + `ledger.shared` = `time_in_model`; without "
    "`wait` that time is in `select`, and `shared` is there under continuous batching only. `self` is what the span's "
    "range holds beyond that."
)
_EVENT_LEAD = "At most three per phase, slowest first, at the moment the pass began."
_PASS_LEAD = (
    f'Only with `detail="passes"` (`INFERSCOPE_DETAIL`), for a look at single requests: the first {MAX_PASS_SPANS} '
    "passes of a request, below their phase. `inferscope.passes.cut` of the phase says how many have none."
)
_LOG_LEAD = (
    'One per request, through structlog, where `"log"` is among the sinks. Level `error` where an exception ended the '
    "request, `warning` where it was cancelled or a finding warns, `info` otherwise. inferscope's own warnings are in "
    "[messages](messages.md)."
)
_RESOURCE_LEAD = (
    "Set where `inferscope.setup` made the tracer provider; where the application brought its own, the resource is "
    "the application's."
)
