"""docs/explanation/architecture.md lists every module, with its own first line: run this file to write it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PACKAGE = ROOT / "src" / "inferscope"
FOLDERS = (
    "session",
    "capture",
    "meters",
    "hardware",
    "analysis",
    "sinks",
    "report",
    "testing",
    "experiments",
    "integrations",
    "cli",
)
BEGIN = "<!-- modules: written by `python tests/docs/test_architecture_page.py` -->"
END = "<!-- end of modules -->"


def line_of(module):
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def listed():
    parts = [f"- `{module.name}`: {line_of(module)}" for module in sorted(PACKAGE.glob("[!_]*.py"))]
    for folder in FOLDERS:
        room = PACKAGE / folder
        parts += ["", f"### {folder}/", "", line_of(room / "__init__.py"), ""]
        parts += [f"- `{module.name}`: {line_of(module)}" for module in sorted(room.glob("[!_]*.py"))]
        parts += [f"- `{inner.parent.name}/`: {line_of(inner)}" for inner in sorted(room.glob("[!_]*/__init__.py"))]
    return "\n".join(parts)


def page(text):
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{listed()}\n\n{END}{after}"


def test_the_page_lists_every_module():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run python tests/docs/test_architecture_page.py"


def test_every_module_says_what_it_is_for_and_every_folder_is_listed():
    assert [module for module in PACKAGE.rglob("*.py") if not line_of(module).endswith((".", ":", "?"))] == []
    assert {room.parent.name for room in PACKAGE.glob("*/__init__.py")} == set(FOLDERS)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
