"""Two chat templates with different end tokens over one small vocabulary, and rows that are conversations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minillm.config.chat import Chat
from minillm.config.data import Dataset, Tokenizer
from minillm.config.stage_settings import DataSettings
from minillm.data import embedded_corpus

EOS = "<|endoftext|>"
SPECIAL = [EOS, "<|im_start|>", "<|im_end|>", "<|start|>", "<|head_end|>", "<|header|>", "<|eot|>"]
# Turns between marks; an empty block of thoughts where there are to be none.
MARKS = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Headers before turns, which are trimmed, after a beginning; no system message, and turns alternate.
HEADERS = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
    "<|start|>{% for turn in messages %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<|header|>{{ turn['role'] }}<|head_end|>\n\n{{ turn['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|head_end|>\n\n{% endif %}"
)


def make_tokenizer(folder: Path, template: str | None, vocabulary: int = 320) -> Path:
    """A byte-level BPE with all of SPECIAL, always the same, and one chat template; saved to `folder`."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(embedded_corpus.plain_text(100), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=EOS)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def spec(folder: Path, **chat: Any) -> Tokenizer:
    """An entry of `tokenizers`."""
    return Tokenizer(source="folder", path=str(folder), chat=Chat(**chat) if chat else None)


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    roles = ("user", "assistant")
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def conversations(path: Path, *rows: Any) -> Dataset:
    """A file of rows: each a list of messages, or an object as it is."""
    lines = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Dataset(source="folder", path=str(path))


def some_rows(split: str, count: int) -> list[list[dict[str, str]]]:
    """Conversations of one question, and of two for every third, from the embedded corpus."""
    rows = embedded_corpus.instructions(split, 2 * count)
    texts = [(f"{row['instruction']} {row['input']}".strip(), row["output"]) for row in rows]
    return [turns(*texts[2 * i], *(texts[2 * i + 1] if i % 3 == 0 else ())) for i in range(count)]


def settings(folder: Path, own: Tokenizer, *also: Tokenizer, **more: Any) -> DataSettings:
    """Of stage `data` for files in `folder`, which are made if they are not there."""
    train, dev = folder / "train.jsonl", folder / "dev.jsonl"
    if not train.exists():
        conversations(train, *some_rows("train", 18))
        conversations(dev, *some_rows("dev", 4))
    made = DataSettings(
        stage="data",
        tokenizer=own,
        train=Dataset(source="folder", path=str(train)),
        dev=Dataset(source="folder", path=str(dev)),
        corpus=Dataset(source="embedded", rows=30),
        template="chat",
        max_prompt=200,
        max_response=120,
        corpus_length=32,
        seed=0,
        also=also or None,
    )
    return dataclasses.replace(made, **more)


def configuration(folder: Path) -> dict[str, Any]:
    """A whole configuration: the teacher by HEADERS, the student by MARKS without thoughts."""
    once = {"lr": 1e-3, "epochs": 1, "batch": 6}

    def model(tokenizer: str, size: str, layers: int) -> dict[str, Any]:
        shape = {"model_type": "gpt2", "n_embd": 16, "n_layer": layers, "n_head": 2, "n_positions": 256}
        training = {**once, "epochs": 0.5, "batch": 8}
        named = {"source": "scratch", "tokenizer": tokenizer, "family": "Tiny", "size": size}
        return {**named, "architecture": shape, "training": training}

    def file(name: str) -> dict[str, str]:
        return {"source": "folder", "path": str(folder / f"{name}.jsonl")}

    return {
        "run": "chat",
        "precision": "fp32",
        "sampling_seeds": [10],
        "tokenizers": {
            "marks": {"source": "folder", "path": str(folder / "marks"), "chat": {"thinking": False}},
            "headers": {"source": "folder", "path": str(folder / "headers")},
        },
        "models": {"big": model("headers", "big", 2), "small": model("marks", "small", 1)},
        "datasets": {
            **{name: file(name) for name in ("train", "dev", "test")},
            "text": {"source": "embedded", "rows": 60},
        },
        "data": {
            **{"train": "train", "dev": "dev", "corpus": "text", "tests": ["test"], "template": "chat"},
            **{"turns": "all", "max_prompt": 160, "max_response": 40, "corpus_length": 32},
        },
        "pairs": [{"teacher": "big", "students": ["small"]}],
        "stages": {
            "teacher": once,
            "sft": once,
            "kd": {**once, "epochs": 2, "loss": "kd"},
            "seqkd": {**once, "loss": "kd"},
            "pseudo": {"dev_rows": 2, "sampling": {"max_tokens": 16}},
            "minillm": {
                **{"lr": 1e-3, "collections": 2, "rollouts": 8, "batch": 4, "inner_epochs": 1},
                **{"max_tokens": 16, "lm_batch": 4, "warmup": 0},
            },
        },
        "generate": {"max_tokens": 16},
        "exposure_bias": {"tests": ["test"], "responses": 2, "max_tokens": 8, "resamples": 20},
        "diversity": {"tests": ["test"], "ngram": 2},
    }
