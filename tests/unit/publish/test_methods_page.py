"""Table `methods`, its csv in the repository, and docs/methods.md, which is made from it."""

from __future__ import annotations

import csv
import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from items_case import published_item
from made_up_run import config, make
from scipy import stats

from minillm.config.experiment import experiment
from minillm.methods import BUILT_IN, read_catalogue
from minillm.plan import CATALOGUES, Job, configuration
from minillm.publish.settings import items_of
from minillm.publish.tables.methods import MEASURES, p_values, sheet
from minillm.readers import read_yaml

REPO = Path(__file__).resolve().parents[3]
CATALOGUE = read_catalogue(REPO / "config/methods.yaml")


def load() -> ModuleType:
    """docs/methods/collect.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("collect_methods", REPO / "docs/methods/collect.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


collect = load()


def row(method: str, seed: int, kl: float, **more: Any) -> dict[str, Any]:
    texts = {"label": method.title(), "pair": "S < T", "teacher": "a", "initial": "b", "processor": "x86"}
    base = {"method": method, **texts, "seed": seed, "lr": 0.001, "steps": 120, "step": 60, "edge": ""}
    values = dict.fromkeys(MEASURES) | {"dev_reverse_kl": kl, "rouge": 50 + kl}
    return {**base, "settings": "c", "git": "d", **values, **more}


def rows(**values: list[float]) -> list[dict[str, Any]]:
    """Rows of methods (underscores for dashes), one per value, seeds 10, 20 ..."""
    return [
        row(name.replace("_", "-"), 10 * (i + 1), value)
        for name, numbers in values.items()
        for i, value in enumerate(numbers)
    ]


# --- the table
def test_welch_and_holm_against_scipy() -> None:
    values = {"minillm": [1.0, 1.1, 1.2], "a": [0.5, 0.52, 0.6], "b": [1.0, 1.3, 1.4], "c": [0.9, 0.1, 0.2]}
    found = p_values(rows(initial=[3.0, 3.1, 3.2], **values), "dev_reverse_kl", "minillm")
    raw = {
        name: float(stats.ttest_ind(values[name], values["minillm"], equal_var=False).pvalue)
        for name in ("a", "b", "c")
    }
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(raw, key=lambda n: raw[n])):
        largest = max(largest, min(1.0, (3 - rank) * raw[name]))
        adjusted[name] = largest
    assert found == pytest.approx(adjusted)


def test_one_seed_has_no_error_and_no_p() -> None:
    one = [*rows(minillm=[1.0, 1.2], vopd=[0.5])]
    shown = sheet(one, ["minillm", "gone"])
    line = dict(zip(shown.columns, shown.rows[1], strict=True))
    assert line["dev\nreverse KL"] == "0.500" and line["n"] == "1"
    assert line["p, Minillm\ndev\nreverse KL"] == "–" and line["p, gone\nROUGE-L"] == "–"
    assert dict(zip(shown.columns, shown.rows[0], strict=True))["dev\nreverse KL"] == "1.100 ± 0.100"
    assert p_values(one, "dev_reverse_kl", "gone") == p_values(one, "coverage", "minillm") == {}


def test_other_teachers_stand_apart() -> None:
    two = [*rows(minillm=[1.0, 1.2], vopd=[0.5, 0.6]), *(r | {"teacher": "z"} for r in rows(minillm=[9.0]))]
    shown = sheet(two, ["minillm"])
    assert shown.columns[0] == "Model" and [line[1] for line in shown.rows] == ["Minillm", "Vopd", "Minillm"]
    assert shown.rows[2][4] == "9.000"


def test_a_made_up_run_has_a_row_per_training(tmp_path: Path) -> None:
    run = make(tmp_path / "run", config())
    sidecar = published_item("methods", run, tmp_path)
    assert sidecar["missing"] == "" and "trainings" in sidecar["n"]
    with open(tmp_path / "methods.csv") as file:
        found = list(csv.DictReader(file))
    assert {r["method"] for r in found} >= {"sft", "minillm", "reverse-kl"}
    ours = next(r for r in found if r["method"] == "minillm")
    assert (ours["lr"], ours["teacher"], ours["processor"]) == ("0.001", "a" * 12, "x86_64 AVX2")
    # made_up_run: two sampling seeds whose repetition is 0.01 and 0.02, of lengths 20 and 40.
    assert (float(ours["repetition"]), float(ours["length"])) == (1.5, 30.0)
    assert set(MEASURES) < set(ours)


def test_it_is_only_made_if_asked_for() -> None:
    assert "methods" in items_of(config()) and "methods" not in items_of(config(comparison={}))


# --- the csv
def test_rows_are_merged_by_method_seed_teacher_and_processor(tmp_path: Path) -> None:
    old = rows(vopd=[0.5, 0.6], minillm=[1.0])
    new = [row("vopd", 20, 0.7), row("vopd", 20, 0.8, processor="arm"), row("sft", 10, math.nan)]
    merged = collect.merged(old, new)
    assert [(r["method"], r["seed"], r["processor"]) for r in merged] == [
        ("vopd", 20, "arm"),
        ("sft", 10, "x86"),
        ("minillm", 10, "x86"),
        ("vopd", 10, "x86"),
        ("vopd", 20, "x86"),
    ]
    assert merged[-1]["dev_reverse_kl"] == 0.7
    collect.evidence.write_rows(merged, tmp_path / "a.csv")
    again = collect.read(tmp_path / "a.csv")
    assert again[1]["dev_reverse_kl"] is None and again[-1] == merged[-1]
    collect.evidence.write_rows(again, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert collect.merged(merged, merged) == merged and collect.read(tmp_path / "gone.csv") == []


# --- claims
def claim(direction: str, **more: str) -> dict[str, str]:
    return {
        "claim": "x",
        "first": "a",
        "second": "b",
        "measure": "dev_reverse_kl",
        "direction": direction,
        **more,
    }


def test_the_rule_of_a_claim() -> None:
    clear = rows(a=[0.5, 0.51, 0.52], b=[1.0, 1.01, 1.02])
    noisy = rows(a=[0.5, 0.9, 1.3], b=[1.0, 0.6, 1.2])

    def verdict(of: list[dict[str, Any]], *claims: dict[str, str]) -> list[str]:
        return [said for said, _ in collect.verdicts(of, claims)]

    assert verdict(clear, claim("lower"), claim("higher")) == ["seen", "not seen"]
    assert verdict(noisy, claim("lower"), claim("higher")) == ["undecided", "undecided"]
    assert verdict(clear, claim("lower", first="gone")) == ["not run"]
    assert verdict(rows(a=[0.5], b=[0.6]), claim("lower")) == ["not run"]
    # The margin: a tenth of 3.0 - 1.0.
    around = rows(initial=[3.0, 3.0], on_policy_reverse_kl=[1.0, 1.0])
    close = rows(a=[0.5, 0.51, 0.52], b=[0.55, 0.56, 0.57])
    assert verdict([*close, *around], claim("equal")) == ["seen"]
    assert verdict([*clear, *around], claim("equal")) == ["not seen"]
    assert verdict([*noisy, *around], claim("equal")) == ["undecided"] and verdict(close, claim("equal")) == [
        "not run"
    ]


def test_claims_name_methods_and_measures_that_there_are() -> None:
    for one in read_yaml(collect.CLAIMS)["claims"]:
        assert set(one) == {"claim", "arxiv", "first", "second", "measure", "direction"}, one
        assert {one["first"], one["second"]} <= {*CATALOGUE, *BUILT_IN, "sft"}
        assert one["measure"] in MEASURES and one["direction"] in ("lower", "higher", "equal")


def test_differences_within_seeds_are_to_the_same_initial_student() -> None:
    ours = [row("vopd", seed, kl, initial=f"i{seed}") for seed, kl in ((10, 1.0), (20, 2.0), (30, 4.0))]
    theirs = [
        row("on-policy-reverse-kl", seed, kl, initial=f"i{seed}") for seed, kl in ((20, 1.5), (10, 0.7))
    ]
    other = [row("kd", seed, 9.0, initial="") for seed in (10, 20)]
    lines = collect.within_seeds([*ours, *theirs, *other]).splitlines()
    # 1.0 - 0.7 and 2.0 - 1.5; seed 30 has nothing to be compared with, KD no initial student.
    assert len(lines) == 5 and lines[-1].startswith("| Vopd | +0.400 ± 0.100 | – | +0.4 ± 0.1 |")
    assert collect.within_seeds(other) == ""


# --- the page and the comparison's configuration
def test_the_page_is_current() -> None:
    text = collect.PAGE.read_text(encoding="utf-8")
    assert text == collect.page(text, collect.read()), "run `python docs/methods/collect.py`"
    assert all(f"| `{name}` |" in text for name in (*CATALOGUE, *BUILT_IN))


def test_the_comparison_trains_every_method_of_the_catalogue() -> None:
    run = configuration([REPO / name for name in collect.CONFIGS]) if Path(CATALOGUES[0]).exists() else None
    if run is None:
        pytest.skip("not in the checkout's folder")
    assert set(run.methods) == {"sft", *BUILT_IN, *CATALOGUE}
    student = run.pairs[0].students[0]
    settings = [run.on_policy(name, student) for name in run.methods if run.stage_of(name) == "minillm"]
    same = ("collections", "rollouts", "batch", "inner_epochs", "max_tokens", "evaluations")
    assert all(len({getattr(s, key) for s in settings}) == 1 for key in same)
    # Every on-policy method has the same rates to choose from.
    assert len(run.grid.lr) == 4 and all(run.stage_of(name) != "minillm" for name in run.grid.methods)
    with pytest.raises(Exception, match=r"comparison.test: missing; name one of data.tests"):
        experiment({**raw_plan(), "comparison": {"against": ["minillm"]}})


def raw_plan() -> dict[str, Any]:
    plan: dict[str, Any] = read_yaml(REPO / "tests/config/plan.yaml")
    return plan


def test_how_long_is_said_from_earlier_jobs_and_stated_times() -> None:
    planned = [Job("trial", (), (), "a.tsv"), Job("minillm", (), (), "b.tsv"), Job("settings", (), ())]
    said = collect.evidence.estimate(planned, {1: 2.0}, 2)
    hours = (collect.evidence.SECONDS["trial"] / 3600 + 2.0 + 3 / 3600) / 2
    assert said == (
        "3 jobs: 1 trials of a grid, 1 on-policy trainings, 0 evaluations; "
        f"about {hours:.1f} hours on 2 cores."
    )
    assert collect.evidence.estimate([], {}, 2) == "Nothing is left to run."
    said = collect.evidence.by_part(planned, {"sft": 60.0, "minillm": 240.0, "trial": 120.0}, 2)
    assert said == "minillm: 1 jobs, 2 min\ntrial: 1 jobs, 1 min\nabout 0.1 hours on 2 cores"
    assert collect.evidence.by_part(planned[2:], {"sft": 60.0}, 2) == "Nothing long is left."
    assert collect.options(["vopd", "tip"])[-2:] == ["--config", "methods=[vopd,tip]"]
