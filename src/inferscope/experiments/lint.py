"""Drive a model on purpose, to count what it would launch on a CUDA device and where the host would wait for it."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
import sys
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
import torch

from inferscope import syncs
from inferscope.errors import LintError, NotAModelError, SettingError
from inferscope.meters.placement import ActualPlacement, Side, TrackedPlacement, leaves, tensors_in
from inferscope.meters.synclint import SyncLint
from inferscope.report.lint import lint_to_text
from inferscope.syncs import LAUNCHES_ARE_A_LOWER_BOUND, Rate, SyncPoint, separate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from inferscope.meters.placement import Placement
    from inferscope.syncs import Wait

__all__ = ["DEFAULT_NEW_TOKENS", "LintReport", "lint"]

DEFAULT_NEW_TOKENS = 8
_FEWEST = 3
_SHORT = 2
"""Tokens of the shorter request: the prompt's and the first of decoding, whose forward may set things up."""

_COMPILED_CACHES = ("static", "hybrid", "sliding_window", "offloaded_static", "offloaded_hybrid")


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport(syncs.LintReport):
    """How often a model would launch work on a CUDA device and wait for it; printing it shows a table."""

    def __str__(self) -> str:
        """The report as plain text."""
        return lint_to_text(self)

    def to_json(self) -> str:
        """The report as one JSON object, indented: the same model and versions give the same text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is linted.

    Attributes:
        run: Called once for each request or pass.
        modules: All modules it is known to use, once each.
        name: Of the model, or of the function.
        unit: "token" where `run` generates.
        generation_config: The model's defaults for `generate`; None where it has none.
    """

    run: Callable[..., Any]
    modules: tuple[torch.nn.Module, ...]
    name: str
    unit: Literal["token", "pass"]
    generation_config: object | None = None


def lint(model: Any, /, *, new_tokens: int = DEFAULT_NEW_TOKENS, **inputs: Any) -> LintReport:  # noqa: ANN401 - any model
    """Count launches and sync points per token and per request, on a machine without a GPU.

    The model runs where it is, on the CPU as a rule, without gradients: three requests of one, two and `new_tokens`
    tokens (two passes where it cannot generate), of which the last two are compared. It, its inputs, the random
    state and torch's modes are as before afterwards; a streamer is really called.

    Args:
        model: A model with `generate`; one with a forward alone, or any function, of which one pass is counted.
        new_tokens: Length of the longer request, at least 3; `max_new_tokens` among the inputs comes first.
        **inputs: What `generate` gets (or the forward): `input_ids=...`, `attention_mask=...`, `do_sample=True`.

    Returns:
        The counts with each sync point's file and line. Launches and waits are lower bounds: what a kernel does
        inside, and what C++ extensions do without torch's dispatcher, is not seen.

    Raises:
        NotAModelError: `model` cannot be called.
        LintError: Inputs are missing; or the model is on the meta device and needs values; or requests of different
            length cannot be told apart.
        SettingError: `new_tokens` is below 3.
    """
    subject = _subject(model, inputs)
    _check_inputs(subject, inputs)
    placement = _placed(subject, inputs)
    session = _Session(subject, inputs, placement)
    with _eager(), torch.no_grad():
        if subject.unit == "pass":
            return session.passes()
        return session.requests(_wanted(new_tokens, inputs))


class _Session:
    """The runs of one lint, on the same bookkeeping of where tensors live."""

    def __init__(self, subject: _Subject, inputs: Mapping[str, Any], placement: Placement) -> None:
        self._subject = subject
        self._inputs = inputs
        self._placement = placement
        self._notes: list[str] = []

    def passes(self) -> LintReport:
        """One pass, after one that does what is done only once in a process."""
        self._run()
        seen, _ = self._run()
        waits: dict[Wait, tuple[Fraction, Fraction]] = {}
        launches: dict[str, tuple[Fraction, Fraction]] = {}
        for key, count in seen.waits.items():
            waits[key] = (Fraction(count), Fraction(0))
        for name, count in seen.launches.items():
            launches[name] = (Fraction(count), Fraction(0))
        self._notes.append("one pass counts as one token: this is no request of generate")
        return self._report(waits, launches, seen, counted=None)

    def requests(self, new_tokens: int) -> LintReport:
        """Two requests, after one that does what is done only once in a process."""
        _, one = self._run(**self._limits(1))
        further: dict[str, Any] = {}
        short, long, lengths = self._pair(new_tokens, one, further)
        if lengths[1] < new_tokens and (never := _unused_token(self._subject)) is not None:
            # The end token is compared as before, and never comes.
            further = {"eos_token_id": never}
            self._notes.append(
                f"the request ended by itself after {lengths[1]} of {new_tokens} tokens; what is counted is one whose "
                "end token never comes"
            )
            short, long, lengths = self._pair(new_tokens, one, further)
        if lengths[1] <= lengths[0]:
            raise LintError(
                f"requests of {_SHORT} and {new_tokens} tokens both ended after {lengths[1]}: what one token costs "
                "cannot be told; leave out what stops them early (stopping_criteria, max_time)"
            )
        apart = {"short_tokens": lengths[0], "long_tokens": lengths[1]}
        waits = separate(short.waits, long.waits, **apart)
        launches = separate(short.launches, long.launches, **apart)
        return self._report(waits, launches, long, counted=lengths)

    def _pair(
        self, new_tokens: int, one: int | None, further: Mapping[str, Any]
    ) -> tuple[SyncLint, SyncLint, tuple[int, int]]:
        """A short and a long request, and how many tokens each had: `one` is the length of a result with one."""
        short, first = self._run(**self._limits(_SHORT), **further)
        long, second = self._run(**self._limits(new_tokens), **further)
        if one is None or first is None or second is None:
            self._notes.append("the result's length cannot be read: as many tokens are assumed as were asked for")
            return short, long, (_SHORT, new_tokens)
        return short, long, (1 + first - one, 1 + second - one)

    def _limits(self, new_tokens: int) -> dict[str, Any]:
        limits: dict[str, Any] = {"max_new_tokens": new_tokens}
        if (least := self._inputs.get("min_new_tokens")) is not None:
            limits["min_new_tokens"] = min(least, new_tokens)
        return limits

    def _run(self, **changed: Any) -> tuple[SyncLint, int | None]:  # noqa: ANN401 - options of generate
        """One request from the state in which the model was handed to us, and the length of its result."""
        seen = SyncLint(self._placement)
        given = {name: value for name, value in self._inputs.items() if name not in ("max_length", "min_length")}
        inputs = {
            name: _own_copy(value, self._placement) for name, value in (given if changed else self._inputs).items()
        }
        with _unchanged(self._subject.modules):
            output = seen.run(self._subject.run, **{**inputs, **changed})
        return seen, _length(output)

    def _report(
        self,
        waits: Mapping[Wait, tuple[Fraction, Fraction]],
        launches: Mapping[str, tuple[Fraction, Fraction]],
        seen: SyncLint,
        *,
        counted: tuple[int, int] | None,
    ) -> LintReport:
        certain = [rates for wait, rates in waits.items() if wait.certainty == "certain"]
        possible = [rates for wait, rates in waits.items() if wait.certainty == "possible"]
        points = tuple(_point(wait, rates) for wait, rates in waits.items())
        rates = {
            name: Rate(per_token=float(token), per_request=float(once)) for name, (token, once) in launches.items()
        }
        subject = self._subject
        return LintReport(
            model=subject.name,
            unit=subject.unit,
            batch_size=_batch_size(self._inputs),
            counted_tokens=counted,
            device=_device(subject, self._inputs),
            launches_per_token=_sum(launches.values(), 0),
            launches_per_request=_sum(launches.values(), 1),
            syncs_per_token=_sum(certain, 0),
            syncs_per_request=_sum(certain, 1),
            possible_syncs_per_token=_sum(possible, 0),
            possible_syncs_per_request=_sum(possible, 1),
            sync_points=tuple(sorted(points, key=_rank)),
            launches=tuple(sorted(rates.items(), key=lambda item: (-item[1].per_token, -item[1].per_request, item[0]))),
            notes=(LAUNCHES_ARE_A_LOWER_BOUND, *self._notes, *_limits_of(subject, self._inputs, seen)),
            versions=_versions(),
        )


def _subject(model: Any, inputs: Mapping[str, Any]) -> _Subject:  # noqa: ANN401 - any model
    helpers = [module for value in inputs.values() if isinstance(value, torch.nn.Module) for module in value.modules()]
    if isinstance(model, torch.nn.Module):
        module = getattr(model, "_orig_mod", model)
        modules = tuple(dict.fromkeys((*module.modules(), *helpers)))
        if not callable(getattr(module, "generate", None)):
            return _Subject(run=module, modules=modules, name=_name(module), unit="pass")
        return _Subject(
            run=cast("Callable[..., Any]", module.generate),
            modules=modules,
            name=_name(module),
            unit="token",
            generation_config=getattr(module, "generation_config", None),
        )
    if isinstance(model, type) or not callable(model):
        raise NotAModelError(f"lint needs a model with generate or forward, or a function, not {_kind(model)}")
    name = getattr(model, "__qualname__", type(model).__name__)
    return _Subject(run=model, modules=tuple(dict.fromkeys((*_modules_of(model), *helpers))), name=name, unit="pass")


def _kind(model: object) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"


def _name(module: torch.nn.Module) -> str:
    said = getattr(getattr(module, "config", None), "_name_or_path", None) or getattr(module, "name_or_path", None)
    return said if isinstance(said, str) and said else type(module).__name__


def _modules_of(function: Any) -> Iterator[torch.nn.Module]:  # noqa: ANN401 - any function
    """Modules that a function can be seen to use: bound, in a closure, among its globals, or as attributes."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    code = inspect.unwrap(function)
    code = getattr(code, "__func__", code)
    cells = [cell.cell_contents for cell in getattr(code, "__closure__", None) or () if not _is_empty(cell)]
    names = getattr(getattr(code, "__code__", None), "co_names", ())
    globals_ = getattr(code, "__globals__", {})
    for value in (owner, *getattr(owner, "__dict__", {}).values(), *cells, *(globals_.get(name) for name in names)):
        if isinstance(value, torch.nn.Module):
            yield from value.modules()


def _is_empty(cell: Any) -> bool:  # noqa: ANN401 - a cell of a closure
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _check_inputs(subject: _Subject, inputs: Mapping[str, Any]) -> None:
    module = subject.unit == "token" or isinstance(subject.run, torch.nn.Module)
    if module and not any(True for value in inputs.values() for _ in tensors_in(value)):
        raise LintError(
            f"inputs are missing: give lint what {'generate' if subject.unit == 'token' else 'the forward'} gets, such "
            "as inferscope.lint(model, input_ids=..., attention_mask=...)"
        )
    if subject.unit == "token":
        return
    function = subject.run.forward if isinstance(subject.run, torch.nn.Module) else subject.run
    try:
        inspect.signature(function).bind(**inputs)
    except TypeError as error:
        raise LintError(f"inputs do not fit {subject.name}: {error}; give them by name") from error
    except ValueError:
        return  # a function without a signature says so itself when it is called


def _wanted(new_tokens: int, inputs: Mapping[str, Any]) -> int:
    name, wanted = "new_tokens", new_tokens
    if inputs.get("max_new_tokens") is not None:
        name, wanted = "max_new_tokens", inputs["max_new_tokens"]
    if not isinstance(wanted, int) or wanted < _FEWEST:
        raise SettingError(
            f"{name}={wanted}: expected a whole number of at least {_FEWEST}, to tell tokens from requests"
        )
    return wanted


def _placed(subject: _Subject, inputs: Mapping[str, Any]) -> Placement:
    """Where tensors live: what a GPU would hold is marked where everything is on the CPU."""
    held = [*_held(subject.modules), *(tensor for value in inputs.values() for tensor in tensors_in(value))]
    if any(tensor.device.type != "cpu" for tensor in held):
        return ActualPlacement()
    placement = TrackedPlacement()
    for tensor in held:
        placement.mark(tensor, Side.DEVICE)
    return placement


def _held(modules: Iterable[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        yield from _present({**module._parameters, **module._buffers})  # noqa: SLF001 - without walking the tree again


def _present(kept: Mapping[str, torch.Tensor | None]) -> list[torch.Tensor]:
    return [tensor for tensor in kept.values() if tensor is not None]


def _own_copy(value: Any, placement: Placement) -> Any:  # noqa: ANN401 - any input
    """What a run may change: tensors, containers and caches are copied; streamers and criteria are used as they are."""
    if isinstance(value, torch.Tensor):
        copied = value.clone()
        placement.mark(copied, Side.DEVICE)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_own_copy(item, placement) for item in value)
    if isinstance(value, dict) and type(value) is dict:
        return {key: _own_copy(item, placement) for key, item in value.items()}
    if hasattr(value, "get_seq_length"):
        cache = copy.deepcopy(value)
        for tensor in tensors_in(cache):
            placement.mark(tensor, Side.DEVICE)
        return cache
    return value


@contextlib.contextmanager
def _unchanged(modules: tuple[torch.nn.Module, ...]) -> Iterator[None]:
    """Attributes and buffers of the modules, and the random state, are as before afterwards."""
    stood = [(now, dict(now)) for module in modules for now in _attributes(module)]
    buffers = leaves(tensor for module in modules for tensor in _present(module._buffers))  # noqa: SLF001 - of this module alone
    contents = [(tensor, tensor.clone()) for tensor in buffers if not tensor.is_meta]
    drawn = random.getstate()
    devices = {tensor.device.index for tensor in _held(modules) if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(index for index in devices if index is not None)):
            yield
    finally:
        random.setstate(drawn)
        for now, before in stood:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        with torch.inference_mode():  # where buffers made in inference mode can be written too
            for tensor, content in contents:
                if not torch.equal(tensor, content):
                    tensor.copy_(content)


def _attributes(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    return (module.__dict__, module._parameters, module._buffers, module._modules)  # noqa: SLF001 - as torch keeps them


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Compiled functions run as they are written: a compiled graph hides its operators."""
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None or "torch._dynamo" not in sys.modules:  # nothing is compiled before it is loaded
        yield
        return
    with stance("force_eager"):
        yield


def _length(output: Any) -> int | None:  # noqa: ANN401 - whatever generate returns
    sequences = getattr(output, "sequences", output)
    return sequences.shape[-1] if isinstance(sequences, torch.Tensor) and sequences.dim() else None


def _unused_token(subject: _Subject) -> int | None:
    """A token that no model can choose: one past its vocabulary."""
    config: Any = getattr(subject.modules[0], "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None


def _point(wait: Wait, rates: tuple[Fraction, Fraction]) -> SyncPoint:
    return SyncPoint(
        operator=wait.operator,
        file=wait.place.file,
        line=wait.place.line,
        per_token=float(rates[0]),
        per_request=float(rates[1]),
        why=wait.why,
        certainty=wait.certainty,
        caller_file=wait.place.caller_file,
        caller_line=wait.place.caller_line,
    )


def _rank(point: SyncPoint) -> tuple[Any, ...]:
    caller = (point.caller_file or "", point.caller_line or 0)
    order = (point.certainty, -point.per_token, -point.per_request)
    return (*order, point.file, point.line, point.operator, point.why, *caller)


def _sum(rates: Iterable[tuple[Fraction, Fraction]], index: int) -> float:
    return float(sum((rate[index] for rate in rates), Fraction(0)))


def _batch_size(inputs: Mapping[str, Any]) -> int | None:
    first = next((tensor for value in inputs.values() for tensor in tensors_in(value)), None)
    return None if first is None or not first.dim() else int(first.shape[0])


def _device(subject: _Subject, inputs: Mapping[str, Any]) -> str:
    held = [*_held(subject.modules), *(tensor for value in inputs.values() for tensor in tensors_in(value))]
    names = Counter(str(tensor.device) for tensor in held)
    return ", ".join(sorted(names)) or "cpu"


def _limits_of(subject: _Subject, inputs: Mapping[str, Any], seen: SyncLint) -> Iterator[str]:
    """What these counts do not cover for this model."""
    if seen.foreign:
        names = ", ".join(sorted(seen.foreign))
        yield f"not torch's own, one launch each, and whether they wait cannot be seen: {names}"
    asked = inputs.get("cache_implementation", getattr(subject.generation_config, "cache_implementation", None))
    if asked in _COMPILED_CACHES or type(inputs.get("past_key_values")).__name__.startswith("Static"):
        yield "on CUDA transformers compiles the forward for a static cache: fewer launches per token than counted here"
    if any(module.training for module in subject.modules):
        yield "the model is in training mode, and dropout counts: call model.eval() first"
    if any(getattr(module, "_compiled_call_impl", None) for module in subject.modules):
        yield "compiled modules ran uncompiled: a compiled graph launches less"
    if subject.unit == "pass" and not subject.modules:
        yield "no model is seen in this function: what is not among its inputs counts as possible at most"


def _versions() -> tuple[tuple[str, str], ...]:
    names = ("torch", *(name for name in ("transformers",) if name in sys.modules))
    return tuple((name, metadata.version(name)) for name in names)
