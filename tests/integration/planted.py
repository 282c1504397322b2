"""A Llama with reads of the device planted in its forward: each marked line waits on CUDA, and no other does.

The mark says how often for each token: `# waits` once, `# waits 3` three times, `# perhaps` where it cannot be told.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM


class Planted(LlamaForCausalLM):
    """Runs one of the methods below on the logits of each forward."""

    def __init__(self, config, plant):
        super().__init__(config)
        self.plant = plant
        self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)
        self.attribute = torch.ones(())
        self.place = "cpu"
        self.calls = 0

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        getattr(self, self.plant)(output.logits[:, -1].float())
        return output

    def scalars(self, x):
        top = x.max()
        top.item()  # waits
        int(x.argmax())  # waits
        float(top)  # waits
        if top > 0:  # waits
            self.calls += 1
        while bool(top > 1e9):  # waits
            break
        range(x.argmax() * 0 + 1)  # waits
        x[:, : (x.argmax() * 0 + 1)]  # waits
        f"{top:.2f}"  # waits
        assert torch.is_nonzero(top * 0 + 1)  # waits
        torch.full((1,), top)  # waits

    def copies(self, x):
        x.cpu()  # waits
        x.to("cpu")  # waits
        x.to(device="cpu", dtype=torch.float64)  # waits
        x.to("cpu", non_blocking=True)
        host = torch.empty(x.shape, device="cpu")
        host.copy_(x)  # waits
        x.copy_(host)  # waits
        host.to(x.device)  # waits
        host.to(x)  # waits
        host.to(x.device, non_blocking=True)
        x.to(x.device).to(torch.float16)

    def python(self, x):
        x.tolist()  # waits
        x.numpy()  # waits
        np.asarray(x)  # waits
        str(x)  # waits
        print(x, file=io.StringIO())  # waits
        repr({"x": x})  # waits
        1.0 in x  # noqa: B015  # waits

    def sizes(self, x):
        x.nonzero()  # waits
        torch.where(x > 0)  # waits
        torch.argwhere(x > 0)  # waits
        x[x > 0]  # waits
        torch.masked_select(x, x > 0)  # waits
        torch.unique(x)  # waits
        torch.unique_consecutive(x)  # waits
        torch.equal(x, x)  # waits
        torch.allclose(x, x)  # waits
        ids = torch.arange(3, device=x.device)
        torch.repeat_interleave(ids)  # waits
        ids.repeat_interleave(ids)  # waits
        ids.repeat_interleave(ids, output_size=3)
        ids.repeat_interleave(2)
        torch.bincount(ids)  # waits
        nn.functional.one_hot(ids)  # waits
        nn.functional.one_hot(ids, num_classes=3)
        torch.nonzero_static(x > 0, size=1)

    def indices(self, x):
        device_ids = torch.zeros(1, dtype=torch.long, device=x.device)
        host_ids = torch.zeros(1, dtype=torch.long)
        x[:, device_ids]
        x[:, host_ids]  # waits
        x[:, [0, 1]]  # waits
        x[:, 0]
        x[x > 0] = 0.0
        x[x > 0] = x.max()  # waits
        x[:, device_ids] = 1.0
        x[x.cpu() > 0]  # waits
        x.masked_fill(x > 0, 0.0)
        torch.where(x > 0, x, 0.0)

    def host(self, x):
        flag = torch.zeros(2)
        flag.sum().item()
        bool(torch.ones(1, device="cpu"))
        (flag + 1).nonzero()
        flag.tolist()
        on_host = x.cpu()  # waits
        on_host.max().item()
        on_host[on_host > 0]
        torch.tensor([1, 2]).tolist()
        torch.from_numpy(np.zeros(2)).sum().item()
        copied = torch.empty_like(x, device="cpu")
        copied.sum().item()

    def makers(self, x):
        torch.tensor(3, device=x.device)  # waits
        torch.as_tensor([1, 2], device=x.device)  # waits
        x.new_tensor([1.0])  # waits
        torch.tensor(3, device=x.device).item()  # waits 2
        torch.tensor([x.max(), x.min()])  # waits 2
        torch.zeros(2, device=x.device).sum().item()  # waits
        x.new_zeros(2).sum().item()  # waits
        torch.zeros_like(x).sum().item()  # waits
        with torch.device(x.device):
            made = torch.zeros(2)
        made.sum().item()  # waits

    def unsure(self, x):
        self.attribute.item()  # perhaps
        torch.zeros(2, device=self.place).sum().item()  # perhaps
        x.to(self.place)  # perhaps

    def depends(self, x):
        if self.steps % 2 == 0:  # waits
            x.max().item()  # waits 0.5
        self.steps += 1

    def through(self, x):
        read(x)


def read(x):
    return x.max().item()  # waits


def expected(plant):
    """Line, how often for each token, and how sure: what stands in the source of one method."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    found, inside = {}, False
    for number, line in enumerate(lines, start=1):
        if starts := re.match(r"\s*def (\w+)\(", line):
            inside = starts[1] == plant
        if inside and (mark := re.search(r"# (waits|perhaps)\s?([\d.]*)$", line)):
            found[number] = (float(mark[2] or 1), "certain" if mark[1] == "waits" else "possible")
    return found
