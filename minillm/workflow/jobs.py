"""What every job needs: paths of the run, its models, settings, code, and how its command starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.config.derive import canonical, launch_values, stage_settings
from minillm.config.experiment import Experiment
from minillm.config.grid import candidates
from minillm.config.stages import STAGES, names_of
from minillm.publish.registry import ITEMS, Item
from minillm.publish.settings import items_of
from minillm.workflow.code import sources
from minillm.workflow.command import start

# Wildcards that name a model, its teacher first.
MODEL_KEYS = ("teacher", "model", "student", "weights", "taken")


class Jobs:
    """A checked configuration as the rules see it; `root` is the checkout, relative to Snakemake's folder."""

    def __init__(self, config: Experiment, root: Path) -> None:
        self.config, self.root = config, root
        self.main = config.trained(sweeps=False)
        self.trained = config.trained(sweeps=True)
        self.teachers = list(dict.fromkeys(teacher for teacher, *_ in self.trained))

    def below(self, path: str) -> str:
        """A path from layout.py, inside the folder of this run."""
        return f"{layout.run_folder(self.config.run)}/{path}"

    def _tokenizer(self, model: str) -> str:
        return self.config.models[model].tokenizer

    # --- models
    def _weights_of(self, students: Sequence[tuple[str, str, str]]) -> list[str]:
        """Weights of these students' teachers and of the students, all seeds."""
        teachers = [layout.teacher_weights(teacher) for teacher, *_ in students]
        trained = [
            layout.student_weights(student, method, teacher, seed)
            for teacher, student, method in students
            for seed in self.config.seeds_of(teacher, student, method)
        ]
        return list(dict.fromkeys([*teachers, *trained]))

    @cached_property
    def main_weights(self) -> list[str]:
        """Weights of the models of the main table."""
        return self._weights_of(self.main)

    @cached_property
    def every_weights(self) -> list[str]:
        """Weights of every model that is evaluated, those of the sweeps included."""
        return self._weights_of(self.trained)

    @cached_property
    def compared(self) -> list[str]:
        """Weights of the MiniLLM students that people compare, first training seed; [] without a test set."""
        seed = self.config.training_seeds[0]
        return [
            layout.student_weights(student, method, teacher, seed)
            for teacher, student, method in self.main
            if self.config.human.test and method == "minillm"
        ]

    @property
    def gridded(self) -> list[str]:
        """Method, student and teacher of every training that has a grid, as layout.grid_key has them."""
        return [
            layout.grid_key(method, student, teacher)
            for teacher, student, method in self.trained
            if candidates(self.config.grid, method, self.config.stage_of(method))
        ]

    # --- settings, code and commands
    def settings(self, wildcards: Any) -> str:
        """Params function: the text of a stage's settings file.

        Equal settings always give the same text; nothing else goes into it.
        """
        stage, names = names_of(wildcards.key, self.config.kinds)
        return canonical(stage_settings(self.config, stage, **names))

    def code(self, stage: str) -> list[str]:
        """The package's files that a stage's results depend on: its module and all that this imports."""
        return sources(self.root, STAGES[stage].module)

    def module_code(self, module: str) -> list[str]:
        """The package's files that a command for people depends on."""
        return sources(self.root, module)

    def item_code(self, wildcards: Any) -> list[str]:
        """Input function: the code of one table or figure."""
        module = f"minillm.publish.{ITEMS[wildcards.name].module}"
        return list(dict.fromkeys([*sources(self.root, module), *self.code("publish")]))

    def threads(self, stage: str, cores: int | None) -> int:
        """CPU cores of a job: the whole machine (`cores`), unless the configuration's `cores` say less.

        With the whole machine no two jobs share it.  On a cluster the profile's set-threads take its place.
        """
        machine = cores or 8
        return min(machine, self.config.cores.get(stage, machine))

    def launch(self, stage: str) -> Callable[..., str]:
        """Params function: how a stage is started on the resources that its job got.

        Functions of `resources` are not among a job's recorded parameters, so launch values re-run nothing.
        """

        def command(wildcards: Any, resources: Any, threads: int) -> str:
            models = [name.split("/")[0] for key in MODEL_KEYS if (name := wildcards.get(key))]
            values = launch_values(self.config, stage, models)
            return start(stage, values, resources, threads, self.root / "workflow/scripts/per_node.sh")

        return command

    @cached_property
    def items(self) -> dict[str, Item]:
        """The tables and figures that the configuration makes, next to the main ones."""
        return items_of(self.config)
