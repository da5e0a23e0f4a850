"""A whole configuration, and its check.

The dataclasses are the only source of the schema (schema.py).  `experiment(raw)` checks what all YAML files
together hold; derive.py cuts each stage's settings out of it.  Anything unknown, of the wrong type or out of
range is refused in one line that names file and key.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config import layout
from minillm.config.adapter import check_adapters
from minillm.config.comparison import Comparison
from minillm.config.estimators import Estimators
from minillm.config.grid import Grid
from minillm.config.measurements.calibration import Calibration
from minillm.config.measurements.diversity import Diversity
from minillm.config.measurements.exposure_bias import ExposureBias
from minillm.config.measurements.harness import Harness
from minillm.config.measurements.human import Human
from minillm.config.measurements.judge import Judge
from minillm.config.measurements.lengths import Lengths
from minillm.config.measurements.metrics import Metrics, check_metrics, sets_by_metric
from minillm.config.measurements.rouge import Rouge
from minillm.config.measurements.validity import Validity
from minillm.config.methods import Method, check_catalogue, method_settings, named
from minillm.config.onpolicy import OnPolicy, Variant, check_on_policy, combined
from minillm.config.sampling import Sampling, check_backend
from minillm.config.sections import (
    Data,
    Dataset,
    Launch,
    Model,
    Pair,
    Precision,
    Stages,
    Style,
    Tokenizer,
    Training,
)
from minillm.config.served import check_served
from minillm.config.stages import MEASUREMENTS, STAGES
from minillm.config.strict import STRICT, Count, Name, Seed, check_lists, hint, merged, must_be_one_of, parse
from minillm.config.subsets import SUBSETS, Subsets
from minillm.config.teaching import Teaching, check_prompt
from minillm.errors import UserError

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


# --- checking a whole configuration
def experiment(raw: dict[str, Any], where: str = "config") -> Experiment:
    """A whole configuration, checked: types and ranges, references by name, tokenizers shared by each pair.

    Raises UserError (one line naming `where` and the key).
    """
    config = _with_catalogue(parse(Experiment, raw, where), where)
    check_lists(config, where)
    _check_data(config, where)
    # The sections of measurements check themselves.
    for field in dataclasses.fields(config):
        if check := getattr(getattr(config, field.name), "check", None):
            check(config, where)
    check_metrics(config, where)
    for i, pair in enumerate(config.pairs):
        _check_pair(config, pair, where, f"pairs.{i}")
    for i, pair in enumerate(config.sweeps):
        _check_pair(config, pair, where, f"sweeps.{i}")
        if not pair.methods:
            problem = "missing; name the methods that are trained in addition to the main table's"
            raise UserError(f"{where}: sweeps.{i}.methods: {problem}")
    _check_trained_once(config, where)
    for name, model in config.models.items():
        must_be_one_of(model.tokenizer, config.tokenizers, where, f"models.{name}.tokenizer")
        _check_model(config, name, model, where)
    for weights, model in config.checkpoints.items():
        _check_checkpoint(config, weights, model, where)
    check_adapters(config, where)
    _check_methods(config, where)
    check_backend(config.stages.pseudo.sampling, f"{where}: stages.pseudo.sampling")
    _check_corpus(config, where)
    for name, stages in config.per_model.items():
        _check_per_model(config, name, stages, where)
    _check_launch(
        {stage: values for stage, values in config.launch.items() if stage != "default"}, where, "launch"
    )
    parse(Launch, config.launch.get("default", {}), where, "launch.default")
    for stage in config.cores:
        must_be_one_of(stage, STAGES, where, f"cores.{stage}")
    return config


def _with_catalogue(config: Experiment, where: str) -> Experiment:
    """`config` with the methods of the catalogue that it trains among its variants."""
    check_catalogue(config.catalogue, {*METHODS, *STAGES}, where)
    pairs = (*config.pairs, *config.sweeps)
    asked = dict.fromkeys([*config.methods, *(name for pair in pairs for name in pair.methods)])
    used = named(config.catalogue, asked, config.variants)
    return dataclasses.replace(config, variants={**config.variants, **used}) if used else config


def _check_data(config: Experiment, where: str) -> None:
    for key in ("train", "dev", *(["corpus"] if config.data.corpus else [])):
        must_be_one_of(getattr(config.data, key), config.datasets, where, f"data.{key}")
    for i, name in enumerate(config.data.tests):
        must_be_one_of(name, config.datasets, where, f"data.tests.{i}")
    for name, text in config.data.prompts.items():
        check_prompt(name, text, where)
    for name, dataset in config.datasets.items():
        if dataset.path.startswith(SUBSETS):
            subset = dataset.path.removeprefix(SUBSETS).split("/")[0]
            must_be_one_of(subset, config.subsets, where, f"datasets.{name}.path")


def _check_methods(config: Experiment, where: str) -> None:
    """Names of variants and methods, and whether each student's on-policy settings make sense together."""
    for name in config.variants:
        if name in STAGES:
            raise UserError(f"{where}: variants.{name}: this is the name of a stage; choose another")
    for student in ("", *(name for name, stages in config.per_model.items() if "minillm" in stages)):
        for method in config.trained_by("minillm"):
            settings = config.on_policy(method, student, where)
            if settings.teacher is not None:
                key = f"variants.{method}" if method in config.variants else "stages.minillm"
                _check_teacher(config, settings.teacher, where, f"{key}.teacher")
    for name, kind in config.kinds.items():
        if kind != "minillm":
            for student in ("", *config.per_model):
                _check_loss(config.supervised(name, student, where), f"{where}: variants.{name}.settings")
    for stage in ("teacher", "sft", "kd", "seqkd"):
        for student in ("", *config.per_model):
            _check_loss(config.supervised(stage, student, where), f"{where}: stages.{stage}", stage)
    for i, method in enumerate(config.methods):
        must_be_one_of(method, config.every_method, where, f"methods.{i}")


def _check_loss(settings: Training, key: str, stage: str = "kd") -> None:
    if settings.loss == "hpd" and stage in ("teacher", "sft"):
        raise UserError(f"{key}.loss: 'hpd' needs a teacher, which this stage has not; use kd or seqkd")


def _check_teacher(config: Experiment, teaching: Teaching, where: str, key: str) -> None:
    """Names in `teacher` of an on-policy method; its models share the tokens of the pairs."""
    if teaching.prompt:
        must_be_one_of(teaching.prompt, config.data.every_prompt, where, f"{key}.prompt")
    for category, model in (teaching.by_category or {}).items():
        under = f"{key}.by_category.{category}"
        must_be_one_of(model, config.models, where, under)
        ours = config.models[model].tokenizer
        for pair in (*config.pairs, *config.sweeps):
            theirs = config.models[pair.teacher].tokenizer
            if ours != theirs:
                raise UserError(
                    f"{where}: {under}: {model} has the tokenizer '{ours}' and the teacher {pair.teacher} "
                    f"'{theirs}'; teachers of one student read the same prompts"
                )


def _check_corpus(config: Experiment, where: str) -> None:
    """Plain text may be left out if no tokenizer, model or loss is made from it."""
    if config.data.corpus:
        return
    trained = config.trained(sweeps=True)
    used = {name for teacher, student, _ in trained for name in (teacher, student)}
    needs = [f"models.{name} is trained on it" for name in sorted(used) if config.models[name].training]
    tokenizers = sorted({config.models[name].tokenizer for name in used})
    needs += [
        f"tokenizers.{n} is trained on it" for n in tokenizers if config.tokenizers[n].source == "train"
    ]
    needs += [
        f"the method '{method}' of {student} has lm_coef {settings.lm_coef:g} (0 leaves it out)"
        for _, student, method in trained
        if method in config.trained_by("minillm") and (settings := config.on_policy(method, student)).lm_coef
    ]
    if needs:
        raise UserError(f"{where}: data.corpus: missing; {needs[0]}; name plain text of `datasets`")


def _check_per_model(config: Experiment, name: str, stages: dict[str, dict[str, Any]], where: str) -> None:
    must_be_one_of(name, config.models, where, f"per_model.{name}")
    for stage, values in stages.items():
        if stage == "launch":
            _check_launch(values, where, f"per_model.{name}.launch")
            continue
        default = getattr(config.stages, stage, None)
        if default is None:
            raise UserError(f"{where}: per_model.{name}.{stage}: no such stage")
        if stage != "minillm":
            settings = merged(default, values, where, f"per_model.{name}.{stage}")
            if stage == "pseudo":
                check_backend(settings.sampling, f"{where}: per_model.{name}.pseudo.sampling")


def _check_launch(stages: dict[str, Any], where: str, key: str) -> None:
    launched = [name for name, stage in STAGES.items() if stage.launched]
    for stage, values in stages.items():
        must_be_one_of(stage, launched, where, f"{key}.{stage}", "the stages that take launch values")
        parse(Launch, values, where, f"{key}.{stage}")


def _check_trained_once(config: Experiment, where: str) -> None:
    """Within `pairs` and within `sweeps` no student is trained twice by one method under one teacher."""
    for section in ("pairs", "sweeps"):
        places: dict[tuple[str, str, str], str] = {}
        for i, pair in enumerate(getattr(config, section)):
            for student, method in product(pair.students, pair.methods or config.methods):
                key = f"{section}.{i}"
                first = places.setdefault((pair.teacher, student, method), key)
                if first != key:
                    raise UserError(
                        f"{where}: {key}: {student} with the method '{method}' and the teacher "
                        f"{pair.teacher} is in {first} already; remove it from one of the two"
                    )


def _is_itself(config: Experiment, student: str, teacher: str) -> bool:
    """Whether both are one base model, whatever its name, and the teacher is not a finished checkpoint."""
    if layout.teacher_weights(teacher) in config.checkpoints:
        return False
    words: dict[str, Any] = {"family": "", "size": "", "licence": None, "gated": None, "tokenizer": "alike"}
    models = [config.models[name] for name in (student, teacher)]
    first, second = (dataclasses.replace(model, **words) for model in models)
    return first == second and len({repr(config.tokenizers.get(m.tokenizer)) for m in models}) == 1


def _check_pair(config: Experiment, pair: Pair, where: str, key: str) -> None:
    must_be_one_of(pair.teacher, config.models, where, f"{key}.teacher")
    for i, method in enumerate(pair.methods):
        must_be_one_of(method, config.every_method, where, f"{key}.methods.{i}")
    for j, student in enumerate(pair.students):
        must_be_one_of(student, config.models, where, f"{key}.students.{j}")
        if _is_itself(config, student, pair.teacher):
            raise UserError(
                f"{where}: {key}.students.{j}: {student} is the same model as its teacher {pair.teacher}, "
                "fine-tuned and prompted alike; name another student"
            )
        ours, theirs = config.models[student].tokenizer, config.models[pair.teacher].tokenizer
        # With chat templates stage `data` compares the vocabularies of the two.
        if ours != theirs and config.data.template != "chat":
            raise UserError(
                f"{where}: {key}.students.{j}: {student} has the tokenizer '{ours}' and its teacher "
                f"{pair.teacher} '{theirs}'; word-level distillation needs one vocabulary"
            )


def _check_checkpoint(config: Experiment, weights: str, model: Model, where: str) -> None:
    """A checkpoint takes the place of a trained model, has its tokenizer, comes from a folder or the hub."""
    key = f"{where}: checkpoints.{weights}"
    pairs = (*config.pairs, *config.sweeps)
    places = {layout.teacher_weights(pair.teacher): pair.teacher for pair in pairs}
    for name in config.panel:
        places[layout.teacher_weights(name)] = name
    for pair in pairs:
        for student, method in product(pair.students, config.every_method):
            places |= {
                layout.student_weights(student, method, pair.teacher, seed): student
                for seed in config.training_seeds
            }
    if weights not in places:
        raise UserError(f"{key}: no model of this run has this path; {hint(weights, places)}")
    if model.source not in ("folder", "hub", "server") or not model.path:
        raise UserError(f"{key}: a checkpoint needs source 'folder', 'hub' or 'server', and a path")
    if model.source == "server":
        check_served(config, weights, model, where)
    if model.tokenizer != config.models[places[weights]].tokenizer:
        raise UserError(f"{key}.tokenizer: differs from that of {places[weights]}")


def _check_model(config: Experiment, name: str, model: Model, where: str) -> None:
    if model.source == "server":
        raise UserError(
            f"{where}: models.{name}.source: a server takes the place of a finished teacher; name it in "
            "checkpoints"
        )
    needs = {"scratch": "architecture", "pruned": "layers"}.get(model.source, "path")
    if not getattr(model, needs):
        raise UserError(f"{where}: models.{name}.{needs}: missing; source '{model.source}' needs it")
    if model.source in ("scratch", "pruned") and model.training is None:
        raise UserError(f"{where}: models.{name}.training: missing; source '{model.source}' needs it")
    if model.source == "pruned":
        must_be_one_of(model.parent, config.models, where, f"models.{name}.parent")
        if config.models[model.parent].tokenizer != model.tokenizer:
            raise UserError(
                f"{where}: models.{name}.tokenizer: differs from that of its parent {model.parent}"
            )
        seen, parent = [name], model.parent
        while parent in config.models and config.models[parent].source == "pruned":
            if parent in seen:
                chain = " -> ".join([*seen[seen.index(parent) :], parent])
                raise UserError(
                    f"{where}: models.{name}.parent: a model cannot be pruned of itself ({chain}); "
                    "name a model that is not pruned"
                )
            seen.append(parent)
            parent = config.models[parent].parent
