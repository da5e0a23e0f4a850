"""What each stage depends on, and nothing else: one frozen dataclass a stage.

stages.py cuts them out of a configuration; a stage reads its own from a file with `strict.load`.  evaluation_settings.py has those of
what is measured beside ROUGE-L.
"""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from minillm.config.estimators import Estimators
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Dataset, Model, Pair, Precision, Pseudo, Sampling, Style, Tokenizer, Training
from minillm.config.strict import STRICT, Count, Name


@dataclass(frozen=True, config=STRICT)
class FetchSettings:
    """`fetch`: one thing of the hub at one revision."""

    stage: Literal["fetch"]
    kind: Literal["model", "tokenizer", "dataset", "subsets"]
    path: str
    revision: str
    subset: str = ""
    split: str = ""


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
    """`table`: rows and columns of the main table, and what its spread ranges over; `methods` are those of all pairs, in order.

    `sweeps`: further models, of the first training seed alone.  `judged`: test sets with a column for the judge's score, which holds
    dashes where no real judge (`judge`, in words) is configured.
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
