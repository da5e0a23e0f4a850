"""What the rules ask for: the files that a job needs, its settings, its code, and how its command starts.

The one seam that knows wildcards and paths: rules/ holds no logic, and the package knows nothing of
Snakemake.  `wildcards` are those of a job, with `get`, as in Snakemake.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.config.chat import linked
from minillm.config.derive import canonical, launch_values, stage_settings
from minillm.config.experiment import Experiment
from minillm.config.grid import candidates, split
from minillm.config.launch import KILLED_AFTER
from minillm.config.measurements.metrics import STAGE_OF
from minillm.config.measurements.rouge import Rouge
from minillm.config.stages import STAGES, names_of
from minillm.config.subsets import SUBSETS
from minillm.config.teaching import USUAL, Teaching
from minillm.data.local_files import content_of, is_local
from minillm.data.sources import resolve_path
from minillm.errors import UserError
from minillm.publish.registry import ITEMS, Item
from minillm.publish.settings import items_of, main_table_files, metric_files
from minillm.readers import read_json

# Wildcards that name a model, its teacher first.
MODEL_KEYS = ("teacher", "model", "student", "weights", "taken")


def one_of(names: Iterable[str]) -> str:
    """A regular expression that matches these names; without names, nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


class Names(dict[str, str]):
    """Names of a job that has other wildcards, to be asked for as those are."""

    def __getattr__(self, name: str) -> str:
        return self[name]


class Workflow:
    """A checked configuration as the rules see it; `root` is the checkout, relative to Snakemake's folder."""

    def __init__(self, config: Experiment, root: Path) -> None:
        self.config, self.root = config, root
        self.main = config.trained(sweeps=False)
        self.trained = config.trained(sweeps=True)
        self.teachers = list(dict.fromkeys(teacher for teacher, *_ in self.trained))

    def below(self, path: str) -> str:
        """A path from layout.py, inside the folder of this run."""
        return f"{layout.run_folder(self.config.run)}/{path}"

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

    # --- inputs of the pipeline's jobs
    def _tokenizer(self, model: str) -> str:
        return self.config.models[model].tokenizer

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

    def recorded(self, section: str, *names: str) -> list[str]:
        """Records of what is not made here: of the entries of a section that come from the hub or from files.

        Rows of the stage `subsets` are made here.
        """
        paths = []
        for name in names:
            spec = getattr(self.config, section)[name]
            if is_local(spec.source, spec.path) and not spec.path.startswith(SUBSETS):
                paths.append(layout.local(f"{section}/{name}"))
            elif spec.source == "hub":
                paths.append(layout.fetched(f"{section}/{name}"))
        return list(map(self.below, paths))

    def records(self, section: str, key: str) -> Callable[[Any], list[str]]:
        """Input function: the record of the entry that the wildcard `key` names, if it has one."""
        return lambda wildcards: self.recorded(section, wildcards[key])

    def records_of_rows(self) -> list[str]:
        """Records of training rows and dev rows."""
        return self.recorded("datasets", self.config.data.train, self.config.data.dev)

    def records_of_data(self, wildcards: Any) -> list[str]:
        """Input function: records of tokenizers, training rows, dev rows and corpus; chat templates."""
        data = self.config.data
        names = [wildcards.tokenizer, *linked(self.config, wildcards.tokenizer)]
        chats = [self.config.tokenizers[name].chat for name in names] if data.template == "chat" else []
        return [
            *self.recorded("tokenizers", *names),
            *self.recorded("datasets", *filter(None, (data.train, data.dev, data.corpus))),
            *(str(resolve_path(c.template, "tokenizers.chat.template")) for c in chats if c and c.template),
        ]

    def records_of_task(self, wildcards: Any) -> list[str]:
        """Input function: the record of a classification task's data set."""
        return self.recorded("datasets", self.config.calibration.tasks[wildcards.task].dataset)

    def record_of_harness(self) -> list[str]:
        """The record of the folder with our own tasks of lm-eval, if the configuration names one."""
        folder = self.config.harness.task_folder
        return [self.below(layout.local("harness/tasks"))] if folder else []

    def record_of_judge(self) -> list[str]:
        """The record of a judge that is a local model."""
        local = self.config.judge.kind == "transformers"
        return [self.below(layout.local("judge/model"))] if local else []

    def local_content(self, wildcards: Any) -> str:
        """Params function: what the local files of an entry hold, as text.

        As long as they are not here (a disk that is not mounted, $MINILLM_DATA not set) it is what the record
        says already, so that nothing runs again for that.
        """
        section, name = wildcards.source.split("/", 1)
        # Sections that are one entry each.
        single = {"judge": self.config.judge.model, "harness": self.config.harness.task_folder}
        path = single[section] if section in single else getattr(self.config, section)[name].path
        run = Path(layout.run_folder(self.config.run))
        found = content_of(section, path, run)
        if found is None:
            try:
                recorded = read_json(run / layout.local(wildcards.source))
                if recorded["path"] == path:
                    return canonical(recorded)
            # No record, or a damaged one: it is written anew.
            except (UserError, KeyError, TypeError):
                pass
        return canonical(found or {"path": path, "content": None})

    def subset_of_test(self, wildcards: Any) -> list[str]:
        """Input function: the file of rule `subsets` that a test set is read from, if it is such a set."""
        dataset = self.config.datasets[wildcards.test]
        return [self.config.dataset(wildcards.test).path] if dataset.path.startswith(SUBSETS) else []

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


# --- code
def sources(root: Path, module: str) -> list[str]:
    """The package's files that `module` imports, itself included: the code that its results depend on.

    Imports for the type checker do not count.  Paths begin with `root`, which is relative, so that moving the
    checkout re-runs nothing.
    """
    return list(_sources(root, module))


@cache
def _sources(root: Path, module: str) -> tuple[str, ...]:
    seen: set[Path] = set()
    todo = [module]
    while todo:
        path = _file_of(root, todo.pop())
        if path is not None and path not in seen:
            seen.add(path)
            todo += _imports(path)
    return tuple(sorted(os.path.relpath(path) for path in seen if path.stat().st_size))


@cache
def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """The package's modules that a file imports, also in its functions, and the names imported from them."""
    names: list[str] = []
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] == "minillm"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minillm":
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        todo += ast.iter_child_nodes(node)
    return tuple(names)


# --- how a command starts
def start(stage: str, values: Mapping[str, Any], resources: Any, threads: int, per_node: Path) -> str:
    """The beginning of a stage's command: one process, torchrun, or torchrun on each node of a Slurm job.

    values: launch values.  threads: CPU cores of the job, for all its processes together.  per_node: the
    script that runs on each node.
    """
    processes, nodes = values["processes"], resources.get("nodes", 1)
    gpus = re.search(r"gpu(?::[^:]+)?:(\d+)", str(resources.get("gres", "")))
    if gpus:
        # On each node.
        processes = int(gpus[1])
    # Snakemake gives MKL all threads of the job, which all its processes have to share.
    share = max(1, threads // processes)
    prefix = f"OMP_NUM_THREADS={share} MKL_NUM_THREADS={share}"
    options = f"--shutdown-timeout={KILLED_AFTER} --nproc-per-node={processes}"
    run = f"-m minillm {stage} --launch {shlex.quote(json.dumps(values))}"
    if nodes > 1:
        # srun inherits none of this from the job.
        return (
            f"{prefix} srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={threads}"
            f" --kill-on-bad-exit=1 {shlex.quote(os.path.relpath(per_node))}"
            f" {options} --nnodes={nodes} {run}"
        )
    if processes > 1:
        # By its number: torchrun would wait for ever on a host whose name does not resolve.
        return f"{prefix} torchrun {options} --standalone --local-addr=127.0.0.1 {run}"
    return f"{prefix} python {run}"
