"""A server's life: instrumented for good, switched off and on, forked, models reloaded, thousands of requests."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import inferscope
from conftest import build_llama
from inferscope.capture import seams


def test_instrument_stays_until_removed(llama, prompt):
    handle = inferscope.instrument(llama, sinks=())
    try:
        llama.generate(prompt, max_new_tokens=2)
        assert len(handle.session.results) == 1
        handle.enabled = False
        assert "__call__" not in type(llama).__dict__
        llama.generate(prompt, max_new_tokens=2)
        handle.enabled = True
        llama.generate(prompt, max_new_tokens=2)
        assert len(handle.session.results) == 2
    finally:
        handle.remove()
        handle.remove()
    assert not handle.enabled
    llama.generate(prompt, max_new_tokens=2)
    assert len(handle.session.results) == 2


def test_switching_while_others_generate_loses_and_breaks_nothing(llama, prompt):
    expected = llama.generate(prompt, max_new_tokens=4)
    handle, stop = inferscope.instrument(llama, sinks=()), threading.Event()

    def switch():
        while not stop.is_set():
            handle.enabled = not handle.enabled

    switcher = threading.Thread(target=switch)
    switcher.start()
    try:
        for _ in range(60):
            assert torch.equal(llama.generate(prompt, max_new_tokens=4), expected)
    finally:
        stop.set()
        switcher.join()
        handle.remove()
    for result in handle.session.results:
        assert result.record.ledger.total_ns == result.record.wall_ns
        assert result.record.output_tokens == 4


FORKING = """
import os, sys, threading, torch, transformers, inferscope
torch.set_num_threads(1)
torch.manual_seed(0)
config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                  num_key_value_heads=2, vocab_size=1000)
model = transformers.LlamaForCausalLM(config).eval()
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0
ids = torch.arange(1, 10)[None]
taken = []
handle = inferscope.instrument(model, sinks=[taken.append])
model.generate(ids, max_new_tokens=3)
mine = handle.session.last.record.request_id
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        model.generate(ids, max_new_tokens=4 + number)
        record = handle.session.last.record
        good = record.output_tokens == 4 + number and record.request_id != mine and len(handle.session.results) == 2
        good = good and len(taken) == 2 and sum(thread.name == "inferscope" for thread in threading.enumerate()) == 1
        print(record.request_id[:8], flush=True)
        os._exit(0 if good else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
model.generate(ids, max_new_tokens=3)
assert len(handle.session.results) == 2, handle.session.results
assert codes == [0, 0, 0], codes
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers_observe_their_own_requests():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(set(done.stdout.split())) == 3  # each child counts its requests under a name of its own


def test_a_reloaded_model_is_freed_with_everything_of_ours(transformers, prompt):
    gone = []
    for _ in range(5):
        model = build_llama(transformers)
        handle = inferscope.instrument(model, sinks=())
        model.generate(prompt, max_new_tokens=2)
        handle.session.wait()
        gone.append(weakref.ref(model))
        handle.remove()
        del model, handle
    gc.collect()
    assert [ref() for ref in gone] == [None] * 5


def test_a_model_that_is_dropped_while_traced_is_freed_too(transformers, prompt):
    model = build_llama(transformers)
    session = inferscope.trace(model, sinks=())
    gone = weakref.ref(model)
    with session:
        model.generate(prompt, max_new_tokens=2)
        session.wait()
        del model
        gc.collect()
        assert gone() is None
    assert len(session.results) == 1


def test_a_thousand_cycles_leave_nothing(llama, prompt):
    def cycle():
        with inferscope.trace(llama, sinks=()):
            pass

    with inferscope.trace(llama, sinks=()) as session:  # what earlier tests left to the background is worked off
        llama.generate(torch.ones((1, 2), dtype=torch.long), max_new_tokens=1)
        session.wait()
    for _ in range(50):
        cycle()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            cycle()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 64_000  # 64 bytes per cycle would be a leak
    assert not seams._wraps


# What torch and transformers say of themselves while they are imported is theirs; everything else is an error where
# the command line makes it one.
@pytest.mark.filterwarnings("ignore:.torch[.]jit[.]:DeprecationWarning")
def test_ten_thousand_requests_over_eight_threads(transformers, request):
    """No lost, doubled or crossed record; memory flat after warm-up."""
    torch.set_num_threads(1)
    model = build_llama(transformers, num_hidden_layers=1, hidden_size=16, intermediate_size=16, vocab_size=64)
    taken, lock, rss = Counter(), threading.Lock(), []

    def take(result):
        record = result.record
        with lock:
            taken[record.request_id] += 1
            seen[(record.input_tokens, record.output_tokens)] += 1

    def serve(number):
        prompt = torch.full((1, 1 + number % 5), 3)
        for index in range(round_size // 8):
            model.generate(prompt, max_new_tokens=1 + index % 2)
            with lock:
                asked[(1 + number % 5, 1 + index % 2)] += 1

    asked, seen, round_size = Counter(), Counter(), request.config.getoption("requests") // 5
    with inferscope.trace(model, sinks=[take]) as session, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            list(pool.map(serve, range(8)))
            assert session.wait(120)
            gc.collect()
            rss.append(_resident_kib())
    assert sum(taken.values()) == 5 * round_size
    assert set(taken.values()) == {1}
    assert seen == asked
    assert rss[-1] - rss[1] < 24_000  # KiB over six thousand requests: the allocator's own noise, not a leak


def test_the_same_holds_in_development_mode_with_every_warning_an_error():
    """Fewer requests; `--requests 10000` with the same command runs them all."""
    here = f"{Path(__file__)}::{test_ten_thousand_requests_over_eight_threads.__name__}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-W", "error", "--requests", "1000", here],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONDEVMODE": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "1 passed" in done.stdout


def _resident_kib():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() // 1024
