from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from inferscope.analysis import advice
from inferscope.analysis.utilisation import WindowSample, classify
from inferscope.analysis.workload import EnergyShare, PhaseLoad, Workload
from inferscope.report.watching import WindowView
from inferscope.report.window import as_json, device_texts, one_line, workload_lines
from inferscope.samples import GpuSample, HostSample
from inferscope.testing import make_gpu_sample

HOST = HostSample(window_s=1.0, cpu_share=0.5, cpus=8, memory_available_bytes=2**33, memory_total_bytes=2**34)
STARVED = make_gpu_sample(sm_activity=0.1, dram_activity=0.05, clock_reasons=("sw_power_cap",))
LOST = GpuSample(uuid="GPU-lost", index=1, lost=True, missing={"time_share": "GPU is lost", "power_w": "GPU is lost"})
BOTH = WindowSample(unix_ns=1_790_000_000_000_000_000, gpus=(STARVED, LOST), host=HOST, took_s=0.003)
WITHOUT = WindowSample(unix_ns=1_790_000_000_000_000_000, gpus_missing="NVML Shared Library Not Found", host=HOST)


def drawn(sample, width=100, **options):
    verdict = classify(sample)
    found = {one.device: advice.recommend(one) for one in (verdict, *verdict.others)}
    console = Console(width=width, record=True, file=None, highlight=False, **options)
    with console.capture() as capture:
        console.print(WindowView(sample, verdict, found))
    return capture.get()


def test_every_device_its_bound_its_numbers_and_its_warnings_are_drawn():
    text = drawn(BOTH)
    assert "GPU 0 NVIDIA H100 80GB HBM3 overhead (confidence low)" in text
    assert re.search(r"GPU-Util +100 % █+ ", text)
    assert 'gpu-util-misleads: "GPU-Util 100%" misleads' in text
    assert "gpu-throttled-power" in text
    assert "GPU 1 unknown" in text
    assert "gpu-lost: GPU 1 is lost: GPU is lost." in text
    assert "not known: time_share, power_w: GPU is lost" in text
    assert "host" in text


def test_without_a_gpu_the_reason_is_drawn():
    assert "no GPU: NVML Shared Library Not Found" in drawn(WITHOUT)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    for sample in (BOTH, WITHOUT):
        assert max(len(line) for line in drawn(sample, width=width).splitlines()) <= width


def test_colour_only_where_it_is_wanted():
    assert "\x1b[" not in drawn(BOTH, force_terminal=True, no_color=True, color_system=None)
    assert "\x1b[" in drawn(BOTH, force_terminal=True, color_system="standard")


def test_names_from_outside_do_not_steer_the_terminal():
    evil = replace(STARVED, name="H100\x1b[2J[red]x", missing={"mig": "\x07bell"})
    text = drawn(replace(BOTH, gpus=(evil,)), color_system=None)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x" in text
    assert "\x1b" not in one_line(replace(BOTH, gpus=(evil,)), classify(replace(BOTH, gpus=(evil,))))


def test_one_line_for_a_pipe_names_warnings():
    line = one_line(BOTH, classify(BOTH))
    assert "\n" not in line
    assert "GPU 0 NVIDIA H100 80GB HBM3: overhead" in line
    assert "!gpu-util-misleads" in line
    assert "!gpu-lost" in line
    assert "sm_activity=10.0%" in line


def test_json_is_strict_whatever_the_numbers_are():
    odd = replace(BOTH, gpus=(replace(STARVED, power_w=math.nan, temperature_c=math.inf),))
    verdict = classify(odd)
    text = json.dumps(as_json(odd, verdict, advice.recommend(verdict)), allow_nan=False)
    back = json.loads(text)
    assert back["sample"]["gpus"][0]["power_w"] is None
    assert back["verdict"]["bound"] == "overhead"
    assert back["findings"][0]["code"] == "gpu-util-misleads"


def test_requests_are_told_where_there_were_some():
    assert workload_lines(Workload()) == ()
    phase = PhaseLoad(
        name="decode", wall_s=9.0, bound="memory", shares={"memory": 0.8, "overhead": 0.2}, known_share=1.0
    )
    energy = EnergyShare(device="GPU-x", low_j=8.0, high_j=12.0, requests=4, tokens=40)
    load = Workload(horizon_s=60.0, requests=4, aborted=1, tokens_per_s=12.5, phases=(phase,), energy=(energy,))
    first, second, third = workload_lines(load)
    assert first == "4 requests ended in the last 1 min 00 s · 1 aborted · at least 12.5 token/s"
    assert second == "decode: memory (memory 80.0 %, overhead 20.0 %)"
    assert third == "energy per token: 200 mJ to 300 mJ (whole device)"


def test_the_last_advice_is_the_one_on_the_bound():
    verdict = classify(BOTH)
    text = device_texts(BOTH, verdict, {verdict.device: advice.recommend(verdict)})[0]
    assert text.advice == advice.recommend(verdict)[-1].action
