"""The tokenizer of a run: trained on plain text or from a folder, the hub or a GGUF file; with EOS and PAD.

And the tokenizer that a model comes with, which must give the same ids.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import has_file
from transformers.utils import logging as transformers_logging

from minillm.config.data import Tokenizer
from minillm.config.sections import Model
from minillm.data.sources import resolve_path
from minillm.errors import UserError

END = "<|endoftext|>"
# One of these holds the vocabulary.
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
transformers_logging.disable_progress_bar()


def make_tokenizer(spec: Tokenizer, texts: Callable[[], list[str]]) -> PreTrainedTokenizerBase:
    """The tokenizer that `spec` describes; `texts` returns the plain text that "train" learns from.

    PAD is the EOS if the tokenizer has no PAD of its own.  Raises UserError if it cannot be loaded or has no
    EOS.
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
    except Exception as error:
        # Just a malformed tokenizer.json raises several kinds of exceptions, KeyError among them.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__} "
        raise UserError(f"{where}: cannot load the tokenizer '{spec.path}': {kind}{reason}") from None


def own_tokenizer(model: Model) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a model from a folder, the hub or a GGUF file comes with; None if there is none.

    Raises UserError if it has one that cannot be loaded.
    """
    where = "models.path"
    # Checked first, because transformers makes up an empty one if there is none.
    if model.source == "folder":
        folder = resolve_path(model.path, where)
        present = any((folder / name).is_file() for name in FILES)
    elif model.source == "hub":
        present = any(has_file(model.path, name, revision=model.revision or "main") for name in FILES)
    else:
        present = True
    return _load(model, where) if present else None


def check_ids(model: PreTrainedTokenizerBase, run: PreTrainedTokenizerBase, where: str) -> None:
    """Raises UserError if the model at `where`, which comes with tokenizer `model`, misreads ids of `run`.

    The model may know more tokens (GPT-J, Qwen), and the run may have added some (a PAD) whose ids the model
    lacks or has for added tokens; but the EOS, which ends every response, must be the same.
    """
    model_tokens, run_tokens = (
        {i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in (model, run)
    )
    model_added, run_added = (set(tokenizer.get_added_vocab().values()) for tokenizer in (model, run))
    free = {i for i in run_added if i not in model_tokens or i in model_added} - {run.eos_token_id}
    differing = [i for i in sorted(run_tokens) if model_tokens.get(i) != run_tokens[i] and i not in free]
    if differing:
        i = differing[0]
        raise UserError(
            f"{where}: the model's own tokenizer and the run's differ in {len(differing)} of "
            f"{len(run_tokens)} tokens, e.g. {i} is {model_tokens.get(i, 'nothing')!r} to the model and "
            f"{run_tokens[i]!r} in the run; "
            "give the model its own tokenizer (models.tokenizer)"
        )


def check_same_tokens(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, our_name: object, their_name: object
) -> int:
    """The number of tokens that two tokenizers share; UserError if they differ in any."""
    a, b = ours.get_vocab(), theirs.get_vocab()
    if a != b:
        differing = sum(a.get(token) != i for token, i in b.items()) + sum(token not in b for token in a)
        raise UserError(
            f"{our_name}: its vocabulary does not match that of {their_name} ({len(a)} and {len(b)} tokens, "
            f"{differing} of them differ); word-level distillation needs one tokenizer: choose a student "
            "of the teacher's family"
        )
    return len(a)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of rows that a model needs for the tokens: the highest id + 1.

    `len(tokenizer)` counts the tokens, which is less if ids between them are unused (an EOS of id 300 after
    257 entries).  Unused ids are tokens that no text has.
    """
    return max(tokenizer.get_vocab().values()) + 1


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of `vocabulary` entries, to which no text is unknown.

    Its one special token is both EOS and PAD.
    """
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
