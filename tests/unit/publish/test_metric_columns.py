"""Main table, figure and the rest of a run whose test sets ask for other metrics than ROUGE-L."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from items_case import published_item
from made_up_run import config, make
from table_case import MODELS, SETTINGS, metric

from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import Experiment
from minillm.config.sections import Style
from minillm.config.stage_settings import FigureSettings, TableSettings
from minillm.errors import UserError
from minillm.publish.figures.main import run_stage as draw_main
from minillm.publish.registry import ITEMS
from minillm.publish.results import read_frame
from minillm.publish.settings import MetricsSettings, metric_files
from minillm.publish.tables.main import run_stage as write_main_table
from minillm.publish.tables.main_cells import read_csv

ASKED = {"easy": ("numeric", "rougeL"), "hard": ("exact_match",)}
KINDS = {"numeric": "numeric", "rougeL": "rouge", "exact_match": "exact_match"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up run, where every set has ROUGE-L."""
    return make(tmp_path_factory.mktemp("made") / "run", config())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of each model and metric: values that tell metric, model and set apart."""
    for i, weights in enumerate(MODELS):
        for test, metrics in ASKED.items():
            for k, name in enumerate(metrics):
                path = metric(tmp_path / "new", weights, test, (20.0 + i + 40 * k, 21.0 + i + 40 * k))
                place = tmp_path / "run/metrics" / KINDS[name] / weights / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
    return tmp_path / "run"


SEVERAL = dataclasses.replace(SETTINGS, metrics=ASKED)


def test_a_column_for_each_set_and_metric(run: Path, tmp_path: Path) -> None:
    write_main_table(SEVERAL, run_folder=run, out=tmp_path)
    text = (tmp_path / "main.md").read_text()
    heads = (
        "Easy & plain, numeric<br>n = 150",
        "Easy & plain, ROUGE-L<br>n = 150",
        "Hard, exact match<br>n = 100",
    )
    assert f"| Model | Method | {' | '.join(heads)} |" in text
    assert r"| Scratch\_A 3M | Teacher | 20.5 ± 0.5 | 60.5 ± 0.5 | 20.5 ± 0.5 |" in text
    assert r"| MiniLLM | **24.5 ± 0.5** | **64.5 ± 0.5** | **24.5 ± 0.5** |" in text
    assert "ROUGE-L: F-measure × 100, best of the references. exact match: % of" in text
    assert "Bold: ahead of every other method of that student and column" in text
    assert "9 comparisons" in text
    tex = (tmp_path / "main.tex").read_text()
    assert r"Easy \& plain, numeric & Easy \& plain, ROUGE-L & Hard, exact match \\" in tex
    cells = read_csv(tmp_path / "main.csv")
    found = {(cell.method, cell.test, cell.metric): (cell.mean, cell.sources) for cell in cells}
    assert found["kd", "easy", "numeric"] == (22.5, "metrics/numeric/small/kd/big/seed10/easy.json")
    assert found["kd", "easy", "rougeL"][0] == 62.5 and len(found) == 15
    assert all(cell.training_seeds == 1 for cell in cells)
    draw_main(FigureSettings("figure", Style(dpi=40)), table=tmp_path / "main.csv", out=tmp_path)
    assert (tmp_path / "main.png").stat().st_size > 1000


def test_rouge_is_as_without_the_other_metrics(run: Path, tmp_path: Path) -> None:
    """Its interval and its significance do not change; only Holm's correction counts the other columns."""
    only = dataclasses.replace(SETTINGS, tests=("easy",))
    write_main_table(SEVERAL, run_folder=run, out=tmp_path / "a")
    write_main_table(only, run_folder=run, out=tmp_path / "b")
    ours = [cell for cell in read_csv(tmp_path / "a/main.csv") if cell.metric == "rougeL"]
    assert [dataclasses.replace(cell, best=False) for cell in ours] == [
        dataclasses.replace(cell, best=False) for cell in read_csv(tmp_path / "b/main.csv")
    ]
    with open(tmp_path / "b/main.csv") as file:
        assert "metric" not in next(csv.reader(file))


def test_metrics_of_one_set_have_the_same_rows(run: Path, tmp_path: Path) -> None:
    metric(tmp_path / "new", MODELS[0], "easy", (1.0, 2.0), ids=list(range(1, 151))).rename(
        run / "metrics/numeric" / MODELS[0] / "easy.json"
    )
    with pytest.raises(UserError, match="its rows are not those of"):
        write_main_table(SEVERAL, run_folder=run, out=tmp_path)


def test_rows_without_a_number_are_noted(run: Path, tmp_path: Path) -> None:
    for weights in MODELS:
        path = run / "metrics/numeric" / weights / "easy.json"
        without = {"count": 7, "first_ids": [1]}
        metric(tmp_path / "new", weights, "easy", (1.0, 2.0), without_number=without).rename(path)
    write_main_table(SEVERAL, run_folder=run, out=tmp_path)
    note = "In Easy & plain (7 of 150 rows) no reference has a number: by numeric they score 0"
    assert note in (tmp_path / "main.md").read_text()


# --- a whole configuration
def asking(**metrics: list[str]) -> Experiment:
    return config(metrics=metrics)


def test_what_is_measured_follows_what_sets_ask_for() -> None:
    asked = asking(dolly=["numeric", "rouge1"])
    assert asked.sets_of("numeric") == asked.sets_of("rouge1") == ("dolly",)
    assert asked.sets_of("rouge") == ("sni",) and asked.sets_of("choice") == ()
    files = metric_files(asked)
    assert "metrics/numeric/xl/teacher/dolly.json" in files
    assert "metrics/rouge/xl/teacher/dolly.json" not in files
    assert "metrics/rouge/xl/teacher/sni.json" in files
    assert set(metric_files(asked, "table6")) == {
        path for path in files if path.split("/")[1] in ("rouge", "rouge1", "numeric", "judge")
    }


def test_a_configuration_without_metrics_has_the_settings_of_before() -> None:
    for stage, names in (("table", {}), ("metrics", {}), ("publish", {"name": "table6"})):
        assert '"metrics": {' not in canonical(stage_settings(config(), stage, **names))
        changed = canonical(stage_settings(asking(dolly=["numeric"]), stage, **names))
        assert '"metrics": {"dolly": ["numeric"]}' in changed


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"nowhere": ["numeric"]}, "metrics.nowhere: 'nowhere' is not among data.tests; known: dolly, sni"),
        ({"dolly": []}, "metrics.dolly: .*at least 1"),
        ({"dolly": ["f1"]}, "metrics.dolly.0: "),
        ({"dolly": ["numeric", "numeric"]}, "metrics.dolly.1: 'numeric' is there twice; remove one"),
        (
            {"dolly": ["choice"]},
            "metrics.dolly: choice needs the options of each question; name their column",
        ),
    ],
)
def test_wrong_metrics_are_refused(metrics: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        config(metrics=metrics)


@pytest.mark.parametrize("name", [name for name, item in ITEMS.items() if "rouge" in item.needs])
@pytest.mark.parametrize("left", [0, 1])
def test_what_shows_rouge_shows_the_sets_that_have_it(
    name: str, left: int, made: Path, tmp_path: Path
) -> None:
    """One set, or none."""
    asked = {"dolly": ["numeric"], "sni": ["numeric"]}
    asked = dict(list(asked.items())[: 2 - left])
    sidecar = published_item(name, made, tmp_path, metrics=asked)
    assert not any("metrics/rouge" in path and "dolly" in path for path in sidecar["sources"])
    assert left or not any("metrics/rouge" in path for path in sidecar["sources"])


def test_the_harness_is_in_the_frame(made: Path, tmp_path: Path) -> None:
    files = [f for f in MetricsSettings.of(config()).files() if f.kind == "harness"]
    frame = read_frame(made, files)
    teacher = frame[(frame["method"] == "teacher") & (frame["teacher"] == "xl")]
    assert teacher[["test_set", "metric", "value"]].values.tolist() == [
        ["arc_easy", "harness_acc", 0.38],
        ["arc_easy", "harness_bleu", 12.5],
    ]
    published_item("harness", made, tmp_path)
    text = (tmp_path / "harness.md").read_text()
    assert r"| Model | Method | arc\_easy, acc | arc\_easy, bleu |" in text
    assert "| GPT-2 1.5B | Teacher | 0.380 ± 0.070 | 12.500 |" in text
    assert "lm-eval 0.4.13; examples before a question: as in the task; questions of each task: 40." in text


def test_table_settings_of_a_set_without_rouge() -> None:
    table = TableSettings.of(asking(dolly=["numeric"]))
    assert table.tests == ("dolly", "sni") and table.metrics == {"dolly": ("numeric",)}
