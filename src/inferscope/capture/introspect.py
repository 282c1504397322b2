"""What model is this? Facts about it as it stands, read without running it, and its costs as kept on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch

from inferscope import notices
from inferscope.capture.counting import count
from inferscope.capture.mirror import gather_tensors
from inferscope.capture.operators import parts_of, storage_key
from inferscope.drafts import draft
from inferscope.specs import BASIS, EXPERT_LETTERS, CostTerms, ModelSpec, OperatorTerms, PeakTerms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["context_tokens", "count", "describe", "digest_of", "fingerprint", "load_cost", "name_of", "store_cost"]

T = TypeVar("T")

_SCHEMA = 3
"""Of cost files, and of what the counts in them mean: raise it when either changes, and old files are not used."""
_LETTERS = {*"1bqknect", *EXPERT_LETTERS}
_CONFIG_NOISE = {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A cost file."""

    schema: int
    digest: str
    basis: tuple[str, ...]
    cost: CostTerms


def describe(model: torch.nn.Module) -> ModelSpec:
    """The model as it stands now, without its cost. Never raises: what cannot be read is None.

    Args:
        model: Any module; a transformers model says most about itself.

    Returns:
        Its spec; `weight_bytes` are the bytes on this device where parameters are sharded.
    """
    config = _known(lambda: model.config, None)
    parameters = _known(lambda: list(model.named_parameters()), None)
    class_name = type(model).__name__
    dtype = _known(lambda: _dtype_name(parameters or ()), None)
    attention = _known(lambda: config._attn_implementation, None)  # noqa: SLF001
    return ModelSpec(
        name=_known(lambda: name_of(model), class_name),
        model_class=class_name,
        model_type=_text(_known(lambda: config.model_type, None)),
        digest=_known(lambda: _digest(class_name, config, attention, _known(lambda: _forms(model), None)), ""),
        parameters=_known(lambda: sum(p.numel() for _, p in _required(parameters)), None),
        weight_bytes=_known(lambda: _stored_bytes(_stored_tensors(model, _required(parameters))), None),
        dtype=dtype,
        device=_known(lambda: str(_required(parameters)[0][1].device), None),
        attention=_text(attention),
        context_tokens=_known(lambda: context_tokens(config), None),
        offloaded_bytes=_known(lambda: _offloaded_bytes(_required(parameters)), None),
    )


def context_tokens(config: Any) -> int | None:  # noqa: ANN401 - transformers' configs
    """The longest sequence that a transformers configuration allows; None where it says nothing."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
        limit = getattr(text, name, None)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return None


def name_of(model: object) -> str:
    """What a model calls itself, or else its class."""
    config = getattr(model, "config", None)
    for name in (getattr(config, "_name_or_path", None), getattr(model, "name_or_path", None)):
        if isinstance(name, str) and name:
            return name
    return type(model).__name__


def fingerprint(model: torch.nn.Module) -> object:
    """What tells in a microsecond that `describe` would still say the same: conversions and moves change it.

    A configuration that is edited in place, after its first request, does not.
    """
    config = getattr(model, "config", None)
    first = next(model.parameters(), None)
    stands = (None, None, None) if first is None else (type(first), first.dtype, first.device)
    return (id(config), getattr(config, "_attn_implementation", None), *stands)


def load_cost(digest: str, folder: Path) -> CostTerms | None:
    """Costs kept from an earlier run; None where there are none, or none that this version can use.

    Args:
        digest: `ModelSpec.digest`.
        folder: Where cost files are kept.
    """
    path = _cost_path(digest, folder)
    if path is None:
        return None
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        defect = _defect(stored, digest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        defect = str(error)
    if not defect:
        return stored.cost
    notices.warn(
        "cost-cache-unusable",
        "a kept cost file cannot be used: the operators are counted again",
        path=str(path),
        reason=defect,
    )
    return None


def store_cost(digest: str, cost: CostTerms, folder: Path) -> bool:
    """Keep costs for later runs: whole or not at all.

    Args:
        digest: `ModelSpec.digest`.
        cost: What `analysis.cost.fit` returned.
        folder: Where cost files are kept; made where it is missing.

    Returns:
        Whether they were written; where not, a warning says so once.
    """
    path = _cost_path(digest, folder)
    if path is None:
        return False
    content = msgspec.json.encode(_Stored(schema=_SCHEMA, digest=digest, basis=BASIS, cost=cost))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft(path) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        notices.warn(
            "cache-unwritable",
            "operator costs are not kept and will be counted again: set INFERSCOPE_CACHE_DIR",
            path=str(path),
            reason=str(error),
        )
        return False
    return True


def _cost_path(digest: str, folder: Path) -> Path | None:
    return folder / f"{digest}.json" if digest.isalnum() else None


def _defect(stored: _Stored, digest: str) -> str:
    """Why a cost file that could be read must not be used; "" if it may."""
    if (stored.schema, stored.digest, stored.basis) != (_SCHEMA, digest, BASIS):
        return "written for another version or another model"
    basis = stored.cost.basis
    if basis[: len(BASIS)] != BASIS or not {*"".join(basis)} <= _LETTERS:
        return "coefficients of monomials that are not known"
    entries: tuple[OperatorTerms | PeakTerms, ...] = (*stored.cost.operators, *stored.cost.peaks)
    if any(len(terms) != len(basis) for entry in entries for terms in _coefficients(entry)):
        return f"not {len(basis)} coefficients each"
    return ""


def _coefficients(entry: OperatorTerms | PeakTerms) -> Iterator[tuple[int, ...]]:
    for field in fields(entry):
        value = getattr(entry, field.name)
        if isinstance(value, tuple):
            yield value


def _dtype_name(parameters: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    names = {str(p.dtype).removeprefix("torch.") for _, p in parameters if p.is_floating_point()}
    return "mixed" if len(names) > 1 else next(iter(names), None)


def digest_of(model_or_config: object, dtype: str | None = None) -> str:
    """The key under which costs of a model, or of what a config describes, are kept; "" where there is none.

    Args:
        model_or_config: A module, or a transformers config.
        dtype: Of the weights, where another than their own is asked for.
    """
    if isinstance(model_or_config, torch.nn.Module):
        return str(_known(lambda: f"{_required_text(describe(model_or_config).digest)}{dtype or ''}", ""))
    config: Any = model_or_config
    forms = ("config", dtype, str(getattr(config, "dtype", None)))
    made = _known(lambda: _digest(type(config).__name__, config, config._attn_implementation, forms), "")  # noqa: SLF001
    return str(made)


def _digest(class_name: str, config: Any, attention: object, forms: object) -> str:  # noqa: ANN401 - transformers' configs
    facts = {
        "schema": _SCHEMA,
        "basis": BASIS,
        "class": class_name,
        "config": _quiet(_known(lambda: dict(config.to_dict()), None)),
        "attention": str(attention),
        "experts": str(_known(lambda: config._experts_implementation, None)),  # noqa: SLF001
        "forms": forms,
        "torch": torch.__version__,
        "transformers": _known(_transformers_version, None),
    }
    text = json.dumps(facts, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def _forms(model: torch.nn.Module) -> list[tuple[object, ...]]:
    """Form of every module, parameter and buffer: a model that is quantised or adapted is another one."""
    forms: list[tuple[object, ...]] = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        inner = [(str(part.dtype), list(part.shape)) for part in parts_of(tensor)]
        forms.append((name, list(tensor.shape), str(tensor.dtype), tensor.requires_grad, inner))
    return forms


def _required_text(text: str) -> str:
    if not text:
        raise LookupError("no digest")
    return text


def _quiet(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A config's dictionary without what does not change its operators."""
    if isinstance(value, dict):
        return {str(key): _quiet(item) for key, item in value.items() if key not in _CONFIG_NOISE}
    return [_quiet(item) for item in value] if isinstance(value, list | tuple) else value


@lru_cache(maxsize=1)
def _transformers_version() -> str:
    return version("transformers")


def _stored_bytes(parameters: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind some tensors, shared ones once.

    A storage larger than the parameters in it (a mapped file) counts by the parameters.
    """
    whole: dict[int, int] = {}
    used: dict[int, dict[tuple[int, int], int]] = {}
    for tensor in (part for parameter in parameters for part in parts_of(parameter)):
        key = storage_key(tensor)
        whole[key] = int(tensor.untyped_storage().nbytes())
        size = tensor.nbytes
        used.setdefault(key, {})[int(tensor.storage_offset()), size] = size
    return sum(min(size, sum(used[key].values())) for key, size in whole.items())


def _offloaded_bytes(parameters: Iterable[tuple[str, torch.Tensor]]) -> int:
    """Bytes of parameters that wait elsewhere: on the CPU beside an accelerator, or without storage until used.

    Accelerate's hooks leave a parameter on the meta device until its module runs.
    """
    by_place: dict[str, int] = {}
    for _, parameter in parameters:
        place = parameter.device.type
        by_place[place] = by_place.get(place, 0) + parameter.numel() * parameter.element_size()
    on_accelerator = any(place not in {"cpu", "meta"} for place in by_place)
    return by_place.get("meta", 0) + (by_place.get("cpu", 0) if on_accelerator else 0)


def _stored_tensors(model: torch.nn.Module, parameters: list[tuple[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Parameters with the scales and codes of quantised ones, and buffers that are saved with them."""
    for _, parameter in parameters:
        yield parameter
        inside: dict[int, torch.Tensor] = {}
        for value in list(vars(parameter).values()):
            gather_tensors(value, inside, 1)
        yield from inside.values()
    saved = model.state_dict(keep_vars=True)
    yield from (buffer for name, buffer in model.named_buffers() if name in saved)


def _required(parameters: list[tuple[str, T]] | None) -> list[tuple[str, T]]:
    if not parameters:
        raise LookupError("no parameters")
    return parameters


def _known(read: Callable[[], Any], otherwise: Any) -> Any:  # noqa: ANN401 - whatever is read
    """What `read` returns, or `otherwise` where the model has no such thing."""
    try:
        return read()
    except Exception:  # noqa: BLE001 - a strange model must not disturb the host
        return otherwise


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
