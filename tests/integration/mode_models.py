"""Random models of every architecture that has a way of generating of its own, each a few thousand weights."""

from __future__ import annotations

import torch
import transformers

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "initializer_range": 0.3,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
TEXT2TEXT = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.3,
}
IMAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
IMAGE_TOKEN = 99
SOUND_TOKEN = 98
CONFIGS = {
    "llama": lambda t: t.LlamaConfig(**SMALL),
    "mistral, window": lambda t: t.MistralConfig(**SMALL, sliding_window=4),
    "gemma3, windows": lambda t: t.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda t: t.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "mixtral": lambda t: t.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "qwen2 moe": lambda t: t.Qwen2MoeConfig(
        **SMALL,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "deepseek v3": lambda t: t.DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "mamba": lambda t: t.MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=8),
    "mamba2": lambda t: t.Mamba2Config(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
    ),
    "jamba": lambda t: t.JambaConfig(
        **SMALL,
        num_experts=2,
        num_experts_per_tok=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "bamba": lambda t: t.BambaConfig(**SMALL, attn_layer_indices=[1], **MAMBA2),
    "falcon h1": lambda t: t.FalconH1Config(**SMALL, mamba_d_ssm=64, **MAMBA2),
    "recurrent gemma": lambda t: t.RecurrentGemmaConfig(
        **{**SMALL, "num_hidden_layers": 3}, lru_width=32, attention_window_size=8
    ),
    "rwkv": lambda t: t.RwkvConfig(vocab_size=100, context_length=32, hidden_size=32, num_hidden_layers=2),
}


def decoder(name, *, seed=0, **overrides):
    """A decoder-only model that never ends by itself."""
    torch.manual_seed(seed)
    config = CONFIGS[name](transformers)
    for key, value in overrides.items():
        setattr(config, key, value)
    return endless(transformers.AutoModelForCausalLM.from_config(config))


def endless(model):
    """The model, ready to generate as many tokens as it is asked for."""
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def t5(*, seed=0):
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=100,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        initializer_factor=3.0,
    )
    return endless(transformers.T5ForConditionalGeneration(config))


def bart():
    torch.manual_seed(0)
    config = transformers.BartConfig(
        **TEXT2TEXT, max_position_embeddings=64, decoder_start_token_id=2, forced_eos_token_id=None
    )
    return endless(transformers.BartForConditionalGeneration(config))


def whisper(*, multilingual=False):
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        **{**TEXT2TEXT, "vocab_size": 200},
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=40,
        decoder_start_token_id=150,
        pad_token_id=198,
        eos_token_id=199,
        bos_token_id=199,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    generation = model.generation_config
    generation.no_timestamps_token_id, generation.is_multilingual = 160, multilingual
    generation.suppress_tokens = generation.begin_suppress_tokens = []
    generation.eos_token_id, generation.pad_token_id, generation.max_length = 199, 198, 16
    if multilingual:
        generation.lang_to_id = {"<|en|>": 151, "<|de|>": 152}
        generation.task_to_id = {"transcribe": 155, "translate": 156}
    return model


def llava():
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**IMAGE, projection_dim=32),
        text_config=transformers.LlamaConfig(**SMALL),
        image_token_id=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return endless(transformers.LlavaForConditionalGeneration(config))


def blip():
    torch.manual_seed(0)
    text = transformers.BlipTextConfig(
        vocab_size=100,
        hidden_size=32,
        encoder_hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        sep_token_id=2,
        pad_token_id=0,
        eos_token_id=2,
    )
    vision = transformers.BlipVisionConfig(**IMAGE, projection_dim=32)
    config = transformers.BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32)
    return transformers.BlipForConditionalGeneration(config).eval()


def captioner():
    """An image encoder with a text decoder: two models put together."""
    torch.manual_seed(0)
    encoder = transformers.ViTModel(transformers.ViTConfig(**IMAGE))
    text = transformers.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, is_decoder=True, add_cross_attention=True
    )
    model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=transformers.GPT2LMHeadModel(text))
    model.generation_config.decoder_start_token_id = 1
    return endless(model)


def listener():
    """A model whose sound encoder runs inside its first forward."""
    torch.manual_seed(0)
    config = transformers.Qwen2AudioConfig(
        audio_config=transformers.Qwen2AudioEncoderConfig(
            num_mel_bins=8,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            max_source_positions=20,
        ).to_dict(),
        text_config=transformers.Qwen2Config(**SMALL).to_dict(),
        audio_token_index=SOUND_TOKEN,
        audio_token_id=SOUND_TOKEN,
    )
    return endless(transformers.Qwen2AudioForConditionalGeneration(config))


def tokenizer(words):
    """A tokenizer that knows these words, in this order; the first fills up, the second ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=words[0], pad_token=words[0], eos_token=words[1]
    )
