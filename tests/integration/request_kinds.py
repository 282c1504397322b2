"""One request of every kind, with a real model, for tests of what arrives somewhere."""

from __future__ import annotations

import threading

import pytest
import torch

from conftest import build_llama


class Streamer:
    def put(self, value):
        """Take a token."""

    def end(self):
        """Take the end."""


class Refusal:
    def __call__(self, _ids, _scores):
        raise ValueError("not this one")


def contended(llama, prompt):
    together = threading.Barrier(2)

    def answer():
        together.wait(30)
        llama.generate(prompt, max_new_tokens=40)

    threads = [threading.Thread(target=answer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def every_kind(llama, prompt, transformers):
    """Runs a normal, a streaming, an aborted, a batched, an assisted and two contended requests, in this order."""
    assistant = build_llama(transformers, num_hidden_layers=1)
    llama.generate(prompt, max_new_tokens=4)
    llama.generate(prompt, max_new_tokens=4, streamer=Streamer())
    with pytest.raises(ValueError, match="not this one"):
        llama.generate(prompt, max_new_tokens=4, logits_processor=[Refusal()])
    llama.generate(torch.cat([prompt, prompt]), max_new_tokens=4)
    llama.generate(prompt, max_new_tokens=8, assistant_model=assistant)
    contended(llama, prompt)
