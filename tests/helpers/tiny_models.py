"""Tiny random models of four families, for tests.

They have 13 output rows, and learned (GPT-2, OPT) or rotary (LLaMA, Qwen2) positions.
"""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FAMILIES = ("gpt2", "opt", "llama", "qwen2")
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}


def make(family: str, seed: int, layers: int = 2) -> PreTrainedModel:
    """A model whose weights are large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "vocab_size": 13,
        "pad_token_id": 0,
        **SPECIAL,
    }
    rotary = {"intermediate_size": 32, "num_key_value_heads": 2, "initializer_range": 0.5, **shape}
    if family == "gpt2":
        gpt2 = GPT2Config(
            n_embd=16,
            n_layer=layers,
            n_head=2,
            vocab_size=13,
            n_positions=64,
            initializer_range=0.5,
            **SPECIAL,
        )
        return GPT2LMHeadModel(gpt2).eval()
    if family == "opt":
        opt = OPTConfig(ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.5, **shape)
        return OPTForCausalLM(opt).eval()
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**rotary)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**rotary)).eval()
