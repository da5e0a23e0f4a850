"""The main table and the main figure."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.lines import Line2D
from table_case import MODELS, SETTINGS, metric, metrics_of_one_pair

from minillm.config.sections import Pair, Sampling, Style
from minillm.config.stage_settings import FigureSettings, TableSettings
from minillm.errors import UserError
from minillm.publish.figures.drawing import fonts, legend, looks_of, panels
from minillm.publish.figures.main import _draw
from minillm.publish.figures.main import run_stage as draw_main
from minillm.publish.style import latex, markdown, sampling_text
from minillm.publish.tables.main import run_stage as write_main_table
from minillm.publish.tables.main_cells import read_csv


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return metrics_of_one_pair(tmp_path)


def test_csv_has_a_line_a_cell(metrics: Path, tmp_path: Path) -> None:
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "out")
    with open(tmp_path / "out/main.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert (
        rows[0]["method"] == "teacher"
        and rows[0]["student"] == ""
        and rows[0]["sources"] == "metrics/rouge/big/teacher/easy.json"
    )
    found = {(row["method"], row["test"]): row for row in rows}
    cell = found["kd", "easy"]
    assert cell == {
        "teacher": "big",
        "student": "small",
        "student_label": "Scratch_A 1M",
        "teacher_label": "Scratch_A 3M",
        "method": "kd",
        "method_label": "KD",
        "test": "easy",
        "test_label": "Easy & plain",
        "n": "150",
        "rows": found["teacher", "easy"]["rows"],
        "mean": "22.5",
        "standard_error": cell["standard_error"],
        "over": "2 sampling seeds, 1 training seed",
        "low": "22.5",  # every made-up row has the mean's score
        "high": "22.5",
        "between_variance": "",
        "within_variance": "0.5",
        "best": "False",
        "sources": "metrics/rouge/small/kd/big/seed10/easy.json",
        **dict.fromkeys(("published", "judged", "judged_error", "judged_n", "judged_published"), ""),
        "published_status": "",
        "judged_published_status": "",
        **dict.fromkeys(("exact_match", "exact_match_error"), ""),
    }
    assert float(cell["standard_error"]) == pytest.approx(0.5)
    assert found["seqkd", "hard"]["mean"] == found["seqkd", "hard"]["n"] == ""


def test_exact_match_is_in_the_csv(metrics: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, training_seeds=(10, 11), methods=("sft",), tests=("easy",))
    for weights, exact in (("big/teacher", 4.0), ("small/sft/seed10", 1.0), ("small/sft/seed11", 3.0)):
        metric(metrics, weights, "easy", (20.0, 21.0), exact_match=exact, exact_match_error=0.5)
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path)
    found = [
        (cell.method, cell.exact_match, cell.exact_match_error) for cell in read_csv(tmp_path / "main.csv")
    ]
    assert found == [("teacher", 4.0, 0.5), ("sft", 2.0, 1.0)]  # over trainings where there are several


def test_markdown(metrics: Path, tmp_path: Path) -> None:
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "out")
    text = (tmp_path / "out/main.md").read_text()
    assert "| Model | Method | Easy & plain<br>n = 150 | Hard<br>n = 100 |" in text
    assert r"| Scratch\_A 3M | Teacher | 20.5 ± 0.5 | 20.5 ± 0.5 |" in text
    assert r"| Scratch\_A 1M | SFT w/o KD | 21.5 ± 0.5 | 21.5 ± 0.5 |" in text
    assert r"| Scratch\_A 1M | SeqKD | 23.5 ± 0.5 | – |" in text
    assert r"| Scratch\_A 1M | MiniLLM | **24.5 ± 0.5** | **24.5 ± 0.5** |" in text
    assert "± standard error over 2 sampling seeds, 1 training seed." in text
    assert (
        r"temperature 1, top-p 1 (off), top-k 0 (off), no\_repeat\_ngram 6, at most 256 new tokens; "
        r"sampling seeds 10, 20." in text
    )


def test_latex(metrics: Path, tmp_path: Path) -> None:
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "out")
    text = (tmp_path / "out/main.tex").read_text()
    assert r"Model & Method & Easy \& plain & Hard \\" in text
    assert r" &  & $n = 150$ & $n = 100$ \\" in text
    assert r"Scratch\_A 1M & SFT w/o KD & 21.5 $\pm$ 0.5 & 21.5 $\pm$ 0.5 \\" in text
    assert r" & SeqKD & 23.5 $\pm$ 0.5 & -- \\" in text
    assert r"no\_repeat\_ngram 6" in text
    assert text.isascii()
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in text


def test_escaping() -> None:
    assert (
        latex("a_b&c%d#e$f{g}~^\\")
        == r"a\_b\&c\%d\#e\$f\{g\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert markdown("a|b_c*") == r"a\|b\_c\*"


def test_sampling_in_words() -> None:
    text = sampling_text(Sampling(temperature=0.7, top_k=50, top_p=0.9, max_tokens=64))
    assert text == "temperature 0.7, top-p 0.9, top-k 50, no_repeat_ngram 0 (off), at most 64 new tokens"


def test_teachers_with_other_tokenizers_have_other_rows(metrics: Path, tmp_path: Path) -> None:
    pairs = (*SETTINGS.pairs, Pair(teacher="huge", students=("tiny",)))
    settings = dataclasses.replace(SETTINGS, pairs=pairs, methods=("sft",))
    for weights in ("huge/teacher", "tiny/sft/seed10"):
        metric(metrics, weights, "easy", (30.0, 31.0), ids=list(range(1, 150)))
        metric(metrics, weights, "hard", (30.0, 31.0))
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path / "out")
    text = (tmp_path / "out/main.md").read_text()
    assert "| Easy & plain<br>n = 150 |" in text and "| Easy & plain<br>n = 149 |" in text
    assert "tested on the same rows of Easy & plain (" in text  # and of no other set
    lines = (tmp_path / "out/main.tex").read_text().split("\n")
    for block, n in zip([i for i, line in enumerate(lines) if line == r"\midrule"], (150, 149), strict=True):
        assert lines[block + 1] == rf" &  & $n = {n}$ & $n = 100$ \\"
    draw_main(
        FigureSettings(stage="figure", style=Style(dpi=40)),
        table=tmp_path / "out/main.csv",
        out=tmp_path / "out",
    )


def test_nothing_evaluated_yet(tmp_path: Path) -> None:
    write_main_table(SETTINGS, run_folder=tmp_path / "none", out=tmp_path / "out")
    assert "| Teacher | – | – |" in (tmp_path / "out/main.md").read_text()
    draw_main(
        FigureSettings(stage="figure", style=Style(dpi=40)),
        table=tmp_path / "out/main.csv",
        out=tmp_path / "out",
    )


def test_models_of_one_label_are_told_apart(metrics: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, labels={"big": "A", "small": "A"})
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path / "out")
    assert "| A (small) | KD |" in (tmp_path / "out/main.md").read_text()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"per_seed": None}, "'per_seed' is missing or of the wrong type; remove it and score again"),
        (
            {"per_seed": {"10": float("nan"), "20": 1.0}},
            "no rows, or a score that is not a number; remove it and score again",
        ),
        ({"dataset": "hard"}, "is for the test set 'hard', not 'easy'; remove it and score again"),
        (
            {"per_seed": {"10": 1.0, "30": 1.0}},
            "sampling seeds 10, 30, but the table has 10, 20; generate again",
        ),
        (
            {"sampling": {"top_k": 5}},
            "sampled with {'top_k': 5}, not with the table's settings; generate again",
        ),
    ],
)
def test_a_damaged_metric_is_one_line(metrics: Path, tmp_path: Path, changed: dict, line: str) -> None:
    path = metric(metrics, "small/kd/big/seed10", "easy", (1.0, 2.0), **changed)
    with pytest.raises(UserError) as error:
        write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "out")
    assert str(error.value) == f"{path}: {line}"
    assert not (tmp_path / "out").exists()


def test_cut_metric_and_other_rows(metrics: Path, tmp_path: Path) -> None:
    path = metric(metrics, "small/kd/big/seed10", "easy", (1.0, 2.0), ids=[1, 2])
    first = metrics / "rouge/big/teacher/easy.json"
    with pytest.raises(UserError) as error:
        write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "out")
    assert str(error.value) == f"{path}: its rows are not those of {first}; generate and score both again"
    path.write_text(path.read_text()[:30])
    with pytest.raises(UserError, match=r"not JSON \(.*\); remove it and score again$"):
        write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "out")


def test_labels_below_the_bars_break_at_spaces_alone(tmp_path: Path) -> None:
    labels = {"a": "VicunaEvaluation", "b": "S-NI [11,+inf)", "c": "C", "d": "D", "e": "E"}
    pairs = (Pair(teacher="big", students=("s1", "s2", "s3")),)
    settings = dataclasses.replace(SETTINGS, pairs=pairs, labels={}, tests=tuple(labels), test_labels=labels)
    write_main_table(settings, run_folder=tmp_path / "none", out=tmp_path)
    figure = _draw(read_csv(tmp_path / "main.csv"), Style(), looks_of(Style(), []))
    shown = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert [" ".join(text.split("\n")[:-1]) for text in shown] == list(labels.values())
    assert "the teacher was not evaluated" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("count", [1, 5, 17])
def test_the_legend_is_inside_the_page_and_takes_nothing_from_the_panels(count: int) -> None:
    style = Style()
    heights = []
    for entries in (1, count):
        with fonts(style):
            figure, (axes,) = panels(style, 1)
            legend(figure, [Line2D([], [], label=f"MiniLLM (variant number {i})") for i in range(entries)])
            figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
        heights.append(axes.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


def test_figure_is_drawn_and_reproducible(metrics: Path, tmp_path: Path) -> None:
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path)
    settings = FigureSettings(stage="figure", style=Style(dpi=60, palette={"kd": "#112233"}))
    for name in ("a", "b"):
        draw_main(settings, table=tmp_path / "main.csv", out=tmp_path / name)
    assert (tmp_path / "a/main.png").read_bytes().startswith(b"\x89PNG")
    assert b"CreationDate" not in (tmp_path / "a/main.pdf").read_bytes()
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a/main.{kind}").read_bytes() == (tmp_path / f"b/main.{kind}").read_bytes()


def test_figure_refuses(metrics: Path, tmp_path: Path) -> None:
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path)
    table = tmp_path / "main.csv"
    for palette, line in (({"kdd": "red"}, "unknown method 'kdd'"), ({"kd": "rde"}, "'rde' is not a colour")):
        with pytest.raises(UserError, match=line):
            draw_main(
                FigureSettings(stage="figure", style=Style(palette=palette)),
                table=table,
                out=tmp_path / "out",
            )
    settings = FigureSettings(stage="figure", style=Style())
    table.write_text(table.read_text().replace(",22.5,", ",x,"))
    with pytest.raises(UserError) as error:
        draw_main(settings, table=table, out=tmp_path / "out")
    assert str(error.value) == f"{table}:6: could not convert string to float: 'x'; make the table again"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UserError) as error:
        draw_main(settings, table=table, out=tmp_path / "out")
    assert str(error.value) == f"{table}:1: no column 'teacher'; make the table again"
    assert not (tmp_path / "out").exists()


def test_publish_and_scores_import_no_torch() -> None:
    code = (
        "import sys, minillm.publish.tables.main, minillm.publish.figures.main, "
        "minillm.evaluation.rouge, minillm.training.selection\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_metrics_without_rouge_import_neither_its_package_nor_scipy() -> None:
    code = (
        "import sys\n"
        "from minillm.evaluation import choice, diversity, lengths, numeric, validity\n"
        "print([m for m in ('torch', 'transformers', 'rouge_score', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_variants_have_labels_and_looks_of_their_own(metrics: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS, methods=("minillm", "gkd", "w"), method_labels={"gkd": "GKD", "w": "w/o |x|"}
    )
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path)
    text = (tmp_path / "main.md").read_text()
    assert "| GKD |" in text and r"| w/o \|x\| |" in text
    looks = looks_of(Style(), ["minillm", "gkd", "w"])
    assert len({looks[m] for m in ("minillm", "gkd", "w")}) == 3
    draw_main(FigureSettings(stage="figure", style=Style()), table=tmp_path / "main.csv", out=tmp_path)
    assert (tmp_path / "main.png").stat().st_size > 10_000


PAPER = Path(__file__).resolve().parents[3] / "config" / "paper"


def papers_models(**changed: object) -> TableSettings:
    """The settings with names of the paper's models and sets."""
    labels = {"big": "OPT 13B", "small": "OPT 1.3B"}
    tests = {"easy": "DollyEval", "hard": "Hard"}
    return dataclasses.replace(SETTINGS, labels=labels, test_labels=tests, **changed)


def test_published_numbers_stand_beside_measured_ones(metrics: Path, tmp_path: Path) -> None:
    """A set that the paper has, under its name.

    "hard" is none of the paper's, and SeqKD was not evaluated on it.
    """
    for path in sorted(metrics.rglob("easy.json")):
        value = json.loads(path.read_text())
        path.with_name("dolly.json").write_text(json.dumps({**value, "dataset": "dolly"}))
    settings = papers_models(tests=("dolly", "hard"))
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path, paper=PAPER)
    text = (tmp_path / "main.md").read_text()
    assert r"| OPT 1.3B | SFT w/o KD | 21.5 ± 0.5 [26.0: -4.5] | 21.5 ± 0.5 |" in text
    assert (
        r"| OPT 1.3B | KD | 22.5 ± 0.5 [25.4?: -2.9] |" in text and "?: unverified, that is, recalled" in text
    )
    found = {c.method: c for c in read_csv(tmp_path / "main.csv") if c.test == "dolly"}
    assert (found["sft"].published, found["sft"].published_status, found["kd"].published_status) == (
        26.0,
        "verified",
        "unverified",
    )
    (metrics / "rouge/small/sft/seed10/dolly.json").unlink()
    write_main_table(settings, run_folder=metrics.parent, out=tmp_path, paper=PAPER)
    assert (
        "| SFT w/o KD | – | 21.5 ± 0.5 |" in (tmp_path / "main.md").read_text()
    )  # never a published number alone
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path, paper=PAPER)
    assert "[" not in (tmp_path / "main.md").read_text()  # no model of the paper's


def test_the_judges_columns_hold_a_real_judges_scores_alone(metrics: Path, tmp_path: Path) -> None:
    for stand_in, judge in ((True, ""), (True, "openai m"), (False, ""), (False, "openai m")):
        for weights in MODELS:
            path = metrics / f"judge/{weights}/easy.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"n": 9, "mean": 44.4, "standard_error": 1.5, "stand_in": stand_in}))
        write_main_table(
            dataclasses.replace(SETTINGS, judged=("easy",), judge=judge),
            run_folder=metrics.parent,
            out=tmp_path,
        )
        text = (tmp_path / "main.md").read_text()
        shown = not stand_in and judge
        assert (
            f"| Easy & plain, judge<br>n = {9 if shown else '–'} | Easy & plain<br>n = 150 "
            "| Hard<br>n = 100 |" in text
        )
        assert f"| MiniLLM | {'44.4 ± 1.5' if shown else '–'} | **24.5 ± 0.5** |" in text
        assert ("± in these columns: over prompts (bootstrap)" in text) == bool(shown)
        assert (
            "(judge: openai m)" if judge else "no judge scored this run; a stand-in's scores are not shown"
        ) in text
        draw_main(
            FigureSettings(stage="figure", style=Style(dpi=40)), table=tmp_path / "main.csv", out=tmp_path
        )


def test_notes_say_which_rows_no_tokenizer_knows(metrics: Path, tmp_path: Path) -> None:
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "a")
    before = (tmp_path / "a/main.md").read_text()
    assert "tokenizer" not in before
    for path in metrics.glob("rouge/**/easy.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"without_tokens": {"count": 3, "first_ids": [1, 2, 4]}}))
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "b")
    after = (tmp_path / "b/main.md").read_text()
    note = "In Easy & plain (3 of 150 rows) no reference has a word that ROUGE-L's tokenizer knows"
    assert markdown(note) in after
    assert (tmp_path / "a/main.csv").read_bytes() == (tmp_path / "b/main.csv").read_bytes()
    path.write_text(json.dumps(content | {"without_tokens": 3}))
    with pytest.raises(UserError, match="'without_tokens' is of the wrong type; remove it and score again"):
        write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "c")


def test_a_note_says_that_words_of_all_scripts_count(metrics: Path, tmp_path: Path) -> None:
    for path in metrics.glob("rouge/**/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer": "unicode"}))
    write_main_table(SETTINGS, run_folder=metrics.parent, out=tmp_path / "a")
    assert "ROUGE-L counts words of all scripts" in (tmp_path / "a/main.md").read_text()
