"""Standard errors, intervals and bold cells of the main table."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from table_case import MODELS, SETTINGS, metric, metrics_of_one_pair

from minillm.config.sections import Style
from minillm.config.stage_settings import FigureSettings
from minillm.publish.figures.main import run_stage as draw_main
from minillm.publish.tables.main import run_stage as write_main_table
from minillm.publish.tables.main_cells import read_csv


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return metrics_of_one_pair(tmp_path)


def test_several_training_seeds(metrics: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, training_seeds=(10, 11), methods=("sft",))
    for test in settings.tests:
        metric(metrics, "small/sft/seed11", test, (23.0, 24.0))
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path / "out")
    text = (tmp_path / "out/main.md").read_text()
    assert "SFT w/o KD | 22.5 ± 1.0 |" in text  # means 21.5 and 23.5
    assert "over 2 sampling seeds, 1 training seed (Teacher); " in text
    assert "over 2 training seeds, 2 sampling seeds each (SFT w/o KD)." in text
    (metrics / "rouge/small/sft/seed11/hard.json").unlink()
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path / "out")
    text = (tmp_path / "out/main.md").read_text()
    assert "| SFT w/o KD | 22.5 ± 1.0 | 21.5 ± 0.5† |" in text  # the second cell lacks a training seed
    assert "over 2 training seeds, 2 sampling seeds each (SFT w/o KD)." in text
    assert (
        "†: over fewer training seeds than the 2 of this table, "
        "not comparable with the other cells; main.csv " in text
    )
    assert "Training seeds 10, 11; teachers only 10." in text
    assert r"21.5 $\pm$ 0.5$^\dagger$" in (tmp_path / "out/main.tex").read_text()
    draw_main(
        FigureSettings(stage="figure", style=Style(dpi=40)),
        table=tmp_path / "out/main.csv",
        out=tmp_path / "out",
    )


def test_eleven_training_seeds_are_not_one(metrics: Path, tmp_path: Path) -> None:
    seeds = tuple(range(10, 21))
    settings = dataclasses.replace(SETTINGS, training_seeds=seeds, methods=("sft",), tests=("easy",))
    (metrics / "rouge/big/teacher/easy.json").unlink()
    for seed in seeds:
        metric(metrics, f"small/sft/seed{seed}", "easy", (20.0 + seed, 21.0 + seed))
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path / "out")
    text = (tmp_path / "out/main.md").read_text()
    assert "± standard error over 11 training seeds, 2 sampling seeds each." in text
    assert "training again" not in text


def test_a_single_run_has_the_error_over_its_prompts(metrics: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, sampling_seeds=(10,), methods=("sft",), tests=("easy",))
    for weights in MODELS[
        :2
    ]:  # 150 prompts of 15 and 25: a standard deviation of 5, of which the mean has 5 / sqrt(150)
        metric(metrics, weights, "easy", (20.0,), scores={"10": [15.0, 25.0] * 75})
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path / "out")
    text = (tmp_path / "out/main.md").read_text()
    assert "| Teacher | 20.0 ± 0.4 |" in text
    assert "mean ± standard error over prompts (bootstrap), 1 sampling seed, 1 training seed." in text
    assert "A standard error over sampling seeds or prompts says nothing about training again" in text
    draw_main(
        FigureSettings(stage="figure", style=Style(dpi=40)),
        table=tmp_path / "out/main.csv",
        out=tmp_path / "out",
    )


def test_bold_where_a_lead_is_significant_and_nowhere_else(metrics: Path, tmp_path: Path) -> None:
    """Where MiniLLM leads.

    On "hard" by 0.1 with a spread of 5 between prompts; on "easy" every prompt is better by 1.
    """
    rng = random.Random(4)
    for method, mean in (("sft", 21.0), ("kd/big", 21.1), ("minillm/big", 21.2)):
        scores = {str(seed): [mean + rng.gauss(0, 5) for _ in range(100)] for seed in (10, 20)}
        metric(metrics, f"small/{method}/seed10", "hard", (mean, mean), scores=scores)
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path)
    text = (tmp_path / "main.md").read_text()
    assert (
        r"| Scratch\_A 1M | MiniLLM | **24.5 ± 0.5** | 21.2 ± 0.0 |" in text and text.count("**") == 4
    )  # one is the block's heading
    assert (
        "Holm's correction over the table's 5 comparisons, p ≤ 0.05" in text and "No cell is bold" not in text
    )
    assert [c.method for c in read_csv(tmp_path / "main.csv") if c.best] == ["minillm"]
    assert r"\textbf{24.5 $\pm$ 0.5} & 21.2 $\pm$ 0.0" in (tmp_path / "main.tex").read_text()
    for method in ("sft", "kd/big", "seqkd/big", "minillm/big"):
        metric(metrics, f"small/{method}/seed10", "easy", (21.0, 21.0))
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path)
    assert "No cell is bold. Bold: ROUGE-L ahead of every other" in (tmp_path / "main.md").read_text()


def test_a_lead_of_one_training_alone_is_not_bold(metrics: Path, tmp_path: Path) -> None:
    """MiniLLM leads by 1 at every prompt, but its three trainings are 12 apart.

    Over prompts alone the lead would be certain.
    """
    settings = dataclasses.replace(
        SETTINGS, training_seeds=(10, 11, 12), methods=("sft", "minillm"), tests=("easy",)
    )
    for spread, lead in ((6.0, ""), (0.1, "**")):
        rng = random.Random(1)
        for method, mean in (("sft", 20.0), ("minillm/big", 21.0)):
            for seed, step in ((10, -spread), (11, 0.0), (12, spread)):
                scores = [mean + step + rng.gauss(0, 1) for _ in range(150)]
                own = {s: sum(scores) / 150 for s in ("10", "20")}
                metric(
                    metrics,
                    f"small/{method}/seed{seed}",
                    "easy",
                    (1, 1),
                    per_seed=own,
                    scores={"10": scores, "20": scores},
                )
        write_main_table(settings, run_folder=metrics.parent, out=tmp_path)
        text = (tmp_path / "main.md").read_text()
        assert (
            f"| MiniLLM | {lead}2" in text and "variances over prompts and over training seeds added" in text
        )
        assert "not trainings" not in text


def test_one_method_has_nothing_to_lead(metrics: Path, tmp_path: Path) -> None:
    write_main_table(dataclasses.replace(SETTINGS, methods=("sft",)), run_folder=metrics.parent, out=tmp_path)
    assert "bold" not in (tmp_path / "main.md").read_text().lower()


def test_interval_and_components_of_a_cell(metrics: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, training_seeds=(10, 11), methods=("sft",), tests=("easy",))
    rng = random.Random(2)
    for seed, mean in ((10, 21.0), (11, 25.0)):
        scores = {str(s): [mean + rng.gauss(0, 3) for _ in range(150)] for s in (10, 20)}
        metric(metrics, f"small/sft/seed{seed}", "easy", (mean - 0.5, mean + 0.5), scores=scores)
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path)
    cell = read_csv(tmp_path / "main.csv")[1]
    # within: 4 * 0.25 / 2; between: (2 * 8 - 0.5) / 2
    assert cell.within_variance == pytest.approx(0.5) and cell.between_variance == pytest.approx(7.75)
    # two trainings 4 apart: 23 ± t * 2, t of hardly more than one degree of freedom (12.7), as prompts add
    # little
    assert (cell.low, cell.high) == (pytest.approx(23 - 25.0, abs=0.4), pytest.approx(23 + 25.0, abs=0.4))
