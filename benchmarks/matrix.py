"""Run the tests of capture over each supported version of transformers, and write down what works where.

python benchmarks/matrix.py             all versions, two at a time, into results/matrix.json
python benchmarks/matrix.py 5.0.0       one of them; the others keep what was written before

Each version has an environment of its own under .matrix/, in which transformers and what it pins are installed over
this one's packages: torch is not copied. A mode that a version cannot do untraced is skipped there, with what it said.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "matrix.json"
OLDER = ("4.57.6", "5.0.0", "5.2.0", "5.10.4")
AREAS = {
    "test_capture": "attaching, streaming, phases, ledger",
    "test_modes_decoders": "decoder-only models and their modes",
    "test_modes_caches": "caches, compiled forwards",
    "test_modes_encoders": "encoders, sound, images",
    "test_modes_assisted": "assisted decoding",
    "test_loops": "hand-written loops",
    "test_continuous_batching": "continuous batching",
    "test_concurrency": "threads, asyncio, processes",
    "test_cost_exact": "cost: operations and bytes of a forward",
    "test_versions": "places that are wrapped",
}
_SHOW = """
import json, sys
import transformers, transformers.generation.continuous_batching
from inferscope.capture import versions
places = {**versions.GENERATION, **versions.CONTINUOUS}
there = {f"{p.owner}.{p.name}": versions.found(p, load=True) is not None for p in places.values()}
import huggingface_hub, tokenizers
print(json.dumps({"transformers": transformers.__version__, "huggingface_hub": huggingface_hub.__version__,
                  "tokenizers": tokenizers.__version__, "places": there}))
"""


def python_of(version: str) -> str:
    """The interpreter of a version's environment, which is made where it is missing."""
    if version == installed_version("transformers"):
        return sys.executable
    home = ROOT / ".matrix" / version
    python = str(home / "bin" / "python")
    if not (home / ".installed").exists():
        venv.create(home, with_pip=False, clear=True, symlinks=True)
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        )
        # Paths in here come after the environment's own: what it installs stands before what it inherits.
        Path(own.stdout.strip(), "inherited.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"transformers=={version}"],
            check=True,
        )
        (home / ".installed").touch()
    return python


def run(version: str) -> dict[str, Any]:
    """The tests of one version: what passed, what failed, what was skipped and why."""
    python = python_of(version)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if version != installed_version("transformers"):
        environment["OLDER_TRANSFORMERS"] = version
    shown = subprocess.run([python, "-c", _SHOW], check=True, capture_output=True, text=True, env=environment)
    facts = json.loads(shown.stdout.splitlines()[-1])
    if facts["transformers"] != version:
        raise SystemExit(f"{python} has transformers {facts['transformers']}, not {version}: remove .matrix/{version}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "junit.xml")
        command = [python, "-m", "pytest", "-q", "-m", "capture", "tests/integration", f"--junitxml={report}"]
        ended = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
        print(f"{version}: {ended.stdout.strip().splitlines()[-1]}", flush=True)
        if not report.exists():
            raise SystemExit(f"{version}: no report\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
        facts["areas"] = areas(ET.parse(report))  # noqa: S314 - written by pytest just now
    return facts


def areas(report: Any) -> dict[str, Any]:  # noqa: ANN401 - a tree
    """Counts by area, and each test that did not pass with its reason."""
    found: dict[str, Any] = {name: {"passed": 0, "failed": {}, "skipped": {}} for name in AREAS}
    for case in report.iter("testcase"):
        names = f"{case.get('classname')}.{case.get('name')}".split(".")
        area = next((found[name] for name in names if name in found), None)
        if area is None:
            continue
        failed = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        name = case.get("name") or ""
        if failed is not None:
            area["failed"][name] = reason(failed)
        elif skipped is not None:
            area["skipped"][name] = reason(skipped)
        else:
            area["passed"] += 1
    return found


def reason(node: Any) -> str:  # noqa: ANN401 - an element
    """One line on why; of a module that was left out as a whole, pytest hides it in the text."""
    said = (node.get("message") or "").strip()
    if said == "collection skipped":
        said = re.sub(r"^.*Skipped: |['\")]+$", "", (node.text or "").strip())
    return said.splitlines()[0][:200] if said else ""


def main() -> int:
    """Run what was asked for; 1 where a test failed."""
    newest = installed_version("transformers")
    asked = tuple(sys.argv[1:]) or (*OLDER, newest)
    kept = json.loads(RESULT.read_text(encoding="utf-8"))["results"] if RESULT.exists() else {}
    for version in asked:
        python_of(version)
    failures = Counter[str]()
    with ThreadPoolExecutor(2) as pool:
        for version, found in zip(asked, pool.map(run, asked), strict=True):
            kept[version] = found
            failures[version] = sum(len(area["failed"]) for area in found["areas"].values())
            write({each: kept[each] for each in (*OLDER, newest) if each in kept})
    print(dict(failures))
    return 1 if failures.total() else 0


def write(results: dict[str, Any]) -> None:
    """What is known so far."""
    machine = {
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        "accelerate": installed_version("accelerate"),
    }
    document = {"machine": machine, "titles": AREAS, "results": results}
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
