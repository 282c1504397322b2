"""What truly ran, told by the call stack of transformers and not by inferscope, and what inferscope made of it."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import weakref
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
import transformers

from inferscope.capture import intercept
from inferscope.capture.requests import Begun
from inferscope.specs import ModelSpec


class Forward(NamedTuple):
    """One forward: what it is called, new tokens per sequence, tokens cached, sequences."""

    name: str
    q: int | None
    past: int | None
    batch: int | None


class Taken:
    """A receiver that keeps what it is given, and makes records without counting operators."""

    keep_samples = True
    plug_every = 0
    deep_every = 0
    ranges = None
    counters = False
    observed_share = 1.0

    def __init__(self):
        self.requests = []

    def begin(self, *_args):
        return Begun()

    def __call__(self, raw, begun):
        self.requests.append(raw)

    def abandon(self, request_id):
        raise AssertionError(f"request {request_id} was abandoned: a fault of ours ended it")

    @property
    def records(self):
        return [raw.record(ModelSpec(name="tiny", model_class="Tiny")) for raw in self.requests]


@contextmanager
def observed(model):
    taken = Taken()
    attachment = intercept.attach(model, taken)
    try:
        yield taken
    finally:
        attachment.detach()


@contextmanager
def true_forwards(*, encoders=(), **models):
    """Forwards in the order in which they began, by wrapping the classes' `forward`."""
    watched = {id(module): (weakref.ref(module), name) for name, module in models.items()}
    watched |= {id(module): (weakref.ref(module), "encoder") for module in encoders}
    classes = {type(module) for module in (*models.values(), *encoders)}
    own = {kind: kind.__dict__.get("forward") for kind in classes}
    seen, sums = [], {}
    for kind in classes:
        kind.forward = _recording(kind.forward, watched, seen, sums)
    try:
        yield seen
    finally:
        for kind, forward in own.items():
            if forward is None:
                del kind.forward
            else:
                kind.forward = forward


def _recording(forward, watched, seen, sums):
    signature = inspect.signature(forward)

    @functools.wraps(forward)  # transformers looks at the signature
    def recorded(self, *args, **kwargs):
        module, role = watched.get(id(self), (None, None))
        if module is None or module() is not self:
            return forward(self, *args, **kwargs)
        place = len(seen)
        seen.append(None)
        given = signature.bind(self, *args, **kwargs).arguments
        given |= given.get("kwargs", {})
        if role == "encoder":
            out = forward(self, *args, **kwargs)
            batch, length = out.last_hidden_state.shape[:2]
            seen[place] = Forward("encode", length, 0, batch)
            return out
        tokens = next(given[name] for name in ("decoder_input_ids", "input_ids", "inputs_embeds") if _has(given, name))
        past = _past(self, given, tokens.shape[1], sums)
        seen[place] = Forward(_called_by(role, past), tokens.shape[1], past, tokens.shape[0])
        return forward(self, *args, **kwargs)

    return recorded


def _has(given, name):
    return given.get(name) is not None


def _past(model, given, q, sums):
    """Tokens cached, as the cache says; summed where it counts none, for what it holds has no length."""
    cache = given.get("past_key_values")
    cache = given.get("cache_params") if cache is None else cache
    if type(model).__name__ == "RecurrentGemmaForCausalLM":  # older ones keep the state in the model
        cache = model
    if cache is None:
        return None if _has(given, "state") else 0
    try:
        if all(keys.dim() < 4 for keys in vars(cache)["key_cache"]):  # before 5.2 an empty one counts its rows
            return 0
    except (KeyError, TypeError):
        pass
    try:
        return int(cache.get_seq_length())
    except (ValueError, AttributeError):  # before 5.2 a recurrent model's cache is no cache of that interface
        _, past = sums.get(id(cache), (cache, 0))
        sums[id(cache)] = cache, past + q
        return past


def _called_by(role, past):  # noqa: PLR0911 - one return per function of transformers
    """The name of a forward, from the functions of transformers that are running."""
    running = {}
    frame = sys._getframe(2)
    while frame is not None:
        running.setdefault(frame.f_code.co_name, frame.f_locals)
        frame = frame.f_back
    if role == "draft" or "get_candidates" in running:
        return "draft/prefill" if past == 0 else "draft"
    if "get_unconditional_logits" in running:
        return "side"
    # Before 5.0 the second one takes all but the last token of the prompt.
    filling = running.get("_prefill", running.get("_prefill_chunking"))
    if filling is not None:
        if filling["generation_config"].prefill_chunk_size is None:
            return "prefill"
        return "prefill/chunk" if filling.get("chunk_idx", filling.get("past_length", 0)) > 0 else "prefill"
    if "_assisted_decoding" in running:
        return "prefill" if running["_assisted_decoding"]["is_first_iteration"] else "verify"
    if "detect_language" in running:
        return "prefill"
    return _in_loop(next(running[loop] for loop in ("_sample", "_beam_search", "hand_made") if loop in running))


def _in_loop(loop):
    if _fills_the_cache(loop):
        return "prefill"
    return "decode" if loop["model_kwargs"]["use_cache"] else "decode/no-cache"


def _fills_the_cache(loop):
    """Whether a loop of before 5.0, which has no function for it, is at the prompt."""
    if "prefill_outputs" in loop:
        return False
    return loop.get("is_prefill", "decoder_prompt_len" in loop and loop["cur_len"] == loop["decoder_prompt_len"])


def bare(run):
    """What a call returns untraced; over older versions a mode that transformers itself cannot do is left out."""
    try:
        return run()
    except Exception as error:
        if "OLDER_TRANSFORMERS" not in os.environ:
            raise
        said = (str(error).splitlines() or [""])[0][:120]
        pytest.skip(f"transformers {transformers.__version__} cannot do this itself: {type(error).__name__}: {said}")


def prompt(length=9, rows=1, seed=1):
    torch.manual_seed(seed)
    return torch.randint(1, 98, (rows, length))


def last_chunk(q, past):
    """What is left of a prompt read in chunks; before 5.0 its last token is read as if it had been generated."""
    alone = hasattr(transformers.GenerationMixin, "_prefill_chunking")
    return Forward("decode" if alone and q == 1 else "prefill/chunk", q, past, 1)


def decodes(first, passes, batch=1):
    return [Forward("decode", 1, first + index, batch) for index in range(passes)]


def checked(model, run, *, encoders=(), draft=None):
    """Run once bare and once observed: same result, each forward named, and a ledger that closes."""
    torch.manual_seed(2)
    expected = bare(run)
    drafts = {} if draft is None else {"draft": draft}
    with observed(model) as taken, true_forwards(model=model, encoders=encoders, **drafts) as truth:
        torch.manual_seed(2)
        result = run()
    assert torch.equal(_rows(result), _rows(expected))
    (record,) = taken.records
    seen = passes_of(record)
    assert seen == truth
    assert record.phase("unknown") is None
    assert sum(phase.passes for phase in record.phases) == len(truth)
    assert record.ledger.total_ns == record.wall_ns
    assert abs(record.ledger.residual_ns) < max(0.01 * record.wall_ns, 50_000)
    return record, seen


def passes_of(record):
    """The passes of a record, as forwards."""
    return [Forward(each.name, each.q_len, each.past_len, each.batch_size) for each in record.pass_samples]


def _rows(result):
    result = result["sequences"] if isinstance(result, dict) else result
    return getattr(result, "sequences", result)
