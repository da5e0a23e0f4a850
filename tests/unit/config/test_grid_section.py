"""The section `grid`: its candidates, the settings of its trials, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from minillm.config import layout
from minillm.config.derive import stage_settings
from minillm.config.experiment import Experiment, experiment
from minillm.config.grid import Candidate, candidates, shortened
from minillm.config.stages import names_of
from minillm.errors import UserError
from minillm.fits.jobs import key_of
from minillm.readers import read_yaml

PLAN: dict[str, Any] = read_yaml(Path(__file__).parents[2] / "config/plan.yaml")
GRID = {
    "lr": [1.0e-4, 3.0e-4],
    "share": 0.5,
    "rule": "dev_reverse_kl",
    "methods": {
        "kd": {"lr": [1.0e-3], "length": [0.5, 1], "rule": "dev_objective"},
        "gkd": {"length": [1.0, 3.0]},
    },
}


def config(grid: Any = None, **changed: Any) -> Experiment:
    return experiment({**copy.deepcopy(PLAN), "grid": GRID if grid is None else grid, **changed})


def settings(run: Experiment, key: str) -> dict[str, Any]:
    """What the settings file `key` holds."""
    stage, names = names_of(key, run.kinds)
    return stage_settings(run, stage, **names)


def test_every_rate_with_every_length_by_method() -> None:
    grid = config().grid
    assert candidates(grid, "minillm", "minillm") == [Candidate(1e-4, 1.0), Candidate(3e-4, 1.0)]
    assert [c.name for c in candidates(grid, "gkd", "minillm")] == [
        "lr0.0001",
        "lr0.0003",
        "lr0.0001-length3",
        "lr0.0003-length3",
    ]
    assert [c.name for c in candidates(grid, "kd", "kd")] == ["lr0.001-length0.5", "lr0.001"]
    # Rates of the on-policy phase are not those of supervised training.
    assert candidates(grid, "sft", "sft") == candidates(grid, "seqkd", "seqkd") == []


def test_a_trial_is_the_method_itself_but_for_rate_and_time() -> None:
    run = config()
    trial = settings(run, "trial/gkd/small/big/lr0.0003-length3")
    whole = settings(run, "gkd/small/big/10")
    # plan.yaml has 2 collections: half of three times as many.
    expected = {**whole["training"], "lr": 3e-4, "collections": 3, "evaluations": 1}
    assert trial == {**whole, "trial": True, "training": expected}
    trial = settings(run, "trial/kd/small/big/lr0.001-length0.5")
    whole = settings(run, "kd/small/big/10")
    assert trial == {**whole, "trial": True, "training": {**whole["training"], "lr": 1e-3, "epochs": 0.5}}


def test_a_share_that_grows_at_evaluations_still_has_two() -> None:
    training = config().on_policy("gkd", "small")
    adaptive = dataclasses.replace(training, adaptive=True, evaluations=2)
    assert shortened(adaptive, 1e-3, 1.0, 0.5).evaluations == 2
    assert shortened(dataclasses.replace(training, evaluations=5), 1e-3, 1.0, 0.5).evaluations == 3
    assert shortened(dataclasses.replace(training, evaluations=5), 1e-3, 0.5).evaluations == 5


def test_the_choice_knows_its_rule_and_candidates() -> None:
    assert settings(config(), "grid/kd/small/big") == {
        "stage": "grid",
        "method": "kd",
        "model": "small",
        "teacher": "big",
        "rule": "dev_objective",
        "share": 0.5,
        "candidates": {"lr0.001-length0.5": [1e-3, 0.5], "lr0.001": [1e-3, 1.0]},
    }
    sft = {"methods": {"sft": {"lr": [1.0e-3, 2.0e-3], "rule": "dev_loss"}}}
    assert settings(config(sft), "grid/sft/small")["teacher"] == ""
    assert settings(config(sft), "trial/sft/small/lr0.002")["training"]["lr"] == 2e-3


def test_without_a_grid_no_settings_file_changes() -> None:
    plain, with_grid = experiment(copy.deepcopy(PLAN)), config()
    for key in ("sft/small/10", "kd/small/big/10", "minillm/small/big/10", "gkd/short/big/20", "table"):
        # The choice comes in by a file of its own.
        assert settings(plain, key) == settings(with_grid, key)
        assert "trial" not in settings(plain, key)


def test_files_and_plan_of_a_trial() -> None:
    assert layout.grid_key("sft", "small", "big") == "sft/small"
    assert layout.trial(layout.grid_key("kd", "small", "big"), "lr0.1") == "grid/kd/small/big/lr0.1.json"
    run = config()
    key = key_of(run, "results/plan/benchmarks/trial/gkd/small/big/lr0.0003.tsv")
    assert key and dataclasses.astuple(key) == ("minillm", "gkd", "small", "big", "", "lr0.0003")
    key = key_of(run, "results/plan/benchmarks/trial/sft/small/lr0.001.tsv")
    assert key and dataclasses.astuple(key) == ("sft", "sft", "small", "", "", "lr0.001")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"lr": [1.0e-4, 1.0e-4]}, "grid.lr.1: 0.0001 is there twice; remove one"),
        ({"lr": [1.0e-4, 1.0000001e-4]}, "grid: two candidates are equal to six digits; remove one"),
        ({"lr": [0.0]}, "grid.lr.0: input should be greater than 0, not 0.0"),
        ({"share": 0.4}, "grid.lr: missing; name the rates to try"),
        ({"lr": [0.1], "methods": {"kd": {"length": [2.0]}}}, "grid.methods.kd.lr: missing; name the rates"),
        ({"lr": [0.1], "methods": {"vpod": {}}}, "grid.methods.vpod: 'vpod' is not among the methods"),
        ({"rule": "dev_reverse_kl", "methods": {"kd": {"lr": [0.1]}}}, "grid.methods.kd.rule: supervised"),
        ({"lr": [0.1], "rule": "test_rouge"}, "grid.rule: input should be 'dev_rouge', 'dev_objective'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(grid: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        config(grid)
    assert str(error.value).startswith(f"config: {said}") and "\n" not in str(error.value)


def test_candidates_of_a_method_that_is_not_trained_now_are_left_alone() -> None:
    known = {"hpd": read_yaml(Path(__file__).parents[3] / "config/methods.yaml")["catalogue"]["hpd"]}
    # This run does not train it, so nothing is said about its rule.
    grid = {"lr": [0.1], "rule": "dev_reverse_kl", "methods": {"hpd": {"lr": [0.2]}}}
    assert config(grid, catalogue=known).grid.methods["hpd"].lr == (0.2,)
