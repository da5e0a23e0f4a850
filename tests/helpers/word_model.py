"""A tiny random model whose tokenizer makes one token of a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_models import make
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.files import hashes, model_content, write_json


def word_model(folder: Path, words: Sequence[str]) -> Path:
    """The model in `folder`, with 13 output rows; of its `words` the first is the EOS, the second unknown."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[1]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=words[0], pad_token=words[0], unk_token=words[1]
    ).save_pretrained(folder)
    make("llama", 3).save_pretrained(folder)
    write_json(folder / "provenance.json", {"content": model_content(hashes(folder))})
    return folder
