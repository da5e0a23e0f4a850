"""The register of stages: what the command line, the check of a configuration and the rules know of one.

Modules and classes are named as text, "module:name", and imported on use: `minillm --help` and a plan import
no torch, and being registered here makes no stage depend on another's code.  CONTRIBUTING.md shows how to add
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    target: its entry point, always called `run_stage`; "" for an entry that has settings but no command.
    settings: the class of its settings, whose classmethod `of(config, stage, **names)` cuts them out of a
    configuration; "" for none.
    key: what the parts of its settings file's path below configs/<stage>/ name; a single one may hold
    slashes.
    required, optional: the paths that its command takes; those in `several` take more than one.
    launched: whether it takes launch values (how it is run, not what it computes) and may run on several
    processes.
    sets: for a measurement of models, the key of the configuration that lists its test sets (or tasks).
    """

    name: str
    help: str
    target: str = ""
    settings: str = ""
    key: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    launched: bool = False
    sets: str = ""

    @property
    def module(self) -> str:
        """The module of its entry point."""
        return self.target.partition(":")[0]

    def entry_point(self) -> Callable[..., None]:
        """`run_stage`, imported now."""
        entry: Callable[..., None] = _named(self.target)
        return entry

    def settings_class(self) -> type[Any] | None:
        """The class of its settings, imported now."""
        return _named(self.settings) if self.settings else None


def _named(text: str) -> Any:
    module, _, name = text.partition(":")
    return getattr(import_module(module), name)


_SETTINGS = "minillm.config.stage_settings"
_MEASURE = "minillm.config.measurements"
_TRAINED = ("config", "data", "base", "out", "checkpoints")
_SUPERVISED: dict[str, Any] = {
    "target": "minillm.training.supervised:run_stage",
    "settings": f"{_SETTINGS}:TrainSettings",
    "launched": True,
}
_ROUGE_N: dict[str, Any] = {
    "target": "minillm.evaluation.rouge_n:run_stage",
    "settings": f"{_MEASURE}.metrics:RougeNSettings",
    "required": ("config", "generations", "out"),
}

_ENTRIES = (
    Stage(
        "fetch",
        "fetch a model, tokenizer or data set from the hub into its cache",
        target="minillm.data.fetch:run_stage",
        settings=f"{_SETTINGS}:FetchSettings",
        key=("source",),
        required=("config", "out"),
    ),
    Stage(
        "data",
        "training rows, dev rows, corpus and tokenizer",
        target="minillm.data.prepare:run_stage",
        settings=f"{_SETTINGS}:DataSettings",
        key=("tokenizer",),
        required=("config", "out"),
    ),
    Stage(
        "subsets",
        "test sets by length, from S-NI's tasks or UnNI",
        target="minillm.data.length_subsets:run_stage",
        settings="minillm.config.subsets:SubsetsSettings",
        key=("subset",),
        required=("out",),
        optional=("source", "config", "tokenizer"),
    ),
    Stage(
        "testset",
        "one test set",
        target="minillm.data.test_set:run_stage",
        settings=f"{_SETTINGS}:TestSettings",
        key=("test",),
        required=("config", "data", "out"),
        optional=("also",),
        several=("also",),
    ),
    Stage(
        "prompts",
        "the training and dev rows as who teaches is shown them",
        target="minillm.data.shown:run_stage",
        settings=f"{_SETTINGS}:PromptsSettings",
        key=("prompt",),
        required=("config", "data", "out"),
    ),
    Stage(
        "base",
        "a base model",
        target="minillm.training.base_model:run_stage",
        settings=f"{_SETTINGS}:BaseSettings",
        key=("model",),
        required=("config", "data", "out", "checkpoints"),
        optional=("parent", "pseudo"),
        launched=True,
    ),
    # The rule `checkpoint` runs `base` on a finished model.
    Stage(
        "checkpoint",
        "a finished model in the place of a trained one",
        settings=f"{_SETTINGS}:BaseSettings",
        key=("weights",),
    ),
    Stage("teacher", "fine-tune the teacher", **_SUPERVISED, key=("model",), required=_TRAINED),
    Stage(
        "sft",
        "fine-tune a student without distillation",
        **_SUPERVISED,
        key=("model", "seed"),
        required=_TRAINED,
        optional=("init", "grid"),
    ),
    Stage(
        "kd",
        "word-level distillation",
        **_SUPERVISED,
        key=("model", "teacher", "seed"),
        required=(*_TRAINED, "teacher"),
        optional=("teacher-data", "grid"),
    ),
    Stage(
        "pseudo",
        "the teacher's answers to training prompts",
        target="minillm.sampling.pseudo:run_stage",
        settings=f"{_SETTINGS}:PseudoSettings",
        key=("teacher",),
        required=("config", "data", "teacher", "out", "checkpoints"),
        launched=True,
    ),
    Stage(
        "seqkd",
        "sequence-level distillation",
        **_SUPERVISED,
        key=("model", "teacher", "seed"),
        required=(*_TRAINED, "teacher", "pseudo"),
        optional=("teacher-data", "grid"),
    ),
    Stage(
        "minillm",
        "on-policy distillation by reverse KL",
        target="minillm.training.onpolicy:run_stage",
        settings=f"{_SETTINGS}:OnPolicySettings",
        key=("model", "teacher", "seed"),
        required=("config", "data", "init", "teacher", "out", "checkpoints"),
        optional=("base", "teacher-data", "pseudo", "prompts", "panel", "grid"),
        several=("panel",),
        launched=True,
    ),
    # The rule `trial` runs a method's own stage on one candidate of a grid.
    Stage("trial", "a candidate of a grid", settings="minillm.config.grid:TrialSettings", key=("trial",)),
    Stage(
        "grid",
        "the choice among the candidates of a method's grid",
        target="minillm.training.grid:run_stage",
        settings="minillm.config.grid:GridSettings",
        key=("trained",),
        required=("config", "trials", "out"),
        several=("trials",),
    ),
    Stage(
        "generate",
        "responses of a model to a test set",
        target="minillm.sampling.generate:run_stage",
        settings=f"{_SETTINGS}:GenerateSettings",
        required=("config", "test", "model", "out"),
        launched=True,
    ),
    # --- measurements
    Stage(
        "rouge",
        "ROUGE-L of responses",
        target="minillm.evaluation.rouge:run_stage",
        settings=f"{_MEASURE}.rouge:RougeSettings",
        required=("generations", "out"),
        optional=("config",),
        sets="scored.rougeL",
    ),
    Stage("rouge1", "ROUGE-1 of responses", **_ROUGE_N, sets="scored.rouge1"),
    Stage("rouge2", "ROUGE-2 of responses", **_ROUGE_N, sets="scored.rouge2"),
    Stage(
        "exact_match",
        "share of responses that equal a reference",
        target="minillm.evaluation.exact_match:run_stage",
        required=("generations", "out"),
        sets="scored.exact_match",
    ),
    Stage(
        "numeric",
        "share of responses whose number is that of a reference",
        target="minillm.evaluation.numeric:run_stage",
        required=("generations", "out"),
        sets="scored.numeric",
    ),
    Stage(
        "choice",
        "share of responses that choose the right option",
        target="minillm.evaluation.choice:run_stage",
        required=("generations", "out"),
        sets="scored.choice",
    ),
    Stage(
        "samples",
        "several responses of a teacher to a test set",
        target="minillm.evaluation.teacher_samples:run_stage",
        settings=f"{_MEASURE}.exposure_bias:SamplesSettings",
        required=("config", "test", "model", "out"),
        launched=True,
    ),
    Stage(
        "exposure_bias",
        "excess accumulated error of a student",
        target="minillm.evaluation.exposure_bias:run_stage",
        settings=f"{_MEASURE}.exposure_bias:ExposureBiasSettings",
        required=("config", "samples", "model", "teacher", "out"),
        optional=("test",),
        launched=True,
        sets="exposure_bias.tests",
    ),
    Stage(
        "lengths",
        "ROUGE-L by length of the reference",
        target="minillm.evaluation.lengths:run_stage",
        settings=f"{_MEASURE}.lengths:LengthsSettings",
        key=("test",),
        required=("config", "metric", "generations", "data", "out"),
        sets="lengths.tests",
    ),
    Stage(
        "diversity",
        "distinct n-grams of responses",
        target="minillm.evaluation.diversity:run_stage",
        settings=f"{_MEASURE}.diversity:DiversitySettings",
        required=("config", "generations", "out"),
        sets="diversity.tests",
    ),
    Stage(
        "reference_loss",
        "loss of a model on the references",
        target="minillm.evaluation.reference_loss:run_stage",
        settings=f"{_MEASURE}.diversity:ReferenceLossSettings",
        required=("config", "test", "model", "out"),
        launched=True,
        sets="diversity.tests",
    ),
    Stage(
        "validity",
        "share of responses that are right answers, and of the right answers that are reached",
        target="minillm.evaluation.validity:run_stage",
        required=("generations", "out"),
        sets="validity.tests",
    ),
    Stage(
        "mode_mass",
        "probability of all right answers under a model",
        target="minillm.evaluation.mode_mass:run_stage",
        settings=f"{_MEASURE}.validity:ModeMassSettings",
        required=("config", "test", "model", "out"),
        launched=True,
        sets="validity.tests",
    ),
    Stage(
        "calibration",
        "accuracy and calibration on a classification task",
        target="minillm.evaluation.calibration:run_stage",
        settings=f"{_MEASURE}.calibration:CalibrationSettings",
        key=("task",),
        required=("config", "model", "out"),
        launched=True,
        sets="calibration.tasks",
    ),
    Stage(
        "harness",
        "tasks of lm-eval",
        target="minillm.evaluation.harness:run_stage",
        settings=f"{_MEASURE}.harness:HarnessSettings",
        required=("config", "model", "out"),
        launched=True,
        sets="harness.files",
    ),
    Stage(
        "judge",
        "a judge's scores of responses",
        target="minillm.evaluation.judge:run_stage",
        settings=f"{_MEASURE}.judge:JudgeSettings",
        required=("config", "generations", "cache", "out"),
        sets="judge.asked",
    ),
    Stage(
        "human-export",
        "a page of blind comparisons for annotators",
        target="minillm.evaluation.human_page:run_stage",
        settings=f"{_MEASURE}.human:HumanSettings",
        required=("generations", "against", "out"),
        optional=("config",),
        several=("against",),
    ),
    Stage(
        "human-import",
        "wins, ties and losses from annotators' files",
        target="minillm.evaluation.human:run_stage",
        required=("answers", "key", "out"),
        optional=("also",),
        several=("answers", "also"),
    ),
    # What human-export and human-import share: the settings file of the one, the metric of the other.
    Stage("human", "comparisons by people", settings=f"{_MEASURE}.human:HumanSettings", sets="human.counted"),
    # --- what people read
    Stage(
        "metrics",
        "one tidy table of everything that was measured",
        target="minillm.publish.metrics_csv:run_stage",
        settings="minillm.publish.settings:MetricsSettings",
        required=("config", "run-folder", "out"),
    ),
    Stage(
        "table",
        "the main table",
        target="minillm.publish.tables.main:run_stage",
        settings=f"{_SETTINGS}:TableSettings",
        required=("config", "run-folder", "out"),
        optional=("paper",),
    ),
    Stage(
        "figure",
        "the main figure",
        target="minillm.publish.figures.main:run_stage",
        settings=f"{_SETTINGS}:FigureSettings",
        required=("config", "table", "out"),
    ),
    Stage(
        "publish",
        "one more table or figure",
        target="minillm.publish.run:run_stage",
        settings="minillm.publish.settings:PublishSettings",
        key=("name",),
        required=("config", "run-folder", "out"),
        optional=("paper",),
    ),
    Stage(
        "index",
        "list of the results",
        target="minillm.publish.index:run_stage",
        required=("run-folder", "out"),
    ),
    Stage(
        "checklist",
        "what the run says to two checklists for papers",
        target="minillm.publish.checklist:run_stage",
        required=("run-folder", "out"),
    ),
    Stage(
        "page",
        "what the run measured, on one page",
        target="minillm.publish.page:run_stage",
        required=("run-folder", "out"),
    ),
    Stage(
        "estimators",
        "bias and variance of gradient estimators, exact",
        target="minillm.publish.estimators:run_stage",
        settings=f"{_SETTINGS}:EstimatorSettings",
        required=("config", "out"),
    ),
)

STAGES = {stage.name: stage for stage in _ENTRIES}
COMMANDS = {name: stage for name, stage in STAGES.items() if stage.target}
MEASUREMENTS = {name: stage for name, stage in STAGES.items() if stage.sets}


NONE: Mapping[str, str] = MappingProxyType({})


def entry_of(stage: str, variants: Mapping[str, str] = NONE) -> Stage | None:
    """The entry of a stage, which for a variant is that of the stage it builds on; None if unknown.

    `variants`: name of each -> that stage.
    """
    return STAGES.get(variants.get(stage, stage))


def names_of(key: str, variants: Mapping[str, str] = NONE) -> tuple[str, dict[str, Any]]:
    """(stage, names) of a settings file, from its path below configs/ without .json.

    "kd/small/big/10" -> ("kd", {"model": "small", "teacher": "big", "seed": 10}).  A variant's files are
    named like those of its stage (`variants` as for `entry_of`).  Raises ValueError for a path that names no
    stage, or too few or too many things.
    """
    stage, *parts = key.split("/")
    entry = entry_of(stage, variants)
    if entry is None:
        raise ValueError(f"configs/{key}.json: unknown stage '{stage}'")
    expected = entry.key
    if parts and len(expected) == 1:
        parts = ["/".join(parts)]
    if len(parts) != len(expected):
        raise ValueError(f"configs/{key}.json: the path must name {', '.join(expected) or 'nothing'}")
    names: dict[str, Any] = dict(zip(expected, parts, strict=True))
    if "seed" in names:
        names["seed"] = int(names["seed"])
    return stage, names
