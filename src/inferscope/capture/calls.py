"""What `generate` was asked and what it gave: sizes and options, never the text.

Nothing here reads a tensor that is not on the CPU: reading would sync the device. What cannot be known without
that is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferscope.records import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["Call", "Outcome", "is_assistant", "is_assisted", "read_call", "read_result"]


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of `generate`.

    Attributes:
        batch_size: Sequences handed in; None where there was no tensor to tell.
        input_tokens: Prompt tokens over the batch, padding excluded.
        prefix_len: Tokens of each result row that were not generated; None where that is unclear.
        options: What the caller asked for.
        eos_ids: Tokens that end a sequence.
        pad_id: Token that fills ended sequences.
        max_new_tokens: Limit in force; None where only the model's default applies.
    """

    batch_size: int | None
    input_tokens: int | None
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
        tail: Copy of the new tokens, (rows, output_len), on the CPU; None where reading would sync, or where
            the shape alone tells.
    """

    output_len: int | None = None
    rows: int | None = None
    tail: torch.Tensor | None = None

    def count(self, call: Call) -> tuple[int | None, tuple[str, ...] | None]:
        """Tokens generated over the batch, and per sequence why it ended; None where unknown."""
        if self.output_len is None or self.tail is None:
            return (self.output_len if self.rows == 1 else None), None
        rows = [_ended(row, call) for row in self.tail.tolist()]
        reasons = tuple(reason for _, reason in rows if reason is not None)
        return sum(length for length, _ in rows), reasons if len(reasons) == len(rows) else None


def _ended(row: list[int], call: Call) -> tuple[int, str | None]:
    """Length of one generated row without its padding, and why it ended."""
    for index, token in enumerate(row):
        if token in call.eos_ids:
            return index + 1, "stop"
    length = len(row)
    if call.pad_id is not None and call.pad_id not in call.eos_ids:
        while length and row[length - 1] == call.pad_id:
            length -= 1
    if length < len(row):
        return length, "stop"
    if call.max_new_tokens is None:
        return length, None
    return length, "length" if length >= call.max_new_tokens else "stop"


def read_call(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:  # noqa: ANN401 - any model
    """Sizes and options of a call, from its arguments."""
    option = _options_of(model, kwargs)
    name, tensor = _input_of(args, kwargs)
    batch_size = int(tensor.shape[0]) if tensor is not None else None
    pad_id = option("pad_token_id")
    encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    given = kwargs.get("generation_config")

    def said(key: str) -> Any:  # noqa: ANN401 - options have any type
        value = kwargs.get(key)
        return value if value is not None else getattr(given, key, None)

    prefix_len = _prefix_len(name, tensor, kwargs, encoder_decoder=encoder_decoder)
    max_new_tokens = option("max_new_tokens")
    if max_new_tokens is None and (max_length := said("max_length")) is not None and prefix_len is not None:
        max_new_tokens = max_length - prefix_len
    return Call(
        batch_size=batch_size,
        input_tokens=_input_tokens(name, tensor, kwargs, pad_id, option("eos_token_id")),
        prefix_len=prefix_len,
        options=RequestOptions(
            max_new_tokens=said("max_new_tokens"),
            temperature=said("temperature"),
            top_p=said("top_p"),
            top_k=said("top_k"),
            num_beams=said("num_beams"),
            streaming=kwargs.get("streamer") is not None,
        ),
        eos_ids=_ids(option("eos_token_id")),
        pad_id=pad_id if isinstance(pad_id, int) else None,
        max_new_tokens=max_new_tokens,
    )


def read_result(call: Call, result: Any) -> Outcome:  # noqa: ANN401 - tensor or ModelOutput
    """Sizes of a result; its new tokens are copied only where they must be counted and lie on the CPU."""
    sequences = getattr(result, "sequences", result)
    shape = getattr(sequences, "shape", None)
    if shape is None or len(shape) != 2 or call.prefix_len is None or shape[1] < call.prefix_len:  # noqa: PLR2004 - rows, tokens
        return Outcome()
    rows, output_len = int(shape[0]), int(shape[1]) - call.prefix_len
    on_host = sequences.device.type == "cpu"
    tail = sequences[:, call.prefix_len :].detach().clone() if on_host else None
    return Outcome(output_len=output_len, rows=rows, tail=tail)


def is_assistant(kwargs: Mapping[str, Any]) -> bool:
    """Whether transformers itself calls this `generate` to draft tokens for another one."""
    return bool(kwargs.get("is_assistant") or getattr(kwargs.get("generation_config"), "is_assistant", False))


def is_assisted(kwargs: Mapping[str, Any]) -> bool:
    """Whether the call asks for assisted decoding: by a model, by prompt lookup or by early exit."""
    if kwargs.get("assistant_model") is not None:
        return True
    given = kwargs.get("generation_config")
    keys = ("prompt_lookup_num_tokens", "assistant_early_exit")
    return any(kwargs.get(key) is not None or getattr(given, key, None) is not None for key in keys)


def _options_of(model: Any, kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a reader of options of any type
    """A reader that looks where `generate` looks: the call, its generation_config, the model's."""
    places = (kwargs.get("generation_config"), getattr(model, "generation_config", None))

    def option(key: str) -> Any:  # noqa: ANN401 - options have any type
        if kwargs.get(key) is not None:
            return kwargs[key]
        return next((found for place in places if (found := getattr(place, key, None)) is not None), None)

    return option


def _input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Any]:
    if args and hasattr(args[0], "shape"):
        return "inputs", args[0]
    for name in ("input_ids", "inputs", "inputs_embeds", "input_features", "pixel_values"):
        if hasattr(kwargs.get(name), "shape"):
            return name, kwargs[name]
    return None, None


def _prefix_len(
    name: str | None,
    tensor: Any,  # noqa: ANN401 - a tensor or None
    kwargs: Mapping[str, Any],
    *,
    encoder_decoder: bool,
) -> int | None:
    if encoder_decoder:
        given = kwargs.get("decoder_input_ids")
        return int(given.shape[1]) if given is not None else 1
    if name == "inputs_embeds":
        return 0
    return int(tensor.shape[1]) if name in {"inputs", "input_ids"} and len(tensor.shape) > 1 else None


def _input_tokens(
    name: str | None,
    tensor: Any,  # noqa: ANN401 - a tensor or None
    kwargs: Mapping[str, Any],
    pad_id: object,
    eos: object,
) -> int | None:
    if tensor is None or name in {"input_features", "pixel_values"}:
        return None
    mask = kwargs.get("attention_mask")
    if mask is not None:
        return int(mask.sum()) if mask.device.type == "cpu" else None
    rows, length = int(tensor.shape[0]), int(tensor.shape[1])
    if name == "inputs_embeds" or not isinstance(pad_id, int) or pad_id in _ids(eos):
        return rows * length  # as transformers: without a mask and a pad token of its own, all is prompt
    return int((tensor != pad_id).sum()) if tensor.device.type == "cpu" else None


def _ids(value: object) -> frozenset[int]:
    if isinstance(value, int):
        return frozenset((value,))
    if isinstance(value, (list, tuple, set, frozenset)):
        return frozenset(item for item in value if isinstance(item, int))
    return frozenset()
