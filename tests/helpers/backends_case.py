"""What the tests of vLLM and servers share: a tokenizer, tiny model folders, a test set, our own answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.data.tokenizers import train_tokenizer, vocabulary_size
from minillm.models.loading import load_model, load_tokenizer, save_model
from minillm.runtime import provenance
from minillm.runtime.processes import World
from minillm.sampling.answerer import Request
from minillm.sampling.generate import answer_all

WORLD = World(0, 1, torch.device("cpu"))
# In the place of vLLM's process.
FAKE = Path(__file__).with_name("fake_vllm.py")
TEXTS = ["the cat sat on the mat and the dog ran to the door", "one two three four five six seven eight"] * 8
PROMPTS = ("the cat", "one two three", "a dog ran to", "five", "the door and the mat")
# Of each, sizes that vLLM's kernels take too: heads of 32.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "llama": {"model_type": "llama", "num_key_value_heads": 1, "intermediate_size": 96},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1, "intermediate_size": 96},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.2},
    "gpt_neox": {"model_type": "gpt_neox", "intermediate_size": 96},
}
COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}


def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE."""
    return train_tokenizer(TEXTS, 300)


def model_folder(folder: Path, family: str, padding: int = 0, seed: int = 0) -> Path:
    """A random model in fp32 with `padding` rows past its tokenizer's entries, as a stage leaves it.

    The padding is likely: its rows are those of other tokens, scaled up.
    """
    words = tokenizer()
    torch.manual_seed(seed)
    eos = words.eos_token_id
    shape = SHAPES[family]
    rest = {} if family == "gpt2" else COMMON
    config = AutoConfig.for_model(
        **{
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "initializer_range": 0.2,
            **rest,
            **shape,
            "vocab_size": vocabulary_size(words) + padding,
        }
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        # Likely after some prompts, never after others.
        rows[eos] = 2 * rows[rows.norm(dim=1).argmax()]
        if padding:
            rows[-padding:] = 3 * rows[1 : padding + 1]
    folder.mkdir(parents=True)
    save_model(model, words, folder)
    provenance.write(folder, {}, {}, {"seed": seed})
    return folder


def test_file(path: Path, words: PreTrainedTokenizerBase, prompts: Sequence[str] = PROMPTS) -> Path:
    """A test set of these prompts, as stage `testset` writes it."""
    path.write_text(
        "".join(
            json.dumps(
                {
                    "id": i,
                    "dataset": "words",
                    "prompt": prompt,
                    "prompt_tokens": words.encode(prompt),
                    "references": ["the mat"],
                }
            )
            + "\n"
            for i, prompt in enumerate(prompts)
        )
    )
    return path


def requests(words: PreTrainedTokenizerBase, seeds: Sequence[int] = (10, 20)) -> list[Request]:
    """One request a prompt and seed."""
    return [
        Request((seed, i), i, seed, np.asarray(words.encode(prompt), dtype=np.int32))
        for seed in seeds
        for i, prompt in enumerate(PROMPTS)
    ]


def ours(folder: Path, asked: Sequence[Request], sampling: Sampling, journal: Path) -> list[dict[str, Any]]:
    """The answers of transformers."""
    model, words = load_model(folder, "fp32"), load_tokenizer(folder)
    answers = answer_all(model, words, asked, sampling, Launch(), WORLD, journal)
    assert answers is not None
    return answers
