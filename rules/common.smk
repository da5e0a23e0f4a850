# What the rules share: the checked configuration, names and paths.
import ast
import json
import os
import re
import shlex
import sys
from pathlib import Path

from minillm.errors import UserError
from minillm.config.experiment import STAGES, SUBSETS, experiment, seeds_of, trained
from minillm.publish import report_texts
from minillm.publish.registry import ITEMS, READING
from minillm.publish.settings import (
    asked,
    main_table_files,
    metric_files,
    publish_settings,
)
from minillm.config.derive import (
    canonical,
    launch_values,
    stage_settings,
    subset_file,
)
from snakemake.common.configfile import load_configfile
from snakemake.utils import validate

# Relative, as all paths are here, so that a moved checkout re-runs nothing.
FOLDER = os.path.relpath(workflow.basedir)


def file_of(key):
    """The configuration file that holds a key like models.small.path, to name it in a message."""
    first, *rest = key.split(".", 1)
    given = list(workflow.overwrite_configfiles) or ["config/config.yaml"]
    for path in given + list(workflow.configfiles):
        below = load_configfile(path).get(first)
        if below is not None and (
            not rest
            or not isinstance(below, dict)
            or any(f"{rest[0]}.".startswith(f"{name}.") for name in below)
        ):
            return os.path.relpath(path)
    return os.path.relpath(given[0])


# One line and no exception: around that Snakemake would print lines of its own.
try:
    EXPERIMENT = experiment(config, "config")
except UserError as error:
    problem = str(error).removeprefix("config: ")
    sys.exit(f"Error: {file_of(problem.split(':')[0])}: {problem}")
validate(config, "../workflow/schemas/config.schema.yaml", set_default=False)


def threads_of(stage):
    """A stage that computes takes the whole machine, so that two never share it, unless `cores` of the configuration says less.

    On a cluster the profile's set-threads take its place.
    """
    machine = workflow.resource_settings.cores or 8
    return min(machine, EXPERIMENT.cores.get(stage, machine))


RUN = EXPERIMENT.run

# What the report's captions show of results that are there; nothing else reads it.
config["main_table"] = report_texts.main_table(Path("results") / RUN)
config["details"] = {
    name: report_texts.details(Path("results") / RUN, item.kind, name)
    for name, item in ITEMS.items()
}
SEEDS = EXPERIMENT.training_seeds
TESTS = EXPERIMENT.data.tests
MAIN = trained(EXPERIMENT, sweeps=False)
TRAINED = trained(EXPERIMENT, sweeps=True)
TEACHERS = list(dict.fromkeys(teacher for teacher, *_ in TRAINED))
STUDENTS = list(dict.fromkeys(student for _, student, _ in TRAINED))
MODELS = list(EXPERIMENT.models)
ON_POLICY = ["minillm", *EXPERIMENT.variants]


def student_weights(student, method, teacher, seed):
    """Path of a student below models/."""
    return (
        f"{student}/sft/seed{seed}"
        if method == "sft"
        else f"{student}/{method}/{teacher}/seed{seed}"
    )


def weights_of(students):
    """Paths below models/ of these students' teachers and of the students, all seeds."""
    teachers = [f"{teacher}/teacher" for teacher, *_ in students]
    own = [
        student_weights(s, m, t, seed)
        for t, s, m in students
        for seed in seeds_of(EXPERIMENT, t, s, m)
    ]
    return list(dict.fromkeys([*teachers, *own]))


# Models that are evaluated: of the main table, and of the sweeps as well.
MAIN_WEIGHTS = weights_of(MAIN)
WEIGHTS = weights_of(TRAINED)


def one_of(names):
    return "|".join(re.escape(name) for name in names) or "(?!)"  # of no names: nothing


wildcard_constraints:
    run=re.escape(RUN),
    model=one_of(MODELS),
    student=one_of(STUDENTS),
    teacher=one_of(TEACHERS),
    tokenizer=one_of(EXPERIMENT.tokenizers),
    test=one_of(dict.fromkeys([*TESTS, *EXPERIMENT.lengths.tests])),  # lengths may ask for sets of their own
    weights=one_of(WEIGHTS),
    taken=one_of(EXPERIMENT.checkpoints),
    source=r"(models|tokenizers|datasets|checkpoints|subsets)/.+",
    subset=one_of(EXPERIMENT.subsets),
    method=one_of(ON_POLICY),
    seed=r"\d+",
    key=f"({one_of([*STAGES, *EXPERIMENT.variants])})(/.+)?",


def settings_of(wildcards):
    """Text of a stage's settings file: the same settings always give the same text, and nothing else goes into it."""
    stage, *names = wildcards.key.split("/")
    if stage in ("checkpoint", "fetch"):
        names = ["/".join(names)]
    if stage == "publish":
        return canonical(publish_settings(EXPERIMENT, names[0]))
    keys = {
        "data": ["tokenizer"],
        "testset": ["test"],
        "base": ["model"],
        "checkpoint": ["weights"],
        "fetch": ["weights"],
        "teacher": ["model"],
        "sft": ["model", "seed"],
        "pseudo": ["teacher"],
        "lengths": ["test"],
        "subsets": ["test"],
        "calibration": ["test"],
    }.get(stage, ["model", "teacher", "seed"])
    values = dict(zip(keys, names))
    values["seed"] = int(values.get("seed", SEEDS[0]))
    return canonical(stage_settings(EXPERIMENT, stage, **values))


def in_run(paths):
    return [f"results/{RUN}/{path}" for path in paths]


def paper_numbers():
    folder = Path(workflow.basedir).parent / "config" / "paper"
    return sorted(os.path.relpath(path) for path in folder.glob("*.csv"))


def every_metric():
    """Metric files that some table or figure is made of; asked for by name, so that one that was deleted is made again."""
    return in_run(metric_files(EXPERIMENT))


def teachers_tests_of(wildcards):
    return f"results/{wildcards.run}/data/{tokenizer_of(wildcards.teacher)}/tests/{wildcards.test}.jsonl"


def results_of_item(wildcards):
    """The results that a table or figure is made of, as far as the configuration asks for them."""
    item = ITEMS[wildcards.name]
    weights = WEIGHTS if item.sweeps else MAIN_WEIGHTS
    files = metric_files(EXPERIMENT, wildcards.name)
    if "models" in item.needs:
        files += [f"models/{model}" for model in weights]
    if "generations" in item.needs:
        files += [
            f"generations/{model}/{test}.jsonl" for model in weights for test in TESTS
        ]
    return in_run(files) + (paper_numbers() if "paper" in item.needs else [])


def tokenizer_of(name):
    return EXPERIMENT.models[name].tokenizer


def data_of(wildcards):
    """Data folder in the tokenizer of the job's model."""
    keys = ("model", "student", "teacher", "weights", "taken")
    names = [wildcards.get(key) for key in keys]
    name = next(name for name in names if name).split("/")[0]
    return f"results/{wildcards.run}/data/{tokenizer_of(name)}/training"


def tests_of(wildcards):
    name = wildcards.weights.split("/")[0]
    return f"results/{wildcards.run}/data/{tokenizer_of(name)}/tests/{wildcards.test}.jsonl"


def pseudo_of(wildcards):
    """The teacher's answers that SeqKD is trained on."""
    return f"results/{wildcards.run}/data/{tokenizer_of(wildcards.teacher)}/pseudo/{wildcards.teacher}.jsonl"


def fetched(section, *names):
    """Records of those of `names` in a section of the configuration that come from the hub."""
    table = getattr(EXPERIMENT, section)
    return [
        f"results/{RUN}/hub/{section}/{name}.json"
        for name in names
        if table[name].source == "hub"
    ]


def hub_of_data(wildcards):
    data = EXPERIMENT.data
    sets = fetched("datasets", data.train, data.dev, data.corpus)
    return fetched("tokenizers", wildcards.tokenizer) + sets


def hub_of_test(wildcards):
    return fetched("datasets", wildcards.test)


def subset_of_test(wildcards):
    """The file that the rule `subsets` makes, where a test set is one of its."""
    path = EXPERIMENT.datasets[wildcards.test].path
    return [subset_file(RUN, path)] if path.startswith(SUBSETS) else []


def hub_of_task(wildcards):
    return fetched("datasets", EXPERIMENT.calibration.tasks[wildcards.task].dataset)


def hub_of_model(wildcards):
    return fetched("models", wildcards.model)


def hub_of_checkpoint(wildcards):
    return fetched("checkpoints", wildcards.taken)


def parent_of(wildcards):
    """The base model that a pruned one is cut from."""
    parent = EXPERIMENT.models[wildcards.model].parent
    return [f"results/{wildcards.run}/models/{parent}/base"] if parent else []


def sources(module):
    """The package's files that a stage's module imports, itself included: the code that its results depend on.

    Relative paths, so that a moved checkout re-runs nothing.
    """
    root = Path(workflow.basedir).parent
    seen, todo = set(), [module]
    while todo:
        base = root.joinpath(*todo.pop().split("."))
        path = next(
            (p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()),
            None,
        )
        if path is None or path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                todo += [
                    alias.name
                    for alias in node.names
                    if alias.name.startswith("minillm")
                ]
            elif (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").split(".")[0] == "minillm"
            ):
                todo += [node.module] + [
                    f"{node.module}.{alias.name}" for alias in node.names
                ]
    return sorted(os.path.relpath(path) for path in seen if path.stat().st_size)


# What is measured besides ROUGE-L (analyses.smk).
TASKS = list(EXPERIMENT.calibration.tasks)
JUDGED = asked(EXPERIMENT, "judge")

# MiniLLM's students, whose answers people compare, as paths below models/.
HUMAN = [
    student_weights(student, "minillm", teacher, SEEDS[0])
    for teacher, student, method in MAIN
    if EXPERIMENT.human.test and method == "minillm"
]


def further_results():
    """Pages for annotators, where the configuration names a test set; the study of estimators, where it has that section, be it empty."""
    pages = [f"human/{weights}/{EXPERIMENT.human.test}.html" for weights in HUMAN]
    study = (
        ["tables/estimators.md", "figures/estimators.png"]
        if "estimators" in config
        else []
    )
    return [f"results/{RUN}/{path}" for path in pages + study]


def answers_of(weights):
    return f"results/{RUN}/generations/{weights}/{EXPERIMENT.human.test}"


def compared_with(wildcards):
    """What a student's answers are compared with: the baselines of the same pair and seed, and the teacher."""
    student, _, teacher, _ = wildcards.minillm.split("/")
    others = [
        student_weights(student, method, teacher, SEEDS[0])
        for method in ("sft", "kd", "seqkd")
        if (teacher, student, method) in MAIN
    ]
    return [answers_of(weights) for weights in (*others, f"{teacher}/teacher")]


wildcard_constraints:
    task=one_of(TASKS),
    judged=one_of(JUDGED),
    minillm=one_of(HUMAN),
