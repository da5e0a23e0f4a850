"""What each stage depends on, and nothing else: one frozen dataclass per stage, loaded by `strict.load`.

`of` cuts it out of a configuration, so editing one value changes the files of exactly the stages that depend
on it.  measurements/ has the settings of what is measured in addition to ROUGE-L.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from minillm.config.adapter import Adapter
from minillm.config.chat import linked
from minillm.config.data import Dataset, Tokenizer
from minillm.config.estimators import Estimators
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Model, Pair, Precision, Pseudo, Sampling, Style, Training
from minillm.config.strict import STRICT, Count, Name

# Not a dependency to the rules: a stage's code does not change with the sections of other stages.
if TYPE_CHECKING:
    from minillm.config.experiment import Experiment

HUB_KINDS = {
    "models": "model",
    "checkpoints": "model",
    "tokenizers": "tokenizer",
    "datasets": "dataset",
    "subsets": "subsets",
}


@dataclass(frozen=True, config=STRICT)
class FetchSettings:
    """`fetch`: one model, tokenizer or data set of the hub at one revision."""

    stage: Literal["fetch"]
    kind: Literal["model", "tokenizer", "dataset", "subsets"]
    path: str
    revision: str
    subset: str = ""
    split: str = ""
    gated: bool | None = None

    @classmethod
    def of(cls, config: Experiment, stage: str, source: str) -> FetchSettings:
        """The settings in `config` for `source`: a section and a name in it, models/gpt2."""
        section, name = source.split("/", 1)
        spec = getattr(config, section)[name]
        # A tokenizer is in the repository of a model, which says so.
        models = (*config.models.values(), *config.checkpoints.values())
        gated = {m.gated for m in models if (m.source, m.path) == ("hub", spec.path)}
        return cls(
            stage="fetch",
            kind=HUB_KINDS[section],  # type: ignore[arg-type]
            path=spec.path,
            revision=spec.revision,
            subset=getattr(spec, "subset", ""),
            split=getattr(spec, "split", ""),
            gated=True if True in gated else None,
        )


@dataclass(frozen=True, config=STRICT)
class DataSettings:
    """`data`: tokenizer, training rows, dev rows and corpus of one tokenizer.

    `also`: tokenizers of the same vocabulary, whose templates have to keep a row too.
    """

    stage: Literal["data"]
    tokenizer: Tokenizer
    train: Dataset
    dev: Dataset
    corpus: Dataset | None
    template: str
    max_prompt: Count
    max_response: Count
    corpus_length: Count
    seed: int
    turns: Literal["last", "all"] | None = None
    also: tuple[Tokenizer, ...] | None = None

    @classmethod
    def of(cls, config: Experiment, stage: str, tokenizer: str) -> DataSettings:
        """The settings in `config` for the data in the tokens of `tokenizer`."""
        data = config.data
        spec, also = config.tokenizers[tokenizer], [config.tokenizers[t] for t in linked(config, tokenizer)]
        return cls(
            stage="data",
            tokenizer=spec if data.template == "chat" else dataclasses.replace(spec, chat=None),
            train=config.datasets[data.train],
            dev=config.datasets[data.dev],
            corpus=config.datasets[data.corpus] if data.corpus else None,
            template=data.template,
            max_prompt=data.max_prompt,
            max_response=data.max_response,
            corpus_length=data.corpus_length,
            seed=data.seed,
            turns=None if data.turns == "last" else data.turns,
            also=tuple(also) or None,
        )


@dataclass(frozen=True, config=STRICT)
class PromptsSettings:
    """`prompts`: the training and dev rows by another text; without one, by their own prompts."""

    stage: Literal["prompts"]
    name: str
    text: str
    template: str
    train: Dataset
    dev: Dataset
    turns: Literal["last", "all"] | None = None

    @classmethod
    def of(cls, config: Experiment, stage: str, prompt: str) -> PromptsSettings:
        """The settings in `config` for the prompts of this name."""
        data = config.data
        return cls(
            stage="prompts",
            name=prompt,
            text=data.every_prompt[prompt],
            template=data.template,
            train=config.datasets[data.train],
            dev=config.datasets[data.dev],
            turns=None if data.turns == "last" else data.turns,
        )


@dataclass(frozen=True, config=STRICT)
class TestSettings:
    """`testset`: one test set in one tokenizer."""

    # Not a class of tests, to pytest.
    __test__ = False

    stage: Literal["testset"]
    name: str
    dataset: Dataset
    template: str
    max_prompt: Count
    seed: int

    @classmethod
    def of(cls, config: Experiment, stage: str, test: str) -> TestSettings:
        """The settings in `config` for the test set `test`."""
        return cls(
            stage="testset",
            name=test,
            dataset=config.dataset(test),
            template=config.data.template,
            max_prompt=config.data.max_prompt,
            seed=config.data.seed,
        )


@dataclass(frozen=True, config=STRICT)
class BaseSettings:
    """`base`: one base model."""

    stage: Literal["base"]
    model: Model
    seed: int
    precision: Precision
    sampling: Sampling

    @classmethod
    def of(cls, config: Experiment, stage: str, model: str = "", weights: str = "") -> BaseSettings:
        """The settings in `config` for the base `model`, or for a checkpoint in the place of `weights`."""
        spec = config.checkpoints[weights] if stage == "checkpoint" else config.models[model]
        return cls(
            stage="base",
            # A base model is the same with every adapter, and whether or not the hub asks for a licence.
            model=dataclasses.replace(spec, adapter=None, gated=None),
            seed=config.training_seeds[0],
            precision=config.precision,
            sampling=Sampling(max_tokens=config.data.max_response),
        )


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
    adapter: Adapter | None = None
    # The name of a variant.
    method: str | None = None
    # A candidate of a grid (config/grid.py): only its dev evaluations are kept.
    trial: bool | None = None

    @classmethod
    def of(
        cls, config: Experiment, stage: str, model: str, teacher: str = "", seed: int | None = None
    ) -> TrainSettings:
        """The settings in `config` for one training of `model` by `stage` or by a variant of it.

        A teacher has only the first seed.
        """
        return cls(
            stage=config.kinds.get(stage, stage),  # type: ignore[arg-type]
            model=model,
            teacher=teacher,
            seed=config.training_seeds[0] if seed is None else seed,
            precision=config.precision,
            training=config.supervised(stage, model),
            sampling=Sampling(max_tokens=config.data.max_response),
            adapter=config.models[model].adapter,
            method=stage if stage in config.variants else None,
        )


@dataclass(frozen=True, config=STRICT)
class PseudoSettings:
    """`pseudo`: the teacher's answers to the training prompts."""

    stage: Literal["pseudo"]
    teacher: str
    seed: int
    precision: Precision
    pseudo: Pseudo

    @classmethod
    def of(cls, config: Experiment, stage: str, teacher: str) -> PseudoSettings:
        """The settings in `config` for the answers of `teacher`."""
        return cls(
            stage="pseudo",
            teacher=teacher,
            seed=config.training_seeds[0],
            precision=config.precision,
            pseudo=config.for_model(stage, teacher),
        )


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
    adapter: Adapter | None = None
    # As in TrainSettings.
    trial: bool | None = None

    @classmethod
    def of(cls, config: Experiment, stage: str, model: str, teacher: str, seed: int) -> OnPolicySettings:
        """The settings in `config` for the method `stage`: "minillm", or a variant's name."""
        return cls(
            stage="minillm",
            method=stage,
            model=model,
            teacher=teacher,
            seed=seed,
            precision=config.precision,
            training=config.on_policy(stage, model),
            adapter=config.models[model].adapter,
        )


@dataclass(frozen=True, config=STRICT)
class GenerateSettings:
    """`generate`: answers of one model to one test set, all sampling seeds."""

    stage: Literal["generate"]
    seeds: tuple[int, ...]
    precision: Precision
    sampling: Sampling

    @classmethod
    def of(cls, config: Experiment, stage: str) -> GenerateSettings:
        """The settings in `config` for responses to test sets."""
        return cls(
            stage="generate",
            seeds=config.sampling_seeds,
            precision=config.precision,
            sampling=config.generate,
        )


@dataclass(frozen=True, config=STRICT)
class TableSettings:
    """`table`: rows and columns of the main table, and what its spread is over.

    `methods`: those of all pairs, in order.  `sweeps`: further models, only with the first training seed.
    `judged`: test sets with a column for the judge's score, which holds dashes if no real judge (`judge`, in
    words) is configured.  `metrics`: those of test sets that have others than ROUGE-L.
    """

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
    sweeps: tuple[Pair, ...] = ()
    judged: tuple[str, ...] = ()
    judge: str = ""
    metrics: dict[str, tuple[str, ...]] | None = None

    @classmethod
    def of(cls, config: Experiment, stage: str = "table", *, sweeps: bool = False) -> TableSettings:
        """The settings in `config` for the main table; with `sweeps`, for a table of every model of the run.

        Methods are in the order of the configuration.
        """
        students, judge = config.trained(sweeps=sweeps), config.judge
        used = {name for teacher, student, _ in students for name in (teacher, student)}
        trained = {method for *_, method in students}
        methods = [
            method for method in dict.fromkeys((*config.methods, *config.every_method)) if method in trained
        ]
        return cls(
            stage="table",
            run=config.run,
            pairs=tuple(
                dataclasses.replace(pair, methods=pair.methods or config.methods) for pair in config.pairs
            ),
            sweeps=config.sweeps if sweeps else (),
            methods=tuple(methods),
            method_labels={name: config.variants[name].label for name in methods if name in config.variants},
            labels={
                name: f"{m.family} {m.size}".strip() or name
                for name, m in config.models.items()
                if name in used
            },
            tests=config.data.tests,
            test_labels={name: config.datasets[name].label or name for name in config.data.tests},
            training_seeds=config.training_seeds,
            sampling_seeds=config.sampling_seeds,
            sampling=config.generate,
            judged=judge.tests,
            judge=f"{judge.kind} {judge.model}" if judge.is_real else "",
            metrics=dict(config.metrics) or None,
        )


@dataclass(frozen=True, config=STRICT)
class FigureSettings:
    """`figure`: looks only."""

    stage: Literal["figure"]
    style: Style

    @classmethod
    def of(cls, config: Experiment, stage: str) -> FigureSettings:
        """The settings in `config` for the main figure."""
        return cls(stage="figure", style=config.style)


@dataclass(frozen=True, config=STRICT)
class EstimatorSettings:
    """`estimators`: the exact study of gradient estimators, and the looks of its figure."""

    stage: Literal["estimators"]
    study: Estimators
    style: Style

    @classmethod
    def of(cls, config: Experiment, stage: str) -> EstimatorSettings:
        """The settings in `config` for the study of estimators."""
        return cls(stage="estimators", study=config.estimators, style=config.style)
