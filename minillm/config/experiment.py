"""A whole configuration.

The dataclasses are the only source of the schema (schema.py).  `experiment(raw)` checks what all YAML files
together hold (checks.py); derive.py cuts each stage's settings out of it.  Anything unknown, of the wrong
type or out of range is refused in one line that names file and key.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config import layout
from minillm.config.checks import check_whole
from minillm.config.comparison import Comparison
from minillm.config.data import Data, Dataset, Tokenizer
from minillm.config.estimators import Estimators
from minillm.config.grid import Grid
from minillm.config.measurements.calibration import Calibration
from minillm.config.measurements.diversity import Diversity
from minillm.config.measurements.exposure_bias import ExposureBias
from minillm.config.measurements.harness import Harness
from minillm.config.measurements.human import Human
from minillm.config.measurements.judge import Judge
from minillm.config.measurements.lengths import Lengths
from minillm.config.measurements.metrics import Metrics, sets_by_metric
from minillm.config.measurements.rouge import Rouge
from minillm.config.measurements.validity import Validity
from minillm.config.methods import Method, Variant, check_catalogue, method_settings, named
from minillm.config.onpolicy import OnPolicy, check_on_policy
from minillm.config.presets import combined
from minillm.config.sampling import Sampling
from minillm.config.sections import Model, Pair, Precision, Stages, Style, Training
from minillm.config.stages import MEASUREMENTS, STAGES
from minillm.config.strict import STRICT, Count, Name, Seed, merged, parse
from minillm.config.subsets import SUBSETS, Subsets

# In addition to the names of `variants`.
METHODS = ("sft", "kd", "seqkd", "minillm")


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """One configuration: everything that a run's results depend on, and how to run it."""

    run: Name = Field(description="Name of the run: its files are in `results/<run>/`.")
    tokenizers: dict[Name, Tokenizer] = Field(description="Tokenizers by name.")
    models: dict[Name, Model] = Field(description="Base models by name.")
    datasets: dict[Name, Dataset] = Field(description="Data sets by name.")
    data: Data = Field(description="Which data sets are used, and how rows become tokens.")
    pairs: tuple[Pair, ...] = Field(
        min_length=1, description="Teachers with their students: the rows of the main table."
    )
    stages: Stages = Field(description="Settings of the training stages, for all models.")
    methods: tuple[Name, ...] = Field(
        default=METHODS,
        min_length=1,
        description="Methods of the main table, in its order: some of `sft`, `kd`, `seqkd`, `minillm` and "
        "the names of `variants` and of `catalogue`.",
    )
    sweeps: tuple[Pair, ...] = Field(
        default=(),
        description="Further pairs, each with its own `methods`, only for the tables and figures that "
        "compare settings or teachers. They are trained with the first training seed only.",
    )
    checkpoints: dict[str, Model] = Field(
        default_factory=dict,
        description="Finished models that are loaded from a folder or the hub instead of being trained, by "
        "their path below `models/`, such as `gpt2/minillm/gpt2-xl/seed10`.",
    )
    variants: dict[Name, Variant] = Field(
        default_factory=dict,
        description="Further methods by name: MiniLLM, or a supervised stage, with some keys replaced.",
    )
    catalogue: dict[Name, Method] = Field(
        default_factory=dict,
        description="Published methods by name (`config/methods.yaml`). One that `methods` names is trained "
        "like a variant, with the schedule of `stages.minillm` and `per_model` and no other key of them. A "
        "variant of the same name takes its place.",
    )
    grid: Grid = Field(
        default_factory=Grid,
        description="Learning rates and lengths of training that are tried before each method is trained.",
    )
    training_seeds: tuple[Seed, ...] = Field(
        default=(10,),
        min_length=1,
        description="Every student of the main table is trained once per seed; teachers and sweeps only with "
        "the first. The paper trains once.",
    )
    shapes: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Shapes of models whose files come from elsewhere, for `minillm plan` (docs/scale.md): "
        "model, then keys of its config.json, `model_type` included. No stage reads them.",
    )
    sampling_seeds: tuple[Seed, ...] = Field(
        default=(10, 20, 30, 40, 50),
        min_length=1,
        description="Every test prompt is answered once per seed. The paper: 10, 20, 30, 40, 50.",
    )
    precision: Precision = Field(
        default="bf16",
        description="Number format in training and sampling: `bf16`, `fp32`, or `fp16` for GPUs without bf16 "
        "such as V100, with a dynamic loss scale. The paper: fp16.",
    )
    generate: Sampling = Field(
        default_factory=Sampling,
        description="How responses to test prompts are drawn.",
    )
    per_model: dict[Name, dict[str, dict[str, Any]]] = Field(
        default_factory=dict,
        description="Keys that one model replaces: model, then stage (a key of `stages`), then keys. Below "
        "`launch` it holds launch values by stage, for the jobs that work with the model as teacher or "
        "student.",
    )
    launch: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Launch values: `default` for all stages, and single keys replaced for one stage. They "
        "are recorded next to the results; a change re-runs nothing.",
    )
    cores: dict[str, Count] = Field(
        default_factory=dict,
        description="CPU cores of one job of a stage, on one machine; a stage that is not named takes all. "
        "Small jobs then run side by side.",
    )
    subsets: dict[Name, Subsets] = Field(
        default_factory=dict,
        description="S-NI and UnNI by the length of the reference: data sets name it as `subsets:NAME`.",
    )
    style: Style = Field(default_factory=Style, description="Appearance of the figures.")
    estimators: Estimators = Field(
        default_factory=Estimators,
        description="The exact study of gradient estimators.",
    )
    metrics: dict[Name, Metrics] = Field(
        default_factory=dict,
        description="Metrics of test sets, the columns of the main table: test set → some of `rouge1`, "
        "`rouge2`, `rougeL`, `exact_match`, `numeric` and `choice` (docs/evaluation.md). A set that is not "
        "named has `[rougeL]`.",
    )
    rouge: Rouge = Field(default_factory=Rouge, description="Measurement: how ROUGE counts words.")
    exposure_bias: ExposureBias = Field(
        default_factory=ExposureBias,
        description="Measurement: excess error by exposure bias.",
    )
    lengths: Lengths = Field(
        default_factory=Lengths,
        description="Measurement: ROUGE-L by the length of the reference.",
    )
    diversity: Diversity = Field(
        default_factory=Diversity,
        description="Measurement: distinct n-grams, and the loss on the references.",
    )
    validity: Validity = Field(
        default_factory=Validity,
        description="Measurement: right answers where all of them are known.",
    )
    calibration: Calibration = Field(
        default_factory=Calibration,
        description="Measurement: calibration on classification tasks.",
    )
    judge: Judge = Field(default_factory=Judge, description="Measurement: scores by a judge model.")
    human: Human = Field(default_factory=Human, description="Measurement: blind comparisons by annotators.")
    comparison: Comparison = Field(
        default_factory=Comparison,
        description="Which methods all others are tested against, in the table `methods`.",
    )
    harness: Harness = Field(default_factory=Harness, description="Measurement: tasks of lm-eval.")

    @property
    def every_method(self) -> dict[str, None]:
        """Names of all methods that can train a student, in order."""
        return dict.fromkeys((*METHODS, *self.variants, *self.catalogue))

    @property
    def kinds(self) -> dict[str, str]:
        """Variant -> the stage that it is trained by."""
        return {name: variant.stage or "minillm" for name, variant in self.variants.items()}

    def stage_of(self, method: str) -> str:
        """The stage that a method is trained by; MiniLLM's for a name that is none."""
        return self.kinds.get(method, method if method in METHODS else "minillm")

    def trained_by(self, stage: str) -> list[str]:
        """Methods that are trained by a stage: its own, and variants."""
        return [stage, *(name for name, kind in self.kinds.items() if kind == stage)]

    def trained(self, *, sweeps: bool) -> list[tuple[str, str, str]]:
        """(teacher, student, method) of every student, each once.

        Those of the main table and, with `sweeps`, of the sweeps.
        """
        pairs = (*self.pairs, *self.sweeps) if sweeps else self.pairs
        return list(
            dict.fromkeys(
                (pair.teacher, student, method)
                for pair in pairs
                for student in pair.students
                for method in pair.methods or self.methods
            )
        )

    def seeds_of(self, teacher: str, student: str, method: str) -> tuple[int, ...]:
        """Training seeds of a student: all of them in the main table, only the first in a sweep."""
        main = (teacher, student, method) in self.trained(sweeps=False)
        return self.training_seeds if main else self.training_seeds[:1]

    @property
    def panel(self) -> tuple[str, ...]:
        """Models that teach rows of some categories, each fine-tuned as a teacher."""
        trained = self.trained(sweeps=True)
        methods = dict.fromkeys((m, s) for _, s, m in trained if m == "minillm" or m in self.variants)
        settings = (self.on_policy(method, student) for method, student in methods)
        return tuple(dict.fromkeys(name for s in settings if s.teacher for name in s.teacher.panel))

    # Metric of test sets -> the sets that have it.
    scored = property(sets_by_metric)

    def sets_of(self, measurement: str) -> tuple[str, ...]:
        """Names of the test sets (calibration: tasks) that a measurement is configured for."""
        value: Any = self
        for part in MEASUREMENTS[measurement].sets.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return tuple(value)

    def measured(self) -> dict[str, tuple[str, ...]]:
        """Measurement -> names of the sets that it is configured for; only measurements that have any."""
        return {kind: names for kind in MEASUREMENTS if (names := self.sets_of(kind))}

    def for_model(self, stage: str, model: str) -> Any:
        """Settings of a supervised `stage` or of `pseudo`: the common keys, some replaced by `model`'s."""
        values = self.per_model.get(model, {}).get(stage, {})
        return merged(getattr(self.stages, stage), values, "config", f"per_model.{model}.{stage}")

    def supervised(self, method: str, model: str, where: str = "config") -> Training:
        """Settings of kd, seqkd or one of their variants for a student: common < the model's < the variant's.

        Also of `teacher` and `sft`, which have no variants.  Raises UserError for wrong keys.
        """
        stage = self.kinds.get(method, method)
        settings: Training = self.for_model(stage, model)
        if method not in self.variants:
            return settings
        return merged(settings, self.variants[method].settings, where, f"variants.{method}.settings")

    def on_policy(self, method: str, model: str, where: str = "config") -> OnPolicy:
        """Settings of MiniLLM or a variant for a student: preset < common < the model's < the variant's keys.

        Raises UserError for values that contradict each other.
        """
        places, names = [self.stages.minillm], []
        if "minillm" in self.per_model.get(model, {}):
            places.append(self.per_model[model]["minillm"])
            names.append(f"per_model.{model}.minillm")
        variant = self.variants.get(method)
        if isinstance(variant, Method):
            under = " with ".join([f"catalogue.{method}", *names])
            settings = method_settings(places, variant, where, under)
            check_on_policy(settings, where, under)
            return settings
        if variant is not None:
            places.append(variant.settings)
            names.insert(0, f"variants.{method}")
        under = " with ".join(names) or "stages.minillm"
        settings = combined(places, where, under)
        check_on_policy(settings, where, under)
        return settings

    def dataset(self, name: str) -> Dataset:
        """The data set `name`; rows by length are read from where the stage `subsets` writes them."""
        dataset = self.datasets[name]
        if not dataset.path.startswith(SUBSETS):
            return dataset
        rows = layout.subset_rows(*dataset.path.removeprefix(SUBSETS).split("/", 1))
        return dataclasses.replace(dataset, path=f"{layout.run_folder(self.run)}/{rows}")


def experiment(raw: dict[str, Any], where: str = "config") -> Experiment:
    """A whole configuration, checked: types and ranges, references by name, tokenizers shared by each pair.

    Raises UserError (one line naming `where` and the key).
    """
    config = _with_catalogue(parse(Experiment, raw, where), where)
    check_whole(config, where)
    return config


def _with_catalogue(config: Experiment, where: str) -> Experiment:
    """`config` with the methods of the catalogue that it trains among its variants."""
    check_catalogue(config.catalogue, {*METHODS, *STAGES}, where)
    pairs = (*config.pairs, *config.sweeps)
    asked = dict.fromkeys([*config.methods, *(name for pair in pairs for name in pair.methods)])
    used = named(config.catalogue, asked, config.variants)
    return dataclasses.replace(config, variants={**config.variants, **used}) if used else config
