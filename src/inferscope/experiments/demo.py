"""The demonstration: one question, one traced answer, and everything inferscope has to say about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.rule import Rule
from rich.text import Text

from inferscope import session
from inferscope.errors import CacheUnwritableError, MissingExtraError, SettingError
from inferscope.experiments import models
from inferscope.hardware import calibration
from inferscope.report.progress import progress
from inferscope.report.terminal import DeviceView, ResultView
from inferscope.report.units import clean
from inferscope.sinks.jsonl import JsonlSink

if TYPE_CHECKING:
    from rich.console import Console

    from inferscope.analysis.verdict import Result
    from inferscope.experiments.models import LoadedModel
    from inferscope.report.progress import Tell
    from inferscope.sinks.setup import Providers
    from inferscope.specs import DeviceSpec

__all__ = ["DEFAULT_PROMPT", "DemoOptions", "run_demo"]

DEFAULT_PROMPT = "What is the capital of France?"
_WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demonstration is to do.

    Attributes:
        model: As `models.load` takes it.
        prompt: What is asked.
        max_new_tokens: Limit on new tokens.
        batch_size: How many times the same prompt is asked at once.
        dtype: Of the weights.
        endpoint: OTLP receiver for the spans, beside the file; None: the file alone.
        out: Folder for records and spans.
    """

    model: str | None = None
    prompt: str = DEFAULT_PROMPT
    max_new_tokens: int = 64
    batch_size: int = 1
    dtype: str = "float32"
    endpoint: str | None = None
    out: Path = Path("inferscope-out")

    def check(self) -> None:
        """Refuse what cannot work before anything is loaded.

        Raises:
            SettingError: An option has a value it cannot have; the message names it.
        """
        for name, value in (("--max-new-tokens", self.max_new_tokens), ("--batch-size", self.batch_size)):
            if value < 1:
                raise SettingError(f"{name} {value}: expected a whole number of at least 1")
        if self.dtype not in models.DTYPES:
            raise SettingError(f"--dtype {self.dtype}: expected one of {', '.join(models.DTYPES)}")
        if not self.prompt.strip():
            raise SettingError("--prompt is empty: there is nothing to answer")


def run_demo(options: DemoOptions, *, console: Console, status: Console) -> Result:
    """Load, calibrate, warm up, trace one `generate`, and print what came of it.

    Args:
        options: What to do.
        console: Where the answer and the report go.
        status: Where progress goes; should write to standard error.

    Returns:
        The result that was printed.

    Raises:
        SettingError: An option has a value it cannot have.
        ModelNotFoundError: There is no such model.
        MissingExtraError: A package that this needs is not installed.
        CacheUnwritableError: `options.out` cannot be written.
    """
    options.check()
    out = _writable(options.out)
    with progress(status) as tell:
        loaded = models.load(options.model, dtype=options.dtype, progress=tell)
        device = _calibrated(options.dtype, tell)
    _print_title(console, "Device and ceilings")
    console.print(DeviceView(device, notes=False))
    console.print(Text("how each was measured: inferscope calibrate", style="dim"))
    _print_title(console, f"{loaded.name} answers")
    console.print(Text(f"weights: {clean(loaded.source)}, {options.dtype}", style="dim"))
    result, files = _traced(options, loaded, device, out, console=console, status=status)
    _print_title(console, "What inferscope saw")
    console.print(ResultView(result))
    _print_title(console, "Files")
    for line in files:
        console.print(Text(line), soft_wrap=True)
    return result


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CacheUnwritableError(f"{folder}: cannot be made ({reason}); name another with --out") from error
    return folder


def _calibrated(dtype: str, tell: Tell) -> DeviceSpec:
    def measuring(what: str, share: float) -> None:
        tell(f"calibrating, once: {what}", share)

    tell("looking for this machine's calibration", None)
    # bfloat16 beside the dtype that runs: whether it would be faster is the first thing to ask.
    return calibration.calibrate("cpu", dtypes=tuple(dict.fromkeys((dtype, "bfloat16"))), progress=measuring)


def _traced(
    options: DemoOptions,
    loaded: LoadedModel,
    device: DeviceSpec,
    out: Path,
    *,
    console: Console,
    status: Console,
) -> tuple[Result, list[str]]:
    """The result of the traced request, and where its files went, in words."""
    inputs = models.inputs_for(loaded, options.prompt, batch_size=options.batch_size)
    with progress(status) as tell:
        tell("warming up: a short generate that is not traced", None)
        loaded.model.generate(**inputs, max_new_tokens=min(_WARM_UP_TOKENS, options.max_new_tokens), do_sample=False)
    console.print(Text(f"warmed up with one untraced generate of at most {_WARM_UP_TOKENS} tokens", style="dim"))
    records = out / "records.jsonl"
    providers, files = _outlets(options, out)
    sink = JsonlSink(records)
    with session.trace(loaded.model, device=device, sinks=("otel", sink)) as opened:
        if console.quiet or options.batch_size > 1:  # nothing would appear while it generates
            with progress(status) as tell:
                tell("generating", None)
                _answer(options, loaded, inputs, console)
        else:
            _answer(options, loaded, inputs, console)
    result = opened.last
    sink.close()
    if result is None:
        raise RuntimeError("the request left no result; a warning above says why")
    if providers is not None and not providers.shutdown():
        files.append("spans: not all could be delivered; a warning above says why")
    return result, [f"{records}: one record per line, for inferscope.read_records", *files]


def _outlets(options: DemoOptions, out: Path) -> tuple[Providers | None, list[str]]:
    """Where spans go, also in words; none where the exporters are missing and nobody named an endpoint."""
    from inferscope.sinks.setup import setup  # noqa: PLC0415 - loads the OpenTelemetry SDK

    spans = out / "spans.json"
    try:
        providers = setup(endpoint=options.endpoint, file=spans)
    except MissingExtraError as error:
        if options.endpoint is not None:
            raise
        return None, [f"no spans: {error}"]
    files = [f"{spans}: spans as OTLP/JSON, for the upload on Jaeger's search page"]
    if options.endpoint is not None:
        files.append(f"{options.endpoint}: the same spans over OTLP")
    return providers, files


def _answer(options: DemoOptions, loaded: LoadedModel, inputs: dict[str, Any], console: Console) -> None:
    """Generate; the answer appears as it grows, or at the end where there are several."""

    def write(text: str) -> None:
        console.print(Text(_printable(text)), end="", soft_wrap=True)

    console.print(Text(f"> {_printable(options.prompt)}", style="bold"), soft_wrap=True)
    wanted: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "do_sample": False}
    if options.batch_size == 1:  # transformers' streamers take one sequence
        loaded.model.generate(**inputs, **wanted, streamer=models.answer_streamer(loaded, write))
        return
    output = loaded.model.generate(**inputs, **wanted)
    write(models.answer_text(loaded, output, inputs["input_ids"].shape[1]) + "\n")
    console.print(Text(f"(the first of {options.batch_size} equal sequences)", style="dim"))


def _printable(text: str) -> str:
    """Without control characters: what a model says must not steer a terminal. Lines stay."""
    return "\n".join(clean(line) for line in text.split("\n"))


def _print_title(console: Console, text: str) -> None:
    console.print()
    console.print(Rule(Text(clean(text), style="bold"), align="left"))
