"""A monitor beside a real model on this machine's processors."""

from __future__ import annotations

import time

import inferscope
from inferscope.hardware.nvml import shared


def test_requests_appear_in_the_windows_of_a_running_monitor(llama, prompt):
    with inferscope.BottleneckMonitor(metrics=False) as monitor:
        with inferscope.trace(llama, sinks=[monitor]) as session:
            plain = llama.generate(prompt, max_new_tokens=24, do_sample=False)
            llama.generate(prompt, max_new_tokens=24, do_sample=False)
            assert session.wait()
        end = time.monotonic() + 30
        while monitor.latest is None or monitor.latest.workload.requests < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        sample, verdict = monitor.latest, monitor.verdict
    load = sample.workload
    assert (load.requests, load.on_host, load.aborted, load.uncounted) == (2, 2, 0, 0)
    assert load.tokens_per_s > 0
    assert {phase.name for phase in load.phases} == {"prefill", "decode"}
    assert verdict.device == "host"
    assert load.energy == ()
    assert load.missing["energy"]
    assert sample.host.process_cpu_share > 0
    assert plain.shape == (1, prompt.shape[1] + 24)


def test_a_machine_without_nvml_says_why():
    reading = shared().read()
    assert reading.gpus or reading.missing
