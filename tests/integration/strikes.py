"""Functions of ours that run inside the user's call, found while it runs, and what comes of it when each fails."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
import textwrap

import inferscope
from inferscope import notices
from inferscope.capture import intercept

STRIKES = {
    "Exception": RuntimeError("our own fault"),
    "MemoryError": MemoryError("our own fault"),
    "garbage": object(),
}
KNOWN_SLUGS = {"capture-failed", "result-failed", "results-dropped"}


def forget(capfd):
    """In this order: what the last round still says late is thrown away, and never counts beside this round's."""
    notices.reset()
    capfd.readouterr()


def ours(run):
    """(module, qualified name) of every function of inferscope's that this thread enters while `run` runs."""
    found = set()

    def profile(frame, event, _argument):
        name = frame.f_globals.get("__name__", "")
        # What others call is a seam itself: it is held to what its own parts do.
        called_by = frame.f_back.f_globals.get("__name__", "") if frame.f_back else ""
        if event == "call" and name.startswith("inferscope.") and called_by.startswith("inferscope."):
            found.add((name, frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name))

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return sorted(found)


def places(module, qualified):
    """Where the function is looked up: (owner, attribute, descriptor); nothing for closures, which are the seams."""
    if "<" in qualified:
        return []
    owner, *path = [sys.modules[module], *qualified.split(".")]
    for name in path[:-1]:
        owner = getattr(owner, name, None)
    name = path[-1]
    if owner is None or name not in vars(owner) or name.startswith("__"):
        return []
    target = vars(owner)[name]
    if inspect.isclass(owner):
        return [(owner, name, target)]
    return [
        (holder, key, value)
        for place, holder in list(sys.modules.items())
        if place.startswith("inferscope") and holder is not None
        for key, value in list(vars(holder).items())
        if value is target
    ]


def is_guard(original):
    """Whether a function is itself the wall: a `try` in its body that lets no Exception of what it calls through."""
    function = inspect.unwrap(getattr(original, "fget", None) or getattr(original, "__func__", original))
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    if "wrapped" in inspect.signature(function).parameters:
        return True  # a part of a seam: the user's own call runs inside it
    if "with contextlib.suppress(Exception)" in ast.unparse(tree):
        return True
    return any(
        isinstance(handler.type, ast.Name) and handler.type.id == "Exception"
        for statement in tree.body[0].body
        if isinstance(statement, ast.Try)
        for handler in statement.handlers
    )


def striking(strike, original):
    def broken(*_args, **_kwargs):
        if isinstance(strike, Exception):
            raise strike
        return strike

    if isinstance(original, property):
        return property(broken)
    if isinstance(original, staticmethod):
        return staticmethod(broken)
    return functools.wraps(original)(broken) if callable(original) else broken


def unguarded(functions):
    """Those that can be replaced and are not the wall themselves."""
    return [entry for entry in functions if (found := places(*entry)) and not is_guard(found[0][2])]


def failures(functions, use, expected, models, monkeypatch, capfd, *, wait_s=0.3):
    """Each function fails in each way while `models` are traced: where the user noticed, or was told twice."""
    monkeypatch.setenv("INFERSCOPE_RAISE", "0")
    found = []
    for module, qualified in functions:
        for kind, strike in STRIKES.items():
            forget(capfd)
            sessions = [inferscope.trace(model, sinks=()) for model in models]
            with contextlib.ExitStack() as traced, monkeypatch.context() as patch:
                for session in sessions:
                    traced.enter_context(session)
                for owner, name, original in places(module, qualified):
                    patch.setattr(owner, name, striking(strike, original))
                try:
                    same = use() == expected
                except Exception as error:  # noqa: BLE001 - all of them are to be seen at once
                    same = f"{type(error).__name__}: {error}"
                patch.undo()
                for session in sessions:
                    session.wait(wait_s)
            said = [line for line in capfd.readouterr().err.splitlines() if "slug=" in line]
            slugs = [line.rpartition("slug='")[2].partition("'")[0] for line in said]
            if same is not True or len(slugs) != len(set(slugs)) or not set(slugs) <= KNOWN_SLUGS:
                found.append((module, qualified, kind, same, said))
            intercept.TRAFFIC.reset()
    return found
