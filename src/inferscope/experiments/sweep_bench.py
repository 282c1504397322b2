"""One machine's part of a sweep: the model in each setting, and a traced request for each job.

Everything of a sweep that knows torch and transformers stands in this file.
"""

from __future__ import annotations

import gc
import importlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferscope import costing, session
from inferscope.analysis.sweep_points import OUT_OF_MEMORY, OUTCOME, labels_of
from inferscope.capture import introspect
from inferscope.errors import CostUnavailableError, InferscopeError, SettingError
from inferscope.experiments import configs, models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferscope.analysis.sweep_points import Job, Point, Setting
    from inferscope.records import GenerationRecord
    from inferscope.specs import ModelSpec

__all__ = ["Bench", "load_model"]

_WARM_UP_TOKENS = 3
_MODELS_SHARE = 0.25
"""Of the memory limit: models in several dtypes stay loaded up to so much, others are loaded in each round."""
_WAIT_S = 600.0
_NOT_ALLOCATED = ("out of memory", "can't allocate memory", "not enough memory")
_SAID_CHARACTERS = 200


def load_model(model: str | None, dtype: str, *, device: str, seed: int, tell: models.Progress | None = None) -> Any:  # noqa: ANN401 - transformers' own
    """A model to generate with; from a configuration with random weights.

    Args:
        model: As `models.load` takes it, or a path to a config.json.
        dtype: Of the weights.
        device: torch device to put it on.
        seed: Of random weights.
        tell: Told what is being done.

    Raises:
        InferscopeError: There is no such model, or it cannot be loaded.
    """
    if model is None or Path(model).expanduser().suffix != ".json":
        return models.load(model, dtype=dtype, device=device, progress=tell).model
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    config = configs.find(model).model
    if not isinstance(config, transformers.PretrainedConfig):
        raise SettingError(f"{model}: expected a config.json, of which a model with random weights is made")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except Exception as error:
        raise SettingError(f"{model}: no causal language model can be made of it: {_first_line(error)}") from error
    return made.eval().to(device)


class Bench:
    """Measures jobs, one after the other.

    Attributes:
        labels: Added to each record beside those of its job.
    """

    def __init__(
        self,
        load: Callable[[str], Any],
        *,
        labels: tuple[tuple[str, str], ...] = (),
        memory_limit_bytes: int | None = None,
        seed: int = 0,
    ) -> None:
        """Nothing is loaded before it is needed.

        Args:
            load: Gives the model in a dtype, in evaluation mode.
            labels: For every record.
            memory_limit_bytes: Decides how many models stay loaded; None: all.
            seed: Of the prompts' random tokens.
        """
        self.labels = labels
        self._load = load
        self._limit_bytes = memory_limit_bytes
        self._seed = seed
        self._models: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._warm: set[Point] = set()
        self._specs: dict[Setting, ModelSpec] = {}

    def describe(self, setting: Setting) -> ModelSpec:
        """The model in a setting, with its cost where that can be counted.

        Args:
            setting: Which.
        """
        if setting not in self._specs:
            model = self._model(setting)
            spec = introspect.describe(model)
            try:
                spec = replace(spec, cost=costing.cost_terms(model))
            except CostUnavailableError as error:
                spec = replace(spec, cost_note=str(error))
            self._specs[setting] = spec
        return self._specs[setting]

    def measure(self, job: Job) -> GenerationRecord:
        """The record of one request; one that ran out of memory or failed is a result, too.

        Args:
            job: What to measure. The first time, its request is run once before, shortened, to warm up.

        Raises:
            SettingError: Tracing is switched off, or the setting does not exist.
        """
        self.describe(job.point.setting)  # operators are counted before, not while a request runs
        model = self._model(job.point.setting)
        outcome: tuple[tuple[str, str], ...] = ()
        gc.collect()
        with session.trace(model, sinks=(), sample_rate=1.0) as opened:
            try:
                self._run(model, job.point)
            except InferscopeError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a setting raises is what it does
                outcome = ((OUTCOME, _outcome(error)),)
        opened.wait(_WAIT_S)
        if opened.last is None:
            raise SettingError("the request left no record: is tracing switched off (INFERSCOPE_DISABLED)?")
        if outcome:
            _release()
        return replace(opened.last.record, labels=(*labels_of(job), *self.labels, *outcome))

    def _run(self, model: Any, point: Point) -> None:  # noqa: ANN401 - transformers' own
        inputs = _prompt(model, point, self._seed)
        wanted: dict[str, Any] = {"do_sample": False, "pad_token_id": 0}
        if point.setting.cache != "dynamic":
            wanted["cache_implementation"] = point.setting.cache
        if point not in self._warm:
            # A static cache has the size of the whole request, and is compiled for it on some devices.
            short = point.output_tokens if point.setting.cache != "dynamic" else _WARM_UP_TOKENS
            model.generate(**inputs, **wanted, max_new_tokens=min(short, point.output_tokens))
            self._warm.add(point)
        model.generate(**inputs, **wanted, max_new_tokens=point.output_tokens)

    def _model(self, setting: Setting) -> Any:  # noqa: ANN401 - transformers' own
        if setting.dtype not in self._models:
            model = self._load(setting.dtype)
            # Every sequence runs to its last token, and nothing but the greedy choice is asked for.
            model.generation_config = importlib.import_module("transformers").GenerationConfig(pad_token_id=0)
            self._models[setting.dtype] = (model, introspect.describe(model).weight_bytes or 0)
            self._make_room()
        self._models.move_to_end(setting.dtype)
        model = self._models[setting.dtype][0]
        try:
            model.set_attn_implementation(setting.attention)
        except Exception as error:
            raise SettingError(f"--attention {setting.attention}: {_first_line(error)}") from error
        return model

    def _make_room(self) -> None:
        held = sum(size for _, size in self._models.values())
        while self._limit_bytes is not None and len(self._models) > 1 and held > _MODELS_SHARE * self._limit_bytes:
            dtype, (_, size) = self._models.popitem(last=False)
            self._warm = {point for point in self._warm if point.setting.dtype != dtype}
            held -= size
        gc.collect()


def _prompt(model: Any, point: Point, seed: int) -> dict[str, Any]:  # noqa: ANN401 - transformers' own
    """Random tokens: times do not depend on what they say, and nothing has to be tokenized."""
    torch = importlib.import_module("torch")
    chance = torch.Generator().manual_seed(seed)
    config = model.config.get_text_config(decoder=True)
    shape = (point.batch_size, point.input_tokens)
    ids = torch.randint(0, config.vocab_size, shape, generator=chance)
    return {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}


def _outcome(error: Exception) -> str:
    if type(error).__name__ in {"OutOfMemoryError", "MemoryError"}:
        return OUT_OF_MEMORY
    said = _first_line(error)
    if isinstance(error, RuntimeError) and _holds(str(error).lower(), _NOT_ALLOCATED):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {said}"[:_SAID_CHARACTERS]


def _holds(text: str, words: Iterable[str]) -> bool:
    return any(word in text for word in words)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _release() -> None:
    """What a failed request held must not be missing to the next."""
    gc.collect()
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
