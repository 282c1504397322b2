"""Findings that no record holds reach a session's results: from its own requests, and from a monitor that runs."""

from __future__ import annotations

import time
from dataclasses import replace

import inferscope
from inferscope import surroundings
from inferscope.surroundings import Around
from inferscope.testing import ReplayedGpus, make_gpu_sample, make_record, make_result


def test_a_session_says_that_it_has_little_to_do(llama, prompt, monkeypatch):
    monkeypatch.setattr(surroundings, "LEAST_REQUESTS", 2)
    monkeypatch.setattr(surroundings, "LEAST_HORIZON_S", 0.0)
    with inferscope.trace(llama, sinks=()) as session:
        llama.generate(prompt, max_new_tokens=2)
        first = session.last
        time.sleep(3 * first.record.wall_ns / 1e9 + 1)
        llama.generate(prompt, max_new_tokens=2)
        second = session.last
    assert "server-underloaded" not in {finding.code for finding in first.findings}
    (finding,) = [finding for finding in second.findings if finding.code == "server-underloaded"]
    assert finding.evidence[0].value < 0.5
    again = inferscope.diagnose(second.record, device=second.diagnosis.device)
    assert "server-underloaded" not in {finding.code for finding in again.findings}


def test_a_monitor_that_runs_lends_its_newest_window():
    record = make_record(started_unix_ns=time.time_ns(), wall_ns=60 * 10**9, device_key="cuda:00c0ffee, driver 1")
    result = make_result(record=replace(record, model=replace(record.model, device="cuda:0")))
    gpu = make_gpu_sample(uuid="GPU-00c0ffee", unix_ns=time.time_ns() + 10**9)
    with inferscope.BottleneckMonitor(gpus=ReplayedGpus(gpu), interval_s=0.1, metrics=False) as monitor:
        monitor.sample()
        assert Around().of(result).gpu.uuid == gpu.uuid
    assert Around().of(result).gpu is None
