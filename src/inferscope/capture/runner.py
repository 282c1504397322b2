"""Runs forwards of a twin: what `generate` passes to a model, with tensors that have shapes only."""

# ruff: noqa: ANN401 - transformers' models, outputs and caches have no common type
from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from inferscope.capture.layers import Layers
from inferscope.capture.mirror import first_line
from inferscope.capture.operators import FunctionSeam, Recorder
from inferscope.capture.tally import ForwardShape, Weights
from inferscope.errors import CostUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.capture.lifetimes import Lifetimes
    from inferscope.capture.twin import Twin

__all__ = ["Runner"]


class Runner:
    """Runs forwards of the twin."""

    def __init__(self, twin: Twin, wait: Callable[[], None]) -> None:
        """Learn what the twin takes and what stands before it.

        Args:
            twin: Whose forwards are run.
            wait: Called before each of them.
        """
        self._twin = twin
        self._wait = wait
        self._module = twin.module
        self.weights = Weights(twin.module)
        self.layers = Layers(twin.module, twin.stage)
        self._accepts = set(inspect.signature(twin.module.forward).parameters)
        names = ("logits_to_keep", "num_logits_to_keep")
        self.keeps_logits = next((name for name in names if name in self._accepts), None)
        self.encoder = _encoder_of(twin)
        self._tower = _tower_of(twin) if self.encoder is None else None
        self.encodes = self.encoder is not None or self._tower is not None
        self.fixed_encoder_len: int | None = None
        self.hidden_bytes = 0
        if self.encoder is not None:
            self._learn_encoder()
        elif self._tower is not None:
            self._learn_tower()

    def run(
        self, shape: ForwardShape, cache: object = None, *, write: bool = True, lifetimes: Lifetimes | None = None
    ) -> tuple[Any, Recorder]:
        """Output of a forward, and what it dispatched if that is to be written down."""
        self._wait()
        recorder = Recorder()
        recorder.muted, recorder.lifetimes = not write, lifetimes
        self._twin.stage.recorder = recorder
        try:
            with torch.no_grad(), FunctionSeam(recorder), recorder:
                return self._forward(shape, cache), recorder
        except Exception as error:
            raise CostUnavailableError(
                f"{type(self._module).__name__} cannot be run on shapes alone: {first_line(error)}"
            ) from error
        finally:
            self._twin.stage.recorder = None

    def _forward(self, shape: ForwardShape, cache: object) -> Any:
        if shape.regime == "encode":
            if self.encoder is not None:
                return self.encoder(**self._encoder_inputs(shape))
            return self._tower(shape.batch_size) if self._tower is not None else None
        return self._module(**self._inputs(shape, cache))

    def _inputs(self, shape: ForwardShape, cache: object) -> dict[str, Any]:
        """What `generate` passes where no sequence is padded."""
        size = (shape.batch_size, shape.q_len)
        ids = torch.empty(size, dtype=torch.long, device="meta")
        wanted: dict[str, Any] = {
            "position_ids": torch.empty(size, dtype=torch.long, device="meta"),
            "past_key_values": cache,
            "cache_params": cache,
            "state": cache,
            "use_cache": True,
        }
        if self.encoder is not None:
            wanted |= {"decoder_input_ids": ids, "encoder_outputs": self._encoded(shape)}
        else:
            wanted["input_ids"] = ids
        if self.keeps_logits:
            wanted[self.keeps_logits] = shape.logits
        return {name: value for name, value in wanted.items() if name in self._accepts}

    def _encoded(self, shape: ForwardShape) -> Any:
        from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415 - only for encoder-decoders

        length = self.fixed_encoder_len or shape.encoder_len
        hidden = torch.empty(shape.batch_size, length, self._hidden, dtype=self._hidden_dtype, device="meta")
        return BaseModelOutput(last_hidden_state=hidden)

    def _encoder_inputs(self, shape: ForwardShape) -> dict[str, Any]:
        config = self._module.config
        name = getattr(self.encoder, "main_input_name", "input_ids")
        if name == "input_ids":
            return {name: torch.empty(shape.batch_size, shape.q_len, dtype=torch.long, device="meta")}
        bins = getattr(config, "num_mel_bins", None)
        length = getattr(config, "max_source_positions", None)
        if name == "input_features" and isinstance(bins, int) and isinstance(length, int):
            dtype = next(self.encoder.parameters()).dtype
            return {name: torch.empty(shape.batch_size, bins, 2 * length, dtype=dtype, device="meta")}
        raise CostUnavailableError(f"the encoder takes {name}, of a form that is not known")

    def _learn_encoder(self) -> None:
        """Width of the encoder's output, and its length where that is always the same."""
        template = ForwardShape(batch_size=2, q_len=19, past_len=0, logits=0, regime="encode")
        output, _ = self.run(template, write=False)
        hidden = output[0]
        self._hidden, self._hidden_dtype = hidden.shape[-1], hidden.dtype
        self.hidden_bytes = hidden.shape[-1] * hidden.element_size()
        if getattr(self.encoder, "main_input_name", "input_ids") != "input_ids":
            self.fixed_encoder_len = int(hidden.shape[1])

    def _learn_tower(self) -> None:
        """Tokens that an image becomes; no tower where it does not run on shapes."""
        template = ForwardShape(batch_size=2, q_len=1, past_len=0, logits=0, regime="encode")
        try:
            output, _ = self.run(template, write=False)
            features = _features_of(output)
            self.fixed_encoder_len = int(features.shape[:-1].numel()) // template.batch_size
            self.hidden_bytes = features.shape[-1] * features.element_size()
        except (CostUnavailableError, AttributeError, StopIteration):
            self._tower, self.encodes = None, False


def _encoder_of(twin: Twin) -> Any:
    if not getattr(twin.module.config, "is_encoder_decoder", False):
        return None
    return twin.module.get_encoder()


def _tower_of(twin: Twin) -> Callable[[int], Any] | None:
    """Runs the vision tower and what joins it to the text model, for some images; None without one."""
    vision = getattr(twin.module.config, "vision_config", None)
    size, see = getattr(vision, "image_size", None), getattr(twin.module, "get_image_features", None)
    if type(size) is not int or see is None:
        return None
    dtype = next(twin.module.parameters()).dtype
    channels = getattr(vision, "num_channels", 3)

    def run(images: int) -> Any:
        return see(pixel_values=torch.empty(images, channels, size, size, dtype=dtype, device="meta"))

    return run


def _features_of(output: Any) -> torch.Tensor:
    """The features in what a vision tower returns."""
    output = getattr(output, "pooler_output", output)
    found = output[0] if isinstance(output, list | tuple) else output
    if not isinstance(found, torch.Tensor):
        raise CostUnavailableError("the vision tower returns no features")
    if isinstance(output, list | tuple) and len(output) > 1:
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in output])
    return found
