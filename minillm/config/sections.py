"""The sections of a configuration: frozen dataclasses, strictly loaded.

measurements/ has the sections of what is measured in addition to ROUGE-L, onpolicy.py that of the on-policy phase, experiment.py the
whole.
Stages that train import these sections alone, so that a new analysis re-runs no training.

Launch values (`Launch`) say how a stage is run, not what it computes; they are in no stage's settings.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, WithJsonSchema
from pydantic.dataclasses import dataclass

from minillm.config.onpolicy import OnPolicy
from minillm.config.strict import STRICT, Count, Name, Natural, Positive, Share

Precision = Literal["fp32", "bf16", "fp16"]


# --- what there is to work on
@dataclass(frozen=True, config=STRICT)
class Tokenizer:
    """Where a tokenizer comes from: trained on the plain text, a local folder, the hub, or a GGUF file.

    `path` is a folder, a hub name or a file; `package:NAME/FILE` is a file inside an installed Python package and
    `$MINILLM_DATA/...` one below the folder that this environment variable names.
    """

    source: Literal["train", "folder", "hub", "gguf"]
    path: str = ""
    revision: str = ""
    vocabulary: Annotated[int, Field(ge=260)] = 1024


@dataclass(frozen=True, config=STRICT)
class Dataset:
    """Instruction data, or plain text for the pre-training corpus.

    embedded: `split` of the generator in embedded_corpus.py.  folder: `path` is a .jsonl file (instruction, input, output) or, for plain
    text, a .txt file with one document a line.  hub: `datasets.load_dataset(path, subset, split=split, revision=revision)`.
    `start` and `rows` take a slice of the source as it is ordered; `sample` takes a seeded subset of what was kept.
    `fields` renames columns: {"instruction": "their name"}.
    """

    source: Literal["embedded", "folder", "hub"]
    path: str = ""
    subset: str = ""
    split: str = ""
    revision: str = ""
    start: Natural = 0
    rows: Natural = 0
    sample: Natural = 0
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    label: str = ""


# --- how to train
@dataclass(frozen=True, config=STRICT)
class Sampling:
    """How responses are drawn; 0 (top_k, no_repeat_ngram) and 1.0 (top_p) switch a filter off."""

    temperature: Positive = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    no_repeat_ngram: Natural = 0
    max_tokens: Count = 256


@dataclass(frozen=True, config=STRICT)
class Training:
    """Supervised training.  `batch` is global: accumulation follows from it, the micro-batch and the process count.

    `loss` is "ce" (cross-entropy on the responses) or "kd" (that mixed with forward KL to the teacher at `kd_ratio`).
    `evaluations` counts dev evaluations over the whole run, evenly spread, the last one at the end.
    """

    lr: Positive
    epochs: Positive
    batch: Count = 32
    loss: Literal["ce", "kd"] = "ce"
    kd_ratio: Share = 0.5
    schedule: Literal["constant", "cosine"] = "cosine"
    min_lr: Annotated[float, Field(ge=0)] = 1e-7
    warmup: Natural = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Share, Share] = (0.9, 0.999)
    clip_norm: Positive = 1.0
    dropout: bool = True
    evaluations: Count = 1
    dev_rows: Natural = 0


@dataclass(frozen=True, config=STRICT)
class Pseudo:
    """The teacher's answers to training prompts, for SeqKD (`rows` = 0: all), and to `dev_rows` dev prompts, which only measure it."""

    rows: Natural = 0
    dev_rows: Natural = 100
    sampling: Sampling = dataclasses.field(default_factory=Sampling)


@dataclass(frozen=True, config=STRICT)
class Model:
    """A base model.  `tokenizer` names an entry of `tokenizers`; teacher and student of a pair must share it.

    scratch: `architecture` holds model_type and the arguments of that transformers configuration, pre-trained by `training` on
    the plain text.  folder, hub, gguf: `path` as in Tokenizer.  pruned: `layers` of the base model `parent`, healed by
    `training` (distillation from it on the plain text and the training rows).
    """

    source: Literal["scratch", "folder", "hub", "gguf", "pruned"]
    tokenizer: Name
    family: str = ""
    size: str = ""
    path: str = ""
    revision: str = ""
    architecture: dict[str, Any] = dataclasses.field(default_factory=dict)
    parent: str = ""
    layers: tuple[Natural, ...] = ()
    training: Training | None = None


# --- the whole experiment
@dataclass(frozen=True, config=STRICT)
class Data:
    """Which sets are used and how rows become tokens; lengths are in tokens of the pair's tokenizer."""

    train: Name
    dev: Name
    corpus: Name
    tests: tuple[Name, ...]
    template: Literal["alpaca", "plain"] = "alpaca"
    max_prompt: Count = 256
    max_response: Count = 256
    corpus_length: Annotated[int, Field(ge=8)] = 512
    seed: int = 0


@dataclass(frozen=True, config=STRICT)
class Pair:
    """One teacher and the students that are distilled from it, by `methods` (empty: the run's)."""

    teacher: Name
    students: tuple[Name, ...]
    methods: tuple[Name, ...] = ()


@dataclass(frozen=True, config=STRICT)
class Stages:
    """Settings of the stages for every model; `per_model` overrides single keys for one.

    `minillm` holds the keys that are given, and no defaults, since a preset comes before a default (`experiment.on_policy`).
    """

    teacher: Training
    sft: Training
    kd: Training
    seqkd: Training
    pseudo: Pseudo = dataclasses.field(default_factory=Pseudo)
    minillm: Annotated[dict[str, Any], WithJsonSchema(TypeAdapter(OnPolicy).json_schema())] = dataclasses.field(
        default_factory=dict
    )


@dataclass(frozen=True, config=STRICT)
class Style:
    """Looks of the figures; nothing but them depends on it."""

    width: Positive = 7.0
    height: Positive = 3.2
    dpi: Count = 200
    font_size: Positive = 9.0
    palette: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Estimators:
    """The exact study of gradient estimators (docs/estimators.md): how small a world, and how far apart student and teacher.

    `distances` maps a name to the standard deviation of the difference of the logits; "disjoint" is set apart by that many nats on
    the teacher's likeliest tokens.
    """

    vocabulary: Annotated[int, Field(ge=2, le=5)] = 3
    horizon: Annotated[int, Field(ge=1, le=6)] = 4
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (1, 2, 3)
    alphas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.2, 0.5)
    distances: dict[Name, Positive] = dataclasses.field(
        default_factory=lambda: {"near": 0.1, "middle": 0.5, "far": 2.0, "disjoint": 3.0}
    )


@dataclass(frozen=True, config=STRICT)
class Launch:
    """How a stage is run on the machine; recorded beside the result, compared with nothing."""

    zero: Literal[0, 1, 2, 3] = 1
    micro_batch: Count = 8  # rows at once in training, at most
    micro_tokens: Natural = 0  # positions at once in training, padding included, at most; 0: as many as the rows have
    eval_batch: Count = 32  # the same two where there is no gradient: sampling and dev sets
    eval_tokens: Natural = 0
    processes: Count = 1
    offload: bool = False
    shard_teacher: bool = False
    gradient_checkpointing: bool = False
    attention: Literal["auto", "sdpa", "eager"] = "auto"  # how transformers computes it in updates; auto: as it likes
    compile: bool = False  # losses and, in updates, decoder blocks, by torch: fewer passes over numbers, seconds at the start
    teacher_cache: bool = True  # keep the teacher's hidden states: of samples for inner epochs, of fixed rows for later ones
    save_every: Count = 100
    log_every: Count = 10
    tensorboard: bool = False
    patience: Count = 600  # seconds without a sign of life from another process
