"""What a made-up request belongs to: a model, and somebody who takes it."""

from __future__ import annotations

from inferscope.specs import ModelSpec

MODEL = ModelSpec(name="made-up", model_class="MadeUp")


class Module:
    pass


class Receiver:
    keep_samples = True
    plug_every = 0
    deep_every = 0
    ranges = None
    counters = False
    observed_share = 1.0

    def __init__(self):
        self.taken, self.abandoned = [], []

    def __call__(self, raw, begun):
        self.taken.append(raw)

    def abandon(self, request_id):
        self.abandoned.append(request_id)
