"""What Snakemake plans for a fresh checkout, and what it says of a wrong configuration."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

from minillm.cli import parser
from minillm.config.derive import stage_settings
from minillm.config.experiment import experiment
from minillm.config.schema import text
from minillm.errors import UserError
from minillm.plan import plan

REPO = Path(__file__).resolve().parents[2]
PLAN = "tests/config/plan.yaml"


def commands(output: str) -> list[list[str]]:
    """The words of each planned stage's command, redirection left out."""
    return [
        shlex.split(line.split(" > ")[0])
        for line in re.findall(r"^Shell command: (.*-m minillm .*)$", output, re.MULTILINE)
    ]


def starts(output: str) -> dict[str, list[str]]:
    """How each planned stage is started: the words before `-m minillm`."""
    return {words[words.index("minillm") + 1]: words[: words.index("-m")] for words in commands(output)}


def test_jobs_of_a_fresh_checkout(checkout):
    """Two students (one pruned from the teacher's base), a teacher, two seeds, two test sets, a variant."""
    jobs = checkout.planned()
    assert Counter(job.split()[0] for job in jobs) == {
        "settings": 32 + 24,
        "data": 1,
        "base": 3,
        "testset": 2,
        "teacher": 1,
        "pseudo": 1,
        "sft": 4,
        "kd": 4,
        "seqkd": 4,
        "minillm": 8,  # four of them are the variant's
        "generate": 42,
        "rouge": 42,
        "table": 1,
        "figure": 1,
        "publish_table": 9,
        "publish_figure": 15,
        "index": 1,
        "checklist": 1,
        "page": 1,
        "curves": 1,
        "metrics": 1,
        "report": 1,
    }
    assert "kd student=short teacher=big seed=20" in jobs
    assert "generate weights=small/minillm/big/seed10 test=hard" in jobs


def test_every_command_is_one_that_the_package_takes(checkout):
    output = checkout.snakemake("-n", "-p", "--cores", "2", "--configfile", PLAN).stdout
    found = [words[words.index("minillm") + 1 :] for words in commands(output)]
    assert {words[0] for words in found} >= {
        "data",
        "base",
        "teacher",
        "sft",
        "kd",
        "pseudo",
        "seqkd",
        "minillm",
        "figure",
    }
    for words in found:
        parser().parse_args(words)  # ends the test with the message of the command line
    pruned = next(words for words in found if "results/plan/configs/base/short.json" in words)
    assert pruned[pruned.index("--parent") + 1] == "results/plan/models/big/base"


def test_a_model_that_is_healed_on_answers_waits_for_them(checkout):
    made_from = ["--config", "models={short: {answers_of: big}}"]
    output = checkout.snakemake("-n", "-p", "--cores", "2", "--configfile", PLAN, *made_from).stdout
    healed = next(words for words in commands(output) if "results/plan/configs/base/short.json" in words)
    assert healed[healed.index("--pseudo") + 1] == "results/plan/data/letters/pseudo/big.jsonl"
    parser().parse_args(healed[healed.index("minillm") + 1 :])


@pytest.mark.parametrize("named", [[], ["--configfile", "config/config.yaml"]], ids=["default", "named"])
def test_jobs_of_the_paper(checkout, named):
    """Table 1 and Table 6: 12 models, of which 4 teach and 9 learn (GPT-2 XL does both), in 10 pairs.

    There are 3 tokenizers, 5 test sets, 3 seeds. In addition there are 4 more teachers of one student each
    (Figures 5, 14) and 21 variants (Tables 4, 7, Figures 8, 16, divergences), which are trained with one seed
    and measured by what the tables and figures that show them need; and S-NI and UnNI of all lengths (Figures
    7, 15).
    """
    output = checkout.snakemake("-n", "--cores", "2", "--quiet", "rules", *named).stdout
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    assert counts.pop("total") == sum(counts.values())
    ends = ("table", "figure", "metrics", "index", "checklist", "page", "curves", "report", "all")
    one_each = dict.fromkeys(ends, 1)
    trained = {"base": 12, "teacher": 8, "pseudo": 8, "sft": 3 * 9, "kd": 3 * 10}
    trained |= {"seqkd": 3 * 10 + 4, "minillm": 3 * 10 + 4 + 9 + 6 + 6}
    models = 4 + 3 * (9 + 3 * 10)
    every = models + 4 + 2 * 4 + 21
    evaluated = dict.fromkeys(("generate", "rouge"), every * 5 + models * 2)
    evaluated |= dict.fromkeys(("calibration", "diversity", "reference_loss"), every * 2) | {
        "lengths": models * 2
    }
    evaluated |= {"samples": 4, "exposure_bias": 3 * 10 * 4}  # a pair, method and seed each
    one_each["estimators"] = 1
    published = {"publish_table": 9, "publish_figure": 15}
    # Data, test sets, models and pseudo; generate, table, figure, metrics; tables and figures; a task or
    # test set each, or one for all: lengths, calibration, subsets, samples, exposure_bias, diversity,
    # reference_loss, human, estimators.
    fetched = {"fetch": 12 + 3 + 10 + 2}  # models, tokenizers, data sets of the hub, folders by length
    settings = (
        3 + 7 + sum(trained.values()) + 4 + sum(published.values()) + (2 + 2 + 2 + 6) + fetched["fetch"]
    )
    assert counts == {
        "settings": settings,
        **fetched,
        "data": 3,
        "testset": 3 * (5 + 2),
        "subsets": 2,
        "human_page": 10,
        **trained,
        **evaluated,
        **published,
        **one_each,
    }


def test_a_sweep_adds_its_models_and_leaves_the_main_table_alone(checkout):
    main = {"methods": ["sft", "minillm"]}
    sweep = {"sweeps": [{"teacher": "big", "students": ["small"], "methods": ["minillm", "gkd"]}]}
    names = [
        checkout.write(f"{name}.yaml", lambda c, own=own: c.update(own))
        for name, own in (("main", main), ("swept", main | sweep))
    ]
    before, after = (checkout.planned(config=name) for name in names)
    own = {
        "minillm student=small method=gkd teacher=big seed=10",
        "settings key=gkd/small/big/10",
    }  # the first seed alone
    own |= {
        f"{rule} weights=small/gkd/big/seed10 test={test}"
        for rule in ("generate", "rouge")
        for test in ("easy", "hard")
    }
    assert after - before == own and before <= after
    before, after = (checkout.planned("results/plan/tables/main.md", config=name) for name in names)
    assert before == after


def test_jobs_of_the_released_checkpoints(checkout):
    """Three teachers and four models of each of seven students are taken from the hub.

    Nothing is trained, not even a base model.
    """
    output = checkout.snakemake(
        "-n", "--cores", "2", "--quiet", "rules", "--configfile", "config/config.yaml", "config/released.yaml"
    ).stdout
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    assert (
        counts["checkpoint"] == 3 + 7 * 4
        and counts["generate"] == counts["rouge"] == (5 + 2) * counts["checkpoint"]
    )
    assert not {"base", "teacher", "sft", "kd", "pseudo", "seqkd", "minillm", "judge"} & set(counts)


def test_jobs_of_a_judge(checkout):
    """The released checkpoints with an endpoint: three sets of each model, which the main table reads.

    No key is needed to plan it.
    """
    files = ["config/config.yaml", "config/released.yaml", "config/judge.yaml"]
    output = checkout.snakemake("-n", "--cores", "2", "--configfile", *files).stdout
    assert len(re.findall(r"^(?:local)?rule judge:", output, re.MULTILINE)) == 3 * 31
    table = re.search(r"^(?:local)?rule table:\n    input: (.*)", output, re.MULTILINE)
    assert table and table[1].count("results/released/metrics/judge/") == 3 * 31


def test_the_paper_measures_its_own_loss_on_every_length(checkout):
    configs = [
        load_configfile(str(REPO / f"config/{name}.yaml"))
        for name in ("models", "datasets", "config", "released")
    ]
    raw: dict = {}
    for config in configs:
        update_config(raw, config)
    run = experiment(raw)
    assert run.diversity.loss == "released"
    built = stage_settings(run, "testset", test="sni_all")["dataset"]
    assert built["path"] == "results/released/data/subsets/sni.jsonl" and not set(run.lengths.tests) & set(
        run.data.tests
    )


def test_a_checkpoint_stands_for_one_training_alone(checkout):
    taken = {"small/kd/big/seed10": {"source": "folder", "path": "here", "tokenizer": "letters"}}
    before, after = (
        checkout.planned(),
        checkout.planned(config=checkout.write("taken.yaml", lambda c: c.update(checkpoints=taken))),
    )
    assert before - after == {"kd student=small teacher=big seed=10", "settings key=kd/small/big/10"}
    assert after - before == {
        "checkpoint taken=small/kd/big/seed10",
        "local source=checkpoints/small/kd/big/seed10",
        "settings key=checkpoint/small/kd/big/seed10",
    }


ALONE = ("--standalone", "--local-addr=127.0.0.1")


def torchrun(processes):
    return ["torchrun", "--shutdown-timeout=110", f"--nproc-per-node={processes}"]


def test_processes_start_torchrun_and_share_the_cores(checkout):
    name = checkout.write("processes.yaml", lambda c: c["launch"].update(kd={"processes": 2}))
    output = checkout.snakemake("-n", "-p", "--cores", "4", "--configfile", name).stdout
    assert starts(output)["kd"] == ["OMP_NUM_THREADS=2", "MKL_NUM_THREADS=2", *torchrun(2), *ALONE]
    assert starts(output)["sft"] == ["OMP_NUM_THREADS=4", "MKL_NUM_THREADS=4", "python"]


def test_launch_values_of_a_model_for_the_stages_that_work_with_it(checkout):
    """As teacher or student; where both have the same key, the student's counts."""
    launch = {
        "big": {"minillm": {"zero": 3, "shard_teacher": True}, "teacher": {"zero": 3}},
        "small": {"minillm": {"zero": 2}},
    }

    def edit(config):
        for name, stages in launch.items():
            config["per_model"].setdefault(name, {})["launch"] = stages

    output = checkout.snakemake(
        "-n", "-p", "--cores", "4", "--configfile", checkout.write("sizes.yaml", edit)
    ).stdout
    found = {}
    for words in commands(output):
        if "--launch" in words:
            values = json.loads(words[words.index("--launch") + 1])
            found[words[words.index("--config") + 1]] = values["zero"], values["shard_teacher"]
    stages = "results/plan/configs"
    assert (
        found[f"{stages}/minillm/small/big/10.json"] == found[f"{stages}/gkd/small/big/20.json"] == (2, True)
    )
    assert found[f"{stages}/minillm/short/big/10.json"] == (3, True)
    assert found[f"{stages}/teacher/big.json"] == (3, False)
    assert {found[f"{stages}/{other}.json"] for other in ("base/big", "sft/small/10", "kd/small/big/10")} == {
        (0, False)
    }


def test_small_jobs_run_side_by_side_where_the_configuration_says_so(checkout):
    name = checkout.write("cores.yaml", lambda c: c.update(cores={"generate": 1}))
    output = checkout.snakemake("-n", "-p", "--cores", "4", "--configfile", name).stdout
    assert starts(output)["generate"] == ["OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "python"]
    assert starts(output)["sft"] == ["OMP_NUM_THREADS=4", "MKL_NUM_THREADS=4", "python"]


@pytest.mark.parametrize("files", [("demo", "demo-all"), ("mini", "mini-all")], ids=("demo-all", "mini-all"))
def test_configurations_that_are_read_after_others(checkout, files, monkeypatch):
    """config.yaml and released.yaml: test_publish_plan.py."""
    monkeypatch.setenv("MINILLM_DATA", str(checkout.root))
    configs = [f"config/{name}.yaml" for name in files]
    assert checkout.snakemake("-n", "--quiet", "all", "--configfile", *configs).returncode == 0


def test_slurm_profile_plans_without_slurm(checkout):
    profile = yaml.safe_load((REPO / "slurm" / "config.yaml").read_text())
    several = {
        "slurm_partition": "gpu",
        "gres": "gpu:a100:4",
        "nodes": 2,
        "tasks": 2,
        "tasks_per_gpu": 0,
        "mpi": "srun",
    }
    profile["set-resources"]["teacher"] = several
    (checkout.root / "nodes").mkdir()
    (checkout.root / "nodes" / "config.yaml").write_text(yaml.safe_dump(profile))
    one, two = (
        checkout.snakemake("-n", "-p", "--profile", name, "--configfile", PLAN).stdout
        for name in ("slurm", "nodes")
    )

    assert starts(one)["base"][2:] == ["python"]
    assert starts(one)["minillm"][2:] == [*torchrun(4), *ALONE]
    assert re.search(
        r"^rule minillm:\n(?:    .*\n)*?    resources: .*slurm_partition=gpu.*gres=gpu:4", one, re.MULTILINE
    )
    of_a_node = ["--ntasks-per-node=1", "--cpus-per-task=1", "--kill-on-bad-exit=1"]
    # a dry run has one core; in a job these are the rule's threads
    srun = ["srun", "--nodes=2", "--ntasks=2", *of_a_node, "workflow/scripts/per_node.sh"]
    assert starts(two)["teacher"][2:] == [*srun, *torchrun(4)[1:], "--nnodes=2"]


def test_rules_need_no_number_of_cores_on_a_cluster(checkout):
    """A dry run has one core where none is given, so only something else shows it."""
    assert checkout.snakemake("--profile", "slurm", "--configfile", PLAN, "--summary").returncode == 0


def test_schema_is_current():
    schema = REPO / "workflow" / "schemas" / "config.schema.yaml"
    assert schema.read_text() == text(), (
        "run `python -m minillm.config.schema > workflow/schemas/config.schema.yaml`"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["stages"]["sft"].update(epoch=3),
            "stages.sft.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            lambda c: c["stages"]["kd"].update(lrr=c["stages"]["kd"].pop("lr")),
            "stages.kd.lrr: unknown key; did you mean 'lr'?",
        ),
        (
            lambda c: c["stages"]["sft"].update(lr="1e-4"),
            "stages.sft.lr: .* not the text '1e-4' .*: write 1.0e-4",
        ),
        (
            lambda c: c["pairs"][0].update(students=["smal"]),
            "pairs.0.students.0: there is no 'smal'; did you mean 'small'",
        ),
        (
            lambda c: c.update(sweeps=[{"teacher": "big", "students": ["small"], "methods": ["gdk"]}]),
            "sweeps.0.methods.0: there is no 'gdk'; did you mean 'gkd'",
        ),
        (
            lambda c: c.update(sweeps=[{"teacher": "big", "students": ["small"]}]),
            "sweeps.0.methods: missing; name the methods",
        ),
        (
            lambda c: c["per_model"]["small"]["minillm"].update(lrr=1.0),
            "per_model.small.minillm.lrr: unknown key; .*'lr'",
        ),
        (lambda c: c["launch"]["default"].update(zero=7), "launch.default.zero: .* not 7"),
        (
            lambda c: c["per_model"]["small"].update(launch={"minilm": {"zero": 3}}),
            "per_model.small.launch.minilm: 'minilm' is not among the stages that take launch values; "
            "did you mean 'minillm'",
        ),
        (
            lambda c: c.update(cores={"generat": 1}),
            "cores.generat: there is no 'generat'; did you mean 'generate'",
        ),
        (
            lambda c: c.update(
                checkpoints={"small/kd/bg/seed10": {"source": "hub", "path": "a/b", "tokenizer": "letters"}}
            ),
            "checkpoints.small/kd/bg/seed10: no model of this run has this path; "
            "did you mean 'small/kd/big/seed10'",
        ),
        (lambda c: c.pop("run"), "run: missing"),  # and not the paper's run with these values
    ],
)
def test_a_wrong_configuration_is_one_line_with_file_and_key(checkout, edit, message):
    name = checkout.write("wrong.yaml", edit)
    run = checkout.snakemake("-n", "--cores", "2", "--configfile", name, check=False)
    assert run.returncode != 0
    said = [
        line
        for line in run.stdout.splitlines()
        if not line.startswith(("Config file config/", "Using workflow specific profile"))
    ]
    assert len(said) == 1 and re.match(f"Error: wrong.yaml: {message}", said[0]), run.stdout


def test_a_mistake_in_a_catalogue_names_the_catalogue(checkout):
    catalogue = checkout.root / "config" / "models.yaml"
    before = catalogue.read_text()
    catalogue.write_text(before.replace("size: 1.3B, path:", "size: 1.3B, pth:"))
    try:
        run = checkout.snakemake("-n", "--cores", "2", "--configfile", PLAN, check=False)
    finally:
        catalogue.write_text(before)
    assert (
        run.returncode
        and "Error: config/models.yaml: models.opt-1.3b.pth: unknown key; did you mean 'path'?" in run.stdout
    )


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("run: again\n", r":\d+: not YAML: the key 'run' is there twice; remove one"),
        (
            "lengths: {tests: [2024-05-01]}\n",
            ": lengths.tests.0: YAML reads this as the date 2024-05-01; put",
        ),
        ("lengths: &x [*x]\n", ": lengths.*: nesting too deep, or anchors that contain themselves"),
    ],
)
def test_what_yaml_reads_otherwise_than_meant_is_one_line(checkout, added, message):
    """Snakemake keeps the last of two equal keys and says nothing of dates and anchors in themselves."""
    (checkout.root / "wrong.yaml").write_text((checkout.root / PLAN).read_text() + added, encoding="utf-8")
    run = checkout.snakemake("-n", "--cores", "2", "--configfile", "wrong.yaml", check=False)
    assert run.returncode != 0 and "Traceback" not in run.stdout
    assert re.match(f"Error: wrong.yaml{message}", run.stdout.splitlines()[-1]), run.stdout
    with pytest.raises(UserError, match=f"wrong.yaml{message}"):
        plan([checkout.root / "wrong.yaml"])


def test_rouge_has_a_settings_file_only_if_it_differs(checkout):
    """Results from before there were settings of ROUGE-L are not scored again."""
    name = checkout.write("unicode.yaml", lambda c: c.update(rouge={"tokenizer": "unicode"}))
    more = checkout.planned(config=name) - checkout.planned()
    assert more == {"settings key=rouge"}
    words = next(
        w for w in commands(checkout.snakemake("-n", "-p", "--configfile", name).stdout) if "rouge" in w
    )
    assert vars(parser().parse_args(words[words.index("rouge") :]))["config"].name == "rouge.json"
    words = next(
        w for w in commands(checkout.snakemake("-n", "-p", "--configfile", PLAN).stdout) if "rouge" in w
    )
    assert vars(parser().parse_args(words[words.index("rouge") :]))["config"] is None


def test_variants_of_supervised_stages_and_who_needs_the_teachers_answers(checkout):
    """A variant of kd or seqkd is trained by it under its own name; only teacher_texts asks for answers."""
    own = ["sft", "kd", "minillm"]

    def without(config):
        config["methods"] = own

    def edit(config):
        config["methods"] = [*own, "hpd", "long", "pairs"]
        config["variants"] |= {
            "hpd": {"label": "HPD", "stage": "kd", "settings": {"loss": "hpd", "lr": 9.0e-4}},
            "long": {"label": "Long SeqKD", "stage": "seqkd", "settings": {"epochs": 3}},
            "pairs": {
                "label": "DistiLLM-2",
                "settings": {"objective": "skew_reverse_kl", "alpha": 0.0, "teacher_texts": {}},
            },
        }

    name = checkout.write("supervised.yaml", edit)
    before = checkout.planned(config=checkout.write("without.yaml", without))
    after = checkout.planned(config=name)
    assert not before - after and "pseudo tokenizer=letters teacher=big" in after - before
    students = ("small", "short")
    assert {job for job in after - before if "student=" in job} == {
        *(f"kd_variant student={s} kd_variant=hpd teacher=big seed={n}" for s in students for n in (10, 20)),
        *(
            f"seqkd_variant student={s} seqkd_variant=long teacher=big seed={n}"
            for s in students
            for n in (10, 20)
        ),
        *(f"minillm student={s} method=pairs teacher=big seed={n}" for s in students for n in (10, 20)),
    }
    output = checkout.snakemake("-n", "-p", "--cores", "2", "--configfile", name).stdout
    configs = {}
    for words in commands(output):
        found = words[words.index("minillm") + 1 :]
        parser().parse_args(found)
        if "--config" in found:
            configs[found[found.index("--config") + 1]] = found
    folder = "results/plan/configs"
    assert configs[f"{folder}/hpd/small/big/10.json"][0] == "kd"
    assert "--pseudo" in configs[f"{folder}/long/small/big/10.json"]
    for method, asks in (("pairs", True), ("minillm", False), ("kd", False), ("hpd", False)):
        assert ("--pseudo" in configs[f"{folder}/{method}/small/big/10.json"]) == asks, method


def test_the_settings_of_a_supervised_variant():
    config = yaml.safe_load((REPO / PLAN).read_text())
    config["variants"]["hpd"] = {"label": "HPD", "stage": "kd", "settings": {"loss": "hpd"}}
    config["per_model"]["short"] = {"kd": {"lr": 7.0e-4, "loss": "ce"}}
    made = experiment(config)
    names = {"model": "short", "teacher": "big", "seed": 10}
    kd, hpd = (stage_settings(made, stage, **names) for stage in ("kd", "hpd"))
    assert "method" not in kd and hpd["method"] == "hpd" and hpd["stage"] == "kd"
    assert hpd["training"] == kd["training"] | {"loss": "hpd"} and hpd["training"]["lr"] == 7.0e-4
    assert made.kinds == {"gkd": "minillm", "hpd": "kd"}


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ({"stage": "kd", "settings": {"lsos": "hpd"}}, "variants.x.settings.lsos: "),
        ({"stage": "sft", "settings": {}}, "variants.x.stage: "),
        ({"settings": {"loss": "hpd"}}, "variants.x.loss: "),
    ],
)
def test_a_wrong_supervised_variant_is_refused(variant, problem):
    config = yaml.safe_load((REPO / PLAN).read_text())
    config["variants"]["x"] = {"label": "X", **variant}
    with pytest.raises(UserError, match=rf"^config: {problem}[^\n]*$"):
        experiment(config)


def test_hpd_needs_a_stage_with_a_teacher():
    config = yaml.safe_load((REPO / PLAN).read_text())
    config["stages"]["sft"]["loss"] = "hpd"
    with pytest.raises(UserError, match=r"^config: stages\.sft\.loss: 'hpd' needs a teacher[^\n]*$"):
        experiment(config)
