"""Other instrumentations that report the same call as a model call: token counts must stand in a trace only once.

OpenLLMetry, OpenLIT and OpenInference wrap what calls `generate`: a pipeline, a chain, a client. Their span is the
current one where ours begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

__all__ = ["ModelCall", "call_in"]

_OPERATIONS = ("chat", "text_completion", "generate_content", "completion")
# Each says on its own that a span is a model call: OpenLLMetry's, OpenInference's, and the conventions' own.
_SAYS_SO = {
    "gen_ai.operation.name": _OPERATIONS,
    "llm.request.type": ("chat", "completion"),
    "openinference.span.kind": ("LLM",),
}
# Of a span that has no operation's name; agents and tools have one, and no model.
_NAMES_A_MODEL = ("gen_ai.request.model", "llm.model_name")
# These write their attributes once the call has returned: till then only their scope tells, and the kind, since one
# of them has the same scope for the frameworks around the call.
_WRAP_PIPELINES = ("opentelemetry.instrumentation.transformers", "openlit")
_DECIDING = frozenset(_SAYS_SO)
_OURS = "inferscope"


class ModelCall(NamedTuple):
    """A span that stands for the call that ours stands for.

    Attributes:
        span: Where it is.
        scope: The instrumentation that made it.
    """

    span: SpanContext
    scope: str


def call_in(context: object) -> ModelCall | None:
    """The model call of another instrumentation that is current in a context; None where there is none.

    A span of a framework around the call (a chain, an agent, a request of a web server) is no model call.

    Args:
        context: An OpenTelemetry context; whatever else it is has no span.
    """
    if not isinstance(context, Context):
        return None
    span: Any = trace.get_current_span(context)
    place = span.get_span_context()
    scope = getattr(getattr(span, "instrumentation_scope", None), "name", None) or ""
    attributes = getattr(span, "attributes", None)  # a span of the SDK can be read, one of the API cannot
    if not place.is_valid or scope == _OURS or not isinstance(attributes, Mapping):
        return None
    if _says_so(attributes) or (not attributes.keys() & _DECIDING and _wraps_pipelines(scope, span)):
        return ModelCall(place, scope or "unnamed")
    return None


def _says_so(attributes: Mapping[str, object]) -> bool:
    said = [attributes[name] in values for name, values in _SAYS_SO.items() if name in attributes]
    if said:
        return any(said)
    return any(name in attributes for name in _NAMES_A_MODEL)


def _wraps_pipelines(scope: str, span: Any) -> bool:  # noqa: ANN401 - a span of whatever SDK
    if scope.startswith("openlit") and getattr(span, "kind", None) is not SpanKind.CLIENT:
        return False
    return any(scope == name or scope.startswith(f"{name}.") for name in _WRAP_PIPELINES)
