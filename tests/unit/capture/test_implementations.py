"""The C extension and the Python code in its place: the same course of calls leaves the same bytes behind."""

from __future__ import annotations

import contextvars
import gc
import importlib
import struct
import sys
import threading
import time
import tracemalloc
import weakref
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscope.capture import frames, implementation

PARTS = ("implementation", "frames", "companions", "forward")
NATIVE = pytest.mark.skipif(implementation.HOT is None, reason=implementation.IMPLEMENTATION.reason)


def without_extension():
    """The modules of capture as they are where the extension is not, beside those that are loaded."""
    package = importlib.import_module("inferscope.capture")
    names = [f"inferscope.capture.{part}" for part in PARTS]
    modules = {name: sys.modules.pop(name, None) for name in names}
    attributes = {part: vars(package).get(part) for part in PARTS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFERSCOPE_NATIVE", "0")
        forward = importlib.import_module("inferscope.capture.forward")
        loaded = sys.modules["inferscope.capture.frames"]
    for name, module in modules.items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module
    for part, module in attributes.items():
        if module is not None:
            setattr(package, part, module)
        else:
            delattr(package, part)
    return SimpleNamespace(forward=forward, frames=loaded)


PLAIN = without_extension()
LOADED = SimpleNamespace(forward=importlib.import_module("inferscope.capture.forward"), frames=frames)


class Fault(Exception):  # noqa: N818 - as the code calls it
    """Ours."""


class Clock:
    """Goes on with each reading, and fails at one of them."""

    def __init__(self, fails_at):
        self.now, self.readings, self.fails_at = 1_000, 0, fails_at

    def now_ns(self):
        self.readings += 1
        self.now += 17
        if self.readings == self.fails_at:
            raise Fault("clock")
        return self.now

    def thread_cpu_ns(self):
        return self.now_ns() // 2


class Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


class Ids:
    def __init__(self, shape):
        self._shape = shape

    @property
    def shape(self):
        if isinstance(self._shape, Exception):
            raise self._shape
        return self._shape


class Meter:
    def __init__(self, log, fails_at):
        self.log, self.calls, self.fails_at = log, 0, fails_at

    def _called(self, name):
        self.calls += 1
        self.log.append(name)
        if self.calls == self.fails_at:
            raise Fault("meter")

    def begin(self):
        self._called("begin")

    def end(self):
        self._called("end")


def told(error):
    """What is said of an error; of a row that has no place the two say the same in other words."""
    return "no room" if isinstance(error, struct.error) or "no room" in str(error) else repr(error)


class World:
    """One implementation, a request in it, and all that happens to them."""

    def __init__(self, modules, course):
        self.modules, self.course, self.log = modules, course, []
        self.clock = Clock(course["clock_fails_at"])
        self.caches = [Cache(0), Cache(7), Cache(None)]
        frame_type, world, looks = modules.frames.Frame, self, [0]

        class Frame(frame_type):
            __slots__ = ()

            def look(self, cache, kwargs, q):
                looks[0] += 1
                if looks[0] == course["look_fails_at"]:
                    raise Fault("look")
                return super().look(cache, kwargs, q)

        class Request(modules.frames.Request):
            __slots__ = ()

            def next_chunk(self):
                if course["chunk_fails"]:
                    raise Fault("chunk")
                super().next_chunk()

        class Model:
            def __call__(self, *args, **kwargs):
                return world.forward(self, args, kwargs)

        class Check:
            def __call__(self, ids, *, scores):
                world.log.append(("check", ids, scores))
                return world.answer(world.stop_raises)

        plain = Model.__call__
        Model.__call__ = modules.forward.watched(
            SimpleNamespace(__call__=plain), lambda: False, self.other_frame, self.step_aside
        )
        Check.__call__ = modules.forward.timed_stop_check(Check.__call__, self.step_aside)
        self.check, self.stop_raises = Check(), None
        self.models = {name: Model() for name in ("main", "draft", "encoder", "stranger")}
        self.names = {model: name for name, model in self.models.items()}
        self.request = Request(entered_ns=1, started_unix_ns=1, clock=self.clock)
        self.request.row = course["row"]
        self.frame = Frame(self.request, self.models["main"], flags=course["flags"])
        if course["metered"]:
            self.frame.meter = Meter(self.log, course["meter_fails_at"])
        self.pending = []

    def other_frame(self, frame, module):
        if frame is None or frame.request.dead or frame.thread != threading.get_ident():
            return None
        flag, encoding = self.modules.frames.Flag, self.modules.frames.ENCODING
        name = self.names[module]
        if name == "encoder":
            return frame.other(module, flag.ENCODE) if frame.request.in_pass != encoding else None
        if frame.request.in_pass or name == "stranger":
            return None
        return frame.other(module, frame.flags | flag.FOREIGN)

    def step_aside(self, frame, error):
        frame.request.dead = True
        frame.module = None
        frame.flags = self.modules.frames.Flag.ASSISTANT
        self.log.append(("aside", told(error)))
        if self.course["raises"]:
            raise error

    def answer(self, error):
        if error is not None:
            raise error("user's")
        return object()

    def forward(self, module, args, kwargs):
        self.log.append((self.names[module], len(args), sorted(kwargs)))
        call = self.pending.pop()
        self.clock.now += call["lasts"]
        for inner in call["inside"]:
            self.do(inner)
        return self.answer(call["error"])

    def do(self, call):
        self.pending.append(call)
        kwargs = {name: value for name, value in call["kwargs"].items() if value is not None}
        if call["cache"] is not None:
            kwargs["past_key_values"] = self.caches[call["cache"]]
        args = () if call["shape"] is None else (Ids(call["shape"]),)
        if args and call["by_name"]:
            kwargs[call["by_name"]], args = args[0], ()
        self.seen(lambda: self.models[call["model"]](*args, **kwargs))
        if call["stop"]:
            self.stop_raises = call["stop_error"]
            self.seen(lambda: self.check(1, scores=2))

    def seen(self, run):
        try:
            self.log.append(type(run()).__name__)
        except BaseException as error:  # noqa: BLE001 - what reaches the user
            # A fault of ours that is raised while tests run may have met others of ours before; that is no matter.
            users = isinstance(error, (ValueError, KeyboardInterrupt)) or "user's" in repr(error.__context__)
            self.log.append((told(error), told(error.__context__) if users else None, repr(error.__cause__)))

    def run(self):
        token = self.modules.frames.CURRENT.set(self.frame)
        try:
            for call in self.course["calls"]:
                if call["elsewhere"]:
                    context = contextvars.copy_context()
                    thread = threading.Thread(target=context.run, args=(self.do, call))
                    thread.start()
                    thread.join()
                else:
                    self.do(call)
        finally:
            self.modules.frames.CURRENT.reset(token)
        return self

    def left(self):
        request, frame = self.request, self.frame
        return {
            "rows": b"".join(chunk.tobytes() for chunk in request.gathered()[0]),
            "request": (request.row, int(request.in_pass), request.dead, request.marks),
            "frame": (frame.flags, frame.past, frame.seen, frame.slow, frame.summed is None, frame.module is None),
            "readings": self.clock.readings,
            "log": self.log,
        }


SHAPES = st.one_of(
    st.tuples(st.integers(1, 3), st.sampled_from([1, 1, 1, 5])),
    st.sampled_from([None, [2, 4], (1, 4, 9), (3,), ValueError("shape"), AttributeError("shape")]),
)
NAMES = st.sampled_from(["input_ids", "input_ids", "inputs_embeds", "decoder_input_ids", None])
ERRORS = st.sampled_from([None] * 6 + [ValueError, KeyboardInterrupt])


def calls(inside):
    return st.fixed_dictionaries(
        {
            "model": st.sampled_from(["main", "main", "main", "draft", "encoder", "stranger"]),
            "shape": SHAPES,
            "by_name": NAMES,
            "cache": st.sampled_from([None, 0, 0, 0, 1, 2]),
            "kwargs": st.fixed_dictionaries(
                {"logits_to_keep": st.sampled_from([None, 0, 1, 3, True, -1]), "other": st.just(1)}
            ),
            "lasts": st.sampled_from([0, 5_000, 3_000_000]),
            "error": ERRORS,
            "stop": st.booleans(),
            "stop_error": ERRORS,
            "elsewhere": st.sampled_from([False] * 7 + [True]),
            "inside": inside,
        }
    )


FAILS_AT = st.one_of(st.just(0), st.just(0), st.integers(1, 40))
COURSES = st.fixed_dictionaries(
    {
        "row": st.sampled_from([0, frames.CHUNK_END - 2 * frames.Row.WIDTH, frames.CHUNK_END - frames.Row.WIDTH]),
        "flags": st.sampled_from([0, 0, frames.Flag.ASSISTED, frames.Flag.ASSISTANT, frames.Flag.BARE]),
        "metered": st.booleans(),
        "meter_fails_at": FAILS_AT,
        "clock_fails_at": FAILS_AT,
        "look_fails_at": FAILS_AT,
        "chunk_fails": st.sampled_from([False, False, True]),
        "raises": st.booleans(),
        "calls": st.lists(calls(st.lists(calls(st.just([])), max_size=2)), min_size=1, max_size=14),
    }
)


@NATIVE
@given(COURSES)
@settings(max_examples=400)
def test_the_same_course_leaves_the_same_bytes(course):
    assert LOADED.forward.IMPLEMENTATION.name == "native"
    assert PLAIN.forward.IMPLEMENTATION.name == "python"
    assert World(LOADED, course).run().left() == World(PLAIN, course).run().left()


def one(**changes):
    call = {
        "model": "main",
        "shape": (1, 1),
        "by_name": "input_ids",
        "cache": 0,
        "kwargs": {"logits_to_keep": None, "other": 1},
        "lasts": 0,
        "error": None,
        "stop": True,
        "stop_error": None,
        "elsewhere": False,
        "inside": [],
    }
    return {**call, **changes}


def course(*calls, **changes):
    plain = {
        "row": 0,
        "flags": 0,
        "metered": False,
        "meter_fails_at": 0,
        "clock_fails_at": 0,
        "look_fails_at": 0,
        "chunk_fails": False,
        "raises": False,
        "calls": calls,
    }
    return {**plain, **changes}


@pytest.fixture(params=["python", pytest.param("native", marks=NATIVE)])
def modules(request):
    return PLAIN if request.param == "python" else LOADED


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_of_the_users_has_no_context_of_ours(modules, error):
    for fails_at in range(1, 8):
        world = World(modules, course(one(error=error), clock_fails_at=fails_at)).run()
        assert (repr(error("user's")), "None", "None") in world.log
        assert [entry for entry in world.log if entry[0] == "main"] == [
            ("main", 0, ["input_ids", "other", "past_key_values"])
        ]


def test_a_meter_stands_round_the_pass(modules):
    world = World(modules, course(one(), one(error=ValueError), metered=True)).run()
    names = [entry if isinstance(entry, str) else entry[0] for entry in world.log]
    assert names[:3] == ["begin", "main", "end"]
    assert names.count("begin") == names.count("end") == 2


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_meter_that_fails_ends_the_record_and_not_the_call(modules, fails_at):
    world = World(modules, course(one(), one(), metered=True, meter_fails_at=fails_at)).run()
    assert world.request.dead
    assert world.log.count(("aside", "Fault('meter')")) == 1
    assert [entry[0] for entry in world.log if isinstance(entry, tuple)].count("main") == 2


def test_the_system_clock_is_read(modules):
    world = World(modules, course(one(), one(), one()))
    world.request = modules.frames.Request(entered_ns=1, started_unix_ns=1)
    world.frame = modules.frames.Frame(world.request, world.models["main"])
    before, cpu_before = time.perf_counter_ns(), time.thread_time_ns()
    world.run()
    after, cpu_after = time.perf_counter_ns(), time.thread_time_ns()
    rows, row = world.request.rows, modules.frames.Row
    assert world.request.row == 3 * row.WIDTH
    stamps = [
        rows[at + offset]
        for at in range(0, 3 * row.WIDTH, row.WIDTH)
        for offset in (row.ENTERED, row.STARTED, row.ENDED, row.LEFT, row.STOP_STARTED, row.STOP_ENDED)
    ]
    assert [before, *stamps, after] == sorted([before, *stamps, after])
    assert cpu_before <= rows[row.CPU] <= rows[row.WIDTH + row.CPU] <= cpu_after


def test_a_number_too_large_for_a_row_is_a_fault(modules):
    """In C it is seen before the pass, in Python after it: either way nothing is recorded and the call is made."""
    world = World(modules, course(one(shape=(1, 4), kwargs={"logits_to_keep": 2**70}))).run()
    assert world.request.dead
    assert [entry[0] for entry in world.log].count("main") == 1
    assert [entry[0] for entry in world.log].count("aside") == 1


def test_what_cannot_be_written_is_a_fault_and_no_crash(modules):
    for rows in (None, modules.frames.array("q"), bytes(8 * frames.CHUNK_END)):
        world = World(modules, course(one()))
        if rows is None:
            world.request.row = -5_000
        else:
            world.request.rows = rows
        world.run()
        assert world.request.dead
        assert [entry[0] for entry in world.log if isinstance(entry, tuple)].count("main") == 1


def test_the_stop_check_looks_like_the_one_it_stands_for(modules):
    def check(self, ids):
        """Say whether."""
        return self, ids

    class Owner:
        __call__ = modules.forward.timed_stop_check(check, lambda _frame, _error: None)

    owner = Owner()
    assert owner(3) == (owner, 3)
    assert owner.__call__(ids=3) == (owner, 3)
    stand_in = Owner.__dict__["__call__"]
    assert (stand_in.__name__, stand_in.__doc__, stand_in.__wrapped__) == ("check", "Say whether.", check)
    assert Owner.__call__(owner, 3) == (owner, 3)


@NATIVE
def test_the_extension_holds_the_constants_of_the_frames():
    flag = frames.Flag
    assert implementation.HOT.CONSTANTS == {
        "WIDTH": frames.Row.WIDTH,
        "LEFT": frames.Row.LEFT,
        "CHUNK_END": frames.CHUNK_END,
        "UNREADABLE": frames.UNREADABLE,
        "SLOW_PASS_NS": frames.SLOW_PASS_NS,
        "CPU_GROUP": frames.CPU_GROUP,
        "STEADY": frames.STEADY,
        "ASSISTANT": flag.ASSISTANT,
        "ABORTED": flag.ABORTED,
        "ENCODE": flag.ENCODE,
        "MARK_STOP": frames.Mark.STOP,
    }
    clocks = [time.get_clock_info(name).implementation for name in ("perf_counter", "thread_time")]
    expected = ["clock_gettime(CLOCK_MONOTONIC)", "clock_gettime(CLOCK_THREAD_CPUTIME_ID)"]
    assert implementation.HOT.READS_CLOCKS is (clocks == expected)


COUNTED = 10_000


@pytest.mark.parametrize(
    "changes",
    [{}, {"raises": True}, {"meter_fails_at": 1}, {"look_fails_at": 1}, {"clock_fails_at": 4}, {"clock_fails_at": 6}],
    ids=str,
)
def test_nothing_is_kept_of_ten_thousand_calls(modules, changes):
    """Reference counts of what every pass touches, and the memory of all of them, stay where they were."""
    world = World(modules, course(metered=True, **changes))
    failing = bool(changes)
    token = modules.frames.CURRENT.set(world.frame)
    main, cache, ids = world.models["main"], world.caches[0], Ids((1, 1))
    held = [main, cache, ids, world.frame, world.request, world.frame.meter, ids.shape]
    call = one()

    def turn(number):
        world.log.clear()
        world.pending = [call]
        call["error"] = ValueError if number % 5 == 0 else None
        if failing:
            world.request.dead, world.request.in_pass, world.frame.module = False, 0, main
            world.frame.flags = world.clock.readings = world.frame.meter.calls = 0
        try:
            main(input_ids=ids, past_key_values=cache)
            world.check(1, scores=2)
        except (ValueError, Fault):
            pass
        if world.request.row > frames.CHUNK_END // 2:
            world.request.row = 0
            world.request.rows = modules.frames.array("q", bytes(8 * frames.CHUNK_END))
            world.request.marks.clear()

    try:
        for number in range(50):
            turn(number)
        gc.collect()
        counts = [sys.getrefcount(each) for each in held]
        tracemalloc.start()
        try:
            turn(1)
            before = tracemalloc.get_traced_memory()[0]
            for number in range(COUNTED if not failing else COUNTED // 10):
                turn(number)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        counts_after = [sys.getrefcount(each) for each in held]
    finally:
        modules.frames.CURRENT.reset(token)
    assert counts_after == counts
    assert grown < 64 * 1024, grown


def test_a_cycle_through_a_stand_in_is_collected(modules):
    class Model:
        def __call__(self):
            return self

    original = Model.__call__
    Model.__call__ = modules.forward.watched(Model, lambda: True, lambda *_: None, lambda *_: None)
    Model.check = modules.forward.timed_stop_check(original, Model)
    request = modules.frames.Request(entered_ns=1, started_unix_ns=1)
    frame = modules.frames.Frame(request, Model())
    frame.summed = request.companions = [frame, request]
    gone = weakref.ref(Model)
    del Model, request, frame, original
    gc.collect()
    assert gone() is None


class TestWhichImplementationRuns:
    def test_one_may_be_chosen(self, monkeypatch):
        monkeypatch.setenv("INFERSCOPE_NATIVE", "0")
        assert implementation._load() == (
            None,
            implementation.Implementation(name="python", reason="INFERSCOPE_NATIVE=0"),
        )

    def test_a_wrong_setting_is_said_elsewhere(self, monkeypatch):
        monkeypatch.setenv("INFERSCOPE_NATIVE", "perhaps")
        _, found = implementation._load()
        assert found.name == "native" or "not built" in found.reason

    def test_without_a_build_it_says_so(self, monkeypatch):
        monkeypatch.setenv("INFERSCOPE_NATIVE", "1")
        monkeypatch.setitem(sys.modules, "inferscope._hot", None)
        monkeypatch.delattr("inferscope._hot", raising=False)
        module, found = implementation._load()
        assert module is None
        assert (found.name, "not built" in found.reason) == ("python", True)

    @NATIVE
    def test_a_stale_build_is_not_used(self, monkeypatch):
        monkeypatch.setattr(implementation, "_INTERFACE", implementation._INTERFACE + 1)
        module, found = implementation._load()
        assert module is None
        assert "other sources" in found.reason

    def test_without_the_global_lock_it_is_left_alone(self, monkeypatch):
        monkeypatch.setenv("INFERSCOPE_NATIVE", "1")
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        assert implementation._load()[1].name == "python"
