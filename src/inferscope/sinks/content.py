"""Prompts and completions: inferscope keeps none, and says so to whoever asks it to."""

from __future__ import annotations

import os

from inferscope import notices

__all__ = ["VARIABLE", "tell_that_none_is_kept"]

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
# Before the four modes there was a flag, which many still set.
_NONE = ("", "no_content", "false")


def tell_that_none_is_kept() -> None:
    """Say once, where the standard variable asks for content, that there will be none.

    `generate` takes and returns token ids. What they meant to whoever sent them (roles, messages, tools) is not there
    to be told, and making text of them would take a tokenizer that the model does not have.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked.lower() not in _NONE:
        notices.warn(
            "content-not-captured",
            f"{VARIABLE}={asked}: inferscope sees token ids, not messages, and captures no content in any mode",
        )
