"""What Snakemake plans for exposure bias, lengths and diversity, and what it says of wrong sections."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import yaml
from test_plan import PLAN, REPO, commands

from minillm.cli import parser
from minillm.config.experiment import experiment
from minillm.errors import UserError

SECTIONS = {
    "exposure_bias": {"tests": ["easy"], "prompts": 4, "responses": 3},
    "lengths": {"tests": ["easy", "hard"], "per_test": {"hard": [3]}},
    "diversity": {"tests": ["easy"]},
}
STUDENTS = ["small/sft/seed10", "small/kd/big/seed10", "short/minillm/big/seed20"]
BIAS = [f"results/analyses/metrics/exposure_bias/big/{weights}/easy.json" for weights in STUDENTS]


def with_sections(checkout, name="analyses.yaml", **changes):
    def edit(config):
        config["run"] = "analyses"  # apart from what other tests plan in this checkout
        config.update({key: {**values, **changes.get(key, {})} for key, values in SECTIONS.items()})

    return checkout.write(name, edit)


def test_one_set_of_the_teachers_samples_serves_all_students(checkout):
    jobs = checkout.planned(*BIAS, config=with_sections(checkout))
    assert [job for job in jobs if job.startswith("samples ")] == ["samples teacher=big test=easy"]
    assert {job for job in jobs if job.startswith("exposure_bias ")} == {
        f"exposure_bias teacher=big weights={weights} test=easy" for weights in STUDENTS
    }
    assert not [job for job in jobs if job.startswith(("generate", "rouge"))]


def test_how_the_curve_is_drawn_up_does_not_draw_samples_again(checkout):
    config = with_sections(checkout)
    targets = [
        *BIAS,
        *(
            f"results/analyses/metrics/{kind}/small/sft/seed10/easy.json"
            for kind in ("lengths", "reference_loss")
        ),
    ]
    targets.append("results/analyses/metrics/diversity/small/sft/seed10/easy.json")
    checkout.snakemake("--cores", "2", *targets, "--configfile", config, "--quiet", "--show-failed-logs")
    assert checkout.planned(*targets, config=config) == set()
    scores = {f"exposure_bias teacher=big weights={weights} test=easy" for weights in STUDENTS}
    jobs = checkout.planned(
        *targets, config=with_sections(checkout, "b.yaml", exposure_bias={"finished": "zero"})
    )
    assert jobs == {"settings key=exposure_bias", *scores}
    jobs = checkout.planned(
        *targets, config=with_sections(checkout, "b.yaml", exposure_bias={"semantics": "released"})
    )
    assert jobs == {
        "settings key=exposure_bias",
        "settings key=samples",
        "samples teacher=big test=easy",
        *scores,
    }
    edits = {"lengths": {"edges": [4]}, "diversity": {"ngram": 3}}
    assert checkout.planned(*targets, config=with_sections(checkout, "b.yaml", **edits)) == {
        *(f"settings key={key}" for key in ("lengths/easy", "diversity")),
        *(f"{rule} weights=small/sft/seed10 test=easy" for rule in edits),
    }


def test_the_commands_are_ones_that_the_package_takes(checkout):
    metrics = ("lengths", "diversity", "reference_loss")
    targets = [BIAS[1], *(f"results/analyses/metrics/{metric}/big/teacher/hard.json" for metric in metrics)]
    targets = [target.replace("/analyses/", "/other/") for target in targets]
    config = with_sections(checkout, "other.yaml")
    output = checkout.snakemake(
        "-n", "-p", "--cores", "2", *targets, "--configfile", config, "--config", "run=other"
    ).stdout
    found = [words[words.index("minillm") + 1 :] for words in commands(output)]
    counts = Counter(words[0] for words in found)
    assert [counts[stage] for stage in ("samples", "exposure_bias", *metrics)] == [1] * 5
    for words in found:
        parser().parse_args(words)  # ends the test with the message of the command line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"exposure_bias": {"tests": ["esy"]}},
            "exposure_bias.tests: 'esy' is not among data.tests; did you mean 'easy'?",
        ),
        (
            {"lengths": {"per_test": {"har": [1]}}},
            "lengths.per_test: 'har' is not among datasets; did you mean 'hard'?",
        ),
        (
            {"lengths": {"edges": [10, 5]}},
            r"lengths.edges: \[10, 5\] do not increase; write them from small to large",
        ),
        ({"lengths": {"per_test": {"hard": [3, 2]}}}, r"lengths.per_test.hard: \[3, 2\] do not increase"),
        (
            {"diversity": {"unit": "letters"}},
            "diversity.unit: input should be 'tokens' or 'words', not 'letters'",
        ),
        (
            {"exposure_bias": {"response": 3}},
            "exposure_bias.response: unknown key; did you mean 'responses'?",
        ),
    ],
)
def test_a_wrong_section_is_one_line(changes, message):
    raw = yaml.safe_load((REPO / PLAN).read_text())
    raw.update({key: {**values, **changes.get(key, {})} for key, values in SECTIONS.items()})
    with pytest.raises(UserError) as error:
        experiment(raw)
    assert re.match(f"config: {message}", str(error.value))


def test_metrics_of_a_set_are_scored_from_the_same_responses(checkout):
    """Another metric generates nothing again; a set without ROUGE-L has none."""

    def asking(**sections):
        return checkout.write("metrics.yaml", lambda config: config.update(sections, run="metrics"))

    target = "results/metrics/tables/main.md"
    checkout.snakemake("--cores", "2", target, "--configfile", asking(), "--quiet", "--show-failed-logs")
    config = asking(metrics={"easy": ["rougeL", "rouge2"], "hard": ["numeric"]})
    jobs = checkout.planned(target, config=config)
    assert Counter(job.split()[0] for job in jobs) == {"settings": 2, "scored": 42, "table": 1}
    assert "settings key=rouge2" in jobs and "settings key=table" in jobs
    assert "scored scored=numeric weights=big/teacher test=hard" in jobs
    run = checkout.snakemake("-n", "-p", "--cores", "2", target, "--configfile", config)
    for words in commands(run.stdout):
        parser().parse_args(words[words.index("minillm") + 1 :])
        assert words[words.index("minillm") + 1] != "numeric" or "--config" not in words


def test_lm_eval_asks_the_models_of_the_main_table(checkout, tmp_path):
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    sections = {"harness": {"tasks": ["mine"], "task_folder": str(tmp_path)}}
    config = checkout.write("harness.yaml", lambda c: c.update(sections, run="harness"))
    jobs = checkout.planned("results/harness/tables/harness.md", config=config)
    asked = {job for job in jobs if job.startswith("harness ")}
    assert len(asked) == 21 and "harness weights=big/teacher" in asked
    assert "local source=harness/tasks" in jobs and "settings key=harness" in jobs
    assert not [job for job in jobs if job.startswith(("generate", "rouge"))]


def test_lengths_of_rows_that_are_no_test_set(checkout):
    """Their answers are made for this alone: no other evaluation of them is planned."""
    config = with_sections(checkout, "dev.yaml", lengths={"tests": ["held"], "per_test": {}})
    jobs = checkout.planned(config=config)
    assert {job.split()[0] for job in jobs if job.endswith("test=held")} == {
        "testset",
        "generate",
        "rouge",
        "lengths",
    }
    assert "settings key=lengths/held" in jobs


def test_rows_of_every_length_come_from_the_folders(checkout):
    """A data set of `subsets` is made first, and Figure 15 shows it alone; Figure 7 the others."""

    def edit(config):
        config["run"] = "subsets"
        config["subsets"] = {"all": {"source": "folder", "path": "somewhere"}}
        config["datasets"]["full"] = {"source": "folder", "path": "subsets:all"}
        config["lengths"] = {"tests": ["easy", "full"], "figure15": ["full"]}

    name = checkout.write("subsets.yaml", edit)
    jobs = checkout.planned(config=name)
    assert {"subsets subset=all", "settings key=subsets/all", "testset tokenizer=letters test=full"} <= jobs
    figures = [checkout.planned(f"results/subsets/figures/figure{n}.png", config=name) for n in (7, 15)]
    assert [{job.split("test=")[1] for job in own if job.startswith("lengths ")} for own in figures] == [
        {"easy"},
        {"full"},
    ]
    target = "results/subsets/data/letters/tests/full.jsonl"
    checkout.snakemake("--cores", "2", target, "--configfile", name, "--quiet", "--show-failed-logs")
    assert checkout.planned(target, config=name) == set()


def test_the_page_and_the_estimators_belong_to_a_run_that_has_their_sections(checkout):
    def plan(**sections):
        # A run that no other test has made.
        return checkout.planned(
            config=checkout.write("asked.yaml", lambda c: c.update(sections, run="asked"))
        )

    before = plan()
    for section, value, rule in (("human", {"test": "easy"}, "human_page"), ("estimators", {}, "estimators")):
        added = {job.split()[0] for job in plan(**{section: value}) - before}
        assert (
            rule in added
            and added <= {rule, "settings"}
            and not [job for job in before if job.startswith(rule)]
        )
