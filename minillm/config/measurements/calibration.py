"""Calibration on classification tasks: the section, and the settings of `calibration`."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.sections import Dataset, Precision
from minillm.config.strict import STRICT, Count, Name, Natural, hint, must_be_one_of
from minillm.errors import UserError


@dataclass(frozen=True, config=STRICT)
class ClassificationTask:
    """One classification task without examples: rows of a data set, how they are asked, and the word of each label.

    `prompt`, `input` and `cue` are templates whose {field} stands for a column of the row.  `prompt` is the instruction and `input`
    its input in the run's prompt template; `cue` begins the response, and the label word follows it.  `gold` is the column of the
    right label, `labels` maps its values (as JSON writes them: true, 1, positive) to the words.  `truncate` is the column that is
    cut from its end where a prompt is too long.
    """

    dataset: Name
    prompt: str
    labels: Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=2)]
    input: str = ""
    cue: str = ""
    gold: str = "label"
    truncate: str = ""
    label: str = ""

    @property
    def fields(self) -> list[str]:
        """Columns that the templates name."""
        parsed = [part for text in (self.prompt, self.input, self.cue) for part in string.Formatter().parse(text)]
        return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """Expected calibration error of label words' probabilities.  `max_prompt` in tokens; 0: what the model can take."""

    tasks: dict[Name, ClassificationTask] = dataclasses.field(default_factory=dict)
    bins: Count = 10
    max_prompt: Natural = 0

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        for name, task in self.tasks.items():
            _check_task(task, config.datasets, where, f"calibration.tasks.{name}")


@dataclass(frozen=True, config=STRICT)
class CalibrationSettings:
    """`calibration`: one classification task, for every model."""

    stage: Literal["calibration"]
    name: str
    task: ClassificationTask
    dataset: Dataset
    template: str
    bins: Count
    max_prompt: int
    seed: int
    precision: Precision

    @classmethod
    def of(cls, config: Any, stage: str, task: str) -> CalibrationSettings:
        """The settings that `config` has for the task of that name."""
        chosen = config.calibration.tasks[task]
        return cls(
            stage="calibration",
            name=task,
            task=chosen,
            dataset=config.datasets[chosen.dataset],
            template=config.data.template,
            bins=config.calibration.bins,
            max_prompt=config.calibration.max_prompt,
            seed=config.data.seed,
            precision=config.precision,
        )


def _check_task(task: ClassificationTask, datasets: Collection[str], where: str, key: str) -> None:
    must_be_one_of(task.dataset, datasets, where, f"{key}.dataset")
    for name in ("prompt", "input", "cue"):
        try:
            parts = list(string.Formatter().parse(getattr(task, name)))
        except ValueError as error:
            raise UserError(f"{where}: {key}.{name}: {error}; write {{{{ and }}}} for braces in the text") from None
        for _, field, form, conversion in parts:
            if field is not None and (not field.isidentifier() or form or conversion):
                raise UserError(
                    f"{where}: {key}.{name}: {{{field}}} is no {{column}}; write {{{{ and }}}} for braces in the text"
                )
    if task.truncate and task.truncate not in task.fields:
        raise UserError(
            f"{where}: {key}.truncate: no template has the column '{task.truncate}'; {hint(task.truncate, task.fields)}"
        )
