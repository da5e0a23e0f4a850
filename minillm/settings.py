"""What each stage depends on, and nothing else: one frozen dataclass a stage, cut out of a whole configuration.

`stage_settings` makes them, `canonical` turns them into the text of the stage's settings file, and the stage reads that file with
`strict.load`.  So one value edited in a configuration changes the files of exactly the stages that depend on it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from minillm.analysis_settings import analysis_settings
from minillm.config import (
    Dataset,
    Estimators,
    Experiment,
    Launch,
    Model,
    Pair,
    Precision,
    Pseudo,
    Sampling,
    Style,
    Tokenizer,
    Training,
)
from minillm.semantics import OnPolicy
from minillm.strict import STRICT, Count, Name, merged, parse


@dataclass(frozen=True, config=STRICT)
class DataSettings:
    """`data`: tokenizer, training rows, dev rows and corpus of one tokenizer."""

    stage: Literal["data"]
    tokenizer: Tokenizer
    train: Dataset
    dev: Dataset
    corpus: Dataset
    template: str
    max_prompt: Count
    max_response: Count
    corpus_length: Count
    seed: int


@dataclass(frozen=True, config=STRICT)
class TestSettings:
    """`testset`: one test set in one tokenizer."""

    __test__ = False  # not a pytest class

    stage: Literal["testset"]
    name: str
    dataset: Dataset
    template: str
    max_prompt: Count
    seed: int


@dataclass(frozen=True, config=STRICT)
class BaseSettings:
    """`base`: one base model."""

    stage: Literal["base"]
    model: Model
    seed: int
    precision: Precision
    sampling: Sampling


@dataclass(frozen=True, config=STRICT)
class TrainSettings:
    """`teacher`, `sft`, `kd`, `seqkd`: supervised training of one model with one seed."""

    stage: Literal["teacher", "sft", "kd", "seqkd"]
    model: str
    seed: int
    precision: Precision
    training: Training
    sampling: Sampling
    teacher: str = ""


@dataclass(frozen=True, config=STRICT)
class PseudoSettings:
    """`pseudo`: the teacher's answers to the training prompts."""

    stage: Literal["pseudo"]
    teacher: str
    seed: int
    precision: Precision
    pseudo: Pseudo


@dataclass(frozen=True, config=STRICT)
class OnPolicySettings:
    """`minillm`: the on-policy phase of one student under one teacher with one seed."""

    stage: Literal["minillm"]
    method: str
    model: str
    teacher: str
    seed: int
    precision: Precision
    training: OnPolicy


@dataclass(frozen=True, config=STRICT)
class GenerateSettings:
    """`generate`: answers of one model to one test set, all sampling seeds."""

    stage: Literal["generate"]
    seeds: tuple[int, ...]
    precision: Precision
    sampling: Sampling


@dataclass(frozen=True, config=STRICT)
class TableSettings:
    """`table`: rows and columns of the main table, and what its spread ranges over."""

    stage: Literal["table"]
    run: str
    pairs: tuple[Pair, ...]
    methods: tuple[Name, ...]
    method_labels: dict[str, str]
    labels: dict[str, str]
    tests: tuple[str, ...]
    test_labels: dict[str, str]
    training_seeds: tuple[int, ...]
    sampling_seeds: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, config=STRICT)
class FigureSettings:
    """`figure`: looks only."""

    stage: Literal["figure"]
    style: Style


@dataclass(frozen=True, config=STRICT)
class EstimatorSettings:
    """`estimators`: the exact study of gradient estimators, and the looks of its figure."""

    stage: Literal["estimators"]
    study: Estimators
    style: Style


def for_model(config: Experiment, stage: str, model: str) -> Any:
    """Settings of `stage` for `model`: the common ones with the model's own keys replaced."""
    values = config.per_model.get(model, {}).get(stage, {})
    return merged(getattr(config.stages, stage), values, "config", f"per_model.{model}.{stage}")


def on_policy(config: Experiment, method: str, model: str) -> OnPolicy:
    """Settings of MiniLLM or a variant of it for one student: the common ones, then the model's keys, then the variant's."""
    settings: OnPolicy = for_model(config, "minillm", model)
    if method in config.variants:
        settings = merged(settings, config.variants[method].settings, "config", f"variants.{method}")
    return settings


def _data_settings(config: Experiment, tokenizer: str) -> DataSettings:
    data = config.data
    return DataSettings(
        stage="data",
        tokenizer=config.tokenizers[tokenizer],
        train=config.datasets[data.train],
        dev=config.datasets[data.dev],
        corpus=config.datasets[data.corpus],
        template=data.template,
        max_prompt=data.max_prompt,
        max_response=data.max_response,
        corpus_length=data.corpus_length,
        seed=data.seed,
    )


def table_settings(config: Experiment) -> TableSettings:
    used = {name for pair in config.pairs for name in (pair.teacher, *pair.students)}
    return TableSettings(
        stage="table",
        run=config.run,
        pairs=config.pairs,
        methods=config.methods,
        method_labels={name: config.variants[name].label for name in config.methods if name in config.variants},
        labels={name: f"{m.family} {m.size}".strip() or name for name, m in config.models.items() if name in used},
        tests=config.data.tests,
        test_labels={name: config.datasets[name].label or name for name in config.data.tests},
        training_seeds=config.training_seeds,
        sampling_seeds=config.sampling_seeds,
        sampling=config.generate,
    )


def _model_settings(config: Experiment, stage: str, model: str, teacher: str, seed: int, weights: str) -> Any:
    """Settings of a stage that makes a model, or the teacher's answers; None for any other stage."""
    first_seed = config.training_seeds[0]  # base models, teachers and their answers are made once
    dev_sampling = Sampling(max_tokens=config.data.max_response)
    if stage in ("base", "checkpoint"):
        spec = config.models[model] if stage == "base" else config.checkpoints[weights]
        return BaseSettings(stage="base", model=spec, seed=first_seed, precision=config.precision, sampling=dev_sampling)
    if stage in ("teacher", "sft", "kd", "seqkd"):
        return TrainSettings(
            stage=stage,  # type: ignore[arg-type]
            model=model,
            teacher=teacher,
            seed=seed,
            precision=config.precision,
            training=for_model(config, stage, model),
            sampling=dev_sampling,
        )
    if stage == "pseudo":
        return PseudoSettings(
            stage="pseudo",
            teacher=teacher,
            seed=first_seed,
            precision=config.precision,
            pseudo=for_model(config, stage, teacher),
        )
    if stage == "minillm" or stage in config.variants:
        return OnPolicySettings(
            stage="minillm",
            method=stage,
            model=model,
            teacher=teacher,
            seed=seed,
            precision=config.precision,
            training=on_policy(config, stage, model),
        )
    return None


def stage_settings(
    config: Experiment,
    stage: str,
    *,
    tokenizer: str = "",
    model: str = "",
    teacher: str = "",
    seed: int = 0,
    test: str = "",
    weights: str = "",
) -> dict[str, Any]:
    """Exactly what one stage depends on, as plain data; `canonical` makes it the text of its settings file."""
    settings: Any
    if stage == "data":
        settings = _data_settings(config, tokenizer)
    elif stage == "testset":
        settings = TestSettings(
            stage="testset",
            name=test,
            dataset=config.datasets[test],
            template=config.data.template,
            max_prompt=config.data.max_prompt,
            seed=config.data.seed,
        )
    elif stage == "generate":
        settings = GenerateSettings(
            stage="generate", seeds=config.sampling_seeds, precision=config.precision, sampling=config.generate
        )
    elif stage == "table":
        settings = table_settings(config)
    elif stage == "figure":
        settings = FigureSettings(stage="figure", style=config.style)
    elif stage == "estimators":
        settings = EstimatorSettings(stage="estimators", study=config.estimators, style=config.style)
    else:
        made = _model_settings(config, stage, model, teacher, seed, weights)
        settings = made if made is not None else analysis_settings(config, stage, test)
    return dataclasses.asdict(settings)


def canonical(settings: dict[str, Any]) -> str:
    """One text for equal settings, whatever the order of keys."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=True)


def launch_values(config: Experiment, stage: str) -> dict[str, Any]:
    """Launch values of a stage: `launch.default` with the stage's own keys replaced."""
    values = {**config.launch.get("default", {}), **config.launch.get(stage, {})}
    return dataclasses.asdict(parse(Launch, values, "config", f"launch.{stage}"))
