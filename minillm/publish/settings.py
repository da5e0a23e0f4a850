"""What one table or figure of registry.py depends on, and metrics.csv; which metric files each is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from minillm.config.derive import REAL_JUDGES, canonical, on_policy, table_settings
from minillm.config.experiment import Experiment, trained
from minillm.config.sections import Style
from minillm.config.stage_settings import TableSettings
from minillm.config.strict import STRICT
from minillm.publish.registry import ITEMS
from minillm.publish.run_models import MetricFile, declared, main_table_asks


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
    def of(cls, config: Experiment) -> MetricsSettings:
        """Everything that `config` asks to be measured."""
        kinds = {kind: names for kind in ASKED if (names := asked(config, kind))}
        swept = {kind for item in ITEMS.values() if item.sweeps for kind in item.needs}
        main_only = tuple(kind for kind in kinds if kind not in swept)
        return cls("metrics", table_settings(config, sweeps=True), kinds, main_only)

    def files(self) -> list[MetricFile]:
        """The metric files that metrics.csv is made of."""
        return declared(self.table, self.asked, self.main_only)


def alike(config: Experiment, student: str, knob: str) -> dict[str, float | str]:
    """On-policy methods of one student that differ only in `knob` -> its value; MiniLLM is one of them.

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


# Kind of metric (the folder's name below metrics/) -> names of the sets on which a configuration asks for it
# (calibration: of the tasks).  A new measurement has its line here; its numbers are then in metrics.csv.
ASKED: dict[str, Callable[[Experiment], tuple[str, ...]]] = {
    "rouge": lambda config: config.data.tests,
    "judge": lambda config: () if config.judge.kind == "none" else config.judge.tests,
    "diversity": lambda config: config.diversity.tests,
    "reference_loss": lambda config: config.diversity.tests,
    "lengths": lambda config: config.lengths.tests,
    "exposure_bias": lambda config: config.exposure_bias.tests,
    "calibration": lambda config: tuple(config.calibration.tasks),
    # Only if there are answers to count.
    "human": lambda config: (config.human.test,) if config.human.test and config.human.answers else (),
}


def asked(config: Experiment, kind: str, item: str = "") -> tuple[str, ...]:
    """Names of the sets (calibration: tasks) on which metrics/<kind> is asked for; of `item`, those that it shows."""
    names = ASKED[kind](config)
    if kind == "lengths" and item == "figure7":
        return tuple(name for name in names if name not in config.lengths.figure15)
    if kind == "lengths" and item == "figure15":
        return config.lengths.figure15
    if kind == "judge" and item == "table6" and config.judge.kind not in REAL_JUDGES:
        return ()
    return names


def _asked_by(config: Experiment, item: str) -> dict[str, tuple[str, ...]]:
    """Kind of metric -> names of the sets that an item of registry.py is made of."""
    return {kind: asked(config, kind, item) for kind in ITEMS[item].needs if kind in ASKED}


def metric_files(config: Experiment, item: str = "") -> list[str]:
    """Metric files, below the run's folder, that an item is made of; without `item`, those of metrics.csv.

    The frame that the item reads is made of exactly these (results.py): both come from `run_models.declared`.
    """
    if not item:
        return _paths(MetricsSettings.of(config).files())
    return _paths(declared(table_settings(config, sweeps=ITEMS[item].sweeps), _asked_by(config, item)))


def main_table_files(config: Experiment) -> list[str]:
    """The same for the main table."""
    table = table_settings(config)
    return _paths(declared(table, main_table_asks(table)))


def _paths(files: Iterable[MetricFile]) -> list[str]:
    """Each once: a student's SFT belongs to each of its teachers."""
    return list(dict.fromkeys(file.path for file in files))


def metrics_settings(config: Experiment) -> dict[str, Any]:
    """What metrics.csv depends on, as plain data."""
    return dataclasses.asdict(MetricsSettings.of(config))


def publish_settings(config: Experiment, name: str) -> dict[str, Any]:
    """Exactly what the item `name` of registry.py depends on, as plain data."""
    item = ITEMS[name]
    students = dict.fromkeys(student for _, student, _ in trained(config, sweeps=item.sweeps))
    table = table_settings(config, sweeps=item.sweeps)
    sets = _asked_by(config, name)
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
