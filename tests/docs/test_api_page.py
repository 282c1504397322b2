"""docs/reference/api.md names what `inferscope` exports: run this file to write it."""

from pathlib import Path

import inferscope

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
MODULES = ("errors", "records", "specs", "testing", "testing.ranges")
LEAD = """\
# Python interface

Everything here is imported from `inferscope` itself; importing the package loads neither torch nor OpenTelemetry. What
stands in no list of this page may change without notice.

The fields of a record, its phases and its ledger are those of `inferscope.records`; what a model and a device are is in
`inferscope.specs`, what can be raised in `inferscope.errors`, and what tests of your own can use in
`inferscope.testing`.
"""
END = "\nThis page is made from `inferscope.__all__` by `python tests/docs/test_api_page.py`.\n"


def page():
    names = sorted(name for name in inferscope.__all__ if not name.startswith("__"))
    return LEAD + "".join(f"\n::: inferscope.{name}\n" for name in [*names, *MODULES]) + END


def test_the_page_names_what_is_exported():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_everything_exported_says_what_it_is():
    assert [name for name in inferscope.__all__ if not (getattr(inferscope, name).__doc__ or "").strip()] == []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
