"""What a model's forwards cost and what memory its requests take, asked without running any of them.

Everything here is counted once per model on torch's meta device, kept in the process and in the cache folder, and
evaluated from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from inferscope.analysis import cost as costs
from inferscope.analysis.memory import account
from inferscope.capture import introspect
from inferscope.errors import SettingError
from inferscope.settings import Settings
from inferscope.specs import DeviceSpec, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inferscope.analysis.cost import PassCost
    from inferscope.analysis.memory import MemoryAccount
    from inferscope.specs import CostTerms

__all__ = ["TERMS_KEPT", "cost", "cost_terms", "kept_terms", "memory", "spec_of"]

TERMS_KEPT = 64
"""Models whose cost polynomials are kept in the process for `cost` and `memory`."""
_TERMS: dict[str, CostTerms] = {}


def cost(  # noqa: PLR0913 - each one is a measure of a forward
    model_or_config: object,
    *,
    batch_size: int = 1,
    q_len: int = 512,
    past_len: int = 0,
    dtype: str | None = None,
    logits_to_keep: int = 1,
    encoder_len: int | None = None,
    images: int = 0,
    part: Literal["decoder", "encoder"] = "decoder",
) -> PassCost:
    """Operations and bytes of one forward, counted on the meta device: no weights are read or allocated.

    The counts are kept, in this process and in the cache folder: a second call for the same model is an evaluation.

    Args:
        model_or_config: A transformers model or configuration.
        batch_size: Sequences; for `part="encoder"` of a model that sees, images.
        q_len: New tokens per sequence.
        past_len: Tokens already cached per sequence.
        dtype: Of the weights and activations ("bfloat16"); None: the model's own.
        logits_to_keep: Positions with logits, as `generate` asks for 1; 0 for all.
        encoder_len: Tokens of the encoder's output that a decoder looks at; needed for an encoder-decoder that does
            not fix it.
        images: Images per sequence that go through the vision tower in this forward; their tokens are part of q_len.
        part: "encoder" for the forward of an encoder or vision tower alone, over q_len tokens where it does not fix
            how many.

    Raises:
        CostUnavailableError: The operators of this model cannot be counted exactly; the message says why.
        SettingError: An argument has a value it cannot have.
    """
    _check(batch_size=batch_size, q_len=q_len, past_len=past_len, logits_to_keep=logits_to_keep, images=images)
    if part not in {"decoder", "encoder"}:
        raise SettingError(f"part={part!r}: expected decoder or encoder")
    terms = cost_terms(model_or_config, dtype=dtype)
    if part == "encoder":
        fixed = terms.structure.encoder_len is not None
        return costs.encoder_cost(terms, batch_size=batch_size, q_len=None if fixed else q_len)
    return costs.pass_cost(
        terms,
        batch_size=batch_size,
        q_len=q_len,
        past_len=past_len,
        logits_to_keep=logits_to_keep,
        encoder_len=encoder_len,
        images=images,
    )


def memory(
    model_or_config: object,
    *,
    batch_size: int = 1,
    input_tokens: int = 512,
    output_tokens: int = 128,
    device: DeviceSpec | None = None,
    dtype: str | None = None,
    encoder_len: int | None = None,
) -> MemoryAccount:
    """Where the memory of one request goes, and how many sequences of its lengths fit a device.

    Counted like `cost`: nothing is run or allocated. What an allocator rounds up, a driver reserves, a kernel keeps
    to itself and other programs hold comes on top.

    Args:
        model_or_config: A transformers model, whose weights are then taken as they are stored, or a configuration.
        batch_size: Sequences, beams included.
        input_tokens: Prompt tokens of each sequence, padding included.
        output_tokens: New tokens of each sequence.
        device: Whose memory it must fit into; None leaves `headroom_bytes` and `largest_batch` unknown.
        dtype: Of weights, cache and activations ("bfloat16"); None: the model's own.
        encoder_len: Tokens of the encoder's output; None where there is none or the model fixes it.

    Raises:
        CostUnavailableError: The operators of this model cannot be counted exactly, or the lengths are impossible.
        SettingError: An argument has a value it cannot have.
    """
    _check(batch_size=batch_size, input_tokens=input_tokens, output_tokens=output_tokens)
    if device is not None and not isinstance(device, DeviceSpec):
        raise SettingError(f"device={device!r}: expected a DeviceSpec, such as inferscope.calibrate() returns")
    terms = cost_terms(model_or_config, dtype=dtype)
    as_stored = None
    if isinstance(model_or_config, torch.nn.Module) and dtype is None:
        as_stored = introspect.describe(model_or_config).weight_bytes
    name = introspect.name_of(model_or_config)
    return account(
        ModelSpec(name=name, model_class=type(model_or_config).__name__, weight_bytes=as_stored, cost=terms),
        batch_size=batch_size,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        device=device,
        encoder_len=encoder_len,
    )


def spec_of(model_or_config: object, *, dtype: str | None = None) -> ModelSpec:
    """The facts and the counted operators of a model or configuration, as plain data.

    Args:
        model_or_config: A transformers model or configuration.
        dtype: Of the weights and activations ("bfloat16"); None: the model's own.

    Raises:
        CostUnavailableError: The operators of this model cannot be counted exactly.
    """
    terms = cost_terms(model_or_config, dtype=dtype)
    if isinstance(model_or_config, torch.nn.Module):
        own = introspect.describe(model_or_config)
        weights = own.weight_bytes if dtype in {None, own.dtype} else None
        return replace(own, cost=terms, dtype=dtype or own.dtype, weight_bytes=weights)
    named = getattr(model_or_config, "_name_or_path", None) or getattr(model_or_config, "model_type", None)
    own_dtype = str(getattr(model_or_config, "dtype", None) or torch.get_default_dtype()).removeprefix("torch.")
    return ModelSpec(
        name=str(named or type(model_or_config).__name__),
        model_class=type(model_or_config).__name__,
        model_type=getattr(model_or_config, "model_type", None),
        weight_bytes=terms.stored_bytes,
        dtype=dtype or own_dtype,
        cost=terms,
        context_tokens=introspect.context_tokens(model_or_config),
    )


def cost_terms(model_or_config: object, *, dtype: str | None = None) -> CostTerms:
    """The cost polynomials of a model or configuration, from which any forward is costed without torch.

    Args:
        model_or_config: A transformers model or configuration.
        dtype: Of the weights and activations ("bfloat16"); None: the model's own.

    Raises:
        CostUnavailableError: The operators of this model cannot be counted exactly; the message says why.
    """
    if isinstance(model_or_config, str):
        raise SettingError(f"{model_or_config!r}: expected a model or a configuration: hand over the loaded one")
    dtype = None if dtype is None else str(dtype).removeprefix("torch.")
    digest = introspect.digest_of(model_or_config, dtype)
    known = _TERMS.get(digest)
    if known is not None:
        return known
    terms = kept_terms(model_or_config, digest, Settings.from_environment().cache_dir, dtype=dtype)
    if digest:
        while len(_TERMS) >= TERMS_KEPT:
            _TERMS.pop(next(iter(_TERMS)), None)
        _TERMS[digest] = terms
    return terms


def _check(**lengths: object) -> None:
    """Refuse what is no whole number, before anything is counted."""
    for name, value in lengths.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise SettingError(f"{name}={value!r}: expected a whole number of at least 0")


def kept_terms(
    model_or_config: object,
    digest: str,
    cache_dir: Path,
    *,
    dtype: str | None = None,
    idle: Callable[[], None] | None = None,
) -> CostTerms:
    """Cost polynomials from the cache folder, or counted now and put there.

    Args:
        model_or_config: A transformers model or configuration.
        digest: Under which they are kept; "" keeps nothing.
        cache_dir: inferscope's cache folder.
        dtype: Of the weights and activations; None: the model's own.
        idle: As `introspect.count`'s.

    Raises:
        CostUnavailableError: The operators of this model cannot be counted exactly; the message says why.
    """
    folder = cache_dir / "costs"
    terms = introspect.load_cost(digest, folder)
    if terms is None:
        terms = costs.fit(introspect.count(model_or_config, dtype=dtype, idle=idle))
        introspect.store_cost(digest, terms, folder)
    return terms
