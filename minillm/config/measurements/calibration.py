"""Calibration on classification tasks: the section, and the settings of `calibration`."""

from __future__ import annotations

import string
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.data import Dataset
from minillm.config.sections import Precision
from minillm.config.strict import STRICT, Count, Name, Natural, hint, must_be_one_of
from minillm.errors import UserError


@dataclass(frozen=True, config=STRICT)
class ClassificationTask:
    """One zero-shot classification task.

    `prompt`, `input` and `cue` are templates in which `{column}` stands for a column of the row; write `{{`
    and `}}` for braces.
    """

    dataset: Name = Field(description="Entry of `datasets` with the rows, whatever their columns.")
    prompt: str = Field(description="Template of the instruction, in the run's prompt template.")
    labels: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        min_length=2,
        description="Values of the column `gold`, as JSON writes them (`true`, `1`, `positive`), and the "
        "word that stands for each.",
    )
    input: str = Field(default="", description="Template of the instruction's input; empty has none.")
    cue: str = Field(
        default="",
        description="Template of the response's beginning, which the label word follows.",
    )
    gold: str = Field(default="label", description="Column of the right label.")
    truncate: str = Field(
        default="",
        description="Column that is cut from its end if the prompt is too long; empty refuses such rows.",
    )
    label: str = Field(default="", description="Name in tables and figures; empty is that of the data set.")

    @property
    def fields(self) -> list[str]:
        """Columns that the templates name."""
        parsed = [
            part for text in (self.prompt, self.input, self.cue) for part in string.Formatter().parse(text)
        ]
        return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """Expected calibration error (ECE) of label words' probabilities (Table 2)."""

    tasks: dict[Name, ClassificationTask] = Field(
        default_factory=dict,
        description="Classification tasks by name; empty measures nothing. The paper: SST-2 and BoolQ.",
    )
    bins: Count = Field(
        default=10,
        description="Bins of equal width over [0, 1]. The paper's number is not known.",
    )
    max_prompt: Natural = Field(
        default=0,
        description="Longest prompt in tokens; 0 is what the model can take.",
    )

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
        """The settings in `config` for the task of that name."""
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
            raise UserError(
                f"{where}: {key}.{name}: {error}; write {{{{ and }}}} for braces in the text"
            ) from None
        for _, field, form, conversion in parts:
            if field is not None and (not field.isidentifier() or form or conversion):
                raise UserError(
                    f"{where}: {key}.{name}: {{{field}}} is not a {{column}}; "
                    "write {{ and }} for braces in the text"
                )
    if task.truncate and task.truncate not in task.fields:
        raise UserError(
            f"{where}: {key}.truncate: no template has the column '{task.truncate}'; "
            f"{hint(task.truncate, task.fields)}"
        )
