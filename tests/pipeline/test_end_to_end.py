"""The whole chain once: what it leaves, and that its parts are read from one another.

A second run has nothing to do.
"""

import csv
import json

import numpy as np
import pytest
import yaml

from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.config.presets import PRESETS
from minillm.training.diagnosis import MEANS, REWARDS

STUDENT, TEACHER = "tiny-student", "tiny-teacher"
METHODS = {
    "sft": f"{STUDENT}/sft/seed10",
    **{m: f"{STUDENT}/{m}/{TEACHER}/seed10" for m in ("kd", "seqkd", "minillm", "other")},
}


def read_lines(path):
    return [json.loads(line) for line in path.read_text().removesuffix("\n").split("\n")]


def test_a_second_run_has_nothing_to_do(finished):
    found = finished.snakemake()
    assert found.returncode == 0
    assert "Nothing to be done" in found.stdout + found.stderr


def test_every_cell_of_the_table_is_the_mean_of_its_generations(finished):
    from minillm.scores import rouge_l

    with open(finished.run / "tables" / "main.csv") as file:
        cells = list(csv.DictReader(file))
    assert {cell["method"] for cell in cells} == {"teacher", *METHODS}
    for cell in cells:
        weights = METHODS.get(cell["method"], f"{TEACHER}/teacher")
        rows = read_lines(finished.run / "generations" / weights / f"{cell['test']}.jsonl")
        assert len(rows) == 24 and {row["seed"] for row in rows} == {10, 20}
        seeds = [
            np.mean([rouge_l(r["response"], r["references"]) for r in rows if r["seed"] == seed])
            for seed in (10, 20)
        ]
        assert float(cell["mean"]) == pytest.approx(np.mean(seeds), abs=1e-6)
        assert float(cell["standard_error"]) == pytest.approx(np.std(seeds, ddof=1) / 2**0.5, abs=1e-6)


def test_published_files(finished):
    for name in ("tables/main.md", "tables/main.tex", "figures/main.png", "figures/main.pdf"):
        assert (finished.run / name).stat().st_size > 300, name
    assert not list((finished.run / "checkpoints").iterdir()), "finished stages leave no training state"


def test_the_report_holds_table_and_figure_and_needs_no_network(finished):
    text = (finished.run / "report.html").read_text()
    assert "main.csv" in text and "main.png" in text and "MiniLLM" in text
    assert 'src="http' not in text and 'href="http' not in text.split("<body")[0]


@pytest.mark.parametrize(
    "weights", [*METHODS.values(), f"{TEACHER}/teacher", f"{STUDENT}/init/seed10", f"{STUDENT}/base"]
)
def test_a_model_says_where_it_comes_from(finished, weights):
    folder = finished.run / "models" / weights
    record = json.loads((folder / "provenance.json").read_text())
    assert (
        record["seed"] == 10
        and record["steps"] > 0
        and record["wall_seconds"] > 0
        and record["world_size"] == 1
    )
    settings = record["settings"]
    training = settings["training"] if "training" in settings else settings["model"]["training"]
    assert record["deepspeed"]["train_batch_size"] == training["batch"]
    assert len(record["content"]) == 64 and record["inputs"]["data"]
    assert all("step" in entry for entry in read_lines(folder / "metrics.jsonl"))


def test_two_selections_from_one_run(finished):
    chosen = {}
    for kind, key, best in (("sft", "dev_rouge", max), ("init", "dev_loss", min)):
        evidence = json.loads(
            (finished.run / "models" / STUDENT / kind / "seed10" / "selection.json").read_text()
        )
        values = [entry[key] for entry in evidence["history"]]
        assert len(values) == 3
        assert evidence["chosen"][key] == best(values)
        chosen[kind] = evidence["history"]
    assert chosen["sft"] == chosen["init"]


def test_minillm_starts_from_the_lowest_dev_loss(finished):
    init = json.loads((finished.run / "models" / STUDENT / "init" / "seed10" / "provenance.json").read_text())
    minillm = json.loads((finished.run / "models" / METHODS["minillm"] / "provenance.json").read_text())
    assert minillm["inputs"]["init"] == init["content"]


def test_metrics_of_the_on_policy_phase(finished):
    logged = {}
    for method in ("minillm", "other"):
        entries = read_lines(finished.run / "models" / METHODS[method] / "metrics.jsonl")
        logged[method] = set().union(*entries)
    shared = {
        "dev_rouge",
        "dev_loss",
        "dev_objective",
        "dev_reverse_kl",
        "response_length",
        "finished",
        "repetition",
        "entropy",
        "fresh",
        "effective_samples",
        *MEANS,
        *REWARDS,
    }
    assert shared <= logged["minillm"] and shared <= logged["other"]
    credit = {
        "reward",
        "advantage_std",
        "clip_fraction",
        "long_term",
        "single_step",
        "rollout_reverse_kl",
    }
    assert credit <= logged["minillm"] and not credit & logged["other"]
    assert {"skew_forward_kl", "init_kl", "plain_text", "dev_init_kl"} <= logged["other"]
    # They cost something, and are launch values.
    assert not {"dev_init_kl", "grad_variance"} & logged["minillm"]
    entries = read_lines(finished.run / "models" / METHODS["other"] / "metrics.jsonl")
    fresh = [entry["fresh"] for entry in entries if "fresh" in entry]
    assert len(fresh) == 3 and 0 < fresh[0] < 1, "half of the rows keep their gold response"


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_a_preset_trains_with_the_sizes_that_the_configuration_gives(finished, tmp_path, preset):
    config = experiment(yaml.safe_load((finished.folder / "tests/config/tiny.yaml").read_text()))
    settings = stage_settings(config, preset, model=STUDENT, teacher=TEACHER, seed=10)
    (tmp_path / "settings.json").write_text(canonical(settings))
    models, out = finished.run / "models", tmp_path / "model"
    process = finished.stage(
        *(
            "minillm",
            "--config",
            tmp_path / "settings.json",
            "--data",
            finished.run / "data/embedded/training",
        ),
        *(
            "--init",
            models / STUDENT / "init/seed10",
            "--teacher",
            models / TEACHER / "teacher",
            "--out",
            out,
        ),
        *(
            "--checkpoints",
            tmp_path / "checkpoints",
            "--launch",
            '{"micro_batch": 4, "eval_batch": 16, "log_every": 1}',
        ),
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    training = json.loads((out / "provenance.json").read_text())["settings"]["training"]
    given = {"lr": 5e-4, "collections": 3, "rollouts": 16, "batch": 8, "inner_epochs": 2, "semantics": preset}
    assert training == training | given
    rest = {key: value for key, value in PRESETS[preset].items() if key not in given}
    assert training == training | rest and len(rest) > 10
    losses = [entry["loss"] for entry in read_lines(out / "metrics.jsonl") if "loss" in entry]
    assert len(losses) == 12 and np.isfinite(losses).all()
    original = read_lines(models / METHODS["minillm"] / "metrics.jsonl")
    assert losses != [entry["loss"] for entry in original if "loss" in entry]


def test_seqkd_is_trained_on_the_teachers_answers_not_on_the_gold_ones(finished):
    from minillm.training.supervised import training_examples

    data = finished.run / "data" / "embedded"
    pseudo = data / "pseudo" / f"{TEACHER}.jsonl"
    answers = {row["id"]: row["response_tokens"] for row in read_lines(pseudo) if row["split"] == "train"}
    examples, dev = training_examples(data / "training", pseudo)
    gold, _ = training_examples(data / "training", None)
    assert len(examples) == 64 and len(dev) == 8
    assert [response.tolist() for _, response in examples] == list(answers.values())
    gold_of = {tuple(prompt.tolist()): response.tolist() for prompt, response in gold}
    same = sum(gold_of[tuple(prompt.tolist())] == response.tolist() for prompt, response in examples)
    assert same < len(examples) / 2, "an untrained teacher's answers are not the gold ones"
    record = json.loads((finished.run / "models" / METHODS["seqkd"] / "provenance.json").read_text())
    assert record["inputs"]["pseudo"]


def test_generations_do_not_depend_on_the_batch_size(finished, tmp_path):
    run = finished.run
    test, model = run / "data" / "embedded" / "tests" / "embedded-test.jsonl", run / "models" / METHODS["sft"]
    out = tmp_path / "answers.jsonl"
    stage = [
        "generate",
        "--config",
        run / "configs" / "generate.json",
        "--test",
        test,
        "--model",
        model,
        "--out",
        out,
    ]
    process = finished.stage(*stage, "--launch", '{"eval_batch": 5}')
    assert process.wait(300) == 0, process.stdout.read()
    assert out.read_text() == (run / "generations" / METHODS["sft"] / "embedded-test.jsonl").read_text()


def test_every_table_and_figure_is_there_with_what_it_is_made_of(finished):
    from minillm.publish.registry import ITEMS

    index = (finished.run / "index.md").read_text()
    for name, item in ITEMS.items():
        # Made only if they are asked for: the one needs lm-eval, the other methods to compare with.
        if name in ("harness", "methods"):
            continue
        folder = finished.run / f"{item.kind}s"
        for kind in ("csv", "md", "tex") if item.kind == "table" else ("png", "pdf"):
            assert (folder / f"{name}.{kind}").stat().st_size > 0, name
        sidecar = json.loads((folder / f"{name}.json").read_text())
        assert f"{item.kind}s/{name}." in index
        assert sidecar["missing"] or sidecar["sources"] or not item.needs, name
        for source in sidecar["sources"]:
            assert (finished.run / source).exists() or source.startswith("config/"), (name, source)


@pytest.mark.parametrize(
    "name",
    [
        "table2",
        "table3",
        "table5",
        "table8",
        "cost",
        "figure6",
        "figure7",
        "reliability",
        "modes",
        "modes-plot",
    ],
)
def test_what_the_configuration_measures_is_published(finished, name):
    kind = "table" if name.startswith("table") or name in ("cost", "modes") else "figure"
    sidecar = json.loads((finished.run / f"{kind}s" / f"{name}.json").read_text())
    assert not sidecar["missing"] and sidecar["sources"] and sidecar["n"]
