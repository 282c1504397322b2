"""What importing costs, and that every public name is there."""

from __future__ import annotations

import subprocess
import sys

import inferscope


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'opentelemetry', 'structlog', 'rich', 'msgspec', 'pynvml', 'numpy'}"
    assert run(f"import sys, inferscope; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


def test_every_public_name_resolves_and_is_listed():
    assert sorted(inferscope._PLACES) == [name for name in inferscope.__all__ if name != "__version__"]
    for name in inferscope.__all__:
        assert getattr(inferscope, name) is not None
        assert name in dir(inferscope)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(inferscope, "tracer")


def test_the_version_is_the_distribution_s():
    from importlib.metadata import version  # noqa: PLC0415

    assert inferscope.__version__ == version("inferscope")


def test_tracing_loads_no_outlet_that_is_not_used():
    outlets = "{'typer', 'transformers', 'opentelemetry.exporter'}"
    loaded = run(f"import sys, inferscope; inferscope.trace; print(sorted({outlets} & set(sys.modules)))")
    assert loaded.strip() == "[]"
