"""Keys that are written and read by nothing are refused; defaults, presets and shared keys are no fault."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from minillm.config import unused
from minillm.config.experiment import experiment
from minillm.config.methods import Method, check_catalogue
from minillm.config.onpolicy import OnPolicy
from minillm.config.presets import PRESETS
from minillm.errors import UserError
from minillm.readers import read_yaml

REPO = Path(__file__).parents[3]
PLAN: dict[str, Any] = read_yaml(REPO / "tests/config/plan.yaml")

# Settings of a variant -> what is said of them.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"objective": "reverse_kl", "beta": 0.3}, "beta: objective 'reverse_kl' has no such parameter"),
    ({"objective": "jensen_shannon", "skew": 0.2}, "skew: objective 'jensen_shannon' has no such parameter"),
    # MiniLLM has neither.
    ({"skew": 0.2}, "skew: objective 'minillm' has no such parameter"),
    # Also the value that it would have anyway.
    ({"objective": "skew_reverse_kl", "beta": 0.5}, "beta: objective 'skew_reverse_kl' has no"),
    *(
        ({"objective": "reverse_kl", key: value}, f"{key}: it belongs to objective 'minillm', not to")
        for key, value in {
            "advantage": "expected",
            "single_step": False,
            "single_step_weights": False,
            "include_current": True,
            "gamma": 0.9,
            "length_norm": False,
            "whiten": "none",
            "reward_scale": 2.0,
            "reward_clip": 5.0,
            "surrogate": "paper",
            "clip": 0.1,
            "importance": "product",
        }.items()
    ),
    ({"single_step": False, "single_step_weights": True}, "single_step_weights: single_step: false leaves"),
    ({"advantage": "expected", "reward_clip": 5.0}, "reward_clip: advantage 'expected' takes means"),
    ({"lm_coef": 0.0, "lm_kd_ratio": 0.2}, "lm_kd_ratio: lm_coef: 0.0 leaves plain text out"),
    ({"lm_coef": 0.0, "lm_batch": 2}, "lm_batch: lm_coef: 0.0 leaves plain text out"),
    ({"objective": "reverse_kl", "alpha": 0.0, "coins": 8}, "coins: the teacher reads no response while"),
    ({"min_lr": 1e-6}, "min_lr: schedule 'constant' has no such parameter"),
    (
        {"objective": "forward_kl", "alpha": 0.0, "student_share": 0.0, "replay": 8},
        "replay: with student_share: 0.0 there are no samples to replay",
    ),
    (
        {"objective": "reverse_kl", "signal": {"tokens": "union", "top_k": 4, "weight": "student"}},
        "signal.weight: objective 'reverse_kl' has weights of its own",
    ),
    (
        {"objective": "forward_kl", "taid": {"adaptive": False, "momentum": 0.9}},
        "taid.momentum: adaptive: false moves the target on a line",
    ),
    (
        {"objective": "reverse_kl", "also": [{"objective": "forward_kl", "beta": 0.1}]},
        "also.0.beta: objective 'forward_kl' has no such parameter",
    ),
    (
        {
            "objective": "reverse_kl",
            "also": [
                {"objective": "forward_kl", "signal": {"tokens": "union", "top_k": 4, "weight": "student"}}
            ],
        },
        "also.0.signal.weight: ",
    ),
    (
        {"objective": "skew_reverse_kl", "alpha": 0.0, "teacher_texts": {"beta": 0.1}},
        "teacher_texts.beta: objective 'skew_forward_kl' has no such parameter",
    ),
]


def with_variant(values: dict[str, Any], **stage: Any) -> dict[str, Any]:
    raw = copy.deepcopy(PLAN)
    raw["variants"] = {**raw.get("variants", {}), "other": {"label": "Other", "settings": values}}
    raw["stages"]["minillm"] |= stage
    return raw


def line(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        experiment(raw)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=[said.split(":")[0] for _, said in REFUSED])
def test_a_key_that_nothing_reads_is_one_line(values: dict[str, Any], said: str) -> None:
    assert line(with_variant(values)).startswith(f"config: variants.other.settings.{said}")


def test_every_key_of_the_table_is_refused_somewhere() -> None:
    found = {said.split(":")[0] for _, said in REFUSED}
    assert set(unused.WHY) <= found
    assert {name for name in unused.WHY if "." not in name} <= {f.name for f in dataclasses.fields(OnPolicy)}


def test_presets_are_not_written() -> None:
    for preset in PRESETS:
        found = experiment(with_variant({"objective": "reverse_kl", "semantics": preset}))
        assert found.on_policy("other", "small").objective == "reverse_kl"


def test_a_key_that_methods_share_is_read_by_one_of_them() -> None:
    """What other variants replace or do without is no fault; what no method reads is one."""
    experiment(with_variant({"objective": "jensen_shannon"}, beta=0.3))
    experiment(with_variant({"objective": "reverse_kl"}, gamma=0.9, whiten="none"))
    # Sizes that all methods share, and rates.
    experiment(with_variant({"objective": "reverse_kl"}, lm_coef=0.0, lm_batch=2, min_lr=1e-6))
    said = line(with_variant({"objective": "reverse_kl"}, skew=0.3))
    assert said == "config: stages.minillm.skew: objective 'minillm' has no such parameter; leave it out"


def test_a_models_keys_are_looked_at_with_its_methods() -> None:
    raw = with_variant({"objective": "reverse_kl"})
    raw["per_model"] = {**raw["per_model"], "small": {"minillm": {"skew": 0.2}}}
    assert line(raw).startswith("config: per_model.small.minillm.skew: objective 'minillm' has no such")
    raw["variants"]["other"]["settings"] = {"objective": "skew_forward_kl"}
    experiment(raw)


def test_supervised_variants() -> None:
    raw = copy.deepcopy(PLAN)
    variant = {"label": "HPD", "stage": "kd", "settings": {"loss": "hpd", "kd_ratio": 0.3}}
    raw["variants"] = {**raw.get("variants", {}), "other": variant}
    assert line(raw).startswith("config: variants.other.settings.kd_ratio: loss 'hpd' has no such parameter")
    del variant["settings"]["kd_ratio"]  # type: ignore[attr-defined]
    experiment(raw)


def test_the_catalogue_is_checked_entry_by_entry() -> None:
    settings = {"objective": "reverse_kl", "alpha": 0.0, "lm_coef": 0.0}
    check_catalogue({"x": Method("X", settings, arxiv="2306.08543")}, (), "f")
    with pytest.raises(UserError, match=r"f: catalogue.x.settings.skew: objective 'reverse_kl' has no such"):
        check_catalogue({"x": Method("X", {**settings, "skew": 0.2}, arxiv="2306.08543")}, (), "f")
    with pytest.raises(UserError, match=r"f: catalogue.x.settings.kd_ratio: loss 'hpd' has no"):
        hpd = Method("X", {"loss": "hpd", "kd_ratio": 0.2}, "kd", arxiv="2306.08543")
        check_catalogue({"x": hpd}, (), "f")
