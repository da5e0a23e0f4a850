"""A tiny random model of each architecture that is tried, by name: what people bring, in its usual shapes.

All have 13 output rows.  Windows of 4 positions are shorter than what is sampled.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SHAPE: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}
GPT: dict[str, Any] = {"n_positions": 64, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
# As LLaMA, with one key and value for two queries.
ROTARY: dict[str, Any] = {
    "intermediate_size": 32,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
OPT: dict[str, Any] = {"ffn_dim": 32, "max_position_embeddings": 64, "dropout": 0.0, "init_std": 0.5}
GEMMA: dict[str, Any] = {**ROTARY, "sliding_window": 4, "query_pre_attn_scalar": 8}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **GPT},
    "opt": {"model_type": "opt", "word_embed_proj_dim": 16, **OPT},
    "opt-350m": {"model_type": "opt", "word_embed_proj_dim": 8, "do_layer_norm_before": False, **OPT},
    "gptj": {"model_type": "gptj", "rotary_dim": 4, **GPT},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 4,
        "max_position_embeddings": 64,
        "attention_dropout": 0.0,
        "embed_dropout": 0.0,
        "resid_dropout": 0.0,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "rotary_pct": 0.5,
    },
    "llama": {"model_type": "llama", **ROTARY},
    "mistral-sliding": {"model_type": "mistral", **ROTARY, "sliding_window": 4},
    "qwen2": {"model_type": "qwen2", **ROTARY},
    "qwen2-sliding": {
        "model_type": "qwen2",
        **ROTARY,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **ROTARY},
    "gemma": {"model_type": "gemma", **ROTARY},
    "gemma2": {"model_type": "gemma2", **GEMMA},
    "gemma3": {"model_type": "gemma3_text", **GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 1 + ["sliding_attention"]},
    "phi": {"model_type": "phi", **{k: v for k, v in ROTARY.items() if k not in ("head_dim", "rms_norm_eps")}, "resid_pdrop": 0.0},
    "phi3": {"model_type": "phi3", **{k: v for k, v in ROTARY.items() if k != "head_dim"}, "sliding_window": 4},
    "bloom": {"model_type": "bloom", "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "falcon": {"model_type": "falcon", "multi_query": True, "max_position_embeddings": 64},
    "falcon-alibi": {"model_type": "falcon", "alibi": True, "max_position_embeddings": 64},
    "falcon-new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 1, "max_position_embeddings": 64},
    "mpt": {"model_type": "mpt", "d_model": 16, "n_heads": 2, "n_layers": 3, "max_seq_len": 64},
    "stablelm": {"model_type": "stablelm", **{k: v for k, v in ROTARY.items() if k not in ("head_dim", "rms_norm_eps")}},
    "mixtral": {"model_type": "mixtral", **ROTARY, "num_local_experts": 2, "sliding_window": 4},
    "smollm3": {"model_type": "smollm3", **ROTARY},
    "olmo2": {"model_type": "olmo2", **{k: v for k, v in ROTARY.items() if k != "head_dim"}},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **GPT},
    "xglm": {"model_type": "xglm", "d_model": 16, "num_layers": 3, "attention_heads": 2, "ffn_dim": 32},
    "codegen": {"model_type": "codegen", "rotary_dim": 4, **GPT},
    "cohere": {"model_type": "cohere", **{k: v for k, v in ROTARY.items() if k not in ("head_dim", "rms_norm_eps")}},
    "starcoder2": {"model_type": "starcoder2", **{k: v for k, v in ROTARY.items() if k not in ("head_dim", "rms_norm_eps")}, "sliding_window": 4},
    "granite": {"model_type": "granite", **{k: v for k, v in ROTARY.items() if k not in ("head_dim",)}},
    "llama4": {"model_type": "llama4_text", **ROTARY, "num_local_experts": 2, "intermediate_size_mlp": 32, "attention_chunk_size": 4},
    "mamba": {"model_type": "mamba"},
    "mamba2": {"model_type": "mamba2", "num_heads":4, "head_dim":8, "n_groups":1},
    "lfm2": {"model_type": "lfm2", **{k: v for k, v in ROTARY.items() if k not in ("head_dim", "rms_norm_eps")}, "layer_types": ["conv", "full_attention", "conv"]},
    "jamba": {"model_type": "jamba", **ROTARY},
    "rwkv": {"model_type": "rwkv"},
    "recurrent_gemma": {"model_type": "recurrent_gemma", **ROTARY},
    "bert": {"model_type": "bert"},
    "ernie4_5": {"model_type": "ernie4_5", **ROTARY},
    "gpt_oss": {"model_type": "gpt_oss", **ROTARY, "num_local_experts": 2, "sliding_window": 4},
    "deepseek_v3": {"model_type": "deepseek_v3", **ROTARY},
    "qwen3_next": {"model_type": "qwen3_next", **ROTARY},
}


def make(name: str, seed: int) -> PreTrainedModel:
    """A model whose weights are large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{**SHAPE, **ARCHITECTURES[name]})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()
