"""From a whole configuration to what each stage depends on.

`stage_settings` cuts it out, and `canonical` turns it into the text of the stage's settings file.  So one value edited in a
configuration changes the files of exactly the stages that depend on it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from minillm.config.evaluation_settings import (
    CalibrationSettings,
    DiversitySettings,
    ExposureBiasSettings,
    HumanSettings,
    JudgeSettings,
    LengthsSettings,
    ReferenceLossSettings,
    SamplesSettings,
    SubsetsSettings,
)
from minillm.config.experiment import METHODS, SUBSETS, Experiment, on_policy, trained
from minillm.config.sections import Launch, Sampling
from minillm.config.stage_settings import (
    BaseSettings,
    DataSettings,
    EstimatorSettings,
    FetchSettings,
    FigureSettings,
    GenerateSettings,
    OnPolicySettings,
    PseudoSettings,
    TableSettings,
    TestSettings,
    TrainSettings,
)
from minillm.config.strict import merged, parse

REAL_JUDGES = ("openai", "transformers")  # a stand-in judges nothing


def for_model(config: Experiment, stage: str, model: str) -> Any:
    """Settings of a supervised `stage`, or of `pseudo`, for `model`: the common ones with the model's own keys replaced."""
    values = config.per_model.get(model, {}).get(stage, {})
    return merged(getattr(config.stages, stage), values, "config", f"per_model.{model}.{stage}")


def _fetch_settings(config: Experiment, source: str) -> FetchSettings:
    """`source`: a section of the configuration and a name in it, models/gpt2."""
    section, name = source.split("/", 1)
    spec = getattr(config, section)[name]
    kinds = {"models": "model", "checkpoints": "model", "tokenizers": "tokenizer", "datasets": "dataset", "subsets": "subsets"}
    kind = kinds[section]
    return FetchSettings(
        stage="fetch",
        kind=kind,  # type: ignore[arg-type]
        path=spec.path,
        revision=spec.revision,
        subset=getattr(spec, "subset", ""),
        split=getattr(spec, "split", ""),
    )


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


def subset_file(run: str, path: str) -> str:
    """The file behind a data set's path "subsets:NAME" (all rows) or "subsets:NAME/BUCKET", as the stage `subsets` leaves it."""
    return f"results/{run}/data/subsets/{path.removeprefix(SUBSETS).replace('/', '.')}.jsonl"


def _test_settings(config: Experiment, test: str) -> TestSettings:
    dataset = config.datasets[test]
    if dataset.path.startswith(SUBSETS):
        dataset = dataclasses.replace(dataset, path=subset_file(config.run, dataset.path))
    return TestSettings(
        stage="testset",
        name=test,
        dataset=dataset,
        template=config.data.template,
        max_prompt=config.data.max_prompt,
        seed=config.data.seed,
    )


def table_settings(config: Experiment, *, sweeps: bool = False) -> TableSettings:
    """Of the main table; with `sweeps`, of every model of the run.  Methods in the order of the configuration."""
    students, judge = trained(config, sweeps=sweeps), config.judge
    used = {name for teacher, student, _ in students for name in (teacher, student)}
    methods = [
        method for method in dict.fromkeys((*config.methods, *METHODS, *config.variants)) if method in {m for *_, m in students}
    ]
    return TableSettings(
        stage="table",
        run=config.run,
        pairs=tuple(dataclasses.replace(pair, methods=pair.methods or config.methods) for pair in config.pairs),
        sweeps=config.sweeps if sweeps else (),
        methods=tuple(methods),
        method_labels={name: config.variants[name].label for name in methods if name in config.variants},
        labels={name: f"{m.family} {m.size}".strip() or name for name, m in config.models.items() if name in used},
        tests=config.data.tests,
        test_labels={name: config.datasets[name].label or name for name in config.data.tests},
        training_seeds=config.training_seeds,
        sampling_seeds=config.sampling_seeds,
        sampling=config.generate,
        judged=config.judge.tests,
        judge=f"{judge.kind} {judge.model}" if judge.kind in REAL_JUDGES else "",
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
    if stage == "fetch":
        settings = _fetch_settings(config, weights)
    elif stage == "data":
        settings = _data_settings(config, tokenizer)
    elif stage == "testset":
        settings = _test_settings(config, test)
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


def launch_values(config: Experiment, stage: str, models: Sequence[str] = ()) -> dict[str, Any]:
    """Launch values of a job: `launch.default`, then the stage's keys, then those that its `models` have for the stage (the last wins)."""
    values = {**config.launch.get("default", {}), **config.launch.get(stage, {})}
    for model in models:
        values |= config.per_model.get(model, {}).get("launch", {}).get(stage, {})
    return dataclasses.asdict(parse(Launch, values, "config", f"launch.{stage}"))


# --- what is measured beside ROUGE-L
def _samples_settings(config: Experiment) -> SamplesSettings:
    section = config.exposure_bias
    # The published script samples as it does everywhere at test time (D23).
    ngram = 6 if section.semantics == "released" else 0
    return SamplesSettings(
        stage="samples",
        prompts=section.prompts,
        responses=section.responses,
        seed=section.seed,
        precision=config.precision,
        sampling=Sampling(no_repeat_ngram=ngram, max_tokens=section.max_tokens),
    )


def analysis_settings(config: Experiment, stage: str, test: str) -> Any:
    """Settings of what is measured beside ROUGE-L.  Raises ValueError for any other stage."""
    if stage == "samples":
        return _samples_settings(config)
    if stage == "exposure_bias":
        section = config.exposure_bias
        return ExposureBiasSettings(
            stage="exposure_bias",
            samples=_samples_settings(config),
            finished=section.finished,
            semantics=section.semantics,
            resamples=section.resamples,
            level=section.level,
        )
    if stage == "subsets":
        return SubsetsSettings(stage="subsets", rows=config.subsets[test])
    if stage == "lengths":
        return LengthsSettings(stage="lengths", edges=config.lengths.per_test.get(test, config.lengths.edges))
    if stage == "diversity":
        return DiversitySettings(stage="diversity", ngram=config.diversity.ngram, unit=config.diversity.unit)
    if stage == "reference_loss":
        return ReferenceLossSettings(
            stage="reference_loss",
            loss=config.diversity.loss,
            max_response=config.data.max_response,
            precision=config.precision,
        )
    if stage == "calibration":
        return _calibration_settings(config, test)
    if stage == "judge":
        return JudgeSettings(stage="judge", judge=config.judge, precision=config.precision)
    if stage == "human":
        return HumanSettings(stage="human", prompts=config.human.prompts, seed=config.human.seed)
    raise ValueError(stage)


def _calibration_settings(config: Experiment, name: str) -> CalibrationSettings:
    task = config.calibration.tasks[name]
    return CalibrationSettings(
        stage="calibration",
        name=name,
        task=task,
        dataset=config.datasets[task.dataset],
        template=config.data.template,
        bins=config.calibration.bins,
        max_prompt=config.calibration.max_prompt,
        seed=config.data.seed,
        precision=config.precision,
    )
