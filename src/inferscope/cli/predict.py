"""`inferscope predict`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from inferscope.cli import completion
from inferscope.cli.documents import headed, show
from inferscope.errors import PredictionError, SettingError
from inferscope.report.prediction import PredictionView
from inferscope.report.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferscope.analysis.kernels import KernelTimes
    from inferscope.analysis.prediction import Prediction
    from inferscope.experiments.configs import Source
    from inferscope.specs import DeviceSpec, ModelSpec

__all__ = ["EXAMPLES", "predict"]

_MOST_BATCHES = 32

EXAMPLES = """\b
Examples:
  inferscope predict ./llama-70b/config.json --gpu H100-SXM5-80GB --gpu L40S --batch 1,8,32
  inferscope predict ./my-model --gpu A100-SXM4-80GB --quantization int4 --compiled
  inferscope predict ./my-model --here --dtype float32
  inferscope predict traces.jsonl --here --batch 1,4,16

Exit codes: 0 predicted, 2 a mistake in what was asked, or nothing supports the prediction.
"""


def predict(  # noqa: PLR0913 - each one changes the answer
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_CONFIG", help="Folder, config.json, .gguf, saved spec, records or hub id."),
    ],
    *,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="A GPU of the catalogue; may be given several times.", autocompletion=completion.gpus),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="This CPU: measured ceilings, this model's operators.")] = False,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1",
    input_tokens: Annotated[int, typer.Option(help="Prompt tokens of each sequence.")] = 512,
    output_tokens: Annotated[int, typer.Option(help="New tokens of each sequence.")] = 128,
    dtype: Annotated[str | None, typer.Option(help="Of weights and activations. Default: the model's own.")] = None,
    quantization: Annotated[str | None, typer.Option(help="Of the weights: int8 or int4.")] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="Of the cache. Default: as dtype.")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Fused, with a graph and a static cache.")] = False,
    save_spec: Annotated[Path | None, typer.Option(help="Keep the counted model, for use without torch.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say how long requests would take on devices that need not be there, what would hold them back, and what fits.

    Nothing is run and no weights are read: operators are counted and set against each device's rates.
    """
    batches = _batches(batch)
    if not gpu and not here:
        raise SettingError("say on what: --gpu NAME (may be given several times) or --here")
    from inferscope import predicting  # noqa: PLC0415 - after the options have been checked
    from inferscope.experiments import configs  # noqa: PLC0415
    from inferscope.hardware.catalog import lookup  # noqa: PLC0415
    from inferscope.sinks.model_file import write_model  # noqa: PLC0415

    devices = [lookup(name) for name in dict.fromkeys(gpu or ())]
    with progress(Console(stderr=True, highlight=False)) as tell:
        tell("reading the configuration", None)
        source = configs.find(model)
        tell("counting operators", None)
        spec = predicting.model_spec(source.model, dtype=dtype)
        if save_spec is not None:
            write_model(spec, save_spec)
        places = [_Place(device, None, {}) for device in devices]
        if here:
            places.append(_here(spec, source, tell))
    asked: dict[str, Any] = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "quantization": quantization,
        "kv_dtype": kv_dtype,
        "execution": "compiled" if compiled else "eager",
    }
    found, refused = _all(spec, places, batches, asked)
    _show(found, [place.device for place in places], refused, as_json=as_json)


class _Place:
    """A device to predict for, and what is known beyond its ceilings."""

    def __init__(self, device: DeviceSpec, kernels: KernelTimes | None, anchor: dict[str, Any]) -> None:
        self.device = device
        self.kernels = kernels
        self.anchor = anchor


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) < 1 << 20 for part in parts) or len(parts) > _MOST_BATCHES:
        raise SettingError(f"--batch {text}: expected at most {_MOST_BATCHES} whole numbers, such as 1,8,32")
    return list(dict.fromkeys(int(part) for part in parts))


def _here(spec: ModelSpec, source: Source, tell: Callable[[str, float | None], None]) -> _Place:
    """This processor, with its ceilings and the times of this model's operators; a trace of it anchors too."""
    from inferscope.hardware import calibration, kernel_times  # noqa: PLC0415 - loads torch
    from inferscope.records import GenerationRecord  # noqa: PLC0415

    known = {"float32", "bfloat16", "float16", "float64"}
    dtypes = (spec.dtype,) if spec.dtype in known else ("float32",)
    device = calibration.calibrate(
        "cpu", dtypes=dtypes, progress=lambda what, share: tell(f"calibrating: {what}", share)
    )
    kernels = kernel_times.measure_kernels(
        spec, heads=source.heads, progress=lambda what, share: tell(f"measuring: {what}", share)
    )
    record = source.model
    is_trace = isinstance(record, GenerationRecord) and (record.model.device or "cpu").startswith("cpu")
    return _Place(device, kernels, {"record": record} if is_trace else {})


def _all(
    spec: ModelSpec, places: list[_Place], batches: list[int], asked: dict[str, Any]
) -> tuple[list[Prediction], list[str]]:
    """Each device and batch; what nothing supports is said, and all the rest is still predicted."""
    from inferscope import predicting  # noqa: PLC0415

    found: list[Prediction] = []
    refused: dict[str, None] = {}
    for place in places:
        for size in batches:
            try:
                found.append(
                    predicting.predict(
                        spec, device=place.device, batch_size=size, kernels=place.kernels, **place.anchor, **asked
                    )
                )
            except PredictionError as error:
                refused[str(error)] = None
    if not found:
        raise PredictionError("; ".join(refused))
    return found, list(refused)


def _show(found: list[Prediction], devices: list[DeviceSpec], refused: list[str], *, as_json: bool) -> None:
    if as_json:
        show(headed("predictions", {"predictions": [asdict(one) for one in found], "refused": refused}))
    else:
        Console(highlight=False).print(PredictionView(found, devices, refused))
