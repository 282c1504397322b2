"""What the host pays per operator and per read, on any device: the readings behind the overhead ceilings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from inferscope.hardware.cpu_roofs import ceiling
from inferscope.hardware.stability import collect
from inferscope.hardware.stopwatch import quiet_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.specs import Ceiling

__all__ = ["dispatch_ns", "module_op_ns", "sync_ns"]

_WIDTH = 8
_HEADS = 2
_LAYERS = 6
_CHAINS = 50
_READS = 500
_FORWARDS = 4


def dispatch_ns(device: torch.device, budget_s: float) -> Ceiling:
    """Host nanoseconds of one operator on a single element, called from Python.

    A chain of four kinds of operators, each on the result of the one before. On a GPU the chain stays shorter
    than the launch queue and is drained outside the clock, so that only the host is timed.

    Raises:
        RejectedError: The readings were not stable.
    """
    one = torch.ones(1, dtype=torch.float32, device=device)
    operators = 4 * _CHAINS

    def run() -> None:
        x = one
        for _ in range(_CHAINS):
            x = x.add(one).mul(one).neg().sub(one)

    outcome = collect(_per_call(run, operators, device), budget_s=budget_s, highest=False)
    return ceiling(outcome, f"add, mul, neg and sub on one element, {operators} in a chain")


def module_op_ns(device: torch.device, budget_s: float) -> Ceiling:
    """Host nanoseconds per dispatched operator inside real `nn.Module` code, views included.

    One token through a small decoder written as models are: linear, norm and activation modules, reshapes,
    attention behind a cache, residuals. Its width of 8 leaves nothing to compute, so what remains is dispatch
    and the Python around it. Operators are counted once, outside the clock.

    Raises:
        RejectedError: The readings were not stable.
    """
    stack = _Stack(device)
    token = torch.ones((1, 1, _WIDTH), dtype=torch.float32, device=device)
    counter = _Counter()
    with counter:
        stack(token)
    operators = counter.count

    def run() -> None:
        for _ in range(_FORWARDS):
            stack(token)

    outcome = collect(_per_call(run, operators * _FORWARDS, device), budget_s=budget_s, highest=False)
    return ceiling(outcome, f"{_LAYERS} decoder layers of width {_WIDTH}, {operators} operators per forward")


def sync_ns(device: torch.device, budget_s: float) -> Ceiling:
    """Host nanoseconds of reading one number with `.item()` from a device that has nothing else to do.

    Raises:
        RejectedError: The readings were not stable.
    """
    one = torch.ones(1, dtype=torch.float32, device=device)

    def run() -> None:
        for _ in range(_READS):
            one.item()

    outcome = collect(_per_call(run, _READS, device), budget_s=budget_s, highest=False)
    return ceiling(outcome, f"{_READS} calls of .item() on one element, device idle")


def _per_call(run: Callable[[], None], calls: int, device: torch.device) -> Callable[[], float]:
    run()

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return quiet_seconds(run) * 1e9 / calls

    return read


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Counts the operators that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Linear(nn.Linear):
    """A linear layer that does not draw its weights from the user's random state."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(_WIDTH, _WIDTH, device=device, dtype=torch.float32)

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)


class _Layer(nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(_WIDTH, device=device, dtype=torch.float32)
        self.query = _Linear(device)
        self.key = _Linear(device)
        self.value = _Linear(device)
        self.out = _Linear(device)
        self.norm_out = nn.LayerNorm(_WIDTH, device=device, dtype=torch.float32)
        self.up = _Linear(device)
        self.activation = nn.SiLU()
        self.down = _Linear(device)
        past = torch.ones((1, _HEADS, 1, _WIDTH // _HEADS), dtype=torch.float32, device=device)
        self.past: torch.Tensor
        self.register_buffer("past", past)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm_in(x)
        query, key, value = (
            project(normed).view(1, 1, _HEADS, -1).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        key = torch.cat((self.past, key), dim=2)
        value = torch.cat((self.past, value), dim=2)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(1, 1, _WIDTH))
        widened: torch.Tensor = self.down(self.activation(self.up(self.norm_out(x))))
        return x + widened


class _Stack(nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(device) for _ in range(_LAYERS))
        self.norm = nn.LayerNorm(_WIDTH, device=device, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        normed: torch.Tensor = self.norm(x)
        return normed
