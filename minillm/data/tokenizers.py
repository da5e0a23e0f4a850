"""The tokenizer of a run: trained on plain text, or taken from a folder, the hub or a GGUF file; EOS and PAD are always set.

And the tokenizer that a model comes with, which has to give the same ids.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import has_file
from transformers.utils import logging as transformers_logging

from minillm.config.sections import Model, Tokenizer
from minillm.data.sources import resolve_path
from minillm.errors import UserError

END = "<|endoftext|>"
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)  # one of them holds a vocabulary
transformers_logging.disable_progress_bar()


def make_tokenizer(spec: Tokenizer, texts: Callable[[], list[str]]) -> PreTrainedTokenizerBase:
    """The tokenizer that `spec` describes; `texts` gives the plain text that "train" learns from.

    PAD is the EOS where the tokenizer has none of its own.  Raises UserError where it cannot be had or has no EOS.
    """
    if spec.source == "train":
        return train_tokenizer(texts(), spec.vocabulary)
    where = "tokenizers.path"
    tokenizer = _load(spec, where)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{where}: the tokenizer '{spec.path}' has no EOS token; responses could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(spec: Tokenizer | Model, where: str) -> PreTrainedTokenizerBase:
    try:
        if spec.source == "hub":
            return AutoTokenizer.from_pretrained(spec.path, revision=spec.revision or "main")
        path = resolve_path(spec.path, where)
        if not path.exists():
            raise UserError(f"{where}: {path}: no such file or folder; check the path of this tokenizer")
        if spec.source == "gguf":
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # a malformed tokenizer.json alone raises several kinds, KeyError among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__} "
        raise UserError(f"{where}: cannot load the tokenizer '{spec.path}': {kind}{reason}") from None


def own_tokenizer(model: Model) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a model of a folder, the hub or a GGUF file comes with; None where it comes without one.

    Raises UserError where there is one that cannot be loaded.
    """
    where = "models.path"
    # Looked for first: transformers makes an empty one up where there is none.
    if model.source == "folder":
        folder = resolve_path(model.path, where)
        found = any((folder / name).is_file() for name in FILES)
    elif model.source == "hub":
        found = any(has_file(model.path, name, revision=model.revision or "main") for name in FILES)
    else:
        found = True
    return _load(model, where) if found else None


def check_ids(own: PreTrainedTokenizerBase, run: PreTrainedTokenizerBase, where: str) -> None:
    """UserError where the model at `where`, whose tokenizer is `own`, would read ids of the run's tokenizer as other tokens.

    The model may know more tokens (GPT-J, Qwen), and the run may have added some (a PAD) where the model has none or an added one;
    but the EOS ends every response and has to be the same.
    """
    known, used = ({i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in (own, run))
    added_known, added_used = (set(tokenizer.get_added_vocab().values()) for tokenizer in (own, run))
    free = {i for i in added_used if i not in known or i in added_known} - {run.eos_token_id}
    differing = [i for i in sorted(used) if known.get(i) != used[i] and i not in free]
    if differing:
        i = differing[0]
        raise UserError(
            f"{where}: the model's own tokenizer and the run's differ in {len(differing)} of {len(used)} tokens, e.g. {i} is "
            f"{known.get(i, 'nothing')!r} to the model and {used[i]!r} in the run; give the model its own tokenizer (models.tokenizer)"
        )


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of `vocabulary` entries: nothing is unknown to it, and its one special token is EOS and PAD."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
