"""Count the operators of forwards on a twin of the model.

The twin is the same class, built from a copy of the config on torch's meta device, where tensors have shapes and
no memory. The user's model is only read.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch

from inferscope.capture import versions
from inferscope.capture.operators import FunctionSeam, Recorder, Seen, storage_key
from inferscope.capture.tally import ForwardShape, Tally, Weights
from inferscope.errors import CostUnavailableError
from inferscope.specs import CountTable, GroupCount, ShapeCount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["count"]

_COUNTED_ATTENTION = {"sdpa", "eager"}
_COUNTED_EXPERTS = {"grouped_mm", "batched_mm"}
_LIMIT_TOKENS = 131_072
_SHORTEST_LIMIT_TOKENS = 211
_TEMPLATE = ForwardShape(batch_size=2, q_len=19, past_len=0, logits=1)


def count(model_or_config: object, *, dtype: str | None = None, idle: Callable[[], None] | None = None) -> CountTable:
    """Count the operators of some thirty forwards on a twin without memory.

    Consumes no random numbers and changes no process-wide default, so that results of a concurrent `generate` stay
    the same bit for bit.

    Args:
        model_or_config: A transformers model, or the config of one.
        dtype: Of the weights ("bfloat16"); None for the model's own.
        idle: Called before each forward, so that the caller can wait for a quiet moment.

    Returns:
        Counts at enough shapes for `analysis.cost.fit` and its check.

    Raises:
        CostUnavailableError: The model cannot be built from its config, or not be run on shapes alone.
    """
    wait = idle or _go_on
    wait()
    twin, notes = _twin(model_or_config, dtype)
    runner = _Runner(twin)
    template = _CacheTemplate(runner)
    uncounted: set[str] = set()
    seen_notes = set(notes)
    shapes = []
    limit = _limit_tokens(twin.config)
    for shape in _shapes(limit, keeps_logits=runner.keeps_logits is not None):
        wait()
        tally, groups = runner.counted(shape, template.at(shape.batch_size, shape.past_len))
        uncounted |= tally.uncounted
        seen_notes |= tally.notes
        shapes.append(
            ShapeCount(
                batch_size=shape.batch_size,
                q_len=shape.q_len,
                past_len=shape.past_len,
                logits=shape.logits,
                groups=groups,
            )
        )
    return CountTable(
        shapes=tuple(shapes),
        kv_bytes_per_token=template.kv_bytes_per_token,
        logits_bytes=template.logits_bytes,
        supports_logits_to_keep=runner.keeps_logits is not None,
        uncounted=tuple(sorted(uncounted)),
        notes=tuple(sorted(seen_notes)),
    )


def _shapes(limit_tokens: int, *, keeps_logits: bool) -> Iterator[ForwardShape]:
    """Shapes that determine all coefficients of analysis/cost.py, and more in each regime to contradict them.

    Batches determine and single sequences contradict, because a few layouts take fewer copies for one sequence.
    Lengths are primes no model has as a width, and so are recognised in attention scores.
    """
    chunks = ((37, 30), (37, 64), (53, 20), (53, 85))
    rows = (
        *((b, q, 0, 1) for b in (2, 3) for q in (37, 53, 71)),
        (2, 53, 0, 53),
        (1, 41, 0, 17),
        (5, limit_tokens, 0, limit_tokens),
        *((b, 1, past, 1) for b in (2, 3) for past in (43, 82)),
        (1, 1, 0, 1),
        (5, 1, limit_tokens - 1, 1),
        *((b, q, past, 1) for b in (2, 3) for q, past in chunks),
        (2, 71, 46, 1),
        (2, 71, 46, 71),
        (1, 59, 101, 13),
        (5, 61, limit_tokens - 61, 61),
    )
    for b, q, past, kept in rows:
        yield ForwardShape(batch_size=b, q_len=q, past_len=past, logits=kept if keeps_logits else q)


def _limit_tokens(config: Any) -> int:  # noqa: ANN401 - transformers' configs
    """Longest sequence to count: there a sliding window or chunk that the model has contradicts the polynomial."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in names)
    limit = next((value for value in limits if isinstance(value, int) and value > 0), _LIMIT_TOKENS)
    return max(limit, _SHORTEST_LIMIT_TOKENS)


class _Runner:
    """Runs forwards of the twin."""

    def __init__(self, twin: torch.nn.Module) -> None:
        self._twin = twin
        self._weights = Weights(twin)
        self._accepts = set(inspect.signature(twin.forward).parameters)
        names = ("logits_to_keep", "num_logits_to_keep")
        self.keeps_logits = next((name for name in names if name in self._accepts), None)

    def counted(self, shape: ForwardShape, cache: object) -> tuple[Tally, tuple[GroupCount, ...]]:
        """Groups of a forward behind a cache (None: nothing cached)."""
        output, seen = self.run(shape, cache)
        keys = {storage_key(tensor) for tensor in _cache_tensors(output.past_key_values)}
        tally = Tally(weights=self._weights, shape=shape, cache_keys=keys)
        return tally, tally.add_all(seen)

    def run(self, shape: ForwardShape, cache: object = None) -> tuple[Any, list[Seen]]:
        """Output of a forward, and what it dispatched."""
        recorder = Recorder()
        inputs = self._inputs(shape, cache)
        try:
            with torch.no_grad(), FunctionSeam(recorder), recorder:
                return self._twin(**inputs), recorder.seen
        except Exception as error:
            raise CostUnavailableError(
                f"{type(self._twin).__name__} cannot be run on shapes alone: {_first_line(error)}"
            ) from error

    def _inputs(self, shape: ForwardShape, cache: object) -> dict[str, Any]:
        """What `generate` passes where no sequence is padded."""
        size = (shape.batch_size, shape.q_len)
        wanted: dict[str, Any] = {
            "input_ids": torch.empty(size, dtype=torch.long, device="meta"),
            "position_ids": torch.empty(size, dtype=torch.long, device="meta"),
            "past_key_values": cache,
            "use_cache": True,
        }
        if self.keeps_logits:
            wanted[self.keeps_logits] = shape.logits
        return {name: value for name, value in wanted.items() if name in self._accepts}


class _CacheTemplate:
    """A filled cache, from which one of any size is made."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner
        output, _ = runner.run(_TEMPLATE)
        self._cache = getattr(output, "past_key_values", None)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor) or not list(_cache_tensors(self._cache)):
            raise CostUnavailableError("the forward returns no logits or no key-value cache")
        self.logits_bytes = logits.shape[-1] * logits.element_size()
        stored = sum(tensor.nbytes for tensor in _cache_tensors(self._cache))
        tokens = _TEMPLATE.batch_size * _TEMPLATE.q_len
        if stored % tokens:
            raise CostUnavailableError("the cache does not grow by the same bytes with every token")
        self.kv_bytes_per_token = stored // tokens

    def at(self, batch_size: int, past_len: int) -> object:
        """A cache of that size; None for no past."""
        if not past_len:
            return None
        shape = ForwardShape(batch_size=batch_size, q_len=past_len, past_len=0, logits=1)
        cache = self._resized(shape) or self._runner.run(shape)[0].past_key_values
        stored = sum(tensor.nbytes for tensor in _cache_tensors(cache))
        if stored != self.kv_bytes_per_token * batch_size * past_len:
            raise CostUnavailableError(
                f"a cache of {past_len} tokens holds {stored} bytes, not {self.kv_bytes_per_token} a token: "
                "the model has a sliding window or a recurrent state"
            )
        return cache

    def _resized(self, shape: ForwardShape) -> Any:  # noqa: ANN401 - transformers' caches
        """The template stretched, where all its layers grow without limit: saves a forward."""
        layers = getattr(self._cache, "layers", ())
        if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
            return None
        cache: Any = copy.deepcopy(self._cache)
        for layer in cache.layers:
            for name in ("keys", "values"):
                tensor = getattr(layer, name)
                size = list(tensor.shape)
                size[0], size[-2] = shape.batch_size, shape.q_len
                setattr(layer, name, tensor.new_empty(size))
        return cache


def _cache_tensors(cache: object) -> Iterator[torch.Tensor]:
    """Tensors that a transformers cache stores, in all its layers."""
    for layer in getattr(cache, "layers", ()):
        for value in vars(layer).values():
            if isinstance(value, torch.Tensor) and value.dim() > 1:
                yield value


def _twin(model_or_config: object, dtype: str | None) -> tuple[torch.nn.Module, list[str]]:
    source = getattr(model_or_config, "_orig_mod", model_or_config)  # torch.compile's wrapper
    model = source if isinstance(source, torch.nn.Module) else None
    config = getattr(source, "config", None) if model is not None else source
    if getattr(config, "is_encoder_decoder", False):
        raise CostUnavailableError("encoder-decoder models: the encoder's length is no part of the cost's basis")
    model_class = type(model) if model is not None else _class_of(config)
    if not hasattr(config, "get_text_config"):
        raise CostUnavailableError(f"{model_class.__name__} has no transformers config to build a twin from")
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
            f"{model_class.__name__} cannot be built from its config: {_first_line(error)}"
        ) from error
    twin.eval()
    # With a pad token some models look for it in the ids, which have no values here.
    config.get_text_config().pad_token_id = None
    if model is not None:
        _liken(twin, model)
    _cast(twin, dtype or (None if model is not None else _config_dtype(config)))
    return twin, notes


def _class_of(config: object) -> type[torch.nn.Module]:
    """The transformers class that a config names, or the causal language model registered for it."""
    try:
        import transformers  # noqa: PLC0415 - heavy, and only needed where no model is at hand
    except ImportError as error:
        raise CostUnavailableError("a config needs transformers: install inferscope with its extra [hf]") from error
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, torch.nn.Module):
            return found
    try:
        registered: type[torch.nn.Module] = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError as error:
        raise CostUnavailableError(f"no causal language model is known for {type(config).__name__}") from error
    return registered


def _settle(config: Any, model_class: Any) -> list[str]:  # noqa: ANN401 - transformers' configs
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


def _liken(twin: torch.nn.Module, model: torch.nn.Module) -> None:
    """Give the twin the model's dtypes, or say in what it differs: then it would be another model's cost."""
    real = dict(model.named_parameters())
    built = dict(twin.named_parameters())
    odd = sorted(real.keys() ^ built.keys())
    odd += [name for name, value in real.items() if name in built and _differs(value, built[name])]
    if odd:
        raise CostUnavailableError(
            f"{len(odd)} parameters are not what the config builds (quantised, adapted or sharded?), such as {odd[0]}"
        )
    for name, parameter in built.items():
        parameter.data = parameter.data.to(real[name].dtype)
        parameter.requires_grad_(real[name].requires_grad)
    buffers = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        if name in buffers and buffers[name].dtype != buffer.dtype:
            buffer.data = buffer.data.to(buffers[name].dtype)


def _differs(real: torch.Tensor, built: torch.Tensor) -> bool:
    return (
        real.shape != built.shape
        or real.is_floating_point() != built.is_floating_point()
        or hasattr(real, "to_local")
        or hasattr(real, "__tensor_flatten__")
    )


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
    dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return str(dtype or torch.float32).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _go_on() -> None:
    """Wait for nothing."""
