"""Facts of the machine a benchmark ran on, and the result file they are written to."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def facts() -> dict[str, Any]:
    """Device, versions and date, for the head of a result file."""
    import torch  # noqa: PLC0415 - the version is only known once it is loaded

    from inferscope.hardware.nvml import driver_version  # noqa: PLC0415
    from inferscope.hardware.probe import identify  # noqa: PLC0415

    on_gpu = torch.cuda.is_available()
    spec = identify("cuda:0" if on_gpu else "cpu")
    return {
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "device": spec.name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": spec.memory_bytes,
        "cache_bytes": spec.cache_bytes,
        "load_average_1min": os.getloadavg()[0],
        "driver": driver_version() if on_gpu else None,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": {name: metadata.version(name) for name in ("inferscope", "torch", "transformers")},
    }


def write(name: str, results: dict[str, Any]) -> Path:
    """Write a result file and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": facts(), "results": results}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return path


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    quarters = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "p25": quarters[0], "p75": quarters[2], "n": len(values)}
