"""Settings of metrics.csv and of each table or figure of registry.py, and the metric files that each uses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from minillm.config.measurements.metrics import STAGE_OF
from minillm.config.sections import Style
from minillm.config.stage_settings import TableSettings
from minillm.config.strict import STRICT
from minillm.publish.registry import ITEMS, RECORDS, Item
from minillm.publish.run_models import MetricFile, declared, main_table_asks

# Not a dependency for the rules: a table does not change with sections that it does not show.
if TYPE_CHECKING:
    from minillm.config.experiment import Experiment


@dataclass(frozen=True, config=STRICT)
class ModelLabel:
    """Family and size of a model as in the paper's tables, and its tokenizer, which names its data folder."""

    family: str
    size: str
    tokenizer: str


@dataclass(frozen=True, config=STRICT)
class PublishSettings:
    """`publish`: one table or figure (publish/registry.py); `style` is None for a table.

    models: family, size and tokenizer of each model.  asked: kind of metric -> names of the sets
    (calibration: tasks) that it uses; nothing else in metrics/ is read.  chosen: student -> method -> value
    of the on-policy key that the item ranges over.
    """

    stage: Literal["publish"]
    name: str
    table: TableSettings
    models: dict[str, ModelLabel]
    asked: dict[str, tuple[str, ...]]
    chosen: dict[str, dict[str, float | str]]
    seed: int
    style: Style | None
    # The methods that table `methods` tests against.
    against: tuple[str, ...] | None = None

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
            models=model_labels(config, table),
            asked=sets,
            chosen={student: alike(config, student, item.knob) for student in students} if item.knob else {},
            seed=config.data.seed,
            style=config.style if item.kind == "figure" else None,
            against=config.comparison.against if name == "methods" else None,
        )

    def files(self) -> list[MetricFile]:
        """The metric files that the item uses."""
        return declared(self.table, self.asked)


@dataclass(frozen=True, config=STRICT)
class MetricsSettings:
    """`metrics`: models and sets whose numbers are in metrics.csv; `models`, `asked` as in PublishSettings.

    main_only: kinds measured only for the main table's models: no item that ranges over sweeps shows them.
    """

    stage: Literal["metrics"]
    table: TableSettings
    models: dict[str, ModelLabel]
    asked: dict[str, tuple[str, ...]]
    main_only: tuple[str, ...]

    @classmethod
    def of(cls, config: Experiment, stage: str = "metrics") -> MetricsSettings:
        """Everything that `config` asks to measure."""
        kinds = config.measured()
        swept = {kind for item in ITEMS.values() if item.sweeps for kind in item.needs}
        main_only = tuple(kind for kind in kinds if kind not in swept)
        table = TableSettings.of(config, sweeps=True)
        return cls("metrics", table, model_labels(config, table), kinds, main_only)

    def files(self) -> list[MetricFile]:
        """The metric files that are in metrics.csv."""
        return declared(self.table, self.asked, self.main_only)


def model_labels(config: Experiment, table: TableSettings) -> dict[str, ModelLabel]:
    """Model -> its label, of those that the table has."""
    return {
        model: ModelLabel(spec.family, spec.size, spec.tokenizer)
        for model, spec in sorted(config.models.items())
        if model in table.labels
    }


def alike(config: Experiment, student: str, knob: str) -> dict[str, float | str]:
    """On-policy methods of one student that differ only in `knob` -> its value; MiniLLM is one of them.

    For the knob "objective": the first such group that contains both forward and reverse KL.
    """
    groups: dict[str, dict[str, float | str]] = {}
    for method in dict.fromkeys(m for _, s, m in config.trained(sweeps=True) if s == student):
        if method in config.trained_by("minillm"):
            settings = dataclasses.asdict(config.on_policy(method, student))
            value = settings.pop(knob)
            # Only the preset's name: the keys that it sets are among the settings.
            del settings["semantics"]
            groups.setdefault(json.dumps(settings, sort_keys=True), {})[method] = value
    if knob == "objective":
        both = {"forward_kl", "reverse_kl"}
        return next((group for group in groups.values() if both <= set(group.values())), {})
    return next((group for group in groups.values() if "minillm" in group), {})


def items_of(config: Experiment) -> dict[str, Item]:
    """The items of registry.py that `config` makes."""
    return {
        name: item
        for name, item in ITEMS.items()
        if (not item.if_asked or any(asked_by(config, name).values()))
        and (not item.if_set or _is_set(config, item.if_set))
    }


def _is_set(config: Experiment, key: str) -> bool:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return bool(value)


def asked_by(config: Experiment, item: str) -> dict[str, tuple[str, ...]]:
    """Kind of metric -> names of the sets (calibration: tasks) that an item of registry.py uses."""
    asked = {kind: config.sets_of(kind) for kind in ITEMS[item].needs if kind not in RECORDS}
    if item == "figure7":
        asked["lengths"] = tuple(name for name in asked["lengths"] if name not in config.lengths.figure15)
    if item == "figure15":
        asked["lengths"] = config.lengths.figure15
    if item == "methods":
        asked = {
            kind: tuple(name for name in sets if name == config.comparison.test)
            for kind, sets in asked.items()
        }
    if item == "table6":
        # The main table's columns.
        asked |= {stage: sets for metric, stage in STAGE_OF.items() if (sets := config.scored[metric])}
        if not config.judge.is_real:
            asked["judge"] = ()
    return asked


def metric_files(config: Experiment, item: str = "") -> list[str]:
    """The metric files (relative to the run's folder) of an item; without `item`, those of metrics.csv.

    The item's frame (results.py) is read from exactly these files: both come from `run_models.declared`.
    """
    if not item:
        return _paths(MetricsSettings.of(config).files())
    return _paths(declared(TableSettings.of(config, sweeps=ITEMS[item].sweeps), asked_by(config, item)))


def main_table_files(config: Experiment) -> list[str]:
    """The metric files, relative to the run's folder, that the main table uses."""
    table = TableSettings.of(config)
    return _paths(declared(table, main_table_asks(table)))


def _paths(files: Iterable[MetricFile]) -> list[str]:
    """Each path once: a student's SFT belongs to each of its teachers."""
    return list(dict.fromkeys(file.path for file in files))
