"""What `--json` prints: one document on standard output, which says what it is. docs/reference/json.md has each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

import inferscope

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SCHEMA", "headed", "show"]

SCHEMA = 1
"""Of every document but the report's and a record's, which have their own; raised where a field changes."""


def headed(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A document's fields, after those that every document begins with.

    Args:
        kind: What it is: "inferscope." and a word.
        content: Its own fields.
    """
    return {"kind": f"inferscope.{kind}", "schema": SCHEMA, "inferscope": inferscope.__version__, **content}


def show(document: Mapping[str, Any]) -> None:
    """Print a document; a number in it that is not finite is a defect, never written."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))
