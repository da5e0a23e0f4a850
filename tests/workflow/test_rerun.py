"""After a finished run: one value is edited, and exactly the jobs that depend on it are planned again."""

from __future__ import annotations

import os
from itertools import product

import pytest

from minillm.publish.registry import ITEMS as EVERY

# Those that plan.yaml makes.
ITEMS = {name: item for name, item in EVERY.items() if not item.if_asked and not item.if_set}
ON_POLICY = ("minillm", "gkd")
METHODS = ("kd", "seqkd", *ON_POLICY)
SEEDS = (10, 20)
TESTS = ("easy", "hard")
ENDS = {"index", "page", "report"}


def published(*needs):
    """Tables and figures that are made of one of these kinds of results; of none: all of them."""
    chosen = {name: item for name, item in ITEMS.items() if not needs or set(item.needs) & set(needs)}
    return {f"publish_{item.kind} name={name}" for name, item in chosen.items()} | ENDS | {"checklist"}


def item_settings(*kinds):
    return {f"settings key=publish/{name}" for name, item in ITEMS.items() if item.kind in kinds}


SCORED = {"table", "figure", "metrics"} | published("rouge", "generations")


def weights(student, methods=("sft", *METHODS), seeds=SEEDS):
    paths = {method: f"{student}/sft" if method == "sft" else f"{student}/{method}/big" for method in methods}
    return [f"{path}/seed{seed}" for path in paths.values() for seed in seeds]


def evaluated(models, tests=TESTS):
    """Jobs that follow from new weights, or from new tests."""
    return {
        f"{rule} weights={model} test={test}"
        for rule in ("generate", "rouge")
        for model in models
        for test in tests
    } | SCORED


def trained(methods, students=("small", "short"), seeds=SEEDS):
    def rule(method, student):
        return (
            f"minillm student={student} method={method}"
            if method in ON_POLICY
            else f"{method} student={student}"
        )

    return {f"{rule(m, s)} teacher=big seed={seed}" for m, s, seed in product(methods, students, seeds)} | {
        "curves",
        *published("models"),
    }


def settings(*keys):
    return {f"settings key={key}" for key in keys}


ALL = ["big/teacher", *weights("small"), *weights("short")]


def test_nothing_to_do_after_a_run(finished):
    assert finished.planned() == set()
    assert (
        "Nothing to be done"
        in finished.snakemake("--cores", "2", "--configfile", "tests/config/plan.yaml").stdout
    )


def test_the_report_is_one_file_with_table_and_figure(finished):
    report = (finished.root / "results" / "plan" / "report.html").read_text()
    assert "main.csv" in report and "main.png" in report
    assert not [
        tag for tag in ('src="http', "src='http", '<link rel="stylesheet" href="http') if tag in report
    ]


def one_students_lr(config):
    config["per_model"]["small"]["minillm"]["lr"] = 3.0e-4


def one_variants_key(config):
    config["variants"]["gkd"]["settings"]["beta"] = 0.1


def figure_style(config):
    config["style"]["dpi"] = 150


def sample_of_a_test_set(config):
    config["datasets"]["easy"]["sample"] = 5


def two_values_swapped(config):
    values = config["stages"]["minillm"]
    values["collections"], values["warmup"] = values["warmup"], values["collections"]


def teachers_lr(config):
    config["stages"]["teacher"]["lr"] = 5.0e-4


def one_seed_more(config):
    config["training_seeds"].append(30)


def one_students_adapter(config):
    config["models"]["small"]["adapter"] = {"rank": 4}


def generation(config):
    config["generate"]["temperature"] = 0.7


NEW = (30,)
EXPECTED = {
    # The variant has the student's own settings for MiniLLM, so that it follows.
    one_students_lr: settings(*(f"{m}/small/big/{seed}" for m in ON_POLICY for seed in SEEDS))
    | trained(ON_POLICY, ["small"])
    | evaluated(weights("small", ON_POLICY)),
    one_variants_key: settings(*(f"gkd/{s}/big/{seed}" for s in ("small", "short") for seed in SEEDS))
    | trained(["gkd"])
    | evaluated([*weights("small", ["gkd"]), *weights("short", ["gkd"])]),
    figure_style: settings("figure")
    | item_settings("figure")
    | {
        "figure",
        *ENDS,
        *(f"publish_figure name={name}" for name, item in ITEMS.items() if item.kind == "figure"),
    },
    sample_of_a_test_set: settings("testset/easy")
    | {"testset tokenizer=letters test=easy"}
    | evaluated(ALL, ["easy"]),
    two_values_swapped: settings(
        *(f"{m}/{s}/big/{seed}" for m in ON_POLICY for s in ("small", "short") for seed in SEEDS)
    )
    | trained(ON_POLICY)
    | evaluated([*weights("small", ON_POLICY), *weights("short", ON_POLICY)]),
    teachers_lr: settings("teacher/big")
    | {"teacher model=big", "pseudo tokenizer=letters teacher=big"}
    | trained(METHODS)
    | evaluated(["big/teacher", *weights("small", METHODS), *weights("short", METHODS)]),
    one_seed_more: settings("table", "metrics", *(f"sft/{s}/30" for s in ("small", "short")))
    | settings(*(f"{m}/{s}/big/30" for m in METHODS for s in ("small", "short")))
    | {f"sft student={s} seed=30" for s in ("small", "short")}
    | trained(METHODS, seeds=NEW)
    | evaluated([*weights("small", seeds=NEW), *weights("short", seeds=NEW)])
    | item_settings("table", "figure")
    | published(),
    # Not its base model, which is read now by its on-policy jobs too.
    one_students_adapter: settings(*(f"sft/small/{seed}" for seed in SEEDS))
    | settings(*(f"{m}/small/big/{seed}" for m in METHODS for seed in SEEDS))
    | {f"sft student=small seed={seed}" for seed in SEEDS}
    | trained(METHODS, ["small"])
    | evaluated(weights("small")),
    generation: settings("generate", "table", "metrics")
    | item_settings("table", "figure")
    | evaluated(ALL)
    | published(),
}


@pytest.mark.parametrize(("edit", "jobs"), EXPECTED.items(), ids=[edit.__name__ for edit in EXPECTED])
def test_only_what_depends_on_an_edit_is_planned(finished, edit, jobs):
    assert finished.planned(config=finished.write("edited.yaml", edit)) == jobs


def test_launch_values_cores_and_order_of_keys_rerun_nothing(finished):
    def launch(config):
        config["launch"] = {
            "default": {"zero": 2, "micro_batch": 1, "processes": 2},
            "minillm": {"save_every": 7},
        }
        config["per_model"]["small"]["launch"] = {"minillm": {"zero": 3}}

    name = finished.write("edited.yaml", launch, sort_keys=True)
    assert finished.planned("--cores", "16", config=name) == set()


@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        ("minillm/publish/figures/main.py", {"figure", *ENDS}),
        ("workflow/report/main_table.rst", {"report"}),
        ("minillm/publish/svg.py", {"curves"}),
        ("minillm/cli.py", set()),
    ],
)
def test_only_what_uses_a_file_is_planned(finished, file, jobs):
    path = finished.root / file
    text, times = path.read_text(), (path.stat().st_atime, path.stat().st_mtime)
    path.write_text(text + "\n# edited\n")
    try:
        assert finished.planned() == jobs
    finally:
        path.write_text(text)
        os.utime(path, times)


def test_a_deleted_metric_is_made_again_with_what_reads_it(finished):
    path = finished.root / "results/plan/metrics/rouge/small/kd/big/seed10/easy.json"
    path.rename(path.with_suffix(".away"))
    try:
        jobs = {"rouge weights=small/kd/big/seed10 test=easy", "table", "figure", "metrics"} | published(
            "rouge"
        )
        assert finished.planned() == jobs
    finally:
        path.with_suffix(".away").rename(path)


def test_a_moved_checkout_has_nothing_to_do(finished):
    elsewhere = finished.root.with_name("moved")
    finished.root.rename(elsewhere)
    try:
        assert type(finished)(elsewhere).planned() == set()
    finally:
        elsewhere.rename(finished.root)
