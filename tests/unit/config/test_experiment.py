"""What a whole configuration may not say: one name, seed or model in two roles."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from minillm.config.derive import stage_settings
from minillm.config.experiment import experiment
from minillm.errors import UserError
from minillm.readers import read_yaml

PLAN: dict[str, Any] = read_yaml(Path(__file__).parents[2] / "config/plan.yaml")
TASK = {"dataset": "dev", "prompt": "{text}", "labels": {"a": "yes", "b": "no"}}


def changed(key: str, value: Any) -> dict[str, Any]:
    """plan.yaml with `value` in the place that `key` names."""
    raw = copy.deepcopy(PLAN)
    node: Any = raw
    *parts, last = key.split(".")
    for part in parts:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[last] = value
    return raw


def line(raw: Any) -> str:
    with pytest.raises(UserError) as error:
        experiment(raw)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_plan_itself_is_right() -> None:
    assert experiment(copy.deepcopy(PLAN)).run == PLAN["run"]


TEST = PLAN["data"]["tests"][0]


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("training_seeds", [10, 20, 10], "training_seeds.2: 10"),
        ("sampling_seeds", [1, 1], "sampling_seeds.1: 1"),
        ("methods", ["sft", "kd", "sft"], "methods.2: 'sft'"),
        ("data.tests", [TEST, TEST], f"data.tests.1: '{TEST}'"),
        ("pairs.0.students", ["small", "small"], "pairs.0.students.1: 'small'"),
        ("pairs.0.methods", ["kd", "kd"], "pairs.0.methods.1: 'kd'"),
        ("exposure_bias.tests", [TEST, TEST], f"exposure_bias.tests.1: '{TEST}'"),
        ("diversity.tests", [TEST, TEST], f"diversity.tests.1: '{TEST}'"),
        ("lengths.tests", [TEST, TEST], f"lengths.tests.1: '{TEST}'"),
        ("lengths.figure15", [TEST, TEST], f"lengths.figure15.1: '{TEST}'"),
        ("judge.tests", [TEST, TEST], f"judge.tests.1: '{TEST}'"),
        ("human.answers", ["a.json", "a.json"], "human.answers.1: 'a.json'"),
        ("estimators.seeds", [1, 2, 1], "estimators.seeds.2: 1"),
        ("estimators.alphas", [0.5, 0.5], "estimators.alphas.1: 0.5"),
        ("models.big.layers", [0, 1, 1], "models.big.layers.2: 1"),
    ],
)
def test_nothing_is_named_twice(key: str, value: Any, place: str) -> None:
    assert line(changed(key, value)) == f"config: {place} is there twice; remove one"


def test_equal_decay_rates_are_no_list() -> None:
    assert experiment(changed("stages.sft.betas", [0.9, 0.9])).stages.sft.betas == (0.9, 0.9)


def test_no_student_is_trained_twice_by_one_method() -> None:
    said = line(changed("pairs", [*PLAN["pairs"], PLAN["pairs"][0]]))
    assert said.startswith(f"config: pairs.{len(PLAN['pairs'])}: ")
    assert said.endswith(" is in pairs.0 already; remove it from one of the two")


@pytest.mark.parametrize("key", ["training_seeds", "sampling_seeds", "estimators.seeds"])
def test_seeds_fit_into_the_generators(key: str) -> None:
    for seed in (2**32, 2**62, -1):
        assert line(changed(key, [seed])).startswith(f"config: {key}.0: input should be ")
    assert "below 2^63" in line(changed(key, [10**30]))
    assert experiment(changed(key, [2**32 - 1]))


@pytest.mark.parametrize("key", ["methods", "pairs", "pairs.0.students", "data.tests", "training_seeds"])
def test_lists_that_a_run_needs_are_not_empty(key: str) -> None:
    assert line(changed(key, [])).startswith(f"config: {key}: ")


def test_a_model_is_not_its_own_teacher_under_any_name() -> None:
    teacher = PLAN["pairs"][0]["teacher"]
    raw = changed("pairs.0.students", [teacher])
    assert line(raw).startswith(f"config: pairs.0.students.0: {teacher} is the same model as its teacher")
    raw = changed("pairs.0.students", ["twin"])
    raw["models"]["twin"] = {**raw["models"][teacher], "family": "Twin", "size": "1"}
    assert line(raw).startswith("config: pairs.0.students.0: twin is the same model as its teacher")
    # A finished teacher is not what the student starts from.
    raw["checkpoints"] = {f"{teacher}/teacher": {"source": "hub", "path": "a/b", "tokenizer": "bpe"}}
    raw["checkpoints"][f"{teacher}/teacher"]["tokenizer"] = raw["models"][teacher]["tokenizer"]
    assert experiment(raw).pairs[0].students == ("twin",)


def test_a_model_is_not_pruned_of_itself() -> None:
    model = {
        **PLAN["models"]["small"],
        "source": "pruned",
        "layers": [0],
        "parent": "small",
        "architecture": {},
    }
    assert "models.small.parent: a model cannot be pruned of itself (small -> small)" in line(
        changed("models.small", model)
    )
    raw = changed("models.small", {**model, "parent": "other"})
    raw["models"]["other"] = model
    assert "a model cannot be pruned of itself (small -> other -> small)" in line(raw)


def test_a_model_is_healed_on_the_answers_of_a_teacher_that_is_not_made_from_it() -> None:
    def healed(**more: Any) -> dict[str, Any]:
        raw = changed("models.short.answers_of", "big")
        raw["models"]["short"] |= more
        return raw

    assert experiment(healed()).models["short"].answers_of == "big"
    assert line(healed(answers_of="small")).startswith("config: models.short.answers_of: ")
    assert "models.small.answers_of: only a pruned model" in line(changed("models.small.answers_of", "big"))
    raw = healed()
    raw["models"]["tiny"] = raw["models"]["short"] | {"parent": "short", "layers": [0]}
    raw["pairs"] += [{"teacher": "tiny", "students": ["small"]}]
    raw["models"]["short"]["answers_of"] = "tiny"
    assert "models.short.answers_of: tiny is made from short; name another teacher" in line(raw)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "nan is not a finite number"),
        (float("inf"), "inf is not a finite number"),
        (10**400, "the number is too large; it must be below 2^63"),
        ("\ud800", "half a surrogate pair (\\ud800 to \\udfff) is not text"),
        ({("a", "b"): 1}, "the key \"('a', 'b')\" is not text; put it in quotes"),
        ({1, 2}, "a value of the type set is not text, number, list or mapping"),
    ],
)
def test_values_that_no_key_takes_are_named(value: Any, problem: str) -> None:
    assert (
        line(changed("models.big.architecture.x", value)) == f"config: models.big.architecture.x: {problem}"
    )


def test_what_contains_itself_is_one_line() -> None:
    raw = changed("models.big.architecture", {})
    raw["models"]["big"]["architecture"]["x"] = raw["models"]["big"]
    assert "nesting too deep, or anchors that contain themselves" in line(raw)


def test_a_message_is_one_short_line() -> None:
    said = line(changed("models.big.a\nb", "x" * 10_000))
    assert "unknown key" in said and len(said) < 1100
    said = line(changed("precision", "x\n" * 10_000))
    assert len(said) < 1100


def test_configurations_do_not_use_names_of_the_catalogue_for_models_of_their_own() -> None:
    """Keys would be merged, and a new entry of the catalogue would change old runs."""
    root = Path(__file__).parents[3]
    files = {
        p.name: read_yaml(p) for folder in ("config", "tests/config") for p in root.glob(f"{folder}/*.yaml")
    }
    catalogue = files.pop("models.yaml")
    for name, config in files.items():
        for section in ("models", "tokenizers"):
            assert not set(config.get(section, {})) & set(catalogue[section]), (name, section)


def test_licence_and_gate_change_no_settings_unless_they_are_set() -> None:
    """The licence is recorded with the model; the gate only with what is fetched."""
    hub = {"source": "hub", "path": "OWNER/NAME", "tokenizer": "letters"}
    terms = {"licence": "mit", "gated": True}
    bare, full = (changed("models.small", {**hub, **more}) for more in ({}, terms))
    for raw in (bare, full):
        raw["tokenizers"]["letters"] = {"source": "hub", "path": "OWNER/NAME"}
    base, known = (stage_settings(experiment(raw), "base", model="small") for raw in (bare, full))
    assert known == {**base, "model": {**base["model"], "licence": "mit"}}
    assert not {"licence", "gated"} & set(base["model"])
    for source in ("models/small", "tokenizers/letters"):
        plain, gated = (stage_settings(experiment(raw), "fetch", source=source) for raw in (bare, full))
        assert gated == {**plain, "gated": True} and "gated" not in plain


def test_plain_text_is_asked_for_if_something_needs_it() -> None:
    """One after the other: base models, the tokenizer, the pre-training loss; then none is needed."""
    raw = changed("data.corpus", "")
    missing = "config: data.corpus: missing; "
    assert line(raw).startswith(f"{missing}models.big is trained on it")
    for name in ("big", "small", "short"):
        raw["models"][name] = {"source": "folder", "path": name, "tokenizer": "letters"}
    assert line(raw).startswith(f"{missing}tokenizers.letters is trained on it")
    raw["tokenizers"]["letters"] = {"source": "folder", "path": "big"}
    assert line(raw).startswith(f"{missing}the method 'minillm' of small has lm_coef 1")
    raw["stages"]["minillm"]["lm_coef"] = 0.0
    assert stage_settings(experiment(raw), "data", tokenizer="letters")["corpus"] is None
