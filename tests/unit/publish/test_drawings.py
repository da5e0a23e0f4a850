"""What figures show: bars, curves and intervals where the numbers say."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from items_case import drawn, published_item, settings, text
from made_up_run import config, make
from matplotlib.container import ErrorbarContainer

from minillm.evaluation.statistics import sign_test
from minillm.files import write_json
from minillm.publish.figures.figure2_toy import TARGET, Mixture, fit_forward, fit_reverse, reverse_kl
from minillm.publish.item_results import ItemResults


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "run", config())


def test_human_intervals_are_drawn_where_they_are(run: Path) -> None:
    """27, 13 and 10 of 50.

    Wins are 54% (Wilson 40.4 to 67.0), losses 20% (11.2 to 33.0), which end at the right.
    """
    axes = drawn("figure4", run).axes[0]
    assert {(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in axes.patches} == {
        (0, 54),
        (54, 26),
        (80, 20),
    }
    ends = {
        tuple(round(x, 1) for x in segment[:, 0])
        for bars in axes.containers if isinstance(bars, ErrorbarContainer)
        for segment in bars.lines[2][0].get_segments()
    }  # fmt: skip
    assert ends == {(40.4, 67.0), (67.0, 88.8)}


def test_exposure_bias_is_compared_on_the_same_prompts(run: Path, tmp_path: Path) -> None:
    """MiniLLM (strength 4) and SFT (0) at l = 50: 50/8 - 50/4 = -6.25.

    It is the longest length that is kept and that enough responses reach.
    """
    caption = published_item("figure6", run, tmp_path)["caption"]
    assert "GPT-2 120M on DollyEval, l = 50: MiniLLM minus SFT w/o KD -6.2 (-6.2 to -6.2), SeqKD" in caption
    axes = drawn("figure6", run).axes[0]
    solid, pale = axes.lines[:2]
    assert max(x for x, y in zip(*solid.get_data(), strict=True) if y == y) == 80 and pale.get_alpha() == 0.35
    assert min(x for x, y in zip(*pale.get_data(), strict=True) if y == y) == 80


def test_the_caption_of_exposure_bias_says_how_it_was_computed(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    caption = published_item("figure6", copy, tmp_path)["caption"]
    assert (
        "Bands: 95% intervals" in caption
        and "; 95%, paired" in caption
        and "semantics" not in caption
        and "finished" not in caption
    )
    assert "Only the methods of the paper's main table are drawn; this run has 7 methods." in caption
    for path in sorted((copy / "metrics/exposure_bias").rglob("*.json")):
        metric = json.loads(path.read_text())
        metric["draws"]["50"] = [value + k for value in metric["draws"]["50"][:1] for k in range(11)]
        path.write_text(json.dumps(metric | {"level": 0.8, "semantics": "released", "finished": "zero"}))
    caption = published_item("figure6", copy, tmp_path)["caption"]
    assert "Bands: 80% intervals" in caption and "; 80%, paired" in caption
    assert "(semantics: released)" in caption and "(finished: zero)" in caption


@pytest.mark.filterwarnings("error")
def test_one_prompt_has_no_interval(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for path in sorted((copy / "metrics/exposure_bias").rglob("*.json")):
        metric = json.loads(path.read_text())
        metric["draws"] = {length: [None] * len(draws) for length, draws in metric["draws"].items()}
        path.write_text(json.dumps(metric | {"n": 1}))
    assert "MiniLLM minus" not in published_item("figure6", copy, tmp_path)["caption"]


def test_human_comparisons_have_a_sign_test(run: Path, tmp_path: Path) -> None:
    """27 wins and 10 losses, of 37 tosses: p = 2 sum of C(37, k) / 2^37 for k up to 10."""
    p = 2 * sum(math.comb(37, k) for k in range(11)) / 2**37
    caption = published_item("figure4", run, tmp_path)["caption"]
    assert f"against SFT w/o KD 27 to 10, p = {p:.2g}" in caption and "Several annotators" not in caption
    assert drawn("figure4", run).axes[0].get_xlabel() == "share of the judgements (%)"
    copy = shutil.copytree(run, tmp_path / "run")
    page = copy / "metrics/human/base/minillm/xl/seed10/dolly.json"
    metric = json.loads(page.read_text())
    for comparison in metric["comparisons"]:
        comparison["annotators"]["ben"] = {"win": 1}
    write_json(page, metric)
    assert (
        "Several annotators judged, so judgements of one prompt are not independent"
        in published_item("figure4", copy, tmp_path)["caption"]
    )
    assert (sign_test(0, 0), sign_test(3, 3), sign_test(0, 5)) == (1.0, 1.0, 0.0625)


def test_lengths_are_compared_on_the_same_prompts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods differ alike at every prompt: their difference is certain, however much the prompts differ."""
    assert not [
        bar for bar in drawn("figure7", run).axes[0].containers if isinstance(bar, ErrorbarContainer)
    ], "too few prompts"
    monkeypatch.setattr("minillm.publish.figures.bars.FEWEST", 2)
    for name, title in (("figure7", "DollyEval"), ("figure15", "S-NI")):
        axes = drawn(name, run).axes[0]
        assert axes.get_title().endswith(title)
        bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
        for bar in bars:
            ((_, low), (_, high)) = bar.lines[2][0].get_segments()[0]
            assert high - low == pytest.approx(0, abs=1e-9)
        heights = {round(patch.get_height(), 3) for patch in axes.patches if patch.get_width() > 0}
        assert len(bars) == 2 * 3 and {0.444, 1.333, 4.0} <= heights  # MiniLLM: 4/9, 4/3 and 4 above SFT


def test_rows_that_are_no_test_set_have_their_buckets_drawn(run: Path, tmp_path: Path) -> None:
    """Dev rows, for instance, which only `lengths` names."""
    copy = shutil.copytree(run, tmp_path / "run")
    for path in sorted((copy / "metrics/lengths").rglob("dolly.json")):
        path.with_stem("held").write_text(path.read_text())
    titles = [axes.get_title() for axes in drawn("figure7", copy, lengths={"tests": ["dolly", "held"]}).axes]
    assert {title.split("\n")[1] for title in titles} == {"DollyEval", "held"}
    missing = published_item("figure15", copy, tmp_path, lengths={"tests": ["dolly"]})["missing"]
    assert missing == "not measured: this configuration names no set for it in lengths.figure15"


def test_share_of_the_teachers_score_has_an_error(run: Path) -> None:
    bars = [bar for bar in drawn("size-gap", run).axes[0].containers if isinstance(bar, ErrorbarContainer)]
    lengths = [abs(b[1] - a[1]) for bar in bars for a, b in bar.lines[2][0].get_segments()]
    assert lengths and all(1 < length < 30 for length in lengths)


def test_a_student_with_several_teachers_has_its_scores_against_the_ratio(run: Path, tmp_path: Path) -> None:
    """Its methods' means as the table has them, at the ratios of the published sizes."""
    everything = drawn("size-gap", run).axes
    assert [axes.get_title() for axes in everything] == ["all pairs", "student: GPT-2 120M"]
    curves = [bar for bar in everything[1].containers if isinstance(bar, ErrorbarContainer)]
    # The third teacher is of another family.
    assert list(everything[1].get_xticks()) == pytest.approx([7.6e8 / 1.2e8, 1.5e9 / 1.2e8])
    assert [label.get_text() for label in everything[1].get_xticklabels()] == ["6.3", "12"]
    item = ItemResults(settings("size-gap"), run)
    for teacher, students in item.pairs():
        for model in item.drawn(students):
            if model.student == "base" and model.teacher != "j":
                value, _ = item.average(model, "rouge", list(item.settings.table.tests))
                heights = [y for bar in curves for y in bar.lines[0].get_ydata()]
                assert any(y == pytest.approx(value) for y in heights), (teacher, model)
    sidecar = published_item("size-gap", run, tmp_path)
    assert "SFT has no teacher and is flat" in sidecar["caption"]


def test_tasks_go_by_their_labels(run: Path, tmp_path: Path) -> None:
    titles = [axes.get_title() for axes in drawn("reliability", run).axes]
    assert titles[0] == "BoolQ (GPT-2 1.5B)" and not [
        title for title in titles if "boolq" in title or "sst2" in title
    ]
    assert "n = 30" in published_item("reliability", run, tmp_path)[
        "n"
    ] and "CLS: mean accuracy over BoolQ, SST-2." in text("table7", run, tmp_path)


def test_average_score_says_what_it_is(run: Path, tmp_path: Path) -> None:
    caption = published_item("figure1", run, tmp_path)["caption"]
    assert "Mean over DollyEval of the judge's score (openai some-judge)" in caption
    assert " Error bars: standard error over prompts (bootstrap). " in caption
    assert "SFT, which has no teacher, is left out" in published_item("figure5", run, tmp_path)["caption"]
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "metrics/judge")
    caption = published_item("figure1", copy, tmp_path)["caption"]
    assert (
        "ROUGE-L, not a judge's score as in the paper (no judge scored this run): mean over DollyEval, S-NI."
        in caption
    )
    assert " Error bars: standard error over sampling seeds, the sets taken as independent. " in caption


def test_forward_fit_matches_moments() -> None:
    p = Mixture((0.25, 0.75), (0.0, 4.0), (1.0, 2.0))
    # mean 3; second moment 0.25 * 1 + 0.75 * (4 + 16) = 15.25
    assert fit_forward(p) == (pytest.approx(3.0), pytest.approx(6.25**0.5))


def test_reverse_fit_sits_on_the_dominant_mode() -> None:
    mean, deviation = fit_reverse(TARGET)
    dominant = TARGET.weights.index(max(TARGET.weights))
    assert mean == pytest.approx(TARGET.means[dominant], abs=0.1) and deviation == pytest.approx(
        TARGET.deviations[dominant], abs=0.1
    )
    mirrored = Mixture(TARGET.weights[::-1], TARGET.means, TARGET.deviations)
    assert fit_reverse(mirrored)[0] == pytest.approx(TARGET.means[1], abs=0.1)
    assert (
        reverse_kl(0.7, 0.3, Mixture((1.0,), (0.7,), (1.0,)))
        > reverse_kl(0.7, 0.0, Mixture((1.0,), (0.7,), (1.0,)))
        == pytest.approx(0, abs=1e-9)
    )
