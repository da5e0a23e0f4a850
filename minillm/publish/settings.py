"""What one table or figure of registry.py depends on."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from minillm.config.derive import REAL_JUDGES, canonical, on_policy, table_settings
from minillm.config.experiment import Experiment, trained
from minillm.config.sections import Style
from minillm.config.stage_settings import TableSettings
from minillm.config.strict import STRICT
from minillm.publish.registry import ITEMS


@dataclass(frozen=True, config=STRICT)
class ModelLabel:
    """Family and size of a model, as the paper's tables name them, and the tokenizer under whose name its data lie."""

    family: str
    size: str
    tokenizer: str


@dataclass(frozen=True, config=STRICT)
class PublishSettings:
    """`publish`: one table or figure (publish/registry.py); `style` is None for a table.

    models: label and size of each model.  asked: kind of results -> names of the sets (calibration: tasks) that it is made of; what else
    lies in metrics/ is no part of it.  chosen: student -> method -> value of the on-policy key that the item ranges over.
    """

    stage: Literal["publish"]
    name: str
    table: TableSettings
    models: dict[str, ModelLabel]
    asked: dict[str, tuple[str, ...]]
    chosen: dict[str, dict[str, float | str]]
    seed: int
    style: Style | None


def alike(config: Experiment, student: str, knob: str) -> dict[str, float | str]:
    """On-policy methods of one student that differ in `knob` alone -> its value; those that differ so from MiniLLM, where it is one.

    For the knob "objective": the first methods that are alike and hold both forward and reverse KL.
    """
    groups: dict[str, dict[str, float | str]] = {}
    for method in dict.fromkeys(m for _, s, m in trained(config, sweeps=True) if s == student):
        if method == "minillm" or method in config.variants:
            settings = dataclasses.asdict(on_policy(config, method, student))
            value = settings.pop(knob)
            del settings["semantics"]  # a preset's name; its keys are there
            groups.setdefault(canonical(settings), {})[method] = value
    if knob == "objective":
        return next((group for group in groups.values() if {"forward_kl", "reverse_kl"} <= set(group.values())), {})
    return next((group for group in groups.values() if "minillm" in group), {})


def asked(config: Experiment, kind: str, item: str = "") -> tuple[str, ...]:
    """Names of the sets (calibration: tasks) of which the configuration asks for metrics/<kind>; of `item`, those that it shows."""
    lengths = config.lengths
    if kind == "lengths" and item == "figure7":
        return tuple(test for test in lengths.tests if test not in lengths.figure15)
    if kind == "lengths" and item == "figure15":
        return lengths.figure15
    if kind == "judge" and (config.judge.kind == "none" or (item == "table6" and config.judge.kind not in REAL_JUDGES)):
        return ()
    return {
        "rouge": config.data.tests,
        "lengths": lengths.tests,
        "exposure_bias": config.exposure_bias.tests,
        "diversity": config.diversity.tests,
        "reference_loss": config.diversity.tests,
        "calibration": tuple(config.calibration.tasks),
        "judge": config.judge.tests,
        "human": (config.human.test,)
        if config.human.test and config.human.answers
        else (),  # where there is something to count
    }[kind]


def publish_settings(config: Experiment, name: str) -> dict[str, Any]:
    """Exactly what the item `name` of registry.py depends on, as plain data."""
    item = ITEMS[name]
    students = dict.fromkeys(student for _, student, _ in trained(config, sweeps=item.sweeps))
    table = table_settings(config, sweeps=item.sweeps)
    sets = {kind: asked(config, kind, name) for kind in item.needs if kind not in ("models", "generations", "paper")}
    tasks = config.calibration.tasks if "calibration" in sets else {}
    more = {name: config.datasets[name].label or name for name in sets.get("lengths", ())}  # some are no test set
    more |= {name: task.label or config.datasets[task.dataset].label or name for name, task in tasks.items()}
    table = dataclasses.replace(table, test_labels=table.test_labels | more)
    settings = PublishSettings(
        stage="publish",
        name=name,
        table=table,
        models={
            name: ModelLabel(model.family, model.size, model.tokenizer)
            for name, model in sorted(config.models.items())
            if name in table.labels
        },
        asked=sets,
        chosen={student: alike(config, student, item.knob) for student in students} if item.knob else {},
        seed=config.data.seed,
        style=config.style if item.kind == "figure" else None,
    )
    return dataclasses.asdict(settings)
