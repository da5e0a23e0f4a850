"""What `minillm init` finds out about a model: where it is, its shape, tokenizer, licence and gate."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minillm.config.data import Tokenizer
from minillm.config.experiment import Experiment
from minillm.config.sections import Model
from minillm.config.strict import hint
from minillm.data.fetch import asks_for_licence
from minillm.data.file_kinds import TOKENIZER
from minillm.data.tokenizers import check_ids, make_tokenizer, own_tokenizer, vocabulary_size
from minillm.errors import UserError
from minillm.fits.sizes import size_of, text_of
from minillm.models.checks import in_one_line
from minillm.publish.lineage import UNKNOWN, licence_of
from minillm.readers import read_json

# The tokenizer of models that are not in the catalogue.
SHARED = "shared"
# Keys of a config.json that say nothing about a model's size.
IRRELEVANT = re.compile(
    r"architectures|auto_map|dtype|torch_dtype|transformers_version|use_cache|.*_token_id|_.*|task_.*|.*dropout"
)


@dataclass(frozen=True)
class Found:
    """A model: its name and entry in the configuration, and what its files say.

    known: whether the catalogue has it under this name.  tokenizer: None if the catalogue says all that is
    needed and its files were not looked at.
    """

    name: str
    spec: Model
    known: bool
    shape: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def parameters(self) -> int:
        """Counted on its class; raises UserError if transformers does not know that."""
        return size_of(text_of(self.shape)).parameters

    @property
    def positions(self) -> int:
        """Most tokens that it reads; 0 if its configuration does not say."""
        return int(self.shape.get("max_position_embeddings") or self.shape.get("n_positions") or 0)

    @property
    def chats(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return bool(self.tokenizer and self.tokenizer.chat_template)

    def line(self) -> str:
        """Name, size, licence and, if the hub asks for it to be accepted, what to do."""
        licence = licence_of(dataclasses.asdict(self.spec))
        words = [f"{self.name}: {self.parameters:,} parameters", f"licence {licence}" * (licence != UNKNOWN)]
        words += ["has a chat template" * self.chats]
        words += [asks_for_licence(self.spec.path) if self.spec.gated else ""]
        return "; ".join(filter(None, words))


def find(name: str, catalogue: Experiment, files: bool = True) -> Found:
    """The model `name`: an entry of the catalogue, a folder, or OWNER/NAME of the hub.

    With `files` its configuration and tokenizer are read; those of the hub are downloaded.  Raises UserError,
    one line, if there is no such model, or it cannot be read.
    """
    if name in catalogue.models:
        spec = catalogue.models[name]
        if not files:
            return Found(name, spec, True, catalogue.shapes[name])
        return dataclasses.replace(_read(name, spec), known=True, shape=catalogue.shapes[name])
    if Path(name).is_dir():
        spec = Model(source="folder", path=name, tokenizer=SHARED)
        return _read(_name(Path(name).resolve().name, catalogue), spec)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        spec = Model(source="hub", path=name, tokenizer=SHARED)
        return _read(_name(name.split("/")[1], catalogue), spec)
    problem = "no such folder, and neither a name of config/models.yaml nor OWNER/NAME of the hub"
    raise UserError(f"{name}: {problem}; {hint(name, catalogue.models)}")


def _name(text: str, catalogue: Experiment) -> str:
    """A name that a configuration takes, and that no entry of the catalogue has: keys would be merged."""
    name = re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-._") or "model"
    return f"{name}-own" if name in catalogue.models else name


def _read(name: str, spec: Model) -> Found:
    folder = Path(spec.path) if spec.source == "folder" else _downloaded(spec)
    if not (folder / "config.json").is_file():
        raise UserError(f"{spec.path}: no model here (config.json is missing); check the path")
    config = read_json(folder / "config.json")
    shape = {k: v for k, v in config.items() if v is not None and not IRRELEVANT.fullmatch(k)}
    local = dataclasses.replace(spec, source="folder", path=str(folder))
    if own_tokenizer(local) is None:
        raise UserError(f"{spec.path}: no tokenizer here (tokenizer.json is missing); save it with the model")
    # As a run would load it: with a PAD, and refused without an EOS.
    tokenizer = make_tokenizer(Tokenizer(source="folder", path=str(folder)), list)
    return Found(name, spec, False, shape, tokenizer)


def _downloaded(spec: Model) -> Path:
    """The folder in the hub's cache with all small files of a repository."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    try:
        patterns = [*TOKENIZER, "chat_template*", "README.md"]
        return Path(
            huggingface_hub.snapshot_download(
                spec.path, revision=spec.revision or "main", allow_patterns=patterns
            )
        )
    except Exception as error:
        # The hub's clients raise many kinds of exceptions, network failures among them.
        gated = spec.gated or isinstance(error, GatedRepoError)
        raise UserError(
            f"{spec.path}: cannot be had from the hub ({in_one_line(error)}); "
            + (f"{asks_for_licence(spec.path)}; " if gated else "")
            + "check name and network, or name a folder"
        ) from None


def renderers(teacher: Found, student: Found, shared: Found) -> tuple[Found, Found]:
    """Whose tokenizer the teacher and the student read: each its own, if they have two chat templates.

    That takes one vocabulary; `shared` is the tokenizer of both otherwise.
    """
    ours, theirs = teacher.tokenizer, student.tokenizer
    if ours is None or theirs is None or not (teacher.chats and student.chats):
        return shared, shared
    alike = (ours.chat_template, ours.eos_token) == (theirs.chat_template, theirs.eos_token)
    return (shared, shared) if alike or ours.get_vocab() != theirs.get_vocab() else (teacher, student)


def shared_tokenizer(teacher: Found, student: Found, catalogue: Experiment) -> Found:
    """Whose tokenizer both models read: the teacher, or the student if only that one's fits both.

    Raises UserError, one line with what can be done instead, if there is none.
    """
    if teacher.known and student.known and teacher.spec.tokenizer == student.spec.tokenizer:
        return teacher
    problems = []
    for ours, theirs in ((teacher, student), (student, teacher)):
        assert ours.tokenizer is not None and theirs.tokenizer is not None
        try:
            check_ids(theirs.tokenizer, ours.tokenizer, theirs.name)
        except UserError as error:
            problems.append(str(error))
            continue
        if theirs.shape.get("vocab_size", 0) >= vocabulary_size(ours.tokenizer):
            return ours
    family = [
        name
        for name, model in catalogue.models.items()
        if teacher.known and model.tokenizer == teacher.spec.tokenizer and name != teacher.name
    ]
    smaller = f" ({', '.join(family)})" if family else ""
    raise UserError(
        f"{student.name} and {teacher.name} have different tokenizers, and every method here, SeqKD too, "
        f"needs one for both: choose a student of the teacher's family{smaller}, or let the teacher answer "
        "your prompts elsewhere and give its answers as --data with a teacher of the student's family"
    )
