"""What the rules ask for: the files that a job needs, its settings, its code, and how its command starts.

This room is the one seam that knows wildcards and paths: rules/ holds no logic, and the package knows nothing
of Snakemake.  `wildcards` are those of a job, with `get`, as in Snakemake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from minillm.config import layout
from minillm.config.measurements.metrics import STAGE_OF
from minillm.config.measurements.rouge import Rouge
from minillm.config.stages import STAGES
from minillm.publish.registry import ITEMS
from minillm.publish.settings import main_table_files, metric_files
from minillm.workflow.records import Records
from minillm.workflow.training import Training


def one_of(names: Iterable[str]) -> str:
    """A regular expression that matches these names; without names, nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


class Workflow(Training, Records):
    """All that the rules ask for."""

    def constraints(self) -> dict[str, str]:
        """Wildcard -> regular expression."""
        config = self.config
        settings = [*STAGES, *config.variants]
        return {
            "model": one_of(config.models),
            "student": one_of(dict.fromkeys(student for _, student, _ in self.trained)),
            "teacher": one_of(self.teachers),
            "tokenizer": one_of(config.tokenizers),
            "prompt": one_of(config.data.every_prompt),
            # `lengths` may ask for sets that nothing else evaluates.
            "test": one_of(dict.fromkeys([*config.data.tests, *config.lengths.tests])),
            "weights": one_of(self.every_weights),
            "taken": one_of(config.checkpoints),
            "source": r"(models|tokenizers|datasets|checkpoints|subsets|judge|harness)/.+",
            "subset": one_of(config.subsets),
            "method": one_of(config.trained_by("minillm")),
            "kd_variant": one_of(config.trained_by("kd")[1:]),
            "seqkd_variant": one_of(config.trained_by("seqkd")[1:]),
            "trained": one_of(dict.fromkeys(self.gridded)),
            "candidate": "lr[^/]+",
            "seed": r"\d+",
            "key": f"({one_of(settings)})(/.+)?",
            "task": one_of(config.calibration.tasks),
            "judged": one_of(config.sets_of("judge")),
            # ROUGE-L has a rule of its own.
            "scored": one_of(stage for stage in STAGE_OF.values() if stage != "rouge"),
            "compared": one_of(self.compared),
        }

    # --- measurements
    def own_test(self, wildcards: Any) -> list[str]:
        """Input function: the student's test set, if its prompts are not the teacher's."""
        return [self.test(wildcards)] if self._apart(wildcards) else []

    def rouge_settings(self, wildcards: Any) -> list[str]:
        """Input function: the settings of ROUGE-L, if they are not the defaults.

        Runs from before there were any have no such file, and are not scored again.
        """
        default = self.config.rouge == Rouge()
        return [] if default else [self.below(layout.settings_file("rouge"))]

    def scored_settings(self, wildcards: Any) -> list[str]:
        """Input function: the settings of one of the other metrics of responses, if it has any."""
        has = STAGES[wildcards.scored].settings
        return [self.below(layout.settings_file(wildcards.scored))] if has else []

    def first_data(self) -> str:
        """The data folder of the first teacher."""
        return self.below(layout.training_data(self._tokenizer(self.teachers[0])))

    def test(self, wildcards: Any) -> str:
        """Input function: the test set for the tokenizer of the evaluated model."""
        name = (wildcards.get("weights") or wildcards.teacher).split("/")[0]
        return self.below(layout.test_set(self._tokenizer(name), wildcards.test))

    # --- comparisons by people
    def compared_with(self, wildcards: Any) -> list[str]:
        """Input function: the answers to compare a student's with.

        They are those of its pair's baselines and of the teacher.
        """
        student, _, teacher, _ = wildcards.compared.split("/")
        baselines = [
            layout.student_weights(student, method, teacher, self.config.training_seeds[0])
            for method in ("sft", "kd", "seqkd")
            if (teacher, student, method) in self.main
        ]
        return [
            self.below(layout.generations(weights, wildcards.test))
            for weights in (*baselines, layout.teacher_weights(teacher))
        ]

    def metas_of_compared(self, wildcards: Any) -> list[str]:
        """Input function: the .meta.json files of these answers."""
        return list(map(layout.meta, self.compared_with(wildcards)))

    # --- what tables and figures are made from
    def item_results(self, wildcards: Any) -> list[str]:
        """Input function: what a table or figure is made from, as far as the configuration asks for it."""
        item = ITEMS[wildcards.name]
        weights = self.every_weights if item.sweeps else self.main_weights
        records = {
            "models": [layout.model(w) for w in weights],
            "generations": [layout.generations(w, t) for w in weights for t in self.config.data.tests],
        }
        paths = [path for kind in item.needs for path in records.get(kind, ())]
        paths += metric_files(self.config, wildcards.name)
        return [*map(self.below, paths), *(self.paper() if "paper" in item.needs else [])]

    def table_results(self) -> list[str]:
        """Input of the main table."""
        return list(map(self.below, main_table_files(self.config)))

    def every_model(self) -> list[str]:
        """Folders of all models that are evaluated."""
        return [self.below(layout.model(weights)) for weights in self.every_weights]

    def every_metric(self) -> list[str]:
        """All metric files that the configuration asks for, by name, so that a deleted one is made again."""
        return list(map(self.below, metric_files(self.config)))

    def paper(self) -> list[str]:
        """The files of published numbers."""
        return sorted(map(str, (self.root / "config/paper").glob("*.csv")))

    def further_results(self, estimators: bool) -> list[str]:
        """Pages for annotators, if the configuration names a test set, and the study of estimators.

        `estimators`: whether the configuration has that section, which may be empty.
        """
        pages = [layout.human_page(w, self.config.human.test) for w in self.compared]
        study = [layout.table("estimators", "md"), layout.figure("estimators", "png")] if estimators else []
        return [self.below(path) for path in pages + study]
