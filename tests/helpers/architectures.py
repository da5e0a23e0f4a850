"""A tiny random model of each architecture that people bring, by name, and of those that are refused.

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
    # No row holds it: a row of the embedding that is all zeros has no gradient through a norm.
    "pad_token_id": 12,
    "initializer_range": 0.5,
}
# Names of older families. All take more positions than are used.
GPT: dict[str, Any] = {"n_positions": 64, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
OPT: dict[str, Any] = {"ffn_dim": 32, "max_position_embeddings": 64, "dropout": 0.0, "init_std": 0.5}
PHI: dict[str, Any] = {"intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 64}
# One key and value for two queries.
ROTARY: dict[str, Any] = {**PHI, "rms_norm_eps": 1e-6, "head_dim": 8}
GEMMA: dict[str, Any] = {**ROTARY, "sliding_window": 4, "query_pre_attn_scalar": 8}
NEO: dict[str, Any] = {"window_size": 4, "max_position_embeddings": 64, "attention_dropout": 0.0}
FALCON: dict[str, Any] = {"model_type": "falcon", "max_position_embeddings": 64}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **GPT},
    "opt": {"model_type": "opt", "word_embed_proj_dim": 16, **OPT},
    "opt-350m": {"model_type": "opt", "word_embed_proj_dim": 8, "do_layer_norm_before": False, **OPT},
    "gptj": {"model_type": "gptj", "rotary_dim": 4, **GPT},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "attention_types": [[["global", "local", "global"], 1]],
        "embed_dropout": 0.0,
        "resid_dropout": 0.0,
        **NEO,
    },
    "gpt_neox": {"model_type": "gpt_neox", "intermediate_size": 32, "max_position_embeddings": 64},
    "llama": {"model_type": "llama", **ROTARY},
    "mistral-sliding": {"model_type": "mistral", **ROTARY, "sliding_window": 4},
    "mixtral": {"model_type": "mixtral", **ROTARY, "num_local_experts": 2},
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
    "gemma3": {"model_type": "gemma3_text", **GEMMA, "sliding_window_pattern": 2},
    "phi": {"model_type": "phi", **PHI, "resid_pdrop": 0.0},
    "phi3": {"model_type": "phi3", **PHI, "sliding_window": 4},
    "bloom": {"model_type": "bloom", "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "falcon": {**FALCON, "multi_query": True},
    "falcon-alibi": {**FALCON, "alibi": True},
    "falcon-40b": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 1},
    "mpt": {"model_type": "mpt", "d_model": 16, "n_heads": 2, "n_layers": 3, "max_seq_len": 64},
}
# Refused when they are loaded, with what the line says.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({"model_type": "mamba"}, "keeps a state of its own, from which finished rows"),
    "lfm2": (
        {"model_type": "lfm2", **PHI, "layer_types": ["conv", "full_attention", "conv"]},
        "keeps LinearAttentionLayer, from which finished rows",
    ),
    "rwkv": ({"model_type": "rwkv"}, "keeps a state of its own, from which finished rows"),
    "llama4": (
        {"model_type": "llama4_text", **ROTARY, "num_local_experts": 2, "intermediate_size_mlp": 32},
        "keeps chunks of positions",
    ),
    "cohere": ({"model_type": "cohere", **PHI}, "does more to its logits"),
    "bert": ({"model_type": "bert", "intermediate_size": 32}, "reads later tokens too"),
}


def make(architecture: dict[str, Any], seed: int) -> PreTrainedModel:
    """A model whose weights are large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**{**SHAPE, **architecture})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()
