"""What a prediction can be made from: a configuration, a saved spec or a trace, found by what the user calls it.

No weights are read. Everything here that knows transformers stands in this file and in models.py.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferscope.errors import MissingExtraError, ModelNotFoundError
from inferscope.sinks.jsonl import read_records
from inferscope.sinks.model_file import is_model_file, read_model

if TYPE_CHECKING:
    from inferscope.records import GenerationRecord

__all__ = ["Source", "find"]

_HUB_TIMEOUT_S = 10
_LARGEST_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was found.

    Attributes:
        model: A configuration, a `ModelSpec`, or a `GenerationRecord`.
        name: As people call it.
        heads: Query heads, key-value heads and their width; None where that is not known.
    """

    model: Any
    name: str
    heads: tuple[int, int, int] | None = None


def find(where: str) -> Source:
    """The model that is meant.

    Args:
        where: A folder with a config.json, a config.json or another JSON file of that kind, a saved model spec, a
            record file (.jsonl, its last record), a .gguf file, or a hub id.

    Raises:
        ModelNotFoundError: There is no such model, or its configuration cannot be read.
        MissingExtraError: transformers or gguf is not installed.
        RecordFormatError: A record file or a saved spec is damaged.
    """
    path = Path(where).expanduser()
    if path.suffix == ".jsonl":
        return _last_record(path)
    if path.is_file() and is_model_file(path):
        spec = read_model(path)
        return Source(model=spec, name=spec.name)
    if path.suffix == ".gguf":
        return _named(_from_gguf(path), path.stem)
    if path.is_dir():
        return _named(_from_file(path / "config.json"), path.resolve().name)
    if path.is_file():
        return _named(_from_file(path), path.stem if path.stem != "config" else path.resolve().parent.name)
    if path.suffix == ".json" or where.startswith(("/", ".", "~")) or where.count("/") > 1:
        raise ModelNotFoundError(f"{where}: no such folder or file")
    return _named(_from_hub(where), where)


def _last_record(path: Path) -> Source:
    records = read_records(path)
    if not records:
        raise ModelNotFoundError(f"{path}: there is no record in it")
    record: GenerationRecord = records[-1]
    return Source(model=record, name=record.model.name)


def _named(config: Any, name: str) -> Source:  # noqa: ANN401 - transformers' configs
    config._name_or_path = name  # noqa: SLF001 - transformers' own place for it
    return Source(model=config, name=name, heads=_heads(config))


def _heads(config: Any) -> tuple[int, int, int] | None:  # noqa: ANN401 - transformers' configs
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    queries = getattr(text, "num_attention_heads", None)
    hidden = getattr(text, "hidden_size", None)
    if not isinstance(queries, int) or not isinstance(hidden, int) or queries < 1:
        return None
    pairs = getattr(text, "num_key_value_heads", None) or queries
    return queries, pairs, getattr(text, "head_dim", None) or hidden // queries


def _from_file(path: Path) -> Any:  # noqa: ANN401 - transformers' configs
    if not path.is_file():
        raise ModelNotFoundError(f"{path.parent}: the folder has no config.json, so it describes no model")
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise ModelNotFoundError(f"{path}: larger than any configuration")
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFoundError(f"{path}: not JSON that can be read: {_first_line(error)}") from error
    kind = facts.pop("model_type", None) if isinstance(facts, dict) else None
    if not isinstance(kind, str):
        raise ModelNotFoundError(f"{path}: no model_type in it, so it is no transformers configuration")
    transformers = _transformers()  # takes a second: what is no configuration has been refused by now
    try:
        return transformers.AutoConfig.for_model(kind, **facts)
    except Exception as error:  # what is wrong with a value reaches us as a library's own class
        raise ModelNotFoundError(f"{path}: not a configuration that can be read: {_first_line(error)}") from error


def _from_gguf(path: Path) -> Any:  # noqa: ANN401 - transformers' configs
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such GGUF file")
    transformers = _transformers()
    try:
        return transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except ImportError as error:
        raise MissingExtraError(f"a package for reading GGUF files is missing: {_first_line(error)}") from error
    except Exception as error:
        raise ModelNotFoundError(f"{path} cannot be read as GGUF: {_first_line(error)}") from error


def _from_hub(name: str) -> Any:  # noqa: ANN401 - transformers' configs
    transformers = _transformers()
    with contextlib.suppress(Exception):  # it is not in the cache, whatever class says so
        return transformers.AutoConfig.from_pretrained(name, local_files_only=True)
    try:
        importlib.import_module("huggingface_hub").HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
        return transformers.AutoConfig.from_pretrained(name)
    except Exception as error:
        raise ModelNotFoundError(
            f"{name} is no local folder or file and cannot be had from the Hugging Face hub: {_first_line(error)}"
        ) from error


def _transformers() -> Any:  # noqa: ANN401 - ships no types
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            f"transformers cannot be imported ({_first_line(error)}): install inferscope with its extra [hf]"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
