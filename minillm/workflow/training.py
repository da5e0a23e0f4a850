"""Inputs of the jobs that prepare and train models, and of the trials of grids."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from minillm.config import layout
from minillm.config.chat import linked
from minillm.config.grid import candidates, split
from minillm.config.teaching import USUAL, Teaching
from minillm.workflow.jobs import Jobs


class Names(dict[str, str]):
    """Names of a job that has other wildcards, to be asked for as those are."""

    def __getattr__(self, name: str) -> str:
        return self[name]


class Training(Jobs):
    """Input functions of data, of training stages and of grids."""

    def data(self, wildcards: Any) -> str:
        """Input function: the data folder for the tokenizer of the job's model."""
        keys = ("model", "student", "teacher", "weights", "taken")
        name = next(name for key in keys if (name := wildcards.get(key)))
        return self.below(layout.training_data(self._tokenizer(name.split("/")[0])))

    def linked_data(self, wildcards: Any) -> list[str]:
        """Input function: data folders of the tokenizers that are linked to the job's by pairs."""
        return [self.below(layout.training_data(t)) for t in linked(self.config, wildcards.tokenizer)]

    def _apart(self, wildcards: Any) -> bool:
        """Whether teacher and student have renderers of their own."""
        student = (wildcards.get("student") or wildcards.weights).split("/")[0]
        return self._tokenizer(student) != self._tokenizer(wildcards.teacher)

    def teacher_data(self, wildcards: Any) -> list[str]:
        """Input function: the teacher's data folder, if it is not the student's."""
        folder = self.below(layout.training_data(self._tokenizer(wildcards.teacher)))
        return [folder] if self._apart(wildcards) else []

    def _teaching(self, wildcards: Any) -> Teaching | None:
        """Who teaches in an on-policy job, if that is not the pair's teacher with its usual prompts."""
        return self.config.on_policy(wildcards.method, wildcards.student).teacher

    def prompts(self, wildcards: Any) -> list[str]:
        """Input function: the rows as who teaches is shown them, in its tokens."""
        teaching = self._teaching(wildcards)
        if teaching is None:
            return []
        model = wildcards.teacher if teaching.who == "pair" else wildcards.student
        folder = layout.teaching_data(self._tokenizer(model), teaching.prompt or USUAL)
        return [self.below(folder)]

    def panel(self, wildcards: Any) -> list[str]:
        """Input function: the further teachers of an on-policy job, in order."""
        teaching = self._teaching(wildcards)
        names = teaching.panel if teaching is not None else ()
        return [self.below(layout.model(layout.teacher_weights(name))) for name in names]

    def pseudo(self, wildcards: Any) -> str:
        """Input function: the teacher's answers that SeqKD is trained on."""
        return self.below(layout.pseudo_answers(self._tokenizer(wildcards.teacher), wildcards.teacher))

    def pseudo_of_method(self, wildcards: Any) -> list[str]:
        """Input function: the teacher's answers, if an on-policy method learns from them as well."""
        settings = self.config.on_policy(wildcards.method, wildcards.student)
        return [self.pseudo(wildcards)] if settings.teacher_texts is not None else []

    def parent(self, wildcards: Any) -> list[str]:
        """Input function: the base model that a pruned model is cut from."""
        parent = self.config.models[wildcards.model].parent
        return [self.below(layout.model(layout.base_weights(parent)))] if parent else []

    def answers_for_healing(self, wildcards: Any) -> list[str]:
        """Input function: a teacher's answers, if a pruned model is healed on them as well."""
        teacher = self.config.models[wildcards.model].answers_of
        return [self.pseudo(Names(teacher=teacher))] if teacher else []

    def base_of_adapter(self, wildcards: Any) -> list[str]:
        """Input function: the base model of a student that is trained by an adapter."""
        adapted = self.config.models[wildcards.student].adapter is not None
        return [self.below(layout.model(layout.base_weights(wildcards.student)))] if adapted else []

    # --- grids
    def grid(self, method: str = "") -> Callable[[Any], list[str]]:
        """Input function: what the grid of `method` (empty: the wildcard) has chosen, if it has one."""

        def choice(wildcards: Any) -> list[str]:
            places = ("method", "kd_variant", "seqkd_variant")
            name = method or next(found for place in places if (found := wildcards.get(place)))
            if not candidates(self.config.grid, name, self.config.stage_of(name)):
                return []
            key = layout.grid_key(name, wildcards.student, wildcards.get("teacher") or "")
            return [self.below(layout.grid_choice(key))]

        return choice

    def trials(self, wildcards: Any) -> list[str]:
        """Input function: the trials of a method's grid."""
        method, *_ = split(wildcards.trained)
        tried = candidates(self.config.grid, method, self.config.stage_of(method))
        return [self.below(layout.trial(wildcards.trained, candidate.name)) for candidate in tried]

    def trial_inputs(self, wildcards: Any) -> dict[str, list[str]]:
        """What a trial is trained from, by the options of its method's stage."""
        method, student, teacher = split(wildcards.trained)
        names, seed = Names(method=method, student=student), self.config.training_seeds[0]
        stage, base = self.config.stage_of(method), layout.model(layout.base_weights(student))
        files = {"data": [self.below(layout.training_data(self._tokenizer(student)))]}
        if teacher:
            names["teacher"] = teacher
            files["teacher"] = [self.below(layout.model(layout.teacher_weights(teacher)))]
            files["teacher-data"] = self.teacher_data(names)
        if stage == "minillm":
            files["init"] = [self.below(layout.model(layout.init_weights(student, seed)))]
            files |= {"base": self.base_of_adapter(names), "pseudo": self.pseudo_of_method(names)}
            files |= {"prompts": self.prompts(names), "panel": self.panel(names)}
        else:
            files["base"] = [self.below(base)]
            files["pseudo"] = [self.pseudo(names)] if stage == "seqkd" else []
        return {name: paths for name, paths in files.items() if paths}

    def trial_files(self, wildcards: Any) -> list[str]:
        """Input function: the same files as a list."""
        return [path for paths in self.trial_inputs(wildcards).values() for path in paths]

    def trial_options(self, wildcards: Any) -> str:
        """Params function: the same files as options."""
        files = self.trial_inputs(wildcards).items()
        return shlex.join(word for name, paths in files for word in (f"--{name}", *paths))

    def stage_of_trial(self, wildcards: Any) -> str:
        """The stage that a trial runs: its method's."""
        return self.config.stage_of(split(wildcards.trained)[0])

    def trial_code(self, wildcards: Any) -> list[str]:
        """Input function: the code of a trial's stage."""
        return self.code(self.stage_of_trial(wildcards))

    def trial_launch(self, wildcards: Any, resources: Any, threads: int) -> str:
        """Params function: how a trial is started, as its method's stage is."""
        _, student, teacher = split(wildcards.trained)
        names = {"student": student, "teacher": teacher}
        return self.launch(self.stage_of_trial(wildcards))(names, resources, threads)
