"""docs/reference/monitor.md is made from the sample's fields and the thresholds: run this file to write it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inferscope.analysis import advice, utilisation, workload
from inferscope.analysis.thresholds import THRESHOLDS
from inferscope.samples import GpuSample, HostSample

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reference" / "monitor.md"

INTRODUCTION = """# Monitor reference

How to use it: [watch a machine](../how-to/watch-a-machine.md). This page is made from the code by
`python tests/docs/test_monitor_page.py`.

    monitor = inferscope.BottleneckMonitor(
        interval_s=1.0, keep=600, on_sample=(), metrics=True, meter_provider=None, pid=...
    )
    sample = monitor.sample()           # a WindowSample; the first call takes one interval
    verdict = monitor.classify(sample)  # a WindowVerdict
    monitor.recommend(verdict)          # findings, warnings first
    with monitor: ...                   # a window per interval on a thread of its own
    monitor.latest, monitor.verdict, monitor.history, monitor.running, monitor.windows()
    inferscope.trace(model, sinks=[monitor])

NVML is asked at most once a second and process, by all monitors together, from the monitor's thread or the thread
that calls `sample`. No CUDA function is called. After a fork the child's monitor is stopped and empty of requests.

## What no hardware has confirmed

Everything that concerns a GPU. The code follows NVIDIA's headers; its tests put recorded answers below the real
binding. Not confirmed are: what the driver answers on each generation, in a container and under MIG; whether an
unprivileged process may read the counters; what one reading costs and whether it can delay a launch; how NVML
behaves after a fork; the unit of the PCIe rates; and whether the thresholds below part real workloads well. The
host's half runs in every test.

## A window's verdict

- `idle`, `empty` and `occupied` are parts of a GPU's window and sum to 1: no kernel; a kernel, but this SM without a
  warp; an SM with warps.
- Traffic and arithmetic are judged over the busy part: activity divided by the engine's busy share (GPU-Util where
  the engine's is not known). DRAM activity is held against what kernels reach in practice.
- Below 60 % of both limits: `communication` where PCIe is near its limit, else `overhead` where SMs are mostly
  empty, else `inefficient`.
- Counters are of the whole device. They do not tell one process from another, nor a gap between launches from a
  kernel that fills few SMs: `overhead` and `inefficient` therefore have low confidence.
- The host's verdict is what the requests' own verdicts add up to, weighted by time. Without requests it is `idle` or
  `unknown`: the load of processors does not tell arithmetic from waiting for memory.
"""


def attributes(kind):
    """Name and meaning of each field, from the docstring."""
    text = kind.__doc__.partition("Attributes:\n")[2]
    rows = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", text, flags=re.MULTILINE)
    return [(name, " ".join(meaning.split())) for name, meaning in rows]


def table(kind):
    return ["| field | meaning |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in attributes(kind))]


def page():
    lines = [INTRODUCTION, "## Thresholds", "", "| threshold | value | meaning | source |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.value:g} | {row.meaning} | {row.source} |" for row in THRESHOLDS]
    for title, lead, kind in (
        ("`sample.gpus[i]`", "A field that is None has its reason in `missing`.", GpuSample),
        ("`sample.host`", "", HostSample),
        ("`sample.workload`", "Of requests that ended within the last minute.", workload.Workload),
        ("`sample.workload.energy[i]`", "", workload.EnergyShare),
        ("`verdict`", "", utilisation.WindowVerdict),
    ):
        lines += ["", f"## {title}", "", *([lead, ""] if lead else []), *table(kind)]
    lines += ["", "Codes of the findings: [findings.md](findings.md#of-a-devices-window)."]
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("kind", [GpuSample, HostSample, workload.Workload, utilisation.WindowSample])
def test_every_field_is_explained(kind):
    assert [name for name, _ in attributes(kind)] == list(kind.__dataclass_fields__)


def test_every_code_has_its_section():
    text = (DOCS / "reference" / "findings.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (\S+)$", text, flags=re.MULTILINE)
    assert not set(advice.CODES) - set(headings)


def test_the_how_to_s_code_runs(tmp_path, monkeypatch):
    text = (DOCS / "how-to" / "watch-a-machine.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "watch-a-machine.md", "exec")
    monkeypatch.chdir(tmp_path)
    exec(blocks[0], {})  # noqa: S102 - our own page


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
