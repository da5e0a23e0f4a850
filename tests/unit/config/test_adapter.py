"""The section `models.NAME.adapter`: what it may not say, and which stages' settings it reaches."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from test_experiment import changed, line

from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.config.stage_settings import OnPolicySettings, TrainSettings
from minillm.config.strict import parse
from minillm.files import settings_hash

STAGES: list[tuple[str, dict[str, Any]]] = [
    ("base", {"model": "big"}),
    ("base", {"model": "small"}),
    ("teacher", {"model": "big"}),
    ("sft", {"model": "small", "seed": 10}),
    ("kd", {"model": "small", "teacher": "big", "seed": 10}),
    ("seqkd", {"model": "small", "teacher": "big", "seed": 10}),
    ("minillm", {"model": "small", "teacher": "big", "seed": 10}),
    ("gkd", {"model": "small", "teacher": "big", "seed": 10}),
    ("pseudo", {"teacher": "big"}),
    ("sft", {"model": "short", "seed": 10}),
]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("models.small.adapter", {"rank": 0}, "models.small.adapter.rank: "),
        ("models.small.adapter", {"rank": -2}, "models.small.adapter.rank: "),
        ("models.small.adapter", {"rank": 2.5}, "models.small.adapter.rank: "),
        ("models.small.adapter", {"alpha": 0}, "models.small.adapter.alpha: "),
        ("models.small.adapter", {"dropout": 1.0}, "models.small.adapter.dropout: "),
        ("models.small.adapter", {"target": []}, "models.small.adapter.target: unknown key; did you mean"),
    ],
)
def test_what_an_adapter_may_not_be(key: str, value: Any, said: str) -> None:
    assert said in line(changed(key, value))


def test_an_adapter_of_what_is_not_trained() -> None:
    raw = changed("models.other", changed("run", "plan")["models"]["small"] | {"adapter": {}})
    assert "models.other.adapter: this run fine-tunes no such model" in line(raw)
    finished = {"source": "folder", "path": "somewhere", "tokenizer": "letters"}
    raw = changed("models.big.adapter", {"rank": 4})
    raw["checkpoints"] = {"big/teacher": finished}
    assert "models.big.adapter: this run fine-tunes no such model" in line(raw)
    raw = changed("checkpoints", {"big/teacher": finished | {"adapter": {}}})
    assert "checkpoints.big/teacher.adapter: this model is finished and not trained" in line(raw)


def texts(raw: dict[str, Any]) -> list[str]:
    config = experiment(raw)
    return [canonical(stage_settings(config, stage, **names)) for stage, names in STAGES]


def test_without_adapters_no_settings_file_names_them() -> None:
    assert not any("adapter" in text for text in texts(changed("run", "plan")))


def test_each_model_has_its_own_and_base_models_have_none() -> None:
    raw = changed("models.small.adapter", {"rank": 4, "targets": ["q_proj"]})
    raw["models"]["big"]["adapter"] = {"rank": 8, "dropout": 0.5}
    before, after = texts(changed("run", "plan")), texts(raw)
    ranks = []
    for old, new in zip(before, after, strict=True):
        adapter = json.loads(new).pop("adapter", None)
        ranks.append(adapter and adapter["rank"])
        rest = {key: value for key, value in json.loads(new).items() if key != "adapter"}
        assert rest == json.loads(old)
    assert ranks == [None, None, 8, 4, 4, 4, 4, 4, None, None]


def test_settings_of_older_runs_have_the_same_hash() -> None:
    for (stage, _), text in zip(STAGES, texts(changed("run", "plan")), strict=True):
        if stage in ("sft", "minillm"):
            cls: Any = TrainSettings if stage == "sft" else OnPolicySettings
            plain = json.loads(text)
            loaded = parse(cls, plain, "here")
            assert loaded.adapter is None
            assert settings_hash(dataclasses.asdict(loaded)) == settings_hash(plain)
