"""Checks of a whole configuration: what its keys say about each other.

Each raises UserError, one line naming the file (`where`) and the key.  The sections of measurements check
themselves.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import TYPE_CHECKING, Any

from minillm.config import layout
from minillm.config.adapter import check_adapters
from minillm.config.launch import Launch
from minillm.config.measurements.metrics import check_metrics
from minillm.config.methods import SCHEDULE, Method
from minillm.config.sampling import check_backend
from minillm.config.sections import Model, Pair, Training
from minillm.config.served import check_served
from minillm.config.stages import STAGES
from minillm.config.strict import check_lists, hint, merged, must_be_one_of, parse
from minillm.config.subsets import SUBSETS
from minillm.config.teaching import Teaching, check_prompt
from minillm.config.unused import unused, unused_in_training
from minillm.errors import UserError

if TYPE_CHECKING:
    from minillm.config.experiment import Experiment


def check_whole(config: Experiment, where: str) -> None:
    """Ranges and types are checked by the dataclasses; here references by name, and what they lead to."""
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
    _check_unused(config, where)
    for name, kind in config.kinds.items():
        if kind != "minillm":
            for student in ("", *config.per_model):
                _check_loss(config.supervised(name, student, where), f"{where}: variants.{name}.settings")
    for stage in ("teacher", "sft", "kd", "seqkd"):
        for student in ("", *config.per_model):
            _check_loss(config.supervised(stage, student, where), f"{where}: stages.{stage}", stage)
    for i, method in enumerate(config.methods):
        must_be_one_of(method, config.every_method, where, f"methods.{i}")


def _check_unused(config: Experiment, where: str) -> None:
    """Keys of methods that are written in the configuration and read by no method that has them.

    Sizes and rates (`SCHEDULE`) that all methods share may stay where one leaves out what they are of; the
    keys of `stages.kd` and its like may be one list, too.  The catalogue is checked as a whole (methods.py).
    """
    students = ("", *(name for name, stages in config.per_model.items() if "minillm" in stages))
    methods = [m for m in config.trained_by("minillm") if not isinstance(config.variants.get(m), Method)]
    made = {(m, student): config.on_policy(m, student, where) for m in methods for student in students}
    shared = {"stages.minillm": (config.stages.minillm, list(made.values()))}
    for student in students[1:]:
        own = [settings for (_, name), settings in made.items() if name == student]
        shared[f"per_model.{student}.minillm"] = (config.per_model[student]["minillm"], own)
    for under, (written, settings) in shared.items():
        if problem := unused({k: v for k, v in written.items() if k not in SCHEDULE}, settings):
            raise UserError(f"{where}: {under}.{problem}")
    for name in methods[1:]:
        own = [settings for (method, _), settings in made.items() if method == name]
        if problem := unused(config.variants[name].settings, own):
            raise UserError(f"{where}: variants.{name}.settings.{problem}")
    for name, variant in config.variants.items():
        if variant.stage and (problem := unused_in_training(variant.settings, config.supervised(name, ""))):
            raise UserError(f"{where}: variants.{name}.settings.{problem}")


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
    _check_answers(config, name, model, where)


def _check_answers(config: Experiment, name: str, model: Model, where: str) -> None:
    """`answers_of`: a teacher with the model's tokenizer, which is not made from the model itself."""
    if model.answers_of is None:
        return
    key, teachers = f"models.{name}.answers_of", [pair.teacher for pair in (*config.pairs, *config.sweeps)]
    if model.source != "pruned":
        raise UserError(f"{where}: {key}: only a pruned model is healed; remove it")
    must_be_one_of(model.answers_of, teachers, where, key)
    if config.models[model.answers_of].tokenizer != model.tokenizer:
        raise UserError(f"{where}: {key}: {model.answers_of} has another tokenizer than {name}")
    made_from: str | None = model.answers_of
    while made_from:
        if made_from == name:
            raise UserError(f"{where}: {key}: {model.answers_of} is made from {name}; name another teacher")
        parent = config.models.get(made_from)
        made_from = parent.parent if parent else None
