"""The tokenizer of a run: trained on plain text, or taken from a folder, the hub or a GGUF file; EOS and PAD are always set."""

from __future__ import annotations

from collections.abc import Callable

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from minillm.config import Tokenizer
from minillm.errors import UserError
from minillm.sources import resolve_path

END = "<|endoftext|>"
transformers_logging.disable_progress_bar()


def make_tokenizer(spec: Tokenizer, texts: Callable[[], list[str]]) -> PreTrainedTokenizerBase:
    """The tokenizer that `spec` describes; `texts` gives the plain text that "train" learns from.

    PAD is the EOS where the tokenizer has none of its own.  Raises UserError where it cannot be had or has no EOS.
    """
    if spec.source == "train":
        return train_tokenizer(texts(), spec.vocabulary)
    where = "tokenizers.path"
    try:
        if spec.source == "hub":
            tokenizer = AutoTokenizer.from_pretrained(spec.path, revision=spec.revision or "main")
        else:
            path = resolve_path(spec.path, where)
            if not path.exists():
                raise UserError(f"{where}: {path}: no such file or folder; check the path of this tokenizer")
            if spec.source == "gguf":
                tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            else:
                tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # a malformed tokenizer.json alone raises several kinds, KeyError among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__} "
        raise UserError(f"{where}: cannot load the tokenizer '{spec.path}': {kind}{reason}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{where}: the tokenizer '{spec.path}' has no EOS token; responses could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of `vocabulary` entries: nothing is unknown to it, and its one special token is EOS and PAD."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
