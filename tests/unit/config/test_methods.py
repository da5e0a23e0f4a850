"""The catalogue of methods: its own entries, and how a configuration uses one."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm.cli import main
from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.config.methods import SCHEDULE, Method, facts
from minillm.config.onpolicy import OnPolicy
from minillm.config.presets import combined
from minillm.errors import UserError
from minillm.methods import BUILT_IN, read_catalogue, table
from minillm.readers import read_yaml

REPO = Path(__file__).parents[3]
PLAN: dict[str, Any] = read_yaml(REPO / "tests/config/plan.yaml")
RAW: dict[str, Any] = read_yaml(REPO / "config/methods.yaml")
CATALOGUE = read_catalogue(REPO / "config/methods.yaml")


def with_catalogue(edit: Callable[[dict[str, Any]], object] = lambda raw: None) -> dict[str, Any]:
    """plan.yaml with the catalogue, after `edit`."""
    raw = copy.deepcopy({**PLAN, **RAW})
    edit(raw)
    return raw


def use(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw.update(methods=[*PLAN["methods"], *names])


def files(raw: dict[str, Any]) -> dict[str, str]:
    """Settings file -> its text, of all that is trained."""
    config = experiment(raw)
    found = {"table": canonical(stage_settings(config, "table"))}
    for teacher, student, method in config.trained(sweeps=True):
        names = {"model": student} | ({} if method == "sft" else {"teacher": teacher})
        for seed in config.seeds_of(teacher, student, method):
            key = f"{method}/{student}/{seed}"
            found[key] = canonical(stage_settings(config, method, **names, seed=seed))
    return found


def line(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        experiment(raw)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the entries
@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_says_what_it_is_and_where_it_is_from(name: str) -> None:
    method = CATALOGUE[name]
    assert name == name.lower() and "_" not in name
    assert method.label and (method.arxiv or method.url.startswith("https://"))
    assert method.formula and method.source and method.exact
    # Their defaults are MiniLLM's: an entry that says nothing of them would be a mistake.
    assert method.stage or {"objective", "alpha", "lm_coef"} <= set(method.settings)


def test_no_two_entries_are_one_method() -> None:
    on_policy = {name: m for name, m in CATALOGUE.items() if m.stage is None}
    settings = [combined([m.settings], "catalogue", name) for name, m in on_policy.items()]
    texts = [json.dumps(dataclasses.asdict(s), sort_keys=True) for s in settings]
    texts += [json.dumps([m.stage, m.settings]) for m in CATALOGUE.values() if m.stage]
    assert len(set(texts)) == len(texts)
    assert len({m.label for m in (*CATALOGUE.values(), *BUILT_IN.values())}) == len(CATALOGUE) + len(BUILT_IN)


def test_a_schedule_has_keys_of_the_on_policy_phase() -> None:
    assert set(SCHEDULE) < {field.name for field in dataclasses.fields(OnPolicy)}


# --- in a configuration
def test_what_is_not_used_changes_no_settings() -> None:
    assert files(with_catalogue()) == files(copy.deepcopy(PLAN))


def test_a_name_is_enough() -> None:
    raw = with_catalogue(use("vopd"))
    config = experiment(raw)
    assert list(config.variants) == ["gkd", "vopd"] and isinstance(config.variants["vopd"], Method)
    assert stage_settings(config, "table")["method_labels"]["vopd"] == "vOPD"
    before, after = files(with_catalogue()), files(raw)
    new = {f"vopd/{student}/{seed}" for student in ("small", "short") for seed in (10, 20)}
    assert {key for key in after if before.get(key) != after[key]} == new | {"table"}
    settings = json.loads(after["vopd/small/10"])
    assert settings["stage"] == "minillm" and settings["method"] == "vopd"
    # The schedule is the configuration's, the model's first.
    training = settings["training"]
    assert (training["lr"], training["collections"], training["warmup"]) == (2.0e-4, 2, 3)
    assert (training["advantage"], training["gamma"], training["whiten"]) == ("centred", 0.0, "none")


def test_an_edited_entry_changes_its_own_students_only() -> None:
    before = files(with_catalogue(use("vopd", "aopd")))

    def edit(raw: dict[str, Any]) -> None:
        use("vopd", "aopd")(raw)
        raw["catalogue"]["vopd"]["settings"]["clip"] = 0.2
        raw["catalogue"]["eopd"]["settings"]["lm_coef"] = 1.0
        raw["catalogue"]["aopd"]["exact"] = "other words"

    after = files(with_catalogue(edit))
    assert {key.split("/")[0] for key in after if before[key] != after[key]} == {"vopd"}


def test_the_configuration_does_not_make_another_method_of_it() -> None:
    def edit(raw: dict[str, Any]) -> None:
        use("vopd", "revisiting-opd")(raw)
        del raw["variants"], raw["methods"][raw["methods"].index("gkd")]
        raw["stages"]["minillm"] |= {"semantics": "paper", "lm_coef": 1.0, "alpha": 0.5, "init_kl": 0.1}
        raw["stages"]["minillm"] |= {"token_weights": {"first": 0.5}, "whiten": "positions", "evaluations": 2}
        raw["per_model"]["small"]["minillm"] |= {"reward_clip": 3.0, "batch": 4}

    config = experiment(with_catalogue(edit))
    for name in ("vopd", "revisiting-opd"):
        ours = dataclasses.asdict(config.on_policy(name, "small"))
        plain = dataclasses.asdict(combined([CATALOGUE[name].settings], "catalogue", name))
        assert {k: v for k, v in ours.items() if k not in SCHEDULE} == {
            k: v for k, v in plain.items() if k not in SCHEDULE
        }
        # Of the preset too.
        assert (ours["normaliser"], ours["inner_epochs"], ours["batch"], ours["evaluations"]) == (
            "sequences", 1, 4, 2,
        )  # fmt: skip


def test_a_variant_of_the_same_name_takes_its_place() -> None:
    config = experiment(with_catalogue())
    assert not isinstance(config.variants["gkd"], Method)
    assert "lm_coef" not in config.variants["gkd"].settings and config.on_policy("gkd", "").lm_coef == 1.0


@pytest.mark.parametrize("place", ["pairs", "sweeps"])
def test_it_is_found_where_a_pair_names_its_methods(place: str) -> None:
    pair = {"teacher": "big", "students": ["small"], "methods": ["tip"]}
    raw = with_catalogue(lambda raw: raw.update({place: [pair]}))
    assert ("big", "small", "tip") in experiment(raw).trained(sweeps=True)
    assert "tip" in experiment(raw).variants


# --- mistakes
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpa": 0.0}, "catalogue.mine.settings.alpa: unknown key; did you mean 'alpha'?"),
        ({"lr": 1.0e-4}, "catalogue.mine.settings.lr: a method of the catalogue leaves this to the"),
        ({"semantics": "paper"}, "catalogue.mine.settings.semantics: a method of the catalogue leaves this"),
        ({"signal": {"tokens": "sampled"}}, "catalogue.mine.settings.signal.tokens: one sampled token is no"),
    ],
)  # fmt: skip
def test_a_broken_entry_is_one_line_even_if_nothing_uses_it(settings: dict[str, Any], said: str) -> None:
    entry = {"label": "Mine", "arxiv": "2601.00001", "settings": {"objective": "reverse_kl", **settings}}
    assert line(with_catalogue(lambda raw: raw["catalogue"].update(mine=entry))).startswith(f"config: {said}")


def test_an_entry_needs_a_source_and_a_name_of_its_own() -> None:
    entry = {"label": "Mine", "settings": {"objective": "reverse_kl"}}
    said = line(with_catalogue(lambda raw: raw["catalogue"].update(mine=entry)))
    assert said == "config: catalogue.mine.arxiv: missing; give the paper's number, or a url"
    said = line(with_catalogue(lambda raw: raw["catalogue"].update(minillm={**entry, "url": "https://a.b"})))
    assert said == "config: catalogue.minillm: this is the name of a stage; choose another"


def test_an_unknown_method_is_compared_with_the_catalogue() -> None:
    assert line(with_catalogue(use("vpod"))).endswith("there is no 'vpod'; did you mean 'vopd'?")


# --- the command
def test_the_command_shows_all_or_one(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(REPO)
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == table(CATALOGUE).strip() and len(shown.splitlines()) == len(CATALOGUE) + 1
    assert main(["methods", "vopd"]) == 0
    shown = capsys.readouterr().out
    assert (
        all(value in shown for value in facts(CATALOGUE["vopd"]).values()) and "advantage: centred" in shown
    )
    assert main(["methods", "vpod"]) == 2
    assert capsys.readouterr().err.strip().endswith("vpod: no method of the catalogue; did you mean 'vopd'?")


def test_a_file_without_a_catalogue_is_one_line(tmp_path: Path) -> None:
    for text in ("", "catalogue: {}", "[]"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(UserError, match="a.yaml: catalogue: missing; name methods with label"):
            read_catalogue(tmp_path / "a.yaml")
