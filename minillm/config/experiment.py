"""A whole configuration, and its check.

The dataclasses are the only source of the schema.  `experiment(raw)` checks what the YAML files hold together; `stages.stage_settings`
cuts out of it what one stage depends on.  Anything unknown, of the wrong type or out of range is refused with one line that names
file and key.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from minillm.config.evaluation_sections import (
    Calibration,
    Diversity,
    ExposureBias,
    Human,
    Judge,
    Lengths,
    Subsets,
    check_judgements,
    check_responses,
)
from minillm.config.onpolicy import OnPolicy, Variant, check_on_policy, combined
from minillm.config.sections import (
    Data,
    Dataset,
    Estimators,
    Launch,
    Model,
    Pair,
    Precision,
    Sampling,
    Stages,
    Style,
    Tokenizer,
)
from minillm.config.strict import STRICT, Count, Name, Natural, hint, merged, parse
from minillm.errors import UserError

SUBSETS = "subsets:"  # begins the path of a data set that the stage `subsets` makes
METHODS = ("sft", "kd", "seqkd", "minillm")  # and the names of `variants`


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """One configuration: everything that a run's results depend on, and how to run it.

    `pairs` are the rows of the main table; `sweeps` are further models, of `methods` of their own, for the tables and figures that
    compare settings or teachers (publish/registry.py), which alone show them; they are trained with the first training seed alone.
    `checkpoints` maps a path below models/ (gpt2/minillm/gpt2-xl/seed10) to a finished model that is taken from a folder or the hub
    instead of being trained.  `per_model` maps a model to the keys that it replaces in each of `stages`, and under `launch` in the launch
    values of each stage's jobs that work with it, as teacher or student.  `cores` maps a stage to the CPU cores of one of its jobs on
    one machine, where that is not all of them: small jobs then run side by side.
    """

    run: Name
    tokenizers: dict[Name, Tokenizer]
    models: dict[Name, Model]
    datasets: dict[Name, Dataset]
    data: Data
    pairs: tuple[Pair, ...]
    stages: Stages
    methods: tuple[Name, ...] = METHODS
    sweeps: tuple[Pair, ...] = ()
    checkpoints: dict[str, Model] = dataclasses.field(default_factory=dict)
    variants: dict[Name, Variant] = dataclasses.field(default_factory=dict)
    training_seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (10,)
    sampling_seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (10, 20, 30, 40, 50)
    precision: Precision = "bf16"
    generate: Sampling = dataclasses.field(default_factory=Sampling)
    per_model: dict[Name, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    launch: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    cores: dict[str, Count] = dataclasses.field(default_factory=dict)
    subsets: dict[Name, Subsets] = dataclasses.field(default_factory=dict)
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
    "fetch",
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
    config = parse(Experiment, raw, where)

    def known(name: str, table: dict[str, Any], key: str) -> None:
        if name not in table:
            raise UserError(f"{where}: {key}: there is no '{name}'; {hint(name, table)}")

    for key in ("train", "dev", "corpus"):
        known(getattr(config.data, key), config.datasets, f"data.{key}")
    for i, name in enumerate(config.data.tests):
        known(name, config.datasets, f"data.tests.{i}")
    check_responses(config.exposure_bias, config.lengths, config.diversity, config.data.tests, config.datasets, where)
    for i, pair in enumerate(config.pairs):
        _check_pair(config, pair, known, where, f"pairs.{i}")
    for i, pair in enumerate(config.sweeps):
        _check_pair(config, pair, known, where, f"sweeps.{i}")
        if not pair.methods:
            raise UserError(f"{where}: sweeps.{i}.methods: missing; name the methods that are trained beside the main table's")
    for name, dataset in config.datasets.items():
        if dataset.path.startswith(SUBSETS):
            known(dataset.path.removeprefix(SUBSETS).split("/")[0], config.subsets, f"datasets.{name}.path")
    for name, model in config.models.items():
        known(model.tokenizer, config.tokenizers, f"models.{name}.tokenizer")
        _check_model(config, name, model, known, where)
    for weights, model in config.checkpoints.items():
        _check_checkpoint(config, weights, model, where)
    for name in config.variants:
        if name in STAGES:
            raise UserError(f"{where}: variants.{name}: this is the name of a stage; choose another")
    for student in ("", *(name for name, stages in config.per_model.items() if "minillm" in stages)):
        for method in ("minillm", *config.variants):
            on_policy(config, method, student, where)
    for i, method in enumerate(config.methods):
        known(method, _methods(config), f"methods.{i}")
    for name, stages in config.per_model.items():
        known(name, config.models, f"per_model.{name}")
        for stage, values in stages.items():
            if stage == "launch":
                _check_launch(values, where, f"per_model.{name}.launch")
                continue
            default = getattr(config.stages, stage, None)
            if default is None:
                raise UserError(f"{where}: per_model.{name}.{stage}: no such stage")
            if stage != "minillm":
                merged(default, values, where, f"per_model.{name}.{stage}")
    check_judgements(config.calibration, config.judge, config.human, config.datasets, config.data.tests, where)
    _check_launch({stage: values for stage, values in config.launch.items() if stage != "default"}, where, "launch")
    parse(Launch, config.launch.get("default", {}), where, "launch.default")
    for stage in config.cores:
        known(stage, dict.fromkeys(STAGES), f"cores.{stage}")
    return config


def on_policy(config: Experiment, method: str, model: str, where: str = "config") -> OnPolicy:
    """Settings of MiniLLM or a variant of it for one student: the preset, then the common keys, the model's, the variant's.

    Raises UserError where they mean nothing together.
    """
    given, names = [config.stages.minillm], []
    if "minillm" in config.per_model.get(model, {}):
        given.append(config.per_model[model]["minillm"])
        names.append(f"per_model.{model}.minillm")
    if method in config.variants:
        given.append(config.variants[method].settings)
        names.insert(0, f"variants.{method}")
    under = " with ".join(names) or "stages.minillm"
    settings = combined(given, where, under)
    check_on_policy(settings, where, under)
    return settings


def _check_launch(stages: dict[str, Any], where: str, key: str) -> None:
    for stage, values in stages.items():
        if stage not in STAGES:
            raise UserError(f"{where}: {key}.{stage}: no such stage; {hint(stage, STAGES)}")
        parse(Launch, values, where, f"{key}.{stage}")


def trained(config: Experiment, *, sweeps: bool) -> list[tuple[str, str, str]]:
    """(teacher, student, method) of every student, each once: of the main table, and of the sweeps where these are wanted."""
    pairs = (*config.pairs, *config.sweeps) if sweeps else config.pairs
    return list(
        dict.fromkeys(
            (pair.teacher, student, method)
            for pair in pairs
            for student in pair.students
            for method in pair.methods or config.methods
        )
    )


def seeds_of(config: Experiment, teacher: str, student: str, method: str) -> tuple[int, ...]:
    """Training seeds of a student: all of them in the main table, the first alone in a sweep."""
    main = (teacher, student, method) in trained(config, sweeps=False)
    return config.training_seeds if main else config.training_seeds[:1]


def _methods(config: Experiment) -> dict[str, None]:
    return dict.fromkeys((*METHODS, *config.variants))


def _check_pair(config: Experiment, pair: Pair, known: Any, where: str, key: str) -> None:
    known(pair.teacher, config.models, f"{key}.teacher")
    for i, method in enumerate(pair.methods):
        known(method, _methods(config), f"{key}.methods.{i}")
    for j, student in enumerate(pair.students):
        known(student, config.models, f"{key}.students.{j}")
        ours, theirs = config.models[student].tokenizer, config.models[pair.teacher].tokenizer
        if ours != theirs:
            raise UserError(
                f"{where}: {key}.students.{j}: {student} has the tokenizer '{ours}' and its teacher {pair.teacher} "
                f"'{theirs}'; word-level distillation needs one vocabulary"
            )


def _check_checkpoint(config: Experiment, weights: str, model: Model, where: str) -> None:
    """A checkpoint stands where a trained model would, comes from a folder or the hub, and has the tokenizer of that model."""
    key = f"{where}: checkpoints.{weights}"
    seeds = [f"seed{seed}" for seed in config.training_seeds]
    pairs = (*config.pairs, *config.sweeps)
    places = {f"{pair.teacher}/teacher": pair.teacher for pair in pairs}
    for pair in pairs:
        for student in pair.students:
            for method in _methods(config):
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
