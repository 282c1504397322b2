"""Real models, small enough for a test."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers")


def build_llama(transformers, **overrides):
    """A two-layer Llama with random weights; it never emits its end token by itself."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1000,
            **overrides,
        }
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture
def llama(transformers):
    return build_llama(transformers)


@pytest.fixture
def prompt():
    torch.manual_seed(1)
    return torch.randint(1, 1000, (1, 9))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct and its tokenizer, from the package that carries the weights."""
    from inferscope.experiments.models import load  # noqa: PLC0415

    return load(None)


@pytest.fixture(scope="session")
def model_folder(transformers, tmp_path_factory):
    """A tiny model with its tokenizer, saved. Words are tokens; those from word064 on are too many for the model."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"word{number:03}": number for number in range(100)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="word000"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("model") / "tiny-words"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    build_llama(transformers, vocab_size=64).save_pretrained(folder)
    return folder


@pytest.fixture
def no_global_provider(monkeypatch):
    """The process has no providers, before and after."""
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.metrics import _internal as metrics_state  # noqa: PLC0415
    from opentelemetry.util._once import Once  # noqa: PLC0415

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(metrics_state, "_METER_PROVIDER", None)
    monkeypatch.setattr(metrics_state, "_METER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(metrics_state, "_PROXY_METER_PROVIDER", metrics_state._ProxyMeterProvider())


@pytest.fixture
def patient_exports(monkeypatch):
    """What a receiver of the test takes is not lost because the machine is busy; `setup` alone reads this."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
