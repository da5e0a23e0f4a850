"""Who answers: backends in settings files, and a server in the place of a teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from data_case import message

from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.readers import read_yaml

DEMO: dict[str, Any] = read_yaml(Path(__file__).parents[3] / "config/demo.yaml")
TEACHER = DEMO["pairs"][0]["teacher"]
STUDENT = DEMO["pairs"][0]["students"][0]
SERVER = {
    "source": "server",
    "path": "http://localhost:8000/v1",
    "served_name": "big",
    "tokenizer": DEMO["models"][TEACHER]["tokenizer"],
}


def configuration(**changes: Any) -> dict[str, Any]:
    """The demo's, with sections merged one level deep."""
    raw = copy.deepcopy(DEMO)
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return raw


def settings(raw: dict[str, Any], stage: str, **names: str) -> str:
    return canonical(stage_settings(experiment(raw), stage, **names))


def test_a_backend_is_in_the_settings_of_what_it_draws_and_of_nothing_else() -> None:
    raw = configuration()
    samples = {"generate": {}, "pseudo": {"teacher": TEACHER}, "samples": {}}
    before = {stage: settings(raw, stage, **names) for stage, names in samples.items()}
    assert not any("backend" in text for text in before.values())
    named = configuration(generate={"backend": "transformers"}, exposure_bias={"backend": "transformers"})
    assert {stage: settings(named, stage, **names) for stage, names in samples.items()} == before
    drawn = configuration(generate={"backend": "vllm", "no_repeat_ngram": 0})
    assert '"backend": "vllm"' in settings(drawn, "generate")
    assert settings(drawn, "samples") == before["samples"]
    biased = configuration(exposure_bias={"backend": "vllm", "semantics": "paper"})
    assert '"backend": "vllm"' in settings(biased, "samples")
    assert settings(biased, "generate") == before["generate"]
    pseudo = configuration(stages={"pseudo": {"sampling": {"backend": "vllm"}}})
    assert '"backend": "vllm"' in settings(pseudo, "pseudo", teacher=TEACHER)
    trained = {"model": STUDENT, "teacher": TEACHER, "seed": 10}
    old = canonical(stage_settings(experiment(raw), "minillm", **trained))
    on_policy = configuration(
        stages={"minillm": {**raw["stages"]["minillm"], "alpha": 0.0, "backend": "vllm"}}
    )
    assert "backend" not in old
    assert '"backend": "vllm"' in canonical(stage_settings(experiment(on_policy), "minillm", **trained))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"generate": {"backend": "vllm", "no_repeat_ngram": 6}},
            "generate.no_repeat_ngram: vLLM has no n-gram block",
        ),
        (
            {"generate": {"backend": "vllm", "no_repeat_ngram": 0, "temperature": 0.001}},
            "generate.temperature: vLLM draws with 0.01 instead",
        ),
        (
            {"stages": {"pseudo": {"sampling": {"backend": "vllm", "no_repeat_ngram": 6}}}},
            "stages.pseudo.sampling.no_repeat_ngram: vLLM has no n-gram block",
        ),
        (
            {"per_model": {TEACHER: {"pseudo": {"sampling": {"backend": "vllm", "no_repeat_ngram": 6}}}}},
            f"per_model.{TEACHER}.pseudo.sampling.no_repeat_ngram: vLLM has no n-gram block",
        ),
        (
            {"exposure_bias": {"backend": "vllm", "semantics": "released"}},
            "exposure_bias.backend: vLLM has no 6-gram block",
        ),
        ({"generate": {"backend": "tgi"}}, "generate.backend: input should be 'transformers' or 'vllm'"),
        (
            {"stages": {"minillm": {"alpha": 0.2, "backend": "vllm"}}},
            "stages.minillm.backend: vLLM samples from the student only",
        ),
    ],
)
def test_what_vllm_does_not_draw_is_refused(changes: dict[str, Any], problem: str) -> None:
    raw = configuration(**changes)
    if "stages" in changes:
        raw["stages"] = {**DEMO["stages"], **changes["stages"]}
    assert message(lambda: experiment(raw)).startswith(f"config: {problem}")


def served(**changes: Any) -> dict[str, Any]:
    raw = configuration(
        checkpoints={f"{TEACHER}/teacher": {**SERVER, **changes}}, methods=["sft", "seqkd"], variants={}
    )
    raw["pairs"], raw["sweeps"] = [{"teacher": TEACHER, "students": [STUDENT]}], []
    for section in ("exposure_bias", "diversity", "validity", "human"):
        raw.pop(section, None)
    raw["calibration"] = {}
    return raw


def test_a_server_takes_the_place_of_a_teacher() -> None:
    found = stage_settings(experiment(served()), "checkpoint", weights=f"{TEACHER}/teacher")
    assert found["model"]["served_name"] == "big" and "key_variable" not in found["model"]
    base = stage_settings(experiment(served()), "base", model=STUDENT)
    assert "served_name" not in base["model"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"path": "localhost:8000"}, "path: 'localhost:8000' is no address; write http://HOST:PORT/v1"),
        ({"path": "http://me:secret@host/v1"}, "path: contains a key; name a variable"),
        ({"path": "http://host/v1?key=1"}, "path: contains a key; name a variable"),
        ({"served_name": ""}, "served_name: missing"),
    ],
)
def test_an_incomplete_server_is_one_line(changes: dict[str, Any], problem: str) -> None:
    said = message(lambda: experiment(served(**changes)))
    assert said.startswith(f"config: checkpoints.{TEACHER}/teacher.{problem}") and "secret" not in said


def test_what_needs_probabilities_is_refused_with_a_server() -> None:
    key = f"config: checkpoints.{TEACHER}/teacher.source: "
    raw = served()
    raw["methods"] = ["sft", "kd"]
    assert message(lambda: experiment(raw)).startswith(
        f"{key}a server has no probabilities for the method 'kd'"
    )
    raw = served()
    raw["diversity"] = {"tests": list(DEMO["data"]["tests"])}
    assert message(lambda: experiment(raw)).startswith(f"{key}diversity.tests needs the weights")
    raw = served()
    raw["checkpoints"] = {f"{STUDENT}/sft/seed10": SERVER}
    assert "a server can only be a teacher" in message(lambda: experiment(raw))
    raw = served()
    raw["models"] = {**raw["models"], TEACHER: {**SERVER}}
    assert "models." in message(lambda: experiment(raw)) and "name it in checkpoints" in message(
        lambda: experiment(raw)
    )
