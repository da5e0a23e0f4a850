"""What one table or figure of items.py depends on."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from minillm.config import Style
from minillm.experiment import Experiment, trained
from minillm.publish.items import ITEMS
from minillm.settings import TableSettings
from minillm.stages import canonical, on_policy, table_settings
from minillm.strict import STRICT


@dataclass(frozen=True, config=STRICT)
class ModelLabel:
    """Family and size of a model, as the paper's tables name them."""

    family: str
    size: str


@dataclass(frozen=True, config=STRICT)
class PublishSettings:
    """`publish`: one table or figure (publish/items.py); `style` is None for a table.

    models: label and size of each model.  chosen: student -> method -> value of the on-policy key that the item ranges over.
    """

    stage: Literal["publish"]
    name: str
    table: TableSettings
    models: dict[str, ModelLabel]
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


def publish_settings(config: Experiment, name: str) -> dict[str, Any]:
    """Exactly what the item `name` of items.py depends on, as plain data."""
    item = ITEMS[name]
    students = dict.fromkeys(student for _, student, _ in trained(config, sweeps=item.sweeps))
    table = table_settings(config, sweeps=item.sweeps)
    if "calibration" in item.needs:
        tasks = {name: task.label or config.datasets[task.dataset].label for name, task in config.calibration.tasks.items()}
        table = dataclasses.replace(
            table, test_labels=table.test_labels | {name: label for name, label in tasks.items() if label}
        )
    settings = PublishSettings(
        stage="publish",
        name=name,
        table=table,
        models={model: ModelLabel(config.models[model].family, config.models[model].size) for model in sorted(table.labels)},
        chosen={student: alike(config, student, item.knob) for student in students} if item.knob else {},
        seed=config.data.seed,
        style=config.style if item.kind == "figure" else None,
    )
    return dataclasses.asdict(settings)
