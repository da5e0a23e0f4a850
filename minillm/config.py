"""What can be configured: frozen dataclasses, strictly loaded.

These dataclasses are the only source of the schema.  `experiment(raw)` checks a whole configuration (what the YAML files hold
together); `settings.stage_settings` cuts out of it what one stage depends on.  Anything unknown, of the wrong type or out of range
is refused with one line that names file and key.

Launch values (`Launch`) say how a stage is run, not what it computes; they are in no stage's settings.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from minillm.analyses import (
    Calibration,
    Diversity,
    ExposureBias,
    Human,
    Judge,
    Lengths,
    check_judgements,
    check_responses,
)
from minillm.errors import UserError
from minillm.semantics import OnPolicy, Variant, check_on_policy, expanded
from minillm.strict import STRICT, Count, Name, Natural, Positive, Share, hint, merged, parse

Precision = Literal["fp32", "bf16"]
METHODS = ("sft", "kd", "seqkd", "minillm")  # and the names of `variants`


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

    embedded: `split` of the generator in corpus.py.  folder: `path` is a .jsonl file (instruction, input, output) or, for plain
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
    """One teacher and the students that are distilled from it."""

    teacher: Name
    students: tuple[Name, ...]


@dataclass(frozen=True, config=STRICT)
class Stages:
    """Settings of the stages for every model; `per_model` overrides single keys for one."""

    teacher: Training
    sft: Training
    kd: Training
    seqkd: Training
    pseudo: Pseudo = dataclasses.field(default_factory=Pseudo)
    minillm: OnPolicy = dataclasses.field(default_factory=OnPolicy)


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
    micro_batch: Count = 8
    eval_batch: Count = 32
    processes: Count = 1
    offload: bool = False
    gradient_checkpointing: bool = False
    save_every: Count = 100
    log_every: Count = 10
    tensorboard: bool = False


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """One configuration: everything that a run's results depend on, and how to run it.

    `checkpoints` maps a path below models/ (gpt2/minillm/gpt2-xl/seed10) to a finished model that is taken from a folder or the hub
    instead of being trained.
    """

    run: Name
    tokenizers: dict[Name, Tokenizer]
    models: dict[Name, Model]
    datasets: dict[Name, Dataset]
    data: Data
    pairs: tuple[Pair, ...]
    stages: Stages
    methods: tuple[Name, ...] = METHODS
    checkpoints: dict[str, Model] = dataclasses.field(default_factory=dict)
    variants: dict[Name, Variant] = dataclasses.field(default_factory=dict)
    training_seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (10,)
    sampling_seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (10, 20, 30, 40, 50)
    precision: Precision = "bf16"
    generate: Sampling = dataclasses.field(default_factory=Sampling)
    per_model: dict[Name, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    launch: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    style: Style = dataclasses.field(default_factory=Style)
    estimators: Estimators = dataclasses.field(default_factory=Estimators)
    exposure_bias: ExposureBias = dataclasses.field(default_factory=ExposureBias)
    lengths: Lengths = dataclasses.field(default_factory=Lengths)
    diversity: Diversity = dataclasses.field(default_factory=Diversity)
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    judge: Judge = dataclasses.field(default_factory=Judge)
    human: Human = dataclasses.field(default_factory=Human)


# --- checking a whole configuration
STAGES = (
    "data",
    "testset",
    "base",
    "checkpoint",
    "teacher",
    "sft",
    "kd",
    "pseudo",
    "seqkd",
    "minillm",
    "generate",
    "rouge",
    "table",
    "figure",
    "estimators",
    "samples",
    "exposure_bias",
    "lengths",
    "diversity",
    "reference_loss",
    "subsets",
    "calibration",
    "judge",
    "human",
    "publish",
)


def schema() -> dict[str, Any]:
    """JSON schema of a configuration, for Snakemake's `validate` and for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(Experiment).json_schema()}


def experiment(raw: dict[str, Any], where: str = "config") -> Experiment:
    """A whole configuration, checked: types and ranges, names that refer to something, tokenizers shared by each pair.

    Raises UserError (one line naming `where` and the key).
    """
    config = parse(Experiment, _with_presets(raw, where), where)

    def known(name: str, table: dict[str, Any], key: str) -> None:
        if name not in table:
            raise UserError(f"{where}: {key}: there is no '{name}'; {hint(name, table)}")

    for key in ("train", "dev", "corpus"):
        known(getattr(config.data, key), config.datasets, f"data.{key}")
    for i, name in enumerate(config.data.tests):
        known(name, config.datasets, f"data.tests.{i}")
    check_responses(config.exposure_bias, config.lengths, config.diversity, config.data.tests, where)
    for i, pair in enumerate(config.pairs):
        known(pair.teacher, config.models, f"pairs.{i}.teacher")
        for j, student in enumerate(pair.students):
            known(student, config.models, f"pairs.{i}.students.{j}")
            ours, theirs = config.models[student].tokenizer, config.models[pair.teacher].tokenizer
            if ours != theirs:
                raise UserError(
                    f"{where}: pairs.{i}.students.{j}: {student} has the tokenizer '{ours}' and its teacher {pair.teacher} "
                    f"'{theirs}'; word-level distillation needs one vocabulary"
                )
    for name, model in config.models.items():
        known(model.tokenizer, config.tokenizers, f"models.{name}.tokenizer")
        _check_model(config, name, model, known, where)
    for weights, model in config.checkpoints.items():
        _check_checkpoint(config, weights, model, where)
    for name, variant in config.variants.items():
        if name in STAGES:
            raise UserError(f"{where}: variants.{name}: this is the name of a stage; choose another")
        check_on_policy(merged(config.stages.minillm, variant.settings, where, f"variants.{name}"), where, f"variants.{name}")
    for i, method in enumerate(config.methods):
        known(method, dict.fromkeys((*METHODS, *config.variants)), f"methods.{i}")
    check_on_policy(config.stages.minillm, where, "stages.minillm")
    for name, stages in config.per_model.items():
        known(name, config.models, f"per_model.{name}")
        for stage, values in stages.items():
            default = getattr(config.stages, stage, None)
            if default is None:
                raise UserError(f"{where}: per_model.{name}.{stage}: no such stage")
            found = merged(default, values, where, f"per_model.{name}.{stage}")
            if isinstance(found, OnPolicy):
                check_on_policy(found, where, f"per_model.{name}.{stage}")
                for label, variant in config.variants.items():
                    key = f"variants.{label} with per_model.{name}.{stage}"
                    check_on_policy(merged(found, variant.settings, where, key), where, key)
    check_judgements(config.calibration, config.judge, config.human, config.datasets, config.data.tests, where)
    for stage, values in config.launch.items():
        if stage != "default" and stage not in STAGES:
            raise UserError(f"{where}: launch.{stage}: no such stage; known: default, {', '.join(STAGES)}")
        parse(Launch, values, where, f"launch.{stage}")
    return config


def _with_presets(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """`raw` with the presets of on-policy settings filled in; anything of a wrong form is left for the strict check."""
    raw = copy.deepcopy(raw)

    def fill(holder: Any, key: str, under: str) -> None:
        if isinstance(holder, dict) and isinstance(holder.get(key), dict):
            holder[key] = expanded(holder[key], where, under)

    fill(raw.get("stages"), "minillm", "stages.minillm")
    for section, key in (("variants", "settings"), ("per_model", "minillm")):
        table = raw.get(section)
        for name, entry in table.items() if isinstance(table, dict) else ():
            fill(entry, key, f"{section}.{name}.{key}")
    return raw


def _check_checkpoint(config: Experiment, weights: str, model: Model, where: str) -> None:
    """A checkpoint stands where a trained model would, comes from a folder or the hub, and has the tokenizer of that model."""
    key = f"{where}: checkpoints.{weights}"
    seeds = [f"seed{seed}" for seed in config.training_seeds]
    places = {f"{pair.teacher}/teacher": pair.teacher for pair in config.pairs}
    for pair in config.pairs:
        for student in pair.students:
            for method in (*METHODS, *config.variants):
                under = f"{student}/sft" if method == "sft" else f"{student}/{method}/{pair.teacher}"
                places |= {f"{under}/{seed}": student for seed in seeds}
    if weights not in places:
        raise UserError(f"{key}: no model of this run has this place; {hint(weights, places)}")
    if model.source not in ("folder", "hub") or not model.path:
        raise UserError(f"{key}: a checkpoint has the source 'folder' or 'hub', and a path")
    if model.tokenizer != config.models[places[weights]].tokenizer:
        raise UserError(f"{key}.tokenizer: differs from that of {places[weights]}")


def _check_model(config: Experiment, name: str, model: Model, known: Any, where: str) -> None:
    needs = {"scratch": "architecture", "pruned": "layers"}.get(model.source, "path")
    if not getattr(model, needs):
        raise UserError(f"{where}: models.{name}.{needs}: missing; source '{model.source}' needs it")
    if model.source in ("scratch", "pruned") and model.training is None:
        raise UserError(f"{where}: models.{name}.training: missing; source '{model.source}' needs it")
    if model.source == "pruned":
        known(model.parent, config.models, f"models.{name}.parent")
        if config.models[model.parent].tokenizer != model.tokenizer:
            raise UserError(f"{where}: models.{name}.tokenizer: differs from that of its parent {model.parent}")
