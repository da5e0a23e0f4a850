"""Folders of tiny models and a file of rows, as `minillm init` is given them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from minillm.data.tokenizers import train_tokenizer

TEXTS = [f"Add {i} and {i + 1}." for i in range(40)]


def model(folder: Path, tokenizer: PreTrainedTokenizerBase, layers: int, positions: int = 128) -> Path:
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=positions,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def rows(path: Path, count: int, **columns: str) -> Path:
    names = {"instruction": "instruction", "output": "output", **columns}
    made = [{names["instruction"]: f"Add {i} and 1.", names["output"]: str(i + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def make(folder: Path) -> Path:
    """Folders Big and small with one tokenizer, other with another, and rows.jsonl, in `folder`."""
    tokenizer = train_tokenizer(TEXTS, 280)
    model(folder / "Big", tokenizer, 3)
    model(folder / "small", tokenizer, 1)
    model(folder / "other", train_tokenizer(["zzz yyy xxx"] * 9, 300), 1)
    rows(folder / "rows.jsonl", 120)
    return folder
