"""The published numbers next to the measured ones, and the intervals that they are compared by."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from items_case import PAPER, published_item, text
from made_up_run import REPO, SECTIONS, config, make

from minillm.errors import UserError
from minillm.evaluation.statistics import part, t_interval
from minillm.publish.published_numbers import numbers, published
from minillm.publish.registry import ITEMS
from minillm.publish.tables.ablations import is_gpt4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "run", config())


def test_fidelity(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    published_item("fidelity", copy, tmp_path)
    with open(tmp_path / "fidelity.csv") as file:
        rows = {
            tuple(row[k] for k in ("table", "teacher", "model", "method", "dataset", "metric")): row
            for row in csv.DictReader(file)
        }
    assert len(rows) == len(published(PAPER))
    cell = rows["1", "GPT-2 1.5B", "GPT-2 120M", "MiniLLM", "dolly", "rougeL"]
    assert (
        float(cell["measured"]) == pytest.approx(14, abs=1)
        and cell["status"] == "verified"
        and cell["published_is"] == "outside"
    )
    assert float(cell["difference"]) == pytest.approx(float(cell["measured"]) - 24.6)
    assert float(cell["low"]) < float(cell["measured"]) < float(cell["high"])
    assert rows["4", "GPT-2 1.5B", "GPT-2 120M", "MiniLLM", "dev", "rougeL"]["measured"] == "24.0"
    assert rows["6", "GPT-J 6B", "GPT-J 6B", "Teacher", "dolly", "rougeL"]["measured"]
    for key, row in rows.items():
        if "LLaMA" in key[1] or key[5] == "gpt4":  # no such model, and the judge was not GPT-4
            assert row["measured"] == row["difference"] == row["published_is"] == row["low"] == ""
        known = "verified" if row["source"] != "recalled" else "unverified"
        assert row["status"] == ("digitised" if key[0] == "figure1" else known)
    line = next(
        line
        for line in (tmp_path / "fidelity.md").read_text().split("\n")
        if "| 1 | LLaMA 7B | LLaMA 13B | MiniLLM | dolly | rougeL" in line
    )
    assert line.endswith("| rougeL | – | – | – | 29.0 | verified | – |")
    tex = (tmp_path / "fidelity.tex").read_text()
    assert r"\begin{longtable}{llllllrrrrrr}" in tex and r"\end{longtable}" in tex
    judged = copy / "metrics/judge/base/minillm/xl/seed10/dolly.json"
    judged.write_text(
        json.dumps(
            {
                "n": 3,
                "mean": 44.5,
                "standard_error": 1.0,
                "stand_in": False,
                "judge": {"kind": "openai", "model": "gpt-4"},
            }
        )
    )
    published_item("fidelity", copy, tmp_path)
    assert (
        "| MiniLLM | dolly | gpt4 | 44.5 | 40.2 to 48.8 | -0.2 | 44.7 | verified | inside |"  # t(2) = 4.303
        in (tmp_path / "fidelity.md").read_text()
    )


def test_no_published_number_in_other_tables(run: Path, tmp_path: Path) -> None:
    for name in ("table2", "table3", "table4", "table6", "table7"):
        published_item(name, tmp_path / "none", tmp_path)
        found = (tmp_path / f"{name}.md").read_text()
        assert not [row for row in published(PAPER) if f" {row['value']} |" in found]


def test_what_is_verified() -> None:
    """All but 114 numbers of Table 1 have a source, four of Table 6, and every one of the other tables."""
    rows = published(PAPER)
    unverified = Counter(row["table"] for row in rows if row["verified"] == "no")
    assert unverified == {"1": 114, "6": 99} and Counter(row["table"] for row in rows)["1"] == 248
    assert all((row["source"] == "recalled") == (row["verified"] == "no") for row in rows)
    cell = numbers(PAPER)["1", "GPT-2 1.5B", "GPT-2 1.5B", "Teacher", "uni", "rougeL"]
    assert (cell.value, cell.status, cell.source) == (31.8, "verified", "[K1]")


def test_published_numbers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table.* give the folder with --paper"):
        published(tmp_path)
    header = "family,size,method,dataset,metric,value,verified,source\n"
    (tmp_path / "table1.csv").write_text(header + "A,1B,KD,x,rougeL,n/a,yes,[V]\n")
    with pytest.raises(UserError, match=r"table1.csv:2: value: 'n/a' is not a number"):
        published(tmp_path)


def test_tables_hold_the_published_number_beside_the_measured_one(run: Path, tmp_path: Path) -> None:
    assert r"| GPT-2 120M | MiniLLM | 24.0 \[27.4: -3.4] | 1" in text("table4", run, tmp_path)
    found = text("table6", run, tmp_path)
    assert (
        "DollyEval, judge" in found and r"\[27.3?: " in found and "unverified" in found
    )  # GPT-J's own ROUGE-L is recalled
    assert "66" not in found.split("\n\n")[0] and "65.8" not in found  # the judge was not GPT-4


LLAMA = {"xl": ("LLaMA", "13B"), "base": ("LLaMA", "7B")}


def llama_run(folder: Path, **changed: object) -> tuple[Path, dict]:
    """A run of the paper's Tables 2 and 3: LLaMA, and the keys of its configuration."""
    big = yaml.safe_load((REPO / "tests/config/plan.yaml").read_text())["models"]["big"]
    models = {
        name: {
            **big,
            "architecture": big["architecture"] | {"num_hidden_layers": layers},
            "family": family,
            "size": size,
        }
        for layers, (name, (family, size)) in enumerate(LLAMA.items(), 1)
    }
    keys = {"small": True, "models": models, "diversity": {"tests": ["dolly", "sni"]}, **changed}
    return make(folder, config(**keys)), keys


def test_a_loss_is_compared_with_the_published_one_only_where_it_is_the_same(tmp_path: Path) -> None:
    """The paper's Table 3 has the loss of the published script."""
    run, keys = llama_run(tmp_path / "run")
    files = sorted((run / "metrics/reference_loss").rglob("dolly.json"))
    cases = (
        ("tokens", "3.50 ± 0.10", "mean over all tokens"),
        ("released", "3.50 ± 0.10 [3.95: -0.45]", "as the published script"),
    )
    for loss, shown, definition in cases:
        for file in files:
            file.write_text(json.dumps({**json.loads(file.read_text()), "loss": loss}))
        published_item("table3", run, tmp_path, **keys)
        found = (tmp_path / "table3.md").read_text()
        line = next(line for line in found.split("\n") if "| MiniLLM |" in line)
        assert (
            line.split(" | ")[2:4] == [r"91.5 ± 0.5 \[99.0: -7.5]", shown.replace("[", r"\[")]
            and definition in found
        )
        published_item("fidelity", run, tmp_path, **keys)
        row = next(
            r for r in (tmp_path / "fidelity.md").read_text().split("\n") if "| MiniLLM | dolly | loss |" in r
        )
        assert ("| 3.50 |" in row) == (loss == "released") and "| 3.95 | verified |" in row


def test_table2_beside_the_published_one(tmp_path: Path) -> None:
    run, keys = llama_run(tmp_path / "run")
    published_item("table2", run, tmp_path, **keys)
    found = (tmp_path / "table2.md").read_text()
    assert (
        r"|  | MiniLLM | 0.123 ± 0.010 | 0.300 ± 0.020 \[0.502: -0.202] | 70.0 ± 5.0 \[67.8: +2.2] |" in found
    )


@pytest.mark.parametrize("papers", [True, False])
def test_a_published_mean_stands_beside_one_over_the_same_sets(papers: bool, tmp_path: Path) -> None:
    model = yaml.safe_load((REPO / "tests/config/plan.yaml").read_text())["models"]["big"]
    sets = ["dolly", "self_inst", "vicuna"] if papers else ["dolly"]
    tasks = SECTIONS["calibration"]["tasks"]
    rows = {"source": "embedded", "split": "test", "rows": 8}
    raw = yaml.safe_load((REPO / "tests/config/plan.yaml").read_text())
    keys = {
        "models": {
            "xl": {**model, "family": "OPT", "size": "13B"},
            "base": {
                **model,
                "architecture": {**model["architecture"], "num_hidden_layers": 1},
                "family": "OPT",
                "size": "1.3B",
            },
        },
        "pairs": [{"teacher": "xl", "students": ["base"]}],
        "datasets": {**raw["datasets"], **dict.fromkeys(("sni", *sets), rows)},
        "data": {**raw["data"], "tests": ["sni", *sets]},
        "calibration": {"tasks": tasks if papers else {"sst2": tasks["sst2"]}},
        "judge": {"kind": "openai", "model": "gpt-4", "tests": sets},
    }
    run = make(tmp_path / "run", config(**keys))
    for path in sorted((run / "metrics/judge").rglob("dolly.json")):
        for test in sets:
            path.with_stem(test).write_text(
                json.dumps({**json.loads(path.read_text()), "judge": {"kind": "openai", "model": "gpt-4"}})
            )
    published_item("table7", run, tmp_path, **keys)
    line = next(line for line in (tmp_path / "table7.md").read_text().split("\n") if "| MiniLLM |" in line)
    assert (r"70.0 ± 3.5 \[70.2: -0.2] | 44.0 ± 0.3 \[52.8: -8.8] |" in line) == papers and (
        r"\[" in line
    ) == papers
    published_item("fidelity", run, tmp_path, **keys)
    with open(tmp_path / "fidelity.csv") as file:
        means = [row for row in csv.DictReader(file) if row["dataset"] == "average" and row["measured"]]
    assert {(row["table"], row["metric"]) for row in means} == (
        {("7", "cls"), ("7", "inst"), ("figure1", "gpt4")} if papers else set()
    )


def test_only_gpt4_is_compared_with_gpt4() -> None:
    for model, same in (
        ("gpt-4", True),
        ("gpt-4-0613", True),
        ("gpt-4o", False),
        ("gpt-4.1", False),
        ("gpt-4-turbo", False),
        ("my-gpt-4", False),
    ):
        assert is_gpt4({"stand_in": False, "judge": {"kind": "openai", "model": model}}) == same
    assert not is_gpt4({"stand_in": False, "judge": {"kind": "transformers", "model": "gpt-4"}})
    assert not is_gpt4({"stand_in": True, "judge": {"kind": "openai", "model": "gpt-4"}})


SEVERAL = {
    "training_seeds": [10, 20, 30],
    "pairs": [{"teacher": "xl", "students": ["base", "medium"]}, {"teacher": "j", "students": ["base"]}],
    "methods": ["sft", "seqkd", "minillm"],
    "sweeps": [
        {"teacher": "large", "students": ["base"], "methods": ["seqkd", "minillm"]},
        {
            "teacher": "xl",
            "students": ["base"],
            "methods": ["no-mixing", "no-pt", "forward-kl", "reverse-kl"],
        },
    ],
}


def test_several_training_seeds_are_in_every_item(tmp_path: Path) -> None:
    """Three trainings of the main table's models, one of the sweeps'.

    All are found, and the interval of a mean is one over trainings too.
    """
    run = make(tmp_path / "run", config(**SEVERAL))
    assert (
        not (run / "models/base/minillm/large/seed20").exists()
        and (run / "models/base/minillm/xl/seed20").exists()
    )
    for name in ITEMS:
        sidecar = published_item(name, run, tmp_path, **SEVERAL)
        assert (sidecar["missing"] == "") == (name != "figure14"), name
        if name in ("table3", "figure1", "table7"):
            assert {
                seed
                for source in sidecar["sources"]
                for seed in ("seed10", "seed20", "seed30")
                if seed in source
            } == {
                "seed10",
                "seed20",
                "seed30",
            }
    for name, bars in (
        ("figure1", "over training seeds. "),
        ("figure5", "over training seeds, for models trained once over prompts"),
    ):
        assert (
            f"Error bars: standard error {bars}"
            in json.loads((tmp_path / f"{name}.json").read_text())["caption"]
        )
    rows = {tuple(row[k] for k in ("table", "model", "teacher", "method", "dataset", "metric")): row
            for row in csv.DictReader((tmp_path / "fidelity.csv").open())}  # fmt: skip
    row = rows["1", "GPT-2 120M", "GPT-2 1.5B", "MiniLLM", "dolly", "rougeL"]
    files = [
        json.loads((run / f"metrics/rouge/base/minillm/xl/seed{seed}/dolly.json").read_text())
        for seed in (10, 20, 30)
    ]
    prompts = np.mean([scores for file in files for scores in file["scores"].values()], axis=0)
    low, high = t_interval(
        float(prompts.mean()), [part(list(prompts)), part([file["mean"] for file in files])]
    )
    assert (float(row["low"]), float(row["high"])) == (pytest.approx(low), pytest.approx(high))
    line = next(line for line in (tmp_path / "table4.md").read_text().split("\n") if "| MiniLLM |" in line)
    assert "±" in line and "the variants have only the first" in (tmp_path / "table4.md").read_text()
