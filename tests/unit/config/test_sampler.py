"""Samplers in a configuration: what is refused, what is written, and what a plan makes of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from data_case import message

from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.config.onpolicy import OnPolicy
from minillm.config.sampler import EarlyEnd, Sampler
from minillm.config.strict import parse
from minillm.files import NEWER
from minillm.fits import passes
from minillm.fits.hours import disk
from minillm.fits.jobs import Key, Planner
from minillm.fits.memory import memory
from minillm.readers import read_yaml

ROOT = Path(__file__).parents[3]
DEMO: dict[str, Any] = read_yaml(ROOT / "config/demo.yaml")
TEACHER = DEMO["pairs"][0]["teacher"]
STUDENT = DEMO["pairs"][0]["students"][0]
KL = {"objective": "reverse_kl", "alpha": 0.0, "collections": 5}
SAMPLED = {"tokens": "sampled"}
SQUARED = {**KL, "objective": "squared_log_ratio", "signal": SAMPLED}


def configuration(**settings: Any) -> dict[str, Any]:
    """The demo's with one variant."""
    raw = copy.deepcopy(DEMO)
    raw["variants"] = {"other": {"label": "Other", "settings": settings}}
    raw["methods"] = ["sft", "kd", "seqkd", "minillm", "other"]
    return raw


REFUSED = [
    ({}, KL, "sampler: all of it is off"),
    ({"top_p": 1.0, "lag": 0}, KL, "sampler: all of it is off"),
    (
        {"top_p": 0.9},
        {**KL, "student_share": 0.0},
        "sampler: the student draws nothing with student_share: 0",
    ),
    ({"top_p": 0.9}, {**KL, "alpha": 0.2}, "sampler.top_p: the student proposes every token; set alpha: 0.0"),
    ({"teacher_top_k": 5}, {**KL, "alpha": 0.2}, "sampler.teacher_top_k: the student proposes every token"),
    ({"top_p": 0.9}, {"alpha": 0.0}, "sampler.top_p: tokens that it leaves out have no importance weight"),
    ({"top_p": 0.9}, SQUARED, "sampler.top_p: the 'sampled' token must be a draw of the student"),
    ({"teacher_top_k": 5}, SQUARED, "sampler.teacher_top_k: the 'sampled' token must be"),
    (
        {"teacher_top_k": 5},
        {**KL, "also": [{"objective": "squared_log_ratio", "signal": SAMPLED}]},
        "sampler.teacher_top_k: the 'sampled' token must be",
    ),
    ({"top_p": 0.9}, {**KL, "coins": 0}, "sampler.top_p: with coins the teacher reads later"),
    ({"teacher_top_k": 5}, {**KL, "coins": 2}, "sampler.teacher_top_k: with coins"),
    ({"early_end": {}}, {**KL, "alpha": 0.2, "coins": 2}, "sampler.early_end: with coins"),
    ({"teacher_top_k": 5}, {**KL, "backend": "vllm"}, "sampler.teacher_top_k: the teacher reads every token"),
    ({"early_end": {}}, {**KL, "backend": "vllm"}, "sampler.early_end: the teacher reads every token"),
    ({"lag": 2, "cached": True}, KL, "sampler.lag: 'cached' draws all collections at the start"),
    ({"lag": 2}, {**KL, "replay": 8}, "sampler.lag: replay follows the training"),
    (
        {"cached": True},
        {**KL, "adaptive": True, "student_share": 0.5, "evaluations": 2},
        "sampler.cached: adaptive follows the training",
    ),
    ({"lag": 5}, KL, "sampler.lag: at most 4 with 5 collections"),
    ({"cached": True}, {**KL, "collections": 1}, "sampler.cached: a single collection"),
    ({"early_end": {"threshold": 0.0}}, KL, "sampler.early_end.threshold: "),
    ({"top_q": 0.9}, KL, "sampler.top_q: unknown key; did you mean 'top_p'?"),
]


@pytest.mark.parametrize(("sampler", "more", "expected"), REFUSED)
def test_what_means_nothing_is_one_line(sampler: dict[str, Any], more: dict[str, Any], expected: str) -> None:
    raw = configuration(sampler=sampler, **more)
    found = message(lambda: experiment(raw))
    assert found.startswith("config: variants.other.") and "\n" not in found
    assert expected in found


ALLOWED = [
    ({"lag": 2}, {}),
    ({"cached": True}, {}),
    ({"cached": True}, SQUARED),
    ({"lag": 4}, SQUARED),
    ({"teacher_top_k": 25}, {"alpha": 0.0}),
    ({"early_end": {}}, {"alpha": 0.2}),
    ({"top_p": 0.9, "teacher_top_k": 25, "lag": 1, "early_end": {"base": 0.5}}, KL),
    ({"top_p": 0.9, "cached": True}, {**KL, "backend": "vllm"}),
    ({"top_p": 0.9}, {**KL, "student_share": 0.5, "replay": 8}),
]


@pytest.mark.parametrize(("sampler", "more"), ALLOWED)
def test_what_can_be_combined_can_be_planned(sampler: dict[str, Any], more: dict[str, Any]) -> None:
    config = experiment(configuration(sampler=sampler, **more))
    settings = config.on_policy("other", STUDENT)
    assert settings.sampler is not None and settings.sampler != Sampler()
    assert settings.teacher_reads or not settings.sampler.reads_along
    work = Planner(config, ROOT).work(Key("minillm", "other", STUDENT, TEACHER))
    assert memory(work).positions > 0


def test_a_sampler_that_is_not_set_is_in_no_settings_file() -> None:
    names = {"model": STUDENT, "teacher": TEACHER, "seed": 10}
    before = canonical(stage_settings(experiment(copy.deepcopy(DEMO)), "minillm", **names))
    assert "sampler" not in before and "sampler" in NEWER
    raw = copy.deepcopy(DEMO)
    raw["stages"]["minillm"]["sampler"] = None
    assert canonical(stage_settings(experiment(raw), "minillm", **names)) == before
    raw["stages"]["minillm"] |= {"sampler": {"lag": 1}}
    found = stage_settings(experiment(raw), "minillm", **names)
    assert '"lag": 1' in canonical(found)
    assert parse(OnPolicy, found["training"], "f") == experiment(raw).on_policy("minillm", STUDENT)


def test_defaults_are_those_of_the_sources() -> None:
    early = EarlyEnd()
    assert (early.top_k, early.threshold, early.events, early.base) == (16, 0.7, 100, None)


def test_what_waits_and_what_is_kept_on_the_disk_is_counted() -> None:
    works = {}
    for name, sampler in (("plain", None), ("lag", {"lag": 2}), ("cached", {"cached": True})):
        config = experiment(configuration(sampler=sampler, **KL))
        works[name] = Planner(config, ROOT).work(Key("minillm", "other", STUDENT, TEACHER))
    assert works["lag"].kept == 3 * works["plain"].kept > 0
    assert works["cached"].kept == works["plain"].kept and works["plain"].cached == 0
    # Two collections in each of two checkpoints.
    assert works["lag"].cached / 4 == pytest.approx(works["cached"].cached / 5)
    settings = experiment(configuration(sampler={"cached": True}, **KL)).on_policy("other", STUDENT)
    longest = settings.collections * settings.rollouts * settings.max_tokens
    assert 0 < works["cached"].cached <= longest
    assert disk(works["cached"])[1] > disk(works["plain"])[1]


def test_replacing_and_filtering_take_more_of_a_position() -> None:
    plain = passes.position(64, 1000, True, 0.0, True)
    assert passes.position(64, 1000, True, 0.0, True, 25) > plain
    assert passes.position(64, 1000, True, 0.0, True, 0, 0.9) > plain
