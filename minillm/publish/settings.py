"""What one table or figure of registry.py depends on."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from minillm.config.sections import Style
from minillm.config.stage_settings import TableSettings
from minillm.config.strict import STRICT
from minillm.publish.registry import ITEMS

if TYPE_CHECKING:  # for the rules no dependency
    from minillm.config.experiment import Experiment


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

    @classmethod
    def of(cls, config: Experiment, stage: str, name: str) -> PublishSettings:
        """The settings that `config` has for the item `name` of registry.py."""
        item = ITEMS[name]
        students = dict.fromkeys(student for _, student, _ in config.trained(sweeps=item.sweeps))
        table = TableSettings.of(config, sweeps=item.sweeps)
        sets = {kind: asked(config, kind, name) for kind in item.needs if kind not in ("models", "generations", "paper")}
        tasks = config.calibration.tasks if "calibration" in sets else {}
        labels = {test: config.datasets[test].label or test for test in sets.get("lengths", ())}  # some are no test set
        labels |= {task: t.label or config.datasets[t.dataset].label or task for task, t in tasks.items()}
        return cls(
            stage="publish",
            name=name,
            table=dataclasses.replace(table, test_labels=table.test_labels | labels),
            models={
                model: ModelLabel(spec.family, spec.size, spec.tokenizer)
                for model, spec in sorted(config.models.items())
                if model in table.labels
            },
            asked=sets,
            chosen={student: alike(config, student, item.knob) for student in students} if item.knob else {},
            seed=config.data.seed,
            style=config.style if item.kind == "figure" else None,
        )


def alike(config: Experiment, student: str, knob: str) -> dict[str, float | str]:
    """On-policy methods of one student that differ in `knob` alone -> its value; those that differ so from MiniLLM, where it is one.

    For the knob "objective": the first methods that are alike and hold both forward and reverse KL.
    """
    groups: dict[str, dict[str, float | str]] = {}
    for method in dict.fromkeys(m for _, s, m in config.trained(sweeps=True) if s == student):
        if method == "minillm" or method in config.variants:
            settings = dataclasses.asdict(config.on_policy(method, student))
            value = settings.pop(knob)
            del settings["semantics"]  # a preset's name; its keys are there
            groups.setdefault(json.dumps(settings, sort_keys=True), {})[method] = value
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
    if kind == "judge" and item == "table6" and not config.judge.is_real:
        return ()
    return config.sets_of(kind)
