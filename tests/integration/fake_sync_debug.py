"""What torch.cuda's sync debug mode does, without CUDA: the same words and warnings, from frames of torch's own."""

from __future__ import annotations

from pathlib import Path

import torch

WAITED = "called a synchronizing CUDA operation (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:150.)"
PROTOTYPE = (
    "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations "
    "(Triggered internally at /pytorch/torch/csrc/cuda/Module.cpp:1062.)"
)

# torch warns in C++ as if it stood in the line of Python that has called it; here that is a frame of torch's own.
_SOURCE = """
import warnings

def warn(message):
    warnings.warn(message, UserWarning, stacklevel=2)

def wait(self):
    if self.mode == 1:
        warn(WAITED)
"""
_torchs = {"WAITED": WAITED}
exec(compile(_SOURCE, str(Path(torch.__file__).parent / "_made_up.py"), "exec"), _torchs)  # noqa: S102 - ours, above


class FakeSyncDebug:
    """The mode, and an operation that waits."""

    def __init__(self):
        self.mode = 0
        self.modes = []
        self.said = False

    def get(self):
        return self.mode

    def set(self, mode):
        if not self.said:
            self.said = True
            _torchs["warn"](PROTOTYPE)
        self.mode = mode
        self.modes.append(mode)

    wait = _torchs["wait"]
