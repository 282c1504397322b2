"""docs/reference/environment.md is made from `settings.VARIABLES`: run this file to write it."""

from pathlib import Path

from inferscope.settings import VARIABLES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "environment.md"


def page():
    lines = [
        "# Environment variables",
        "",
        "Read when a session is opened or a command starts; an empty value counts as not set. What can also be",
        "given as an argument is taken from the argument.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
        *(f"| `{variable.name}` | `{variable.default}` | {variable.meaning} |" for variable in VARIABLES),
        "",
        "OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, ...) keep their meaning.",
        "",
        "This page is made from `inferscope.settings.VARIABLES` by `python tests/docs/test_environment_page.py`.",
    ]
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_settings_say():
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
