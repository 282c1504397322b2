"""A twin of a model without memory: the same operators on torch's meta device, where tensors have shapes only.

A plain model is built a second time from a copy of its config. One that is not what its config builds (quantised,
adapted, rewritten layers) is copied module by module, with empty tensors for its own. The user's model is only read.
"""

# ruff: noqa: ANN401 - transformers' configs and modules have no common type
from __future__ import annotations

import copy
import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from inferscope.capture import versions
from inferscope.capture.mirror import Stage, first_line, mirrored
from inferscope.capture.operators import AttentionScope
from inferscope.errors import CostUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Twin", "build_twin", "text_config"]

_COUNTED_ATTENTION = {"sdpa", "eager"}
_COUNTED_EXPERTS = {"grouped_mm", "batched_mm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A model to count.

    Attributes:
        module: On the meta device.
        stage: Set its recorder before a forward.
        notes: In what it differs from the model that runs, in words.
        scopes: What its attention modules say about themselves.
        scan_chunk: Tokens of the chunks in which its recurrent layers scan; None where none is known.
    """

    module: Any
    stage: Stage
    notes: tuple[str, ...]
    scopes: tuple[AttentionScope, ...]
    scan_chunk: int | None

    @property
    def config(self) -> Any:
        """Of the part that generates."""
        return text_config(self.module.config)


def build_twin(model_or_config: object, dtype: str | None = None) -> Twin:
    """A twin of a model, or of what a config describes.

    Args:
        model_or_config: A transformers model, or the config of one.
        dtype: Of the weights ("bfloat16"); None for the model's own.

    Raises:
        CostUnavailableError: It can be neither built from its config nor copied.
    """
    model = _unwrapped(model_or_config)
    module = model if isinstance(model, torch.nn.Module) else None
    config = getattr(model, "config", None) if module is not None else model
    model_class = type(module) if module is not None else _class_of(config)
    if not hasattr(config, "get_text_config"):
        raise CostUnavailableError(f"{model_class.__name__} has no transformers config to build a twin from")
    stage = Stage()
    if module is None:
        twin, notes = _built(config, model_class)
        _cast(twin, dtype or _config_dtype(config))
        if getattr(config, "quantization_config", None) is not None:
            notes.append("weights counted unquantised: a configuration alone does not say how they are stored")
    else:
        twin, notes = _twin_of(module, config, stage)
        _cast(twin, dtype)
    twin.eval()
    # With a pad token some models look for it in the ids, which have no values here.
    for part in {id(part): part for part in (twin.config, text_config(twin.config))}.values():
        part.pad_token_id = None
    return Twin(
        module=twin,
        stage=stage,
        notes=tuple(notes),
        scopes=_watch_attention(twin, stage),
        scan_chunk=_scan_chunk(twin),
    )


def _unwrapped(model: Any) -> Any:
    """The module whose `generate` runs, out of torch.compile, DistributedDataParallel and PEFT."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    inside = getattr(model, "get_base_model", None)
    if callable(inside) and hasattr(model, "peft_config"):
        model = inside()
    return model


def text_config(config: Any) -> Any:
    """The config of the part that generates text, out of one for several parts."""
    try:
        return config.get_text_config(decoder=True)
    except (TypeError, ValueError):
        return config.get_text_config()


def _twin_of(model: Any, config: Any, stage: Stage) -> tuple[Any, list[str]]:
    sharded = [name for name, value in model.named_parameters() if hasattr(value, "to_local")]
    if sharded and not any(type(module).__name__.startswith("FSDP") for module in model.modules()):
        raise CostUnavailableError(
            f"{len(sharded)} parameters are split over devices (tensor parallel): what one device runs is not counted"
        )
    model_class = _unsharded_class(type(model))
    try:
        twin, notes = _built(config, model_class)
        differs = _liken(twin, model)
    except CostUnavailableError:
        if sharded:
            raise
        twin, notes, differs = None, [], "its config does not build it"
    if not differs:
        if sharded:
            notes.append("parameters are sharded (FSDP): counted as the whole model that each device runs")
        return twin, notes
    if sharded:
        raise CostUnavailableError(f"a sharded model cannot be copied, and {differs}")
    copied, odd = mirrored(model, stage)
    notes = _settle(copied.config, type(copied))
    return copied, [*notes, *odd]


def _unsharded_class(model_class: type) -> type:
    """The class as it was before FSDP put its own in front of it."""
    if model_class.__name__.startswith("FSDP") and len(model_class.__mro__) > 2:  # noqa: PLR2004 - itself, FSDPModule
        return model_class.__mro__[2]
    return model_class


def _built(config: Any, model_class: Any) -> tuple[Any, list[str]]:
    try:
        config = copy.deepcopy(config)
        notes = _settle(config, model_class)
        with torch.device("meta"):
            twin = model_class(config)
        if callable(tie := getattr(twin, "tie_weights", None)):  # some versions do not, of weights without memory
            tie()
        versions.ready_for_shapes(twin)
    except Exception as error:
        raise CostUnavailableError(
            f"{model_class.__name__} cannot be built from its config: {first_line(error)}"
        ) from error
    return twin, notes


def _class_of(config: object) -> type[torch.nn.Module]:
    """The transformers class that a config names, or the generating model registered for it."""
    try:
        import transformers  # noqa: PLC0415 - heavy, and only needed where no model is at hand
    except ImportError as error:
        raise CostUnavailableError("a config needs transformers: install inferscope with its extra [hf]") from error
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, torch.nn.Module):
            return found
    registries = (
        ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING")
        if getattr(config, "is_encoder_decoder", False)
        else ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING")
    )
    for registry in registries:
        try:
            known: type[torch.nn.Module] = getattr(transformers, registry)[type(config)]
        except (AttributeError, KeyError):
            continue
        return known
    raise CostUnavailableError(f"no causal language model is known for {type(config).__name__}")


def _settle(config: Any, model_class: Any) -> list[str]:
    """Choose implementations that run on shapes alone; what was changed, in words."""
    notes = []
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None and attention not in _COUNTED_ATTENTION:
        config._attn_implementation = "sdpa"  # noqa: SLF001 - transformers' own way
        notes.append(f"attention counted as sdpa in place of {attention}")
    experts = getattr(config, "_experts_implementation", None)
    can_set = getattr(model_class, "_can_set_experts_implementation", lambda: False)
    if can_set() and experts is not None and experts not in _COUNTED_EXPERTS:
        config._experts_implementation = "grouped_mm"  # noqa: SLF001
        notes.append(f"experts counted as grouped_mm in place of {experts}")
    return notes


def _liken(twin: torch.nn.Module, model: torch.nn.Module) -> str:
    """Give the twin the model's dtypes; in what it differs, or "" where it is the same."""
    real, built = dict(model.named_parameters()), dict(twin.named_parameters())
    odd = sorted(real.keys() ^ built.keys())
    odd += [name for name, value in real.items() if name in built and _differs(value, built[name])]
    classes = {name: _unsharded_class(type(module)) for name, module in model.named_modules()}
    odd += [name for name, module in twin.named_modules() if name and classes.get(name) is not type(module)]
    if odd:
        return f"{len(odd)} of its parts are not what the config builds, such as {odd[0]}"
    for name, parameter in built.items():
        parameter.data = parameter.data.to(real[name].dtype)
        parameter.requires_grad_(real[name].requires_grad)
    buffers = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        if name in buffers and buffers[name].dtype != buffer.dtype:
            buffer.data = buffer.data.to(buffers[name].dtype)
    return ""


def _differs(real: torch.Tensor, built: torch.Tensor) -> bool:
    return (
        real.shape != built.shape
        or real.is_floating_point() != built.is_floating_point()
        or hasattr(real, "__tensor_flatten__")
    )


def _watch_attention(twin: torch.nn.Module, stage: Stage) -> tuple[AttentionScope, ...]:
    """Let attention modules say when they run, and what they attend to."""
    scopes = []
    for module in twin.modules():
        name = type(module).__name__.lower()
        if "attention" not in name and "attn" not in name:
            continue
        scope = _scope_of(module, twin.config)
        if scope is not None:
            scopes.append(scope)
        _watch(module, scope, stage)
    return tuple(scopes)


def _watch(module: torch.nn.Module, scope: AttentionScope | None, stage: Stage) -> None:
    def enter(*_: Any) -> None:
        if stage.recorder is not None:
            # A module that says nothing is part of one that did.
            stage.recorder.scopes.append(scope or stage.recorder.scope or AttentionScope())

    def leave(*_: Any) -> None:
        if stage.recorder is not None:
            stage.recorder.scopes.pop()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


def _scope_of(module: torch.nn.Module, whole: Any) -> AttentionScope | None:
    """What an attention module attends to, from its own attributes or its config's entry for its layer."""
    config = getattr(module, "config", None) or text_config(whole)
    types = getattr(config, "layer_types", None)
    index = getattr(module, "layer_idx", None)
    kind = types[index] if types and isinstance(index, int) and index < len(types) else None
    block = getattr(config, "attention_chunk_size", None)
    if kind == "chunked_attention" and isinstance(block, int):
        return AttentionScope(block=block)
    if hasattr(module, "indexer"):  # attends to the tokens that its indexer finds, so many at most
        return AttentionScope(window=_positive(getattr(config, "index_topk", None)))
    own = _positive(getattr(module, "sliding_window", None))
    if getattr(module, "attention_type", None) == "local":
        return AttentionScope(window=_positive(getattr(config, "window_size", None)))
    if kind is not None:
        window = own or _positive(getattr(config, "sliding_window", None))
        return AttentionScope(window=window if "sliding" in kind else None)
    if hasattr(module, "sliding_window"):
        return AttentionScope(window=own)
    return None if index is None else AttentionScope(window=_positive(getattr(config, "sliding_window", None)))


def _positive(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _scan_chunk(twin: torch.nn.Module) -> int | None:
    """Tokens of the chunks in which recurrent layers scan: their attribute, or their function's default."""
    for module in twin.modules():
        if not hasattr(module, "conv1d") and "delta" not in type(module).__name__.lower():
            continue
        chunk = _positive(getattr(module, "chunk_size", None))
        if chunk is not None:
            return chunk
        for chunk in _default_chunks(sys.modules.get(type(module).__module__)):
            return chunk
    return None


def _default_chunks(source: Any) -> Iterator[int]:
    for value in list(vars(source).values()) if source is not None else ():
        if inspect.isfunction(value) and "chunk_size" in inspect.signature(value).parameters:
            default = inspect.signature(value).parameters["chunk_size"].default
            if type(default) is int:
                yield default


def _cast(twin: torch.nn.Module, dtype: str | None) -> None:
    if dtype is None:
        return
    target = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(target, torch.dtype) or not target.is_floating_point:
        raise CostUnavailableError(f"dtype={dtype!r}: expected a floating-point dtype of torch, as 'bfloat16'")
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(target)


def _config_dtype(config: object) -> str:
    name = "dtype" if hasattr(config, "dtype") else "torch_dtype"
    dtype = getattr(config, name, None)
    return str(dtype or torch.float32).removeprefix("torch.")
