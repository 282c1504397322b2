"""This machine's ceilings in a second: the best of a few readings, which other work makes lower but never refuses.

A calibration keeps no reading that was disturbed, and on a busy machine it ends without ceilings. Here a rough one is
better than none: the planted causes are factors.
"""

from __future__ import annotations

import time

import torch

from inferscope.hardware import probe
from inferscope.specs import Ceiling, DeviceSpec

SIZE = 768
FAR, NEAR = 64 * 2**20, 2**20  # numbers in float32


def best_s(work, tries=9):
    work()
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def product(dtype):
    left, right = torch.randn(SIZE, SIZE).to(dtype), torch.randn(SIZE, SIZE).to(dtype)
    return 2 * SIZE**3 / best_s(lambda: left @ right, tries=15)


def vector(dtype):
    weights = torch.randn(8, 2048, 2048).to(dtype)  # read in turn: no cache holds them all
    token = torch.randn(1, 2048).to(dtype)

    def read():
        for each in weights:
            torch.nn.functional.linear(token, each)

    return weights.numel() * weights.element_size() / best_s(read, tries=20)


def copy(numbers):
    source, target = torch.zeros(numbers), torch.zeros(numbers)
    return 2 * 4 * numbers / best_s(lambda: target.copy_(source))


def operator_ns():
    one = torch.zeros(1)

    def chain():
        for _ in range(200):
            one.add(1.0)

    return 1e9 * best_s(chain) / 200


def ceiling(value):
    return Ceiling(value=value, source="measured", spread=0.05)


def quick_ceilings():
    identity = probe.identify("cpu")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    dispatch_ns = operator_ns()
    return DeviceSpec(
        name=identity.name,
        kind="cpu",
        compute_flops_per_s={name: ceiling(product(dtype)) for name, dtype in dtypes.items()},
        gemv_bytes_per_s={name: ceiling(vector(dtype)) for name, dtype in dtypes.items()},
        copy_bytes_per_s=ceiling(copy(FAR // 4)),
        cache_bytes_per_s=ceiling(copy(NEAR)),
        cache_bytes=identity.cache_bytes,
        dispatch_ns=ceiling(dispatch_ns),
        module_op_ns=ceiling(2 * dispatch_ns),
    )
