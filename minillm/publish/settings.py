"""What one table or figure of registry.py depends on, and metrics.csv; which metric files each is made of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from minillm.config.sections import Style
from minillm.config.stage_settings import TableSettings
from minillm.config.strict import STRICT
from minillm.publish.registry import ITEMS, RECORDS
from minillm.publish.run_models import MetricFile, declared, main_table_asks

if TYPE_CHECKING:  # for the rules no dependency: a table does not change with sections that it does not show
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

    models: label and size of each model.  asked: kind of metric -> names of the sets (calibration: tasks) that it is
    made of; nothing else in metrics/ is part of it.  chosen: student -> method -> value of the on-policy key that
    the item ranges over.
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
        sets = asked_by(config, name)
        tasks = config.calibration.tasks if "calibration" in sets else {}
        # `lengths` may name sets that are not test sets.
        labels = {test: config.datasets[test].label or test for test in sets.get("lengths", ())}
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

    def files(self) -> list[MetricFile]:
        """The metric files that the item is made of."""
        return declared(self.table, self.asked)


@dataclass(frozen=True, config=STRICT)
class MetricsSettings:
    """`metrics`: the models and sets whose metric files are in metrics.csv; `asked` as in PublishSettings.

    main_only: kinds that are measured of the main table's models only: no item that ranges over sweeps shows them.
    """

    stage: Literal["metrics"]
    table: TableSettings
    asked: dict[str, tuple[str, ...]]
    main_only: tuple[str, ...]

    @classmethod
    def of(cls, config: Experiment, stage: str = "metrics") -> MetricsSettings:
        """Everything that `config` asks to be measured."""
        kinds = config.measured()
        swept = {kind for item in ITEMS.values() if item.sweeps for kind in item.needs}
        main_only = tuple(kind for kind in kinds if kind not in swept)
        return cls("metrics", TableSettings.of(config, sweeps=True), kinds, main_only)

    def files(self) -> list[MetricFile]:
        """The metric files that metrics.csv is made of."""
        return declared(self.table, self.asked, self.main_only)


def alike(config: Experiment, student: str, knob: str) -> dict[str, float | str]:
    """On-policy methods of one student that differ only in `knob` -> its value; MiniLLM is one of them.

    For the knob "objective": the first methods that are alike and hold both forward and reverse KL.
    """
    groups: dict[str, dict[str, float | str]] = {}
    for method in dict.fromkeys(m for _, s, m in config.trained(sweeps=True) if s == student):
        if method == "minillm" or method in config.variants:
            settings = dataclasses.asdict(config.on_policy(method, student))
            value = settings.pop(knob)
            # A preset's name; the keys that it sets are there.
            del settings["semantics"]
            groups.setdefault(json.dumps(settings, sort_keys=True), {})[method] = value
    if knob == "objective":
        return next(
            (group for group in groups.values() if {"forward_kl", "reverse_kl"} <= set(group.values())), {}
        )
    return next((group for group in groups.values() if "minillm" in group), {})


def asked_by(config: Experiment, item: str) -> dict[str, tuple[str, ...]]:
    """Kind of metric -> names of the sets (calibration: tasks) that an item of registry.py is made of."""
    asked = {kind: config.sets_of(kind) for kind in ITEMS[item].needs if kind not in RECORDS}
    if item == "figure7":
        asked["lengths"] = tuple(name for name in asked["lengths"] if name not in config.lengths.figure15)
    if item == "figure15":
        asked["lengths"] = config.lengths.figure15
    if item == "table6" and not config.judge.is_real:
        asked["judge"] = ()
    return asked


def metric_files(config: Experiment, item: str = "") -> list[str]:
    """Metric files, below the run's folder, that an item is made of; without `item`, those of metrics.csv.

    The frame that the item reads is made of exactly these (results.py): both come from `run_models.declared`.
    """
    if not item:
        return _paths(MetricsSettings.of(config).files())
    return _paths(declared(TableSettings.of(config, sweeps=ITEMS[item].sweeps), asked_by(config, item)))


def main_table_files(config: Experiment) -> list[str]:
    """The same for the main table."""
    table = TableSettings.of(config)
    return _paths(declared(table, main_table_asks(table)))


def _paths(files: Iterable[MetricFile]) -> list[str]:
    """Each once: a student's SFT belongs to each of its teachers."""
    return list(dict.fromkeys(file.path for file in files))
