"""docs/study.md: rows of a run, contrasts of claims, and pages that are made from them."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from made_up_run import config, make
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM

from minillm.config.derive import stage_settings
from minillm.config.strict import parse
from minillm.errors import UserError
from minillm.plan import configuration
from minillm.publish.metrics_csv import run_stage
from minillm.publish.settings import MetricsSettings
from minillm.readers import read_yaml

REPO = Path(__file__).resolve().parents[3]
PIECES = ("k1", "k4", "k16", "gaps")


def load() -> ModuleType:
    """docs/study/collect.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("collect_study", REPO / "docs/study/collect.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


collect = load()
CLAIMS = read_yaml(collect.CLAIMS)["claims"]


def rows(method: str, values: list[float], **place: str) -> list[dict[str, Any]]:
    """A row per value, of precision."""
    where = {"piece": "k4", "student": "small", "teacher": "" if method == "sft" else "teacher", **place}
    return [
        {"method": method, "seed": 10 * (i + 1), "precision": value, **where}
        for i, value in enumerate(values)
    ]


def claim(**more: Any) -> dict[str, Any]:
    base = {"id": "a", "part": 1, "claim": "x", "measure": "precision", "direction": "higher"}
    return {**base, "first": "minillm", "second": "kd", "at": {"piece": "k4", "student": "small"}, **more}


# --- contrasts
def test_a_difference_is_paired_within_seeds() -> None:
    ours, theirs = [30.0, 31.5, 34.0], [25.0, 29.0, 26.0]
    found = collect.effect([*rows("minillm", ours), *rows("kd", theirs)], claim())
    assert found.estimate == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)


def test_a_difference_of_averaged_differences() -> None:
    draw = np.random.default_rng(0)
    values = {
        (piece, method): list(draw.normal(size=3))
        for piece in ("k1", "k4", "k16")
        for method in ("minillm", "kd", "sft")
    }
    found = collect.effect(
        [row for (piece, method), v in values.items() for row in rows(method, v, piece=piece)],
        claim(
            second=["kd", "sft"],
            at={"piece": ["k4", "k16"], "student": "small"},
            less={"piece": "k1", "student": "small"},
        ),
    )
    lead = {
        p: np.subtract(values[p, "minillm"], np.add(values[p, "kd"], values[p, "sft"]) / 2)
        for p in ("k1", "k4", "k16")
    }
    # Six blocks against three, with unequal variances.
    expected = stats.ttest_ind([*lead["k4"], *lead["k16"]], lead["k1"], equal_var=False)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.estimate == pytest.approx(np.mean([*lead["k4"], *lead["k16"]]) - np.mean(lead["k1"]))


def test_a_slope_has_an_intercept_for_each_seed() -> None:
    x = {"t2": 0.9, "t4": 1.9, "t16": 4.0, "t62": 5.9}
    means = {"t2": [1.0, 2.0, 0.0], "t4": [5.0, 5.5, 4.0], "t16": [4.0, 9.0, 6.0], "t62": [7.0, 8.0, 9.5]}
    data = [row for t, v in means.items() for row in rows("minillm", v, piece="gaps", teacher=t)]
    at = {"piece": "gaps", "student": "small"}
    found = collect.effect(data, claim(second=None, at=at, slope=x))
    # By the design matrix: a column for each seed, and x.
    y = np.array([means[t][s] for s in range(3) for t in x])
    design = np.array([[*(s == k for k in range(3)), x[t]] for s in range(3) for t in x], dtype=float)
    best, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = math.sqrt(residual[0] / (12 - 4) * np.linalg.inv(design.T @ design)[3, 3])
    assert found.estimate == pytest.approx(best[3])
    assert found.p == pytest.approx(2 * stats.t.sf(abs(best[3]) / error, 8))
    # One SFT for all teachers is the same in each block of a seed, and changes no slope.
    with_sft = [*data, *rows("sft", [3.0, 1.0, 2.0], piece="gaps")]
    again = collect.effect(with_sft, claim(second="sft", at=at, slope=x))
    assert again.estimate == pytest.approx(found.estimate) and again.p == pytest.approx(found.p)


def test_what_was_measured_in_part_is_not_run() -> None:
    one = [*rows("minillm", [1.0]), *rows("kd", [1.0])]
    assert collect.effect(one, claim()) is None
    assert "| not run |" in collect.claims_text(one, [claim()])
    # A seed of one method only.
    assert collect.effect([*rows("minillm", [1.0, 2.0, 3.0]), *rows("kd", [1.0, 2.0])], claim()) is None
    # A piece of two.
    both = [*rows("minillm", [1.0, 2.0]), *rows("kd", [1.0, 2.5])]
    assert collect.effect(both, claim(at={"piece": ["k4", "k16"], "student": "small"})) is None
    slope = claim(second=None, at={"piece": "k4", "student": "small"}, slope={"teacher": 1.0, "t62": 6.0})
    assert collect.effect(rows("minillm", [1.0, 2.0, 3.0]), slope) is None


def test_holm_is_over_a_part() -> None:
    data = [*rows("minillm", [3.0, 3.1, 3.2]), *rows("kd", [1.0, 1.4, 1.8]), *rows("sft", [3.3, 2.9, 3.0])]
    claims = [claim(), claim(id="b", second="sft"), claim(id="c", part=2)]
    found = collect.decided(data, claims)
    raw = stats.ttest_rel([3.0, 3.1, 3.2], [1.0, 1.4, 1.8]).pvalue
    assert found[0][2].adjusted == pytest.approx(2 * raw) and found[2][2].adjusted == pytest.approx(raw)
    assert [decision.verdict for _, _, decision in found] == ["seen", "undecided", "seen"]
    equal = claim(second="sft", direction="equal", margin=1.0)
    assert collect.decided(data, [equal])[0][2].verdict == "seen"


# --- rows of a run
def test_a_run_becomes_a_row_per_training(tmp_path: Path) -> None:
    run = make(tmp_path / "study-x", config(training_seeds=[10, 20]))
    settings = stage_settings(config(training_seeds=[10, 20]), "metrics")
    run_stage(parse(MetricsSettings, settings, "metrics"), run_folder=run, out=run / "metrics.csv")
    found = {(r["teacher"], r["student"], r["method"], r["seed"]): r for r in collect.rows_of(run)}
    ours = next(row for key, row in found.items() if key[2] == "minillm" and key[3] == 20)
    assert ours["piece"] == "x" and ours["lr"] == 0.001 and ours["processor"] == "x86_64 AVX2"
    # made_up_run: grad_variance 1 and grad_norm 2 at every step, effective samples 0.9 and 0.8.
    assert ours["noise"] == 0.25 and ours["effective_samples"] == pytest.approx(0.85)
    assert sum(key[2] == "sft" for key in found) == len({key[1] for key in found if key[2] == "sft"}) * 2
    assert all(key[0] == "" for key in found if key[2] == "sft")
    collect.evidence.write_rows(collect.rows_of(run), tmp_path / "x.csv")
    again = collect.evidence.read_rows(tmp_path / "x.csv", collect.TEXTS)
    assert len(again) == len(found) and again[0].keys() == next(iter(found.values())).keys()


def test_rows_of_students_that_were_run_before_stay() -> None:
    def on(found: list[dict[str, Any]], processor: str) -> list[dict[str, Any]]:
        return [{**row, "processor": processor} for row in found]

    before = on([*rows("kd", [1.0, 2.0]), *rows("kd", [3.0], student="large"), *rows("sft", [4.0])], "A")
    after = collect.with_earlier(on(rows("kd", [5.0, 6.0], student="large"), "A"), before)
    found = [(row["student"], row["method"], row["precision"]) for row in after]
    assert found[:2] == [("large", "kd", 5.0), ("large", "kd", 6.0)]
    assert sorted(found[2:]) == [("small", "kd", 1.0), ("small", "kd", 2.0), ("small", "sft", 4.0)]
    assert collect.with_earlier(on(rows("kd", [1.0]), "A"), []) == on(rows("kd", [1.0]), "A")
    with pytest.raises(UserError, match=r"k4.csv: rows of one piece are from processors A and B; run all"):
        collect.with_earlier(on(rows("kd", [5.0], student="large"), "B"), before)


def test_a_run_without_metrics_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.csv: no such file; run the piece first \(make study\)"):
        collect.rows_of(tmp_path)


def test_measures_that_no_row_has_are_left_out() -> None:
    data = [{**row, "rouge": None, "edge": ""} for row in rows("kd", [1.0, 2.0])]
    assert collect.measured_columns(data)[0].keys() == {*data[0]} - {"rouge"}
    text = collect.results_text(data)
    assert "| n | precision |\n" in text and "| 2 | 1.50 ± 0.50 |" in text


# --- pages
def test_numbers_of_a_template() -> None:
    data = [*rows("minillm", [30.0, 32.0]), *rows("kd", [20.0, 21.0]), *rows("sft", [1.0])]
    text = "{{precision: k4 small minillm}}, {{precision: k4 small sft}}, {{a verdict}}, {{a effect}}"
    said = collect.with_numbers(text, data, [claim()])
    p = stats.ttest_rel([30, 32], [20, 21]).pvalue
    assert said.startswith("31.0 ± 1.0, 1.00, seen, +10.5 [") and f"p {p:.2g} ({p:.2g})" in said
    assert collect.with_numbers("{{rouge: k4 small minillm}}", data, []) == "–"
    for wrong in ("{{gone: k4 small minillm}}", "{{b verdict}}", "{{a colour}}"):
        with pytest.raises(UserError, match=r"no such measure|neither a cell nor"):
            collect.with_numbers(wrong, data, [claim()])


def test_the_pages_are_current() -> None:
    rows = collect.read()
    for path, text in collect.pages(rows).items():
        assert path.read_text(encoding="utf-8") == text, "run `python docs/study/collect.py`"
    for name, panels in collect.figures.FIGURES.items():
        if collect.drawable(rows, name):
            assert collect.figures.is_current(rows, panels, REPO / f"docs/{name}.png"), name


# --- figures
def test_a_figure_is_known_by_its_numbers(tmp_path: Path) -> None:
    panels = collect.figures.FIGURES["referee_divergences"]
    data = [
        {**row, "forms": row["precision"] / 10}
        for method in panels[0].methods
        for piece in ("k4", "k16")
        for row in rows(method, [30.0, 32.0, 31.0], piece=piece)
    ]
    assert not collect.drawable(rows("kd", [1.0]), "referee_divergences")
    assert "Not drawn yet." in collect.with_numbers("{{figure: referee_divergences}}", [], [])
    said = collect.with_numbers("{{ figure: referee_divergences }}", data, [])
    assert said == "![referee_divergences](referee_divergences.png)"
    with pytest.raises(UserError, match="no such figure"):
        collect.with_numbers("{{figure: x}}", data, [])
    collect.figures.draw(data, panels, tmp_path / "a.png")
    assert collect.figures.is_current(data, panels, tmp_path / "a.png")
    data[0]["forms"] += 0.1
    assert not collect.figures.is_current(data, panels, tmp_path / "a.png")
    # A number that no panel shows.
    data[0]["forms"] -= 0.1
    data[0]["rouge"] = 1.0
    assert collect.figures.is_current(data, panels, tmp_path / "a.png")


def test_a_panel_shows_each_place_of_each_method() -> None:
    panel = collect.figures.FIGURES["referee_sweep"][0]
    data = [*rows("sft", [1.0, 2.0], piece="gaps")]
    data += [row for t in ("t2", "t62") for row in rows("minillm", [5.0, 6.0], piece="gaps", teacher=t)]
    shown = collect.figures.values(data, panel)
    # SFT has no teacher: it is the same at each size.
    assert shown["sft"] == dict.fromkeys((2.0, 4.0, 8.0, 16.0, 35.0, 62.0), [1.0, 2.0])
    assert shown["minillm"] == {2.0: [5.0, 6.0], 62.0: [5.0, 6.0]}


# --- claims and configurations
def test_claims_are_about_what_the_pieces_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    runs = {
        piece: configuration([REPO / "config/study.yaml", REPO / f"config/study/{piece}.yaml"])
        for piece in PIECES
    }
    real = {"mini": configuration([REPO / "config/mini.yaml", REPO / "config/mini-all.yaml"])}
    for one in CLAIMS:
        assert one["measure"] in (*collect.MEASURES, *collect.DERIVED), one
        assert one["direction"] in ("higher", "lower", "equal")
        at = [one["at"]] + ([one["less"]] if "less" in one else [])
        for piece, student, teacher in (p for each in at for p in collect.places(each, one.get("slope"))):
            run = (runs | real)[piece]
            pair = next(pair for pair in run.pairs if pair.teacher == teacher)
            named = {*collect.several(one["first"]), *collect.several(one.get("second"))}
            assert named <= set(run.methods) and student in pair.students, one
    assert len({one["id"] for one in CLAIMS}) == len(CLAIMS)
    assert [one["part"] for one in CLAIMS] == sorted(one["part"] for one in CLAIMS)
    # The same prompts, and the same updates of students, in every piece.
    for run in runs.values():
        train, forms = run.datasets["train"], run.datasets["train"].forms or 0
        assert (train.rows or 0) == 1800 * max(forms // 4, 1)
        assert [run.datasets[name].rows for name in ("dev", "test")] == [300, 240]
        assert run.supervised("sft", "small").epochs * (train.rows or 0) == 24 * 1800
        longer = 3 if forms == 16 else 1
        assert run.supervised("teacher", "teacher").epochs * (train.rows or 0) == longer * 48 * 1800
    assert len({str(runs[p].on_policy("minillm", "small")) for p in PIECES}) == 1


def test_a_slopes_sizes_are_those_of_the_models() -> None:
    models = (
        read_yaml(REPO / "config/study.yaml")["models"] | read_yaml(REPO / "config/study/gaps.yaml")["models"]
    )

    def size(name: str) -> int:
        shape = dict(models[name]["architecture"])
        ids = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0}
        with torch.device("meta"):
            kind = AutoConfig.for_model(shape.pop("model_type"), **ids, **shape)
            return int(AutoModelForCausalLM.from_config(kind).num_parameters())

    slopes = [one["slope"] for one in CLAIMS if "slope" in one]
    for teacher, doublings in slopes[0].items():
        assert doublings == pytest.approx(math.log2(size(teacher) / size("small")), abs=0.006)
    assert all(slope == slopes[0] for slope in slopes)
