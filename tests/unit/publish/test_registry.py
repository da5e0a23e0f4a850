"""Every table and figure of registry.py, from made-up results and from none."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from items_case import published_item, settings, text
from made_up_run import REPO, VARIANTS, config, make, put

from minillm.config.derive import stage_settings
from minillm.errors import UserError
from minillm.publish.index import run_stage as write_index
from minillm.publish.registry import ITEMS, READING
from minillm.publish.run import run_stage
from minillm.publish.settings import alike

ALWAYS = ("figure2", "figure3")  # made of no result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "run", config())


def test_the_report_says_how_to_read_each() -> None:
    assert READING.keys() == ITEMS.keys() and all(
        len(text) > 20 and text[-1] in ".?" for text in READING.values()
    )


@pytest.mark.parametrize("name", ITEMS)
def test_measured(name: str, run: Path, tmp_path: Path) -> None:
    sidecar = published_item(name, run, tmp_path)
    if name == "figure14":
        assert sidecar["missing"] == "not measured: this configuration has no OPT student"
        return
    assert sidecar["missing"] == "" and sidecar["caption"]
    assert bool(sidecar["sources"]) == (name not in ALWAYS) and all(
        (run / source).is_file() for source in sidecar["sources"]
    )
    assert name in ALWAYS or sidecar["n"]


@pytest.mark.parametrize("name", [name for name in ITEMS if name not in ALWAYS])
def test_nothing_measured(name: str, tmp_path: Path) -> None:
    sidecar = published_item(name, tmp_path / "none", tmp_path, small=True)
    assert sidecar["sources"] == [] and sidecar["missing"].startswith("no")
    if name == "figure4":
        assert sidecar["missing"] == "no annotations"


@pytest.mark.parametrize(
    "name", ["figure1", "figure5", "size-gap", "figure16", "divergences", "table4", "table7"]
)
def test_configured_and_not_measured(name: str, tmp_path: Path) -> None:
    assert published_item(name, tmp_path / "none", tmp_path)["missing"].startswith("not measured")


def test_calibration(run: Path, tmp_path: Path) -> None:
    found = text("table2", run, tmp_path)
    assert "| GPT-2 1.5B | Teacher | 0.123 ± 0.010 | 0.300 ± 0.020 | 70.0 ± 5.0 |" in found
    assert (
        "| Model | Method | BoolQ<br>ECE | BoolQ<br>raw ECE | BoolQ<br>accuracy (%) | SST-2<br>ECE |" in found
    )
    assert "SST-2: 5 bins with the edges 0, 0.2, 0.4, 0.6, 0.8, 1. Label words: no, yes." in found
    assert "±: standard error over rows for a single training" in found
    assert r"Teacher & 0.123 $\pm$ 0.010" in (tmp_path / "table2.tex").read_text()


def test_calibration_as_the_stage_writes_it(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    flat = json.loads((copy / "metrics/calibration/xl/teacher/sst2.json").read_text())
    nested = {
        "dataset": "sst2",
        "n": 30,
        "words": ["no", "yes"],
        "accuracy": {"mean": 70.0, "standard_error": 5.0},
    }
    for name, key in (("normalised", "ece"), ("raw", "ece_raw")):
        bins = [{**b, "from": b["low"], "to": b["high"]} for b in flat["bins"]]
        nested[name] = {"ece": flat[key], "standard_error": flat[f"{key}_error"], "bins": bins}
    (copy / "metrics/calibration/xl/teacher/sst2.json").write_text(json.dumps(nested))
    assert text("table2", copy, tmp_path / "a") == text("table2", run, tmp_path / "b")


def test_diversity_and_ngrams(run: Path, tmp_path: Path) -> None:
    # Of the two sampling seeds: 91 and 92 percent, 1 and 2 percent, 20 and 40 tokens of which a reference
    # has 20.
    found = text("table3", run, tmp_path)
    cells = "| 91.5 ± 0.5 | 3.50 ± 0.10 | 1.5 ± 0.5 | 1.50 ± 0.50 "
    assert (
        f"| GPT-2 1.5B | Teacher {cells}{cells}|" in found
        and "± of the loss: standard error over rows" in found
    )
    with open(tmp_path / "table3.csv") as file:
        assert {(row["repetition_percent"], row["length_drift"]) for row in csv.DictReader(file)} == {
            ("1.5", "1.5")
        }
    found = text("table5", run, tmp_path)
    assert "| DollyEval | GPT-2 1.5B, Teacher | 1000 / 910 | 1000 / 920 |" in found


def test_ablations(run: Path, tmp_path: Path) -> None:
    found = text("table4", run, tmp_path)
    assert "| GPT-2 120M | MiniLLM | 24.0 | 1" in found and "| w/o teacher-mixed | 26.0 | 1" in found
    assert "SFT" not in found and "Not in this configuration: w/o length norm., w/o single-step." in found
    found = text("table7", run, tmp_path)
    assert "| GPT-2 120M | MiniLLM | 70.0 ± 3.5 | 44.0 ± 0.5 |" in found and r"| w/o L\_PT | 70.0" in found
    assert "teacher-mixed" not in found


def test_plain_text_that_only_a_variant_has(run: Path, tmp_path: Path) -> None:
    """MiniLLM itself has none; the variant of that name is the one that has."""
    stages = {**yaml.safe_load((REPO / "tests/config/plan.yaml").read_text())["stages"]}
    stages["minillm"] = {**stages["minillm"], "lm_coef": 0.0}
    variants = {**VARIANTS, "no-pt": {"label": "with L_PT", "settings": {"lm_coef": 1.0}}}
    published_item("table7", run, tmp_path, stages=stages, variants=variants)
    found = (tmp_path / "table7.md").read_text()
    assert "| GPT-2 120M | MiniLLM | 70.0" in found and r"| with L\_PT | 70.0" in found


def test_sweeps_are_shown_where_settings_and_teachers_are_compared(run: Path, tmp_path: Path) -> None:
    main = {"pairs": [{"teacher": "xl", "students": ["base", "medium"]}], "methods": ["sft", "minillm"]}
    scaling = {"teacher": "large", "students": ["base"], "methods": ["seqkd", "minillm"]}
    swept = main | {
        "sweeps": [scaling, {"teacher": "xl", "students": ["base"], "methods": ["no-mixing", "no-pt"]}]
    }

    for name in ("figure5", "figure16", "table4", "table7"):
        assert published_item(name, run, tmp_path / "main", **main)["missing"].startswith("not measured: ")
        assert published_item(name, run, tmp_path / "swept", **swept)["missing"] == ""
    for name in ("table4", "table7"):  # of the student that has a variant
        shown = (tmp_path / f"swept/{name}.md").read_text()
        assert "GPT-2 120M" in shown and "GPT-2 340M" not in shown and "SFT" not in shown
    assert published_item("figure16", run, tmp_path / "swept", **swept)["n"] == "dev: n = 100; 2 settings."
    for name in ("table2", "figure1"):
        sources = [
            published_item(name, run, tmp_path / "any", **changed)["sources"] for changed in (main, swept)
        ]
        assert sources[0] == sources[1] and not any(
            "no-mixing" in source or "large" in source for source in sources[0]
        )


def test_samples_are_of_the_main_tables_pairs(run: Path, tmp_path: Path) -> None:
    """An ablation that is trained for a sweep alone is shown.

    Other variants, and the sweeps' other teachers, are not.
    """
    main = {"pairs": [{"teacher": "xl", "students": ["base"]}], "methods": ["sft", "minillm"]}
    sweeps = [{"teacher": "large", "students": ["base"], "methods": ["seqkd", "minillm", "no-mixing"]}]
    sweeps += [{"teacher": "xl", "students": ["base"], "methods": ["no-mixing", "no-pt"]}]
    sidecar = published_item("table8", run, tmp_path, **main, sweeps=sweeps)
    with open(tmp_path / "table8.csv") as file:
        shown = {(row["model"], row["method"]) for row in csv.DictReader(file)}
    methods = {("GPT-2 120M", method) for method in ("SFT w/o KD", "MiniLLM", "w/o teacher-mixed")}
    assert shown == {("reference", ""), ("GPT-2 1.5B", "Teacher"), *methods}
    assert len(sidecar["sources"]) == 2 * 4 and not any("large" in source for source in sidecar["sources"])


def test_table6_holds_other_families_alone(run: Path, tmp_path: Path) -> None:
    found = text("table6", run, tmp_path)
    assert "| GPT-J 6B | Teacher |" in found and "GPT-2 1.5B" not in found and "it has a block" not in found


def test_table6_leaves_the_teachers_own_family_out(run: Path, tmp_path: Path) -> None:
    published_item("table6", run, tmp_path, pairs=[{"teacher": "j", "students": ["base", "j-small"]}])
    found = (tmp_path / "table6.md").read_text()
    assert (
        "| GPT-J 6B | Teacher |" in found
        and "| GPT-J 350M | SFT" not in found
        and "| GPT-2 120M | SFT" in found
    )


def test_samples(run: Path, tmp_path: Path) -> None:
    found = text("table8", run, tmp_path)
    assert found == text("table8", run, tmp_path)
    assert (
        r"Prompt " in found
        and "none picked by hand" in found
        and "| minillm says" not in found.split("MiniLLM")[0]
    )
    with open(tmp_path / "table8.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} >= {"reference", "GPT-2 1.5B", "GPT-2 120M"}
    put(tmp_path, "generations/xl/teacher/dolly.jsonl", "{")
    with pytest.raises(UserError, match=r"not JSON \(.*\); remove it and generate again"):
        text("table8", tmp_path, tmp_path)


def test_costs(run: Path, tmp_path: Path) -> None:
    found = text("cost", run, tmp_path)
    # Benchmarks: 2 h, 3 CPU hours, 2 GB each; an hour on two GPUs. Also needed: two base models and the
    # teacher, SFT for MiniLLM, and the teacher's answers for SeqKD. Tokens: two collections of 1600; 32
    # updates of 32 answers of 50 (SFT), of 30 (SeqKD).
    for line in (
        "MiniLLM | 2 | 10 | 3 | 2 | 2 | 32 | 0.0032",
        "SeqKD | 2 | 10 | 3 | 2 | 2 | 32 | 0.0307",
        "SFT w/o KD | 2 | 4 | 3 | 2 | 2 | 32 | 0.0512",
    ):
        assert f"| {line} | 1" in found
    copy = shutil.copytree(run, tmp_path / "run")
    log = copy / "models/base/minillm/xl/seed10/metrics.jsonl"
    log.write_text(
        log.read_text().replace('"sampled_tokens"', '"other"', 1)
    )  # known of one collection of two
    published_item("cost", copy, tmp_path)
    with open(tmp_path / "cost.csv") as file:
        rows = {(row["teacher"], row["student"], row["method"]): row for row in csv.DictReader(file)}
    assert (
        rows["xl", "base", "minillm"]["tokens"] == ""
        and rows["xl", "medium", "minillm"]["tokens"] == "3200.0"
    )


def test_the_error_of_a_mean_score_is_over_training_seeds(tmp_path: Path) -> None:
    """Two sets whose scores move together from training to training.

    As independent sets they would have an error of 0.71 of this one.
    """
    changed = {"small": True, "training_seeds": [10, 20]}
    run = make(tmp_path / "run", config(**changed))
    for seed, mean in ((10, 20.0), (20, 22.0)):
        for path in sorted((run / f"metrics/rouge/base/minillm/xl/seed{seed}").glob("*.json")):
            value = json.loads(path.read_text()) | {"mean": mean, "per_seed": {}, "scores": {}}
            path.write_text(json.dumps(value))
    published_item("cost", run, tmp_path, **changed)
    assert "| 21.0 ± 1.0 |" in (tmp_path / "cost.md").read_text()


def test_what_the_configuration_does_not_name_is_not_read(run: Path, tmp_path: Path) -> None:
    """Left over from another configuration."""
    copy = shutil.copytree(run, tmp_path / "run")
    for folder, name in (("calibration", "old"), ("diversity", "old"), ("judge", "sni")):
        for path in sorted((copy / "metrics" / folder).rglob("*.json")):
            path.with_stem(name).write_text(path.read_text())
    shutil.copytree(copy / "metrics/human/base", copy / "metrics/human/gone")
    for name in ("table2", "table3", "table5", "table7", "figure1", "figure4", "reliability"):
        assert (
            published_item(name, copy, tmp_path / "a")["sources"]
            == published_item(name, run, tmp_path / "b")["sources"]
        )


def test_variants_that_differ_in_one_key() -> None:
    c = config()
    assert alike(c, "base", "alpha") == {"minillm": 0.2, "no-mixing": 0.0}
    assert alike(c, "base", "lm_coef") == {"minillm": 1.0, "no-pt": 0.0}
    assert alike(c, "base", "objective") == {
        "no-mixing": "minillm",
        "forward-kl": "forward_kl",
        "reverse-kl": "reverse_kl",
    }


def test_style_is_a_figures_alone() -> None:
    changed = {"style": {"dpi": 51}}
    assert stage_settings(config(), "publish", name="table3") == stage_settings(
        config(**changed), "publish", name="table3"
    )
    assert stage_settings(config(), "publish", name="figure6") != stage_settings(
        config(**changed), "publish", name="figure6"
    )


def test_refusals(tmp_path: Path) -> None:
    unknown = dataclasses.replace(settings("table2"), name="table22")
    with pytest.raises(UserError, match="--config: name: unknown item 'table22'; did you mean 'table2'?"):
        run_stage(unknown, run_folder=tmp_path, out=tmp_path)
    put(tmp_path, "metrics/diversity/xl/teacher/dolly.json", "{")
    with pytest.raises(UserError, match="dolly.json: not JSON .*; remove it and make it again"):
        run_stage(settings("table5"), run_folder=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_index(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results/r"
    published_item("table3", run, out / "tables")
    published_item("figure4", tmp_path / "none", out / "figures")
    put(out, "human/small/minillm/big/seed10/dolly.html", "page")
    write_index(run_folder=out, out=out / "index.md")
    found = (out / "index.md").read_text()
    assert "| [report](report.html) | Snakemake's report of the run: all of this in one file |" in found
    assert (
        "| [page small/minillm/big/seed10/dolly](human/small/minillm/big/seed10/dolly.html) "
        "| Blind pairs for annotators |" in found
    )
    assert "# Results of the run r\n" in found
    line = "| [table3](tables/table3.md) | Table 3: diversity of the responses and loss on the references | "
    assert line + "DollyEval: n = 12; S-NI: n = 10 | measured |" in found
    assert "| [figure4](figures/figure4.png) |" in found and "| missing: no annotations |" in found
    assert "| table2 | Table 2: calibration on zero-shot classification | – | not made |" in found
    (out / "tables/table3.json").write_text("{}")
    with pytest.raises(UserError, match="table3.json: 'shows' is missing .*; make it again"):
        write_index(run_folder=out, out=out / "index.md")


def test_publishing_imports_no_torch() -> None:
    modules = sorted(
        {f"minillm.publish.{item.module}" for item in ITEMS.values()}
        | {f"minillm.publish.{name}" for name in ("run", "index", "report_texts", "metrics_csv")}
    )
    code = (
        f"import sys, {', '.join(modules)}\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
