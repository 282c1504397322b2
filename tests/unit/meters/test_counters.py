"""The counter at the driver against a library that stands in for libcupti: the C extension is the real one."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inferscope.meters import counters, deep
from inferscope.meters.counters import Counts, NativeCounter

SOURCE = Path(__file__).parents[2] / "mock_libcupti.c"
LAUNCH, GRAPH, WAIT, TO_HOST_WAITING, TO_HOST, TO_DEVICE = 307, 514, 126, 278, 279, 277
ENTER, EXIT = 0, 1
DRIVER, RUNTIME = 1, 2
SUBSCRIBED, SUBSCRIPTIONS, ENDS, ENABLED, WRONG_DOMAINS = range(5)


@pytest.fixture(scope="module")
def extension():
    return pytest.importorskip("inferscope._cupti", reason="the C extension was not built here")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the mock libcupti with")
    path = tmp_path_factory.mktemp("cupti") / "libcupti.so.13"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, SOURCE], check=True)
    return path


@pytest.fixture
def mock(library):
    found = ctypes.CDLL(str(library))
    found.mock_set(0, 1 << 20, 0)
    yield found
    found.mock_set(0, 1 << 20, 0)


@pytest.fixture
def counter(extension, library, mock, notices_reset):
    counter = NativeCounter(extension, ["/nowhere/libcupti.so", str(library)])
    yield counter
    counter.close()
    assert mock.mock_state(SUBSCRIBED) == 0
    assert deep._state.holder is None
    assert not deep._state.lock.locked()


def test_each_kind_of_call_is_counted_once_and_at_its_entry(counter, mock):
    assert counter.open()
    assert counter.is_open
    assert mock.mock_state(ENABLED) == 26
    assert mock.mock_state(WRONG_DOMAINS) == 0
    before = counter.counts()
    for call in (LAUNCH, 442, 652, 653, 477, 478, 480):
        mock.mock_fire(DRIVER, call, ENTER, 10)
        mock.mock_fire(DRIVER, call, EXIT, 10)
    mock.mock_fire(DRIVER, GRAPH, ENTER, 2)
    for call in (WAIT, 440, 17, 800, 121):
        mock.mock_fire(DRIVER, call, ENTER, 3)
    mock.mock_fire(DRIVER, TO_HOST_WAITING, ENTER, 1)
    mock.mock_fire(DRIVER, TO_HOST, ENTER, 5)
    mock.mock_fire(DRIVER, TO_DEVICE, ENTER, 7)
    assert counter.counts().since(before) == Counts(launches=70, graph_launches=2, syncs=16, to_host=6, to_device=7)


def test_what_it_was_not_asked_to_count_is_not_counted(counter, mock):
    assert counter.open()
    before = counter.counts()
    for call in (1, 306, 1023, 1024, 100_000, 2**31):
        mock.mock_fire(DRIVER, call, ENTER, 3)
    mock.mock_fire(RUNTIME, LAUNCH, ENTER, 3)
    assert counter.counts() == before


def test_threads_count_for_themselves(counter, mock):
    assert counter.open()
    before = counter.counts()
    seen = {}
    start = threading.Barrier(4)

    def work(number):
        began = counter.counts()
        start.wait()
        mock.mock_fire(DRIVER, LAUNCH, ENTER, 1000 * number)  # ctypes lets go of the interpreter: they run at once
        mock.mock_fire(DRIVER, WAIT, ENTER, number)
        seen[number] = counter.counts().since(began)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: (each.launches, each.syncs) for number, each in seen.items()} == {
        number: (1000 * number, number) for number in range(1, 5)
    }
    assert counter.counts() == before


def test_what_comes_after_the_end_counts_nothing(counter, mock):
    assert counter.open()
    counter.close()
    counter.close()
    assert mock.mock_state(SUBSCRIBED) == 0
    before = counter.counts()
    mock.mock_fire(DRIVER, LAUNCH, ENTER, 5)
    assert counter.counts() == before
    assert counter.open()  # and it can begin again
    mock.mock_fire(DRIVER, LAUNCH, ENTER, 5)
    assert counter.counts().since(before).launches == 5


def test_one_subscription_at_a_time(counter, mock):
    began = mock.mock_state(SUBSCRIPTIONS)
    assert counter.open()
    assert not counter.open()
    assert mock.mock_state(SUBSCRIPTIONS) == began + 1


def test_another_tool_is_left_alone_and_asked_again_later(counter, mock, capfd):
    mock.mock_set(1, 1 << 20, 0)
    assert not counter.open()
    assert not counter.open()
    assert "another tool holds CUPTI" in counter.reason
    assert capfd.readouterr().err.count("counters-stepped-aside") == 1
    mock.mock_set(0, 1 << 20, 0)
    assert counter.open()
    assert counter.reason == ""


def test_numbers_that_this_cupti_does_not_know_are_done_without(counter, mock):
    mock.mock_set(0, 500, 0)
    assert counter.open()
    assert mock.mock_state(ENABLED) == 21
    counter.close()
    mock.mock_set(0, 0, 0)
    ends = mock.mock_state(ENDS)
    assert not counter.open()
    assert "knows none" in counter.reason
    assert mock.mock_state(ENDS) == ends + 1  # it did subscribe, and has given that back


def test_a_refusal_is_said_and_not_asked_for_again(counter, mock, capfd):
    mock.mock_set(0, 1 << 20, 15)
    assert not counter.open()
    mock.mock_set(0, 1 << 20, 0)
    assert not counter.open()
    assert "CUPTI_ERROR_NOT_INITIALIZED (error 15 of CUPTI)" in counter.reason
    assert "CUPTI_ERROR_NOT_INITIALIZED" in capfd.readouterr().err


def test_no_library_is_a_reason_too(extension, notices_reset, tmp_path):
    wrong = tmp_path / "libcupti.so"
    wrong.write_text("no library", encoding="utf-8")
    counter = NativeCounter(extension, [str(wrong), "/nowhere/libcupti.so"])
    assert not counter.open()
    assert "/nowhere/libcupti.so" in counter.reason
    assert not counter.is_open
    assert not deep._state.lock.locked()


def test_a_library_without_the_interface_is_refused(extension, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path / "libother.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, "-x", "c", "-"], input=b"int other;", check=True)
    with pytest.raises(OSError, match="no callback interface"):
        extension.load(str(path))


def test_recordings_and_the_counter_exclude_each_other_and_the_user_comes_first(counter, mock):
    torch = pytest.importorskip("torch")
    deep.switch_on(warm=False)
    try:
        assert counter.open()
        assert deep.open_window() is None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as users:
            assert not counter.is_open
            assert mock.mock_state(SUBSCRIBED) == 0
            assert not counter.open()
            assert "another profiler" in counter.reason
            torch.ones(3).add(1)
        assert any(event.key == "aten::add" for event in users.key_averages())
        assert counter.open()
    finally:
        counter.close()
        deep.switch_off()


def test_without_the_extension_there_is_a_reason(notices_reset):
    code = (
        "import sys; sys.modules['inferscope._cupti'] = None\n"
        "from inferscope.meters import counters\n"
        "assert counters.counter() is None\n"
        "print(counters.missing())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "not built for this Python" in done.stdout
    assert "counters-stepped-aside" in done.stderr


def test_libraries_are_looked_for_beside_torch_first(monkeypatch, tmp_path):
    inside = tmp_path / "nvidia" / "cuda_cupti" / "lib"
    inside.mkdir(parents=True)
    (inside / "libcupti.so.13").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    found = counters.libraries()
    assert found[0] == str(inside / "libcupti.so.13")
    assert found[-1] == "libcupti.so"
