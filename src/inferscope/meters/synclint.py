"""Sees what a model would launch on a CUDA device and where the host would wait for it, while it runs without one.

Two torch modes watch together. The dispatch mode sees each operator. The function mode sees what Python called: it
names the call, it sees reads that dispatch nothing on a CPU tensor (`.cpu()`, `.tolist()`, `.numpy()`, printing), and
it keeps track of devices: a tensor that would be on the GPU says "cpu:0" when it is asked for its device, which to
torch is the CPU all the same, so that a tensor made with that device is known to belong there too.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from inferscope.errors import LintError
from inferscope.meters import waits
from inferscope.meters.callers import frame_names, place
from inferscope.meters.placement import Placement, Side, tensors_in
from inferscope.syncs import Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["SyncLint"]

_POSSIBLE = "; whether this tensor is on the device cannot be told here"
_NUMPY = "NumPy reads memory of the host: a tensor on the device must be copied there first (.cpu()), which waits"
_PRINTS = "turning a tensor into text reads its values on the host, once or more"

_CPU = torch.device("cpu")
_ON_DEVICE, _UNSURE = torch.device("cpu", 0), torch.device("cpu", 1)

_READS: dict[object, str] = {
    torch.Tensor.tolist: waits.READS,
    torch.Tensor.numpy: _NUMPY,
    torch.Tensor.__array__: _NUMPY,
    torch.Tensor.__repr__: _PRINTS,
    torch.Tensor.__format__: _PRINTS,
    torch.Tensor.__reduce_ex__: waits.TO_HOST,
}
"""Calls that read a tensor without an operator that would show it."""

_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
"""Calls that make a tensor of Python's values: on the host first, whatever its device."""

_ONE_LAUNCH = (torch.nn.functional.scaled_dot_product_attention, getattr(torch.nn.functional, "rms_norm", None))
"""Calls that the CPU takes apart and CUDA need not."""

_TORCHS_OWN = ("aten", "prim", "prims", "higher_order")

_ALONE = (torch.Tensor.__deepcopy__,)
"""Calls whose operators say nothing about where the result lives."""


@dataclass(slots=True)
class _Call:
    """A call from Python that is running.

    Attributes:
        name: As it is written.
        side: Where its tensors live.
        asked: Where a device that it was given says its result belongs; None without a device.
        waits: Waits seen in it.
        launches: Launches seen in it.
        silent: Operators that only the CPU runs for it.
    """

    name: str
    side: Side
    asked: Side | None
    waits: int = 0
    launches: int = 0
    silent: frozenset[str] = frozenset()


@dataclass
class SyncLint:
    """Counts waits and launches of what is run through `run`.

    Attributes:
        placement: Where tensors live.
        waits: How often the host would wait, and why.
        launches: How often each operator would launch something.
        foreign: Operators that are not torch's own: whether they wait cannot be seen.
    """

    placement: Placement
    waits: Counter[Wait] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    foreign: set[str] = field(default_factory=set)
    _call: _Call | None = None
    _quiet: bool = False

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - runs anything
        """Call `function` under observation; this thread's modes are as before when it returns or raises."""
        with _Operators(self), _Calls(self):
            return function(*args, **kwargs)

    def called(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any call
        """Carry out a call from Python and note what it does. The function mode's half."""
        if self._quiet or function is torch.device:
            return function(*args, **kwargs)
        if self.placement.tracked and function == torch.Tensor.device.__get__:
            return self._device_of(args[0])
        outer, call = self._call, self._begin(function, args, kwargs)
        self._call = call
        try:
            if self.placement.tracked:
                args, kwargs = _unmarked(args), {name: _unmark(value) for name, value in kwargs.items()}
            if self.placement.tracked and function in (torch.Tensor.to, torch.Tensor.cpu):
                return self._moved(call, function, args, kwargs)
            if function in _MAKERS:
                return self._made(call, function, args, kwargs)
            return self._plain(call, function, args, kwargs)
        finally:
            self._call = outer

    def operator(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any operator
        """Carry out an operator and note what it does. The dispatch mode's half."""
        with self._silence():
            packet = getattr(operator, "overloadpacket", operator)
            name = str(getattr(packet, "__name__", packet))
            space = str(getattr(operator, "namespace", "higher_order"))
            reason = waits.reason(name, args, kwargs, self.placement.of) if space == "aten" else None
            call = self._call
            if reason is not None and call is not None and name in call.silent:
                reason = None
        if reason is not None:
            self._wait(call.name if call else f"aten::{name}", reason.why, reason.side)
        outputs = self._execute(operator, args, kwargs, waiting=reason is not None)
        with self._silence():
            self._note(operator, f"{space}::{name}", args, kwargs, outputs)
        return outputs

    def _begin(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Call:  # noqa: ANN401 - any call
        with self._silence():
            sides = [self.placement.of(tensor) for tensor in tensors_in([*args, *kwargs.values()], 3)]
            call = _Call(name=_name_of(function), side=Side.joint(sides), asked=self._asked(function, args, kwargs))
        if function is torch.nn.functional.one_hot:
            call.silent = frozenset({"aminmax", "_local_scalar_dense"})  # on CUDA only asked for without num_classes
            if (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1:
                self._wait(call.name, waits.SIZE, call.side, call)
        return call

    def _plain(self, call: _Call, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
        before = self.launches.copy() if function in _ONE_LAUNCH else None
        if function in _ALONE:
            with self._silence():
                result = function(*args, **kwargs)
        else:
            result = function(*args, **kwargs)
        with self._silence():
            if before is not None and call.launches:
                self.launches = before
                self.launches[call.name] += 1
            if function in _READS and not call.waits:
                self._wait(call.name, _READS[function], call.side, call)
            if function in _ALONE:
                self._settle(result, call.side)
        return result

    def _made(self, call: _Call, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """A tensor made of Python's values, or of another tensor."""
        with self._silence():
            of_tensor = function is torch.Tensor.new_tensor
            data = args[1:2] if of_tensor else args[:1]
            target = call.asked or (self.placement.of(args[0]) if of_tensor else None)
            result = function(*args, **kwargs)
            if not self.placement.tracked:
                target = self.placement.of(result)
            elements = [self.placement.of(tensor) for tensor in tensors_in(list(data))]
            whole = bool(data) and isinstance(data[0], torch.Tensor)
            source = Side.joint(elements) if whole else Side.HOST
            target = target or source
            for side in [] if whole else elements:
                self._wait(call.name, waits.READS, side, call)
            if result.numel() and source is not target:
                why = waits.TO_HOST if target is Side.HOST else waits.TO_DEVICE
                self._wait(call.name, why, Side.UNKNOWN if Side.UNKNOWN in (source, target) else Side.DEVICE, call)
                result = result.clone() if whole and self.placement.tracked else result
            if not (whole and source is target):
                self.placement.mark(result, target)
        return result

    def _moved(self, call: _Call, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """`.to` and `.cpu` on a CPU tensor: a move where the two sides differ, with a copy as on a GPU."""
        with self._silence():
            source, target = self.placement.of(args[0]), call.asked
            if function is torch.Tensor.cpu:
                target = Side.HOST
            elif target is None and (other := [a for a in (*args[1:], *kwargs.values()) if _is_tensor(a)]):
                target = self.placement.of(other[0])
        if target is None or target is source:
            return self._plain(call, function, args, kwargs)
        with self._silence():
            result = function(*args, **kwargs)
            if result is args[0] or result.untyped_storage()._cdata == args[0].untyped_storage()._cdata:  # noqa: SLF001
                result = result.clone()
            self.placement.mark(result, target)
            if result.numel() and not _is_non_blocking(function, args, kwargs):
                why = waits.TO_HOST if target is Side.HOST else waits.TO_DEVICE
                self._wait(call.name, why, Side.UNKNOWN if Side.UNKNOWN in (source, target) else Side.DEVICE, call)
        return result

    def _device_of(self, tensor: torch.Tensor) -> torch.device:
        with self._silence():
            device = tensor.device
            side = self.placement.of(tensor)
        if device != _CPU or side is Side.HOST:
            return device
        return _ON_DEVICE if side is Side.DEVICE else _UNSURE

    def _asked(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Side | None:  # noqa: ANN401
        """Where the device among the arguments says that the result belongs."""
        if not self.placement.tracked:
            return None
        device = kwargs.get("device")
        if device is None:
            texts = args[1:] if function is torch.Tensor.to else ()
            device = next((value for value in args if isinstance(value, torch.device)), None) or next(
                (value for value in texts if isinstance(value, str)), None
            )
        if not isinstance(device, str | torch.device) or (device := torch.device(device)).type != "cpu":
            return None
        if device.index is not None:
            return Side.DEVICE if device == _ON_DEVICE else Side.UNKNOWN
        # Written in this very function it is meant; handed in from elsewhere it may be the deployment's device.
        return Side.HOST if frame_names(_BORDER, "cpu") else Side.UNKNOWN

    def _note(
        self,
        operator: Any,  # noqa: ANN401 - any operator
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Any,  # noqa: ANN401 - whatever it returned
    ) -> None:
        """Count what an operator that ran launches, and note where its results live."""
        inputs, results = list(tensors_in([*args, *kwargs.values()], 3)), list(tensors_in(outputs, 3))
        space, _, short = name.partition("::")
        side = self._side_of(short, inputs, results, makes="device" in kwargs)
        if self.placement.tracked and not _shares(inputs, results):
            self._settle(results, side)
        if space not in _TORCHS_OWN:
            self.foreign.add(name)
        sides = {self.placement.of(tensor) for tensor in (*inputs, *results)}
        call = self._call
        if side is not Side.DEVICE or (short in waits.COPIES and len(sides) > 1) or (call and short in call.silent):
            return
        if not hasattr(operator, "_schema") or waits.launches(operator, short, results):
            self.launches[name] += 1
            if call is not None:
                call.launches += 1

    def _side_of(
        self, short: str, inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor], *, makes: bool
    ) -> Side:
        """Where an operator ran, and its results are; one that `makes` tensors was told a device."""
        if not self.placement.tracked:
            return Side.joint(self.placement.of(tensor) for tensor in (*inputs, *results))
        if short == "lift_fresh" and self.placement.of(results[0]) is Side.UNKNOWN:
            self._settle(results, Side.HOST)  # made of Python's values or NumPy's, and not by one of `_MAKERS`
        call = self._call
        if makes and call is not None and call.asked is not None:
            return call.asked
        if makes and not inputs:  # inside a call that works on the device, what it makes for itself is there too
            return call.side if call else Side.HOST
        return Side.joint(self.placement.of(tensor) for tensor in inputs)

    def _settle(self, results: object, side: Side) -> None:
        for tensor in tensors_in(results, 3):
            self.placement.mark(tensor, side)

    def _execute(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, waiting: bool) -> Any:  # noqa: ANN401
        try:
            return operator(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if waiting and any(tensor.is_meta for tensor in tensors_in([*args, *kwargs.values()], 3)):
                spot = place(_BORDER)
                raise LintError(
                    f"{spot.file}:{spot.line} reads values from the device, and on the meta device there are none: "
                    "lint this model on the CPU, or one pass of it alone, without what comes after its forward "
                    "(inferscope.lint(model.forward, ...))"
                ) from error
            raise

    def _wait(self, name: str, why: str, side: Side, call: _Call | None = None) -> None:
        if (call := call or self._call) is not None:
            call.waits += 1
        if side is Side.HOST:
            return
        certain = side is Side.DEVICE
        own_words = why in (waits.PINNED, waits.DRAWS)
        self.waits[
            Wait(
                operator=name,
                place=place(_BORDER),
                why=why if certain or own_words else why + _POSSIBLE,
                certainty="certain" if certain else "possible",
            )
        ] += 1

    @contextlib.contextmanager
    def _silence(self) -> Iterator[None]:
        """What happens inside is ours, not the model's."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @property
    def quiet(self) -> bool:
        """Whether what runs now is not to be noted."""
        return self._quiet


_BORDER = SyncLint.run.__code__


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's base is not typed
    """Hands each operator to the lint."""

    supports_higher_order_operators = True

    def __init__(self, lint: SyncLint) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's base is not typed
        self._lint = lint

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's signature
        if self._lint.quiet:
            return func(*args, **(kwargs or {}))
        return self._lint.operator(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Hands each call from Python to the lint."""

    def __init__(self, lint: SyncLint) -> None:
        super().__init__()
        self._lint = lint

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's signature
        return self._lint.called(func, args, kwargs or {})


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _is_non_blocking(function: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """`to(device, dtype, non_blocking)`, or `to(dtype or other, non_blocking)`."""
    if "non_blocking" in kwargs or function is torch.Tensor.cpu:
        return bool(kwargs.get("non_blocking"))
    flags = [value for value in args[1:] if isinstance(value, bool)]
    return bool(flags and flags[0])


def _unmarked(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_unmark(value) for value in args)


def _unmark(value: Any) -> Any:  # noqa: ANN401 - any argument
    """A device of ours as torch has it: "cpu:0" and "cpu" are the same place and not equal."""
    if isinstance(value, torch.device) and value.type == "cpu":
        return _CPU
    return "cpu" if isinstance(value, str) and value in ("cpu:0", "cpu:1") else value


def _shares(inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> bool:
    """Whether results lie in storages of inputs, where they stay what they are."""
    taken = {_storage(tensor) for tensor in inputs}
    return bool(results) and all(_storage(tensor) in taken for tensor in results)


def _storage(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the only identity that works on meta
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _name_of(function: Any) -> str:  # noqa: ANN401 - functions, methods and getters of torch
    name = getattr(function, "__name__", str(function))
    if name in ("__get__", "__set__"):
        return f"Tensor.{getattr(getattr(function, '__self__', None), '__name__', name)}"
    owner = str(getattr(function, "__qualname__", "")).rpartition(".")[0]
    if "Tensor" in owner:
        return f"Tensor.{name}"
    return f"torch.{name}" if str(getattr(function, "__module__", "") or "torch").startswith("torch") else name
