"""Tasks of lm-eval, EleutherAI's evaluation harness: the section, and the settings of `harness`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.sections import Precision
from minillm.config.strict import STRICT, Count, Name, Natural
from minillm.errors import UserError

# One file holds all tasks of a model.
FILE = "tasks"


@dataclass(frozen=True, config=STRICT)
class Harness:
    """Tasks of lm-eval for every model of the main table (table `harness`)."""

    tasks: tuple[Name, ...] = Field(
        default=(),
        description="Names of tasks, as `lm-eval ls tasks` lists them or files of `task_folder` define them; "
        "empty measures nothing.",
    )
    task_folder: str = Field(
        default="",
        description="A folder with task files of your own (YAML) and the data that they read. "
        "`$MINILLM_DATA/` works as in a data set's path.",
    )
    fewshot: Natural | None = Field(
        default=None,
        description="Examples before each question; empty leaves it to each task.",
    )
    limit: Count | None = Field(
        default=None,
        description="Only the first so many questions of each task; empty takes all.",
    )

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the metric files of a model: one, if there are tasks."""
        return (FILE,) if self.tasks else ()

    def check(self, config: Any, where: str) -> None:
        """Raises UserError, one line naming `where` and the key, for what the types do not say."""
        if not self.tasks and self != Harness():
            raise UserError(f"{where}: harness.tasks: missing; name the tasks to measure")


@dataclass(frozen=True, config=STRICT)
class HarnessSettings:
    """`harness`: which tasks, and how they are asked."""

    stage: Literal["harness"]
    harness: Harness
    precision: Precision
    seed: int

    @classmethod
    def of(cls, config: Any, stage: str) -> HarnessSettings:
        """The settings in `config` for the tasks of lm-eval."""
        return cls("harness", config.harness, config.precision, config.data.seed)
