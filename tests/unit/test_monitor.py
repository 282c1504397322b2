from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import pytest

import inferscope
from inferscope import monitor as monitors
from inferscope.errors import SettingError
from inferscope.samples import GpuReading
from inferscope.testing import ReplayedGpus, make_gpu_sample, make_record, make_result


def watching(*gpus, **options):
    return inferscope.BottleneckMonitor(
        gpus=ReplayedGpus(*(gpus or (make_gpu_sample(),))), **{"interval_s": 0.1, "metrics": False, **options}
    )


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "inferscope-monitor"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    until(lambda: not threads())


def test_one_window_its_verdict_and_what_to_do():
    monitor = watching()
    sample = monitor.sample()
    verdict = monitor.classify(sample)
    assert (verdict.device, verdict.bound) == (make_gpu_sample().uuid, "memory")
    assert monitor.recommend(verdict)[-1].code == "window-memory"
    assert monitor.latest is sample
    assert sample.host.cpu_share is not None  # the first window is a whole one
    assert not monitor.running


def test_asking_again_at_once_gives_the_same_window():
    source = ReplayedGpus(make_gpu_sample())
    monitor = inferscope.BottleneckMonitor(gpus=source, interval_s=0.3, metrics=False)
    first = monitor.sample()
    reads = source.reads
    assert all(monitor.sample() is first for _ in range(50))
    assert source.reads == reads == 2


def test_a_block_takes_windows_and_ends_its_thread():
    with watching(make_gpu_sample(), make_gpu_sample(sm_activity=0.1)) as monitor:
        until(lambda: len(monitor.history) >= 3)
        assert monitor.running
        assert len(threads()) == 1
        with monitor:
            assert len(threads()) == 1
        assert monitor.running  # the inner block was not the outermost
    assert not monitor.running
    kept = monitor.history
    time.sleep(0.25)
    assert monitor.history == kept
    assert monitor.verdict.bound == monitor.classify(monitor.latest).bound
    with monitor:
        until(lambda: len(monitor.history) > len(kept))


def test_windows_are_kept_up_to_the_limit():
    with watching(keep=3) as monitor:
        until(lambda: len(monitor.history) == 3)
        first = monitor.history[0]
        until(lambda: monitor.history[0] is not first)
        assert len(monitor.history) == 3


def test_listeners_are_told_and_one_that_raises_costs_the_others_nothing(notices_reset, capsys):
    told = []

    def broken(_sample, _verdict):
        raise ValueError("mine")

    with watching(on_sample=[broken, lambda sample, verdict: told.append((sample, verdict))]):
        until(lambda: len(told) >= 3)
    assert told[0][1].bound == "memory"
    said = capsys.readouterr().err
    assert said.count("monitor-listener-failed") == 1
    assert "ValueError: mine" in said


def test_a_listener_may_stop_the_monitor():
    monitor = watching(on_sample=[lambda _sample, _verdict: monitor.stop()])
    monitor.start()
    until(lambda: not monitor.running and not threads())
    assert len(monitor.history) == 1


def test_a_fault_of_ours_is_said_once_and_watching_goes_on(notices_reset, capsys, monkeypatch):
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")

    class Broken:
        reads = 0

        def read(self):
            self.reads += 1
            if self.reads in {2, 3}:
                raise RuntimeError("broken")
            return GpuReading(missing="nothing here")

    with inferscope.BottleneckMonitor(gpus=Broken(), interval_s=0.1, metrics=False) as monitor:
        until(lambda: monitor.latest is not None)
    assert capsys.readouterr().err.count("monitor-failed") == 1


def test_it_is_a_sink_and_its_windows_tell_of_the_requests():
    monitor = watching(make_gpu_sample(time_share=0.0, engine_activity=0.0, sm_activity=0.0))
    now_ns = time.time_ns()
    for _ in range(3):
        monitor(make_result(record=make_record(started_unix_ns=now_ns - make_record().wall_ns)))
    monitor._since_unix_ns = now_ns - 10**9
    sample = monitor.sample()
    assert (sample.workload.requests, sample.workload.on_host) == (3, 3)
    assert sample.workload.tokens_per_s > 0
    assert {phase.name for phase in sample.workload.phases} == {"prefill", "decode"}
    verdict = monitor.classify(sample)
    assert (verdict.device, verdict.bound) == ("host", "memory")  # the requests ran on the CPU, the GPU rested


def test_requests_kept_are_bounded_and_the_horizon_says_so(monkeypatch):
    monkeypatch.setattr(monitors, "KEPT_REQUESTS", 5)
    monitor = watching()
    begin_ns = time.time_ns()
    for number in range(20):
        record = make_record(wall_ns=10**9, started_unix_ns=begin_ns - 10**9 - (20 - number) * 10**6)
        monitor(make_result(record=record))
    assert len(monitor._requests) == 5
    # The fifteenth ended 6 ms before the begin: what lies before is not known, and the horizon does not pretend.
    monitor._since_unix_ns = begin_ns - 10**10
    monitor(make_result(record=make_record(wall_ns=10**9, started_unix_ns=begin_ns - 10**9)))
    assert monitor._since_unix_ns == begin_ns - 5 * 10**6
    assert monitor.sample().workload.requests == 5


def test_energy_per_token_comes_from_the_counter():
    def reading(number):
        return make_gpu_sample(unix_ns=time.time_ns(), energy_j=1000.0 + 50.0 * number)

    class Counting:
        number = 0

        def read(self):
            self.number += 1
            return GpuReading(gpus=(reading(self.number),))

    record = make_record()
    on_gpu = replace(record.model, device="cuda:0")
    with inferscope.BottleneckMonitor(gpus=Counting(), interval_s=0.1, metrics=False) as monitor:
        until(lambda: len(monitor.history) >= 2)
        begin_ns = time.time_ns()
        until(lambda: len(monitor.history) >= 5)
        wall_ns = time.time_ns() - begin_ns
        monitor(make_result(record=make_record(model=on_gpu, started_unix_ns=begin_ns, wall_ns=wall_ns)))
        until(lambda: monitor.latest.workload.energy)
        (energy,) = monitor.latest.workload.energy
    assert 0 < energy.low_j < energy.high_j
    low, high = energy.per_token_j
    assert (low, high) == (energy.low_j / 16, energy.high_j / 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"interval_s": 0.5}, "at least 1 seconds"),
        ({"interval_s": float("nan")}, "interval_s=nan"),
        ({"interval_s": float("inf")}, "interval_s=inf"),
        ({"keep": 0}, "keep=0"),
        ({"pid": 2**30}, "pid="),
    ],
)
def test_misuse_is_said_at_once(options, said):
    with pytest.raises(SettingError, match=said):
        inferscope.BottleneckMonitor(**options)


def test_disabled_starts_nothing(monkeypatch):
    monkeypatch.setenv("INFERSCOPE_DISABLED", "1")
    with watching() as monitor:
        assert not monitor.running
    assert monitor.sample().gpus  # what is asked for is done


def test_a_monitor_that_nobody_holds_ends_its_thread():
    monitor = watching().start()
    alive = weakref.ref(monitor)
    del monitor

    def gone():
        gc.collect()
        return alive() is None

    until(gone)


def test_many_threads_ask_and_the_source_is_read_once_per_window():
    source = ReplayedGpus(make_gpu_sample())
    monitor = inferscope.BottleneckMonitor(gpus=source, interval_s=0.5, metrics=False)
    found = []
    asking = [threading.Thread(target=lambda: found.append(monitor.sample())) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert source.reads == 2  # the beginning of the window and its end


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_begins_anew():
    with watching() as monitor:
        until(lambda: monitor.latest is not None)
        with monitor._lock, monitor._taking:  # even while another thread holds them
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    alone = not monitor.running and monitor._load is None
                    fresh = monitor.sample().host.process_cpu_share is not None
                    with monitor:
                        code = 0 if alone and fresh and monitor.running else 2
                finally:
                    os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert monitor.running


PROGRAM = """
import sys, time
import inferscope
monitor = inferscope.BottleneckMonitor().start()
while monitor.latest is None:
    time.sleep(0.01)
print(sorted({"torch", "transformers"} & set(sys.modules)), monitor.latest.gpus_missing != "")
"""


def test_a_program_ends_at_once_while_its_monitor_runs_and_torch_was_never_needed():
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[] ")
    assert time.monotonic() - begin < 60
