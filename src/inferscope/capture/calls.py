"""What `generate` was asked and what it gave: sizes and options, never the text.

Nothing here reads a tensor that is not on the CPU: reading would sync the device. What cannot be known without
that is None.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.records import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inferscope.capture.frames import Inner

__all__ = [
    "Call",
    "Kept",
    "Outcome",
    "RawCall",
    "asked_shape",
    "hold",
    "hold_result",
    "is_assistant",
    "keep",
    "prompt_len",
    "read_call",
    "read_result",
    "returned_shape",
]


# What is looked at, after the call. A cache or a processor is not held on to: it may be large, or expected to die.
_OPTIONS = (
    "cache_implementation",
    "eos_token_id",
    "generation_config",
    "max_length",
    "max_new_tokens",
    "num_beams",
    "pad_token_id",
    "temperature",
    "top_k",
    "top_p",
)
_SHAPING = ("num_beams", "do_sample", "use_cache", "cache_implementation")
"""Options that change what a request of the same sizes has to do."""
_LISTED = 256
"""Elements up to which a list is made sooner than an array: after a pass, when nothing of numpy is in the caches."""
_BROUGHT = ("logits_processor", "stopping_criteria")
"""Lists of callables that run after every pass: their classes are noted, and they are not held on to."""
_NAMED = 16
"""At most so many of them."""
_PROMPTS = ("input_ids", "inputs", "inputs_embeds", "input_features", "pixel_values")


class Kept:
    """A small tensor of the caller's, to be looked at after the call: copying it now would cost more than a pass.

    Its version says whether it was changed in between; what was changed is not looked at.
    """

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: Any) -> None:  # noqa: ANN401 - torch is not imported here
        """Keep a tensor that lies on the CPU; one of inference mode has no version and is copied instead."""
        if tensor.is_inference():
            self._version = None
            self._tensor = tensor.tolist() if tensor.numel() <= _LISTED else tensor.numpy().copy()
        else:
            self._version = tensor._version  # noqa: SLF001 - torch's own way to see a change in place
            self._tensor = tensor

    def read(self) -> Any:  # noqa: ANN401 - a numpy array, or None
        """The values as a numpy array; None where they were changed since."""
        import numpy as np  # noqa: PLC0415 - there where torch's tensors turn into arrays, and not needed before

        if self._version is None:
            return np.asarray(self._tensor)
        if self._tensor._version != self._version:  # noqa: SLF001 - as above
            return None
        return self._tensor.detach().numpy()


def keep(tensor: Any) -> Kept | None:  # noqa: ANN401 - a tensor or None
    """Keep a tensor for later; None where reading it would sync the device."""
    return Kept(tensor) if tensor is not None and tensor.is_cpu else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RawCall:
    """The arguments of a call, as far as they are looked at afterwards."""

    options: dict[str, Any]
    prompt_name: str | None
    prompt_shape: tuple[int, ...] | None
    decoder_len: int | None
    prompt: Kept | None
    has_mask: bool
    mask: Kept | None
    streaming: bool
    cache_class: str | None = None
    processors: tuple[str, ...] = ()


def hold(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RawCall:
    """Hold on to what `read_call` will look at. Runs at the entry of `generate`: no tensor is read."""
    name, tensor = _input_of(args, kwargs)
    mask = kwargs.get("attention_mask")
    decoder = kwargs.get("decoder_input_ids")
    return RawCall(
        options={key: kwargs[key] for key in _OPTIONS if key in kwargs},
        prompt_name=name,
        prompt_shape=tuple(tensor.shape) if tensor is not None else None,
        decoder_len=decoder.shape[1] if decoder is not None else None,
        prompt=keep(tensor) if mask is None and name == "input_ids" else None,
        has_mask=mask is not None,
        mask=keep(mask),
        streaming=kwargs.get("streamer") is not None,
        cache_class=None if kwargs.get("past_key_values") is None else type(kwargs["past_key_values"]).__name__,
        processors=_brought(kwargs),
    )


def _brought(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Classes of what the caller lets run after every pass; "StoppingCriteriaList" and its like are looked into."""
    names: list[str] = []
    for key in _BROUGHT:
        given = kwargs.get(key)
        if given is not None:
            names += [type(each).__name__ for each in (given if isinstance(given, list | tuple) else [given])]
    if kwargs.get("streamer") is not None:
        names.append(type(kwargs["streamer"]).__name__)
    return tuple(names[:_NAMED])


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of `generate`.

    Attributes:
        batch_size: Sequences handed in; None where there was no tensor to tell.
        input_tokens: Prompt tokens over the batch, padding excluded.
        padding_tokens: Prompt positions over the batch that hold padding.
        prefix_len: Tokens of each result row that were not generated; None where that is unclear.
        options: What the caller asked for.
        eos_ids: Tokens that end a sequence.
        pad_id: Token that fills ended sequences.
        max_new_tokens: Limit in force; None where only the model's default applies.
    """

    batch_size: int | None
    input_tokens: int | None
    padding_tokens: int | None = None
    prefix_len: int | None
    options: RequestOptions
    eos_ids: frozenset[int]
    pad_id: int | None
    max_new_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came back, before it is counted.

    Attributes:
        output_len: New tokens of the longest sequence.
        rows: Result sequences.
        sequences: Prefix and new tokens, (rows, prefix + output_len); None where reading would sync.
        prefix_len: Tokens of the sequence that were not generated.
        joined: They were put together from several windows, and the tokens that end a sequence are taken out.
    """

    output_len: int | None = None
    rows: int | None = None
    sequences: Kept | None = None
    prefix_len: int | None = None
    joined: bool = False

    def count(self, call: Call) -> tuple[int | None, tuple[str, ...] | None]:
        """Tokens generated over the batch, and per sequence why it ended; None where unknown."""
        values = self.sequences.read() if self.sequences is not None else None
        if self.output_len is None or values is None:
            return (self.output_len if self.rows == 1 else None), None
        if self.joined:
            ends = call.eos_ids | {call.pad_id}
            return sum(_without(row, ends) for row in values.tolist()), None
        padded = len(values) > 1 and bool(call.eos_ids)  # transformers fills up only what an end token has ended
        rows = [_ended(row[len(row) - self.output_len :], call, padded=padded) for row in values.tolist()]
        reasons = tuple(reason for _, reason in rows if reason is not None)
        return sum(length for length, _ in rows), reasons if len(reasons) == len(rows) else None

    def digest(self) -> str | None:
        """Of the new tokens' ids, what fills short rows included; None where they are unknown.

        Without salt, so that two processes' can be compared; short or guessed texts can be confirmed from it.
        """
        values = self.sequences.read() if self.sequences is not None else None
        if self.output_len is None or values is None:
            return None
        rows = values[:, values.shape[1] - self.output_len :].astype("<i8")
        return hashlib.sha256(f"{rows.shape}".encode() + rows.tobytes()).hexdigest()[:32]


def _without(row: list[int], ends: frozenset[int | None]) -> int:
    """Length of a row without what fills it up."""
    length = len(row)
    while length and row[length - 1] in ends:
        length -= 1
    return length


def _ended(row: list[int], call: Call, *, padded: bool) -> tuple[int, str | None]:
    """Length of one generated row without its padding, and why it ended."""
    for index, token in enumerate(row):
        if token in call.eos_ids:
            return index + 1, "stop"
    length = _without(row, frozenset({call.pad_id})) if padded and call.pad_id is not None else len(row)
    if length < len(row):
        return length, "stop"
    if call.max_new_tokens is None:
        return length, None
    return length, "length" if length >= call.max_new_tokens else "stop"


def asked_shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What has to be the same for two calls to be the same work, before anything came back; None where that is unclear.

    No tensor is read.
    """
    name, tensor = _input_of(args, kwargs)
    if tensor is None or kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens"):
        return None
    given = kwargs.get("generation_config")
    options = tuple(kwargs.get(key, getattr(given, key, None)) for key in _SHAPING)
    decoder = kwargs.get("decoder_input_ids")
    begun = kwargs.get("past_key_values") is not None
    streaming = kwargs.get("streamer") is not None
    return name, tuple(tensor.shape), None if decoder is None else decoder.shape[1], options, begun, streaming


def returned_shape(result: Any) -> tuple[int, int] | None:  # noqa: ANN401 - tensor or ModelOutput
    """Rows and tokens of what `generate` returned; None where it is no tensor of rows. Nothing is kept."""
    return _rows_of(_sequences(result))


def _sequences(result: Any) -> Any:  # noqa: ANN401 - a tensor, or whatever else a model returns
    """The tokens of what `generate` returned: most often that itself."""
    if hasattr(result, "is_cpu"):
        return result
    return result.get("sequences") if isinstance(result, dict) else getattr(result, "sequences", None)


def _rows_of(sequences: Any) -> tuple[int, int] | None:  # noqa: ANN401 - as above
    shape = getattr(sequences, "shape", None)
    if shape is None or len(shape) != 2 or sequences.is_floating_point():  # noqa: PLR2004 - rows, tokens; not audio
        return None
    return shape[0], shape[1]


def read_call(model: Any, raw: RawCall) -> Call:  # noqa: ANN401 - any model
    """Sizes and options of a call; runs after it."""
    option, said = _options_of(model, raw.options)
    encoder_decoder = _is_encoder_decoder(model)
    prefix_len = _prefix_len(raw.prompt_name, raw.prompt_shape, raw.decoder_len, encoder_decoder=encoder_decoder)
    max_new_tokens = option("max_new_tokens")
    if max_new_tokens is None and (max_length := said("max_length")) is not None and prefix_len is not None:
        max_new_tokens = max_length - prefix_len
    eos_ids, pad_id = _ids(option("eos_token_id")), option("pad_token_id")
    pad_id = pad_id if isinstance(pad_id, int) else None
    input_tokens, padding_tokens = _input_tokens(raw, None if encoder_decoder else pad_id, eos_ids)
    return Call(
        batch_size=raw.prompt_shape[0] if raw.prompt_shape else None,
        input_tokens=input_tokens,
        padding_tokens=padding_tokens,
        prefix_len=prefix_len,
        options=RequestOptions(
            max_new_tokens=said("max_new_tokens"),
            temperature=said("temperature"),
            top_p=said("top_p"),
            top_k=said("top_k"),
            num_beams=said("num_beams"),
            streaming=raw.streaming,
            seed=seed if isinstance(seed := said("seed"), int) else None,
            cache=raw.cache_class or _text(option("cache_implementation")),
            processors=raw.processors,
        ),
        eos_ids=eos_ids,
        pad_id=pad_id,
        max_new_tokens=max_new_tokens,
    )


def hold_result(result: Any) -> tuple[tuple[int, int] | None, Kept | None]:  # noqa: ANN401 - tensor or ModelOutput
    """Shape and tokens of what `generate` returned, for `read_result`; (None, None) where it is no tensor of rows."""
    sequences = _sequences(result)
    shape = _rows_of(sequences)
    return (None, None) if shape is None else (shape, keep(sequences))


def read_result(
    call: Call,
    shape: tuple[int, int] | None,
    sequences: Kept | None,
    inner: Inner | None = None,
) -> Outcome:
    """What came back; runs after the call.

    Args:
        call: What was asked.
        shape: Rows and tokens of the result.
        sequences: The tokens.
        inner: What the model's own calls of `generate` were; None where it made none.
    """
    prefix_len, joined = call.prefix_len, False
    if inner is not None:
        prefix_len = inner.prompt_len if inner.calls == 1 else None
        handed_on = inner.calls == 1 and shape is not None and inner.longest == shape[1]
        joined = inner.joined and not handed_on
        if not handed_on and not joined:
            return Outcome(prefix_len=prefix_len)
    cut = 0 if joined else prefix_len
    if shape is None or cut is None or shape[1] < cut:
        return Outcome(prefix_len=prefix_len)
    return Outcome(output_len=shape[1] - cut, rows=shape[0], sequences=sequences, prefix_len=prefix_len, joined=joined)


def is_assistant(kwargs: Mapping[str, Any]) -> bool:
    """Whether transformers itself calls this `generate` to draft tokens for another one."""
    return bool(kwargs.get("is_assistant") or getattr(kwargs.get("generation_config"), "is_assistant", False))


def prompt_len(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:  # noqa: ANN401 - any model
    """Tokens of each result row of a call that are not generated; None where that is unclear. No tensor is read."""
    name, tensor = _input_of(args, kwargs)
    decoder = kwargs.get("decoder_input_ids")
    shape = None if tensor is None else tuple(tensor.shape)
    decoder_len = None if decoder is None else decoder.shape[1]
    return _prefix_len(name, shape, decoder_len, encoder_decoder=_is_encoder_decoder(model))


def _is_encoder_decoder(model: Any) -> bool:  # noqa: ANN401 - any model
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _options_of(model: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:  # noqa: ANN401 - readers of any type
    """Two readers: what is in force (the call, its generation_config, the model's), and what the caller said."""
    given, default = options.get("generation_config"), getattr(model, "generation_config", None)

    def said(key: str) -> Any:  # noqa: ANN401 - options have any type
        value = options.get(key)
        return value if value is not None else getattr(given, key, None)

    def option(key: str) -> Any:  # noqa: ANN401 - options have any type
        value = said(key)
        return value if value is not None else getattr(default, key, None)

    return option, said


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Any]:
    named = kwargs if not args or not hasattr(args[0], "shape") else {"inputs": args[0]}
    name = next((name for name in _PROMPTS if hasattr(named.get(name), "shape")), None)
    if name != "inputs":
        return name, None if name is None else named[name]
    tensor: Any = named["inputs"]
    return "features" if tensor.is_floating_point() else "input_ids", tensor


def _prefix_len(
    name: str | None, shape: tuple[int, ...] | None, decoder_len: int | None, *, encoder_decoder: bool
) -> int | None:
    if encoder_decoder:
        return 1 if decoder_len is None else decoder_len
    if name == "inputs_embeds":
        return 0
    return shape[1] if name == "input_ids" and shape and len(shape) > 1 else None


def _input_tokens(raw: RawCall, pad_id: int | None, eos_ids: frozenset[int]) -> tuple[int | None, int | None]:
    """Prompt positions that hold a token, and those that hold padding."""
    shape = raw.prompt_shape
    if shape is None or len(shape) < 2 or raw.prompt_name not in {"input_ids", "inputs_embeds"}:  # noqa: PLR2004 - rows, tokens
        return None, None
    positions = shape[0] * shape[1]
    if raw.has_mask:
        mask: Any = raw.mask.read() if raw.mask is not None else None
        # A mask may be longer than the prompt: then it speaks of what is cached, too.
        known = mask is not None and mask.ndim == 2 and mask.shape[1] >= shape[1]  # noqa: PLR2004 - rows, tokens
        held = mask[:, mask.shape[1] - shape[1] :] if known else None
    elif raw.prompt_name == "inputs_embeds" or pad_id is None or pad_id in eos_ids:
        return positions, 0  # as transformers: without a mask and a pad token of its own, all is prompt
    else:
        ids = raw.prompt.read() if raw.prompt is not None else None
        held = None if ids is None else ids != pad_id
    if held is None:
        return None, None
    tokens = int(held.sum())
    return tokens, positions - tokens


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _ids(value: object) -> frozenset[int]:
    if isinstance(value, int):
        return frozenset((value,))
    if isinstance(value, (list, tuple, set, frozenset)):
        return frozenset(item for item in value if isinstance(item, int))
    return frozenset()
