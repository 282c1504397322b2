"""What mkdocs asks while it builds the site: the navigation, made from the folders, and whether it needs the network.

A new page appears by lying in its folder: first in tutorials, then how-tos, reference, explanation, decisions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FOLDERS = {
    "tutorial": "Tutorial",
    "how-to": "How to",
    "reference": "Reference",
    "explanation": "Explanation",
    "decisions": "Decisions",
}
_LOADED = re.compile(r"<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc=[\"']?(?:https?:)?//", re.IGNORECASE)
_STYLED = re.compile(
    r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\shref=[\"']?(?:https?:)?//", re.IGNORECASE
)
_IMPORTED = re.compile(r"(?:@import\s+|url\()\s*[\"']?(?:https?:)?//", re.IGNORECASE)


def on_config(config: Any) -> Any:  # noqa: ANN401 - mkdocs' own type has no stubs here
    """Put each folder's pages into the navigation, in the order of their titles.

    Raises:
        PluginError: A folder of docs/ has no place in the navigation.
    """
    docs = Path(config["docs_dir"])
    pages = {folder: sorted(docs.glob(f"{folder}/*.md"), key=_order) for folder in FOLDERS}
    strange = {page.parent.name for page in docs.rglob("*.md") if page.parent != docs} - FOLDERS.keys()
    if strange:
        raise PluginError(f"docs/{min(strange)}: name this folder in {Path(__file__).name}")
    config["nav"] = [
        {"Home": "index.md"},
        *({title: [str(page.relative_to(docs)) for page in pages[folder]]} for folder, title in FOLDERS.items()),
    ]
    return config


def _order(page: Path) -> tuple[str, str]:
    """Decisions by their number, other pages by their title."""
    numbered = re.match(r"\d+", page.name)
    first = page.read_text(encoding="utf-8").lstrip().partition("\n")[0]
    return (numbered[0] if numbered else "", first.lstrip("# ").lower())


def on_post_build(config: Mapping[str, Any]) -> None:
    """Refuse a site that would load anything from outside.

    Raises:
        PluginError: A page or a style does; the message names it.
    """
    for path, match in _loads(Path(config["site_dir"])):
        raise PluginError(f"{path} would load from outside: {match}")


def _loads(site: Path) -> Iterator[tuple[Path, str]]:
    patterns = {".html": (_LOADED, _STYLED), ".css": (_IMPORTED,)}
    for path in sorted(site.rglob("*")):
        for pattern in patterns.get(path.suffix, ()):
            found = pattern.search(path.read_text(encoding="utf-8"))
            if found:
                yield path, found[0]
