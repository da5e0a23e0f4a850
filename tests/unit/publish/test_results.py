"""The frame of everything measured, metrics.csv, and the questions of docs/metrics.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from items_case import published_item
from made_up_run import REPO, config, make, put

from minillm.config.derive import stage_settings
from minillm.config.experiment import Experiment
from minillm.config.stage_settings import TableSettings
from minillm.config.strict import parse
from minillm.errors import UserError
from minillm.publish.metrics_csv import run_stage
from minillm.publish.results import COLUMNS, over_sets, over_training_seeds, read_frame
from minillm.publish.run_models import MetricFile, declared
from minillm.publish.settings import MetricsSettings, main_table_files, metric_files
from minillm.publish.tables.main import run_stage as write_main_table

SEVERAL: dict[str, Any] = {
    "training_seeds": [10, 20, 30],
    "pairs": [{"teacher": "xl", "students": ["base", "medium"]}, {"teacher": "large", "students": ["base"]}],
    "methods": ["sft", "seqkd", "minillm"],
    "sweeps": [{"teacher": "xl", "students": ["base"], "methods": ["no-mixing"]}],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three training seeds and a sweep, and its metrics.csv."""
    folder = make(tmp_path_factory.mktemp("made") / "run", config(**SEVERAL))
    written(folder, config(**SEVERAL))
    return folder


def written(run: Path, config: Experiment) -> pd.DataFrame:
    """metrics.csv of a run, as somebody reads it."""
    settings = parse(MetricsSettings, stage_settings(config, "metrics"), "metrics")
    run_stage(settings, run_folder=run, out=run / "metrics.csv")
    return pd.read_csv(run / "metrics.csv")


def flat(folder: Path, kind: str, content: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(metric, sampling seed, value, error, n) of one metric file; None where a cell is empty."""
    file = MetricFile(kind, "big", "small", "kd", 10, "easy", "small/kd/big/seed10")
    put(folder, file.path, content)
    frame = read_frame(folder, [file])
    assert list(frame.columns) == COLUMNS and set(frame["source"]) <= {file.path}
    rows = frame[["metric", "sampling_seed", "value", "error", "n"]].astype(object)
    return list(rows.where(rows.notna(), None).itertuples(index=False, name=None))


def test_rouge_and_a_measurement_that_is_not_known_here(tmp_path: Path) -> None:
    content = {"n": 3, "mean": 20.5, "standard_error": 0.5, "per_seed": {"10": 20.0, "20": 21.0}}
    rows = [("words", None, 20.5, 0.5, 3), ("words", 10, 20.0, None, 3), ("words", 20, 21.0, None, 3)]
    assert flat(tmp_path, "words", content) == rows
    exact = content | {"exact_match": 12.5, "exact_match_error": None}
    rouge = [("rouge", *row[1:]) for row in rows]
    assert flat(tmp_path, "rouge", exact) == [*rouge, ("exact_match", None, 12.5, None, 3)]
    assert flat(tmp_path, "words", {"mean": None, "n": 3}) == []


def test_a_stand_ins_scores_have_another_name(tmp_path: Path) -> None:
    content = {"n": 3, "mean": 44.0, "standard_error": 1.0}
    assert flat(tmp_path, "judge", content | {"stand_in": False}) == [("judge", None, 44.0, 1.0, 3)]
    assert flat(tmp_path, "judge", content | {"stand_in": True}) == [("judge_stand_in", None, 44.0, 1.0, 3)]


def test_calibration_and_losses(tmp_path: Path) -> None:
    errors = {
        "normalised": {"ece": 0.1, "standard_error": 0.01, "bins": []},
        "raw": {"ece": 0.3, "standard_error": None},
    }
    content = {"n": 30, "mean": 0.1, "accuracy": {"mean": 70.0, "standard_error": 5.0}, **errors}
    assert flat(tmp_path, "calibration", content) == [
        ("ece", None, 0.1, 0.01, 30),
        ("ece_raw", None, 0.3, None, 30),
        ("accuracy", None, 70.0, 5.0, 30),
    ]
    loss = {"n": 9, "loss": "tokens", "mean": 3.5, "standard_error": 0.1, "reference_tokens": 20.0}
    tokens = ("reference_tokens", None, 20.0, None, 9)
    assert flat(tmp_path, "reference_loss", loss) == [("reference_loss", None, 3.5, 0.1, 9), tokens]
    released = loss | {"loss": "released"}
    assert flat(tmp_path, "reference_loss", released) == [
        ("reference_loss_released", None, 3.5, 0.1, 9),
        tokens,
    ]


def test_diversity(tmp_path: Path) -> None:
    """91 and 92 of 100; the second seed alone has a repetition."""
    seeds = {"10": {"distinct": 91, "total": 100}, "20": {"distinct": 92, "total": 100, "repetition": 0.25}}
    assert flat(tmp_path, "diversity", {"n": 5, "ngram": 4, "per_seed": seeds}) == [
        ("dist4", None, 91.5, 0.5, 5),
        ("dist4", 10, 91.0, None, 5),
        ("dist4", 20, 92.0, None, 5),
        ("distinct", None, 91.5, 0.5, 5),
        ("distinct", 10, 91.0, None, 5),
        ("distinct", 20, 92.0, None, 5),
        ("total", None, 100.0, 0.0, 5),
        ("total", 10, 100.0, None, 5),
        ("total", 20, 100.0, None, 5),
        ("repetition", None, 25.0, None, 5),
        ("repetition", 20, 25.0, None, 5),
    ]
    nothing = {"10": {"distinct": 0, "total": 0}}
    rows = flat(tmp_path, "diversity", {"n": 5, "ngram": 4, "per_seed": nothing})
    assert {row[0] for row in rows} == {"distinct", "total"}


def test_lengths_and_people(tmp_path: Path) -> None:
    buckets = [
        {"low": 0, "high": 5, "n": 2, "mean": 9.0, "standard_error": 1.0, "per_seed": {"10": 9.0}},
        {"low": 6, "high": None, "n": 0, "mean": None, "standard_error": None, "per_seed": {"10": None}},
    ]
    rows = [("lengths_0_5", None, 9.0, 1.0, 2), ("lengths_0_5", 10, 9.0, None, 2)]
    assert flat(tmp_path, "lengths", {"n": 2, "mean": 9.0, "buckets": buckets}) == rows
    shares = {
        name: {"count": 1, "share": share} for name, share in (("win", 50.0), ("tie", 0.0), ("loss", 50.0))
    }
    against = "results/r/generations/big/teacher/easy.jsonl"
    rows = [(f"human_{name}_teacher", None, share["share"], None, 2) for name, share in shares.items()]
    assert flat(tmp_path, "human", {"comparisons": [{"against": against, "n": 2, **shares}]}) == rows


@pytest.mark.parametrize(
    ("kind", "content", "line"),
    [
        ("rouge", "{", r"not JSON \(.*\)"),
        ("rouge", "[]", r"not a JSON object, \{...\}"),
        ("words", {"mean": "many"}, "damaged: .*"),
        ("diversity", {"ngram": 4, "per_seed": {"10": {}}}, "damaged: KeyError\\('N'\\)"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, kind: str, content: Any, line: str) -> None:
    with pytest.raises(UserError, match=rf"easy\.json: {line}; remove it and make it again$"):
        flat(tmp_path, kind, content)


def test_means_over_training_seeds_and_sets() -> None:
    rows = pd.DataFrame(
        [
            (10, "a", 1.0, 3.0),
            (10, "b", 3.0, 4.0),
            (20, "a", 5.0, 0.1),
            (20, "b", 9.0, 0.1),
            (30, "a", 7.0, 0.1),
        ],
        columns=["training_seed", "test_set", "value", "error"],
    )
    assert over_training_seeds(rows[rows["test_set"] == "b"]) == pytest.approx((6.0, 3.0))
    assert over_training_seeds(rows[:1]) == (1.0, 3.0) and over_training_seeds(rows[:0]) is None
    # Of one training the sets' errors are independent: sqrt(3^2 + 4^2) / 2.  The third training lacks a set.
    assert over_sets(rows[:2], ["a", "b"]) == (2.0, 2.5)
    assert over_sets(rows, ["a", "b"]) == pytest.approx((4.5, 2.5)) and over_sets(rows, ["a", "c"]) is None


def test_only_declared_files_are_in_the_frame(tmp_path: Path) -> None:
    run = make(tmp_path / "run", config(small=True))
    before, table = written(run, config(small=True)), published_item("table5", run, tmp_path, small=True)
    assert len(before) and not before.duplicated(COLUMNS[:7]).any()
    for path in sorted((run / "metrics").rglob("*.json")):
        for stray in (path.with_stem("other"), Path(str(path).replace("base/", "gone/"))):
            stray.parent.mkdir(parents=True, exist_ok=True)
            stray.write_text(path.read_text())
    pd.testing.assert_frame_equal(written(run, config(small=True)), before)
    assert published_item("table5", run, tmp_path, small=True) == table
    stray_methods = written(run, config(small=True, methods=["sft"]))
    assert set(stray_methods["method"]) == {"teacher", "sft"}


def test_what_is_declared() -> None:
    """Teachers and sweeps have the first training seed only; some kinds are of the main table only."""
    several = config(**SEVERAL)
    table = TableSettings.of(several, sweeps=True)
    kinds = ("rouge", "exposure_bias", "lengths", "human")
    files = declared(table, {kind: ["dolly"] for kind in kinds}, ("lengths",))
    of_kind = {kind: [file for file in files if file.kind == kind] for kind in kinds}
    # Two teachers, three pairs of three methods and three seeds, one variant.
    assert {kind: len(files) for kind, files in of_kind.items()} == {
        "rouge": 30,
        "exposure_bias": 27,
        "lengths": 29,
        "human": 3,
    }
    assert of_kind["exposure_bias"][0].path == "metrics/exposure_bias/xl/base/sft/seed10/dolly.json"
    assert {file.method for file in of_kind["human"]} == {"minillm"}
    assert {file.training_seed for file in of_kind["rouge"] if file.method in ("teacher", "no-mixing")} == {
        10
    }
    # SFT's files belong to both teachers of a student.
    assert len({file.path for file in of_kind["rouge"]}) == 27
    assert set(metric_files(several, "figure7")) < set(metric_files(several))
    judged = {path.split("/")[1] for path in main_table_files(several)}
    assert judged == {"rouge", "judge"}
    assert "judge" not in {path.split("/")[1] for path in metric_files(config(judge={"kind": "none"}))}


def test_the_main_tables_means_from_metrics_csv(run: Path, tmp_path: Path) -> None:
    write_main_table(TableSettings.of(config(**SEVERAL)), run_folder=run, out=tmp_path)
    table = pd.read_csv(tmp_path / "main.csv").fillna({"student": ""})
    metrics = pd.read_csv(run / "metrics.csv").fillna({"student": ""})
    cell = ["teacher", "student", "method", "test_set"]
    rouge = metrics[(metrics["metric"] == "rouge") & metrics["sampling_seed"].isna()]
    means = rouge.groupby(cell)["value"].mean()
    expected = table.set_index(["teacher", "student", "method", "test"])["mean"]
    assert len(expected) == 22 and means.reindex(expected.index).to_numpy() == pytest.approx(
        expected.to_numpy()
    )


def test_numbers_are_in_full_and_rows_in_one_order(run: Path) -> None:
    text = (run / "metrics.csv").read_text()
    source = "metrics/rouge/base/minillm/xl/seed20/sni.json"
    mean = json.loads((run / source).read_text())["mean"]
    assert f"xl,base,minillm,20,,sni,rouge,{mean!r}," in text and text.startswith(",".join(COLUMNS) + "\n")
    written(run, config(**SEVERAL, style={"dpi": 60}))
    assert (run / "metrics.csv").read_text() == text
    turned = SEVERAL | {"pairs": SEVERAL["pairs"][::-1], "training_seeds": [10, 30, 20]}
    written(run, config(**turned))
    assert (run / "metrics.csv").read_text() == text


def test_the_questions_of_the_documentation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (REPO / "docs/metrics.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    answers = []
    for snippet in snippets:
        exec(snippet.replace("results/demo/metrics.csv", str(run / "metrics.csv")), names)
        answers.append(capsys.readouterr().out)
    assert len(answers) == 4
    # Better methods have better values (made_up_run.py), and all the same diversity.
    assert answers[1].count("minillm") + answers[1].count("no-mixing") == 6 and "no-mixing" in answers[1]
    spread = names["spread"].loc[("xl", "medium", "minillm", "dolly")]
    assert 0 < spread["std"] < 1 and spread["count"] == 3 and "teacher student method" in answers[2]
    assert names["difference"]["dist4"].abs().max() == 0
    assert names["difference"].loc[("xl", "medium", "minillm"), "rouge"] == pytest.approx(4.0, abs=1.0)
