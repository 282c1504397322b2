"""Write the documentation's tables from the committed result files and from the code; nothing in them is typed by hand.

python benchmarks/tables.py            rewrites the pages
python benchmarks/tables.py --check    fails where a page is not what the results say
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import jinja2

from inferscope.sinks.reference import reference_markdown

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = {
    "explanation/overhead.md": "overhead-cpu",
    "explanation/accuracy.md": "verdicts-cpu",
    "reference/versions.md": "matrix",
}
NEWCOMER = {"tutorial/from-clone-to-gate.md": "newcomer-cpu"}
if (HERE / "results" / "newcomer-cpu.json").exists():  # made by `make bench-newcomer`, which installs everything anew
    PAGES |= NEWCOMER
SWEEP = {"explanation/sweep-of-smollm2.md": "sweep-cpu"}
if (HERE / "results" / "sweep-cpu.json").exists():  # made by `make bench-sweep`, which takes ten minutes
    PAGES |= SWEEP

FROM_CODE = {"reference/telemetry.md": reference_markdown}


def machine(facts: dict[str, Any]) -> str:
    """One sentence on where a result comes from."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"Measured on {facts['date']} on {facts['device']}, a shared virtual machine ({facts['cores']} cores, "
        f"{facts['threads']} threads, load {facts['load_average_1min']:.1f} at the end), Python {facts['python']}, "
        f"{versions}. No GPU: what inferscope costs and says beside a CUDA device is not confirmed."
    )


def difference(spread: dict[str, float]) -> str:
    """Median and quartiles of a difference."""
    return f"{spread['median']:+.1f} ({spread['p25']:+.1f} to {spread['p75']:+.1f})"


def tally(bounds: list[str]) -> str:
    """How often each verdict fell."""
    return ", ".join(f"{bound} {bounds.count(bound)}/{len(bounds)}" for bound in dict.fromkeys(bounds))


def shares(values: dict[str, float]) -> str:
    """Shares that would not be shown as 0 %."""
    return ", ".join(f"{name} {100 * value:.0f} %" for name, value in values.items() if round(100 * value))


def outcome(area: dict[str, Any]) -> str:
    """How the tests of an area ended in one version."""
    parts = [f"{area['passed']} passed"] if area["passed"] else []
    parts += [f"{len(area[kind])} {kind}" for kind in ("failed", "skipped") if area[kind]]
    return ", ".join(parts) or "none"


def exceptions(results: dict[str, Any]) -> list[dict[str, str]]:
    """Each test that did not pass somewhere: the versions, and why."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for version, facts in results.items():
        for area in facts["areas"].values():
            for kind in ("failed", "skipped"):
                for name, reason in area[kind].items():
                    said = reason.replace(f"transformers {version}", "transformers").replace("|", "\\|")
                    found.setdefault((kind, name.replace("|", "\\|"), said), []).append(version)
    rows = ((kind, name, reason, ", ".join(versions)) for (kind, name, reason), versions in sorted(found.items()))
    return [dict(zip(("kind", "name", "reason", "versions"), row, strict=True)) for row in rows]


def page(name: str) -> str:
    """One page as the results or the code say."""
    if name in FROM_CODE:
        return FROM_CODE[name]()
    data = json.loads((HERE / "results" / f"{PAGES[name]}.json").read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "pages"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown from our own numbers
    )
    environment.globals.update(difference=difference, median=statistics.median, tally=tally, shares=shares)
    for source in ("prediction", "deep", "deep-injected", "telemetry"):
        measured = HERE / "results" / f"{source}-cpu.json"
        # Each is the second source of a page, and may not have been measured yet.
        environment.globals[source.replace("-", "_")] = (
            json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else None
        )
    environment.globals.update(where=machine)
    environment.globals.update(outcome=outcome, exceptions=exceptions, titles=data.get("titles"))
    # The matrix says nothing about speed, and so nothing about the machine's.
    where = data["machine"] if "titles" in data else machine(data["machine"])
    return environment.get_template(f"{Path(name).name}.j2").render(results=data["results"], machine=where)


def main() -> int:
    """Write the pages, or compare them."""
    stale = []
    for name in (*PAGES, *FROM_CODE):
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(page(name), encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != page(name):
            stale.append(name)
    if stale:
        print(f"not what benchmarks/results and the code say: {', '.join(stale)}; run python benchmarks/tables.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
