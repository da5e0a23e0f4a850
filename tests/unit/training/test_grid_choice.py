"""What the stage `grid` chooses from trials, and what a training makes of the choice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from minillm.config.grid import GridSettings
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Sampling, Training
from minillm.config.stage_settings import OnPolicySettings, TrainSettings
from minillm.errors import Diverged, UserError
from minillm.files import write_json
from minillm.runtime.card import model_card
from minillm.training.grid import run_stage, with_choice
from minillm.training.trial import tried

VALUES = {"lr0.1": (0.1, 1.0), "lr0.2": (0.2, 1.0), "lr0.4": (0.4, 1.0)}


def settings(rule: str = "dev_reverse_kl", **changed: Any) -> GridSettings:
    base: dict[str, Any] = {"method": "vopd", "model": "small", "teacher": "big", "share": 0.5}
    return GridSettings(stage="grid", rule=rule, **{**base, "candidates": VALUES, **changed})  # type: ignore


def entry(step: int, rouge: float | None, kl: float | None, **more: Any) -> dict[str, Any]:
    return {"step": step, "dev_rouge": rouge, "dev_reverse_kl": kl, "dev_loss": 1.0, **more}


def trials(folder: Path, histories: dict[str, Any], **changed: Any) -> list[Path]:
    """Files of trials: their histories, or why they were lost."""
    for name, history in histories.items():
        lost = history if isinstance(history, str) else ""
        about = {"stage": "minillm", "method": "vopd", "model": "small", "teacher": "big", **changed}
        value = {"settings": about, "history": [] if lost else history, "lost": lost}
        write_json(folder / f"{name}.json", value)
    return [folder / f"{name}.json" for name in histories]


def chosen(folder: Path, histories: dict[str, Any], rule: str = "dev_reverse_kl") -> dict[str, Any]:
    run_stage(settings(rule), trials=trials(folder, histories), out=folder / "out.json")
    record: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return record


def test_the_value_is_that_of_the_checkpoint_that_would_be_kept(tmp_path: Path) -> None:
    histories = {
        # The lower KL of step 2 is of a checkpoint that would not be kept.
        "lr0.1": [entry(1, 30.0, 0.5), entry(2, 20.0, 0.1)],
        "lr0.2": [entry(1, 10.0, 0.9), entry(2, 25.0, 0.4)],
        "lr0.4": [entry(2, 40.0, 0.6)],
    }
    found = chosen(tmp_path, histories)
    assert found["chosen"] == {"candidate": "lr0.2", "lr": 0.2, "length": 1.0, "value": 0.4}
    assert found["edge"] == "" and found["rule"] == "dev_reverse_kl" and not found["higher_is_better"]
    assert [(row["candidate"], row["value"], row["step"]) for row in found["candidates"]] == [
        ("lr0.1", 0.5, 1),
        ("lr0.2", 0.4, 2),
        ("lr0.4", 0.6, 2),
    ]
    found = chosen(tmp_path, histories, "dev_rouge")
    assert found["chosen"]["candidate"] == "lr0.4" and found["higher_is_better"]
    assert found["edge"] == "lr 0.4 is the largest of the grid: a larger one may be better"


def test_what_has_diverged_is_lost_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histories = {
        "lr0.1": [entry(1, 30.0, 0.5)],
        "lr0.2": [entry(1, 30.0, None)],
        "lr0.4": "step 3: NaN or infinite gradients",
    }
    found = chosen(tmp_path, histories)
    assert found["chosen"]["candidate"] == "lr0.1"
    assert [row["lost"] for row in found["candidates"]] == [
        "", "no finite dev_reverse_kl", "step 3: NaN or infinite gradients",
    ]  # fmt: skip
    assert "lr 0.1 is the smallest of the grid: a smaller one may be better" in capsys.readouterr().err
    lost = {name: [entry(1, None, 0.1)] for name in VALUES}
    with pytest.raises(
        UserError, match="every candidate was lost; add lower rates to the grid .*no finite dev_r"
    ):
        chosen(tmp_path, lost)


def test_the_first_of_equals_is_chosen_and_one_value_has_no_edge(tmp_path: Path) -> None:
    assert chosen(tmp_path, {name: [entry(1, 1.0, 0.5)] for name in VALUES})["chosen"]["candidate"] == "lr0.1"
    one = settings(candidates={"lr0.1": (0.1, 1.0)})
    run_stage(one, trials=trials(tmp_path, {"lr0.1": [entry(1, 1.0, 0.5)]}), out=tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["edge"] == ""


def test_lengths_have_edges_too(tmp_path: Path) -> None:
    both = settings(candidates={"lr0.1": (0.1, 1.0), "lr0.1-length2": (0.1, 2.0)})
    files = trials(tmp_path, {"lr0.1": [entry(1, 1.0, 0.5)], "lr0.1-length2": [entry(1, 1.0, 0.3)]})
    run_stage(both, trials=files, out=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["edge"] == "length 2 is the largest of the grid: a larger one may be better"


def test_damaged_missing_and_foreign_trials_are_one_line(tmp_path: Path) -> None:
    histories = {name: [entry(1, 1.0, 0.5)] for name in VALUES}
    files = trials(tmp_path, histories)
    with pytest.raises(UserError, match=r"no trial of lr0.4 among --trials"):
        run_stage(settings(), trials=files[:2], out=tmp_path / "out.json")
    with pytest.raises(UserError, match=r"lr0.1.json: a trial of another method, student or teacher"):
        run_stage(settings(), trials=trials(tmp_path, histories, model="other"), out=tmp_path / "out.json")
    trials(tmp_path, histories)
    text = files[0].read_text().replace("0.5", "0.1")
    files[0].write_text(text)
    with pytest.raises(UserError, match=r"lr0.1.json: changed since it was written"):
        run_stage(settings(), trials=files, out=tmp_path / "out.json")


def on_policy(**changed: Any) -> OnPolicySettings:
    values: dict[str, Any] = {"method": "vopd", "model": "small", "teacher": "big", "seed": 20}
    training = OnPolicy(lr=9.0, collections=6, evaluations=3)
    return OnPolicySettings(stage="minillm", precision="fp32", training=training, **{**values, **changed})


def test_a_training_takes_rate_and_length_and_records_them(tmp_path: Path) -> None:
    both = settings(candidates={"lr0.1": (0.1, 1.0), "lr0.1-length2": (0.1, 2.0)})
    files = trials(tmp_path, {"lr0.1": [entry(1, 1.0, 0.5)], "lr0.1-length2": [entry(1, 1.0, 0.3)]})
    run_stage(both, trials=files, out=tmp_path / "out.json")
    given, summary = with_choice(on_policy(), tmp_path / "out.json")
    assert (given.training.lr, given.training.collections, given.training.evaluations) == (0.1, 12, 3)
    assert given.seed == 20 and summary and summary["chosen"]["value"] == 0.3
    card = model_card({"settings": {"method": "vopd"}, "grid": summary})
    assert "| learning rate | 0.1, by dev_reverse_kl of short runs with 0.1; length 2 is the largest" in card
    assert with_choice(on_policy(), None) == (on_policy(), None)
    with pytest.raises(UserError, match="out.json: the grid of another method, student or teacher"):
        with_choice(on_policy(method="gkd"), tmp_path / "out.json")


def test_supervised_training_takes_epochs(tmp_path: Path) -> None:
    sft = settings("dev_loss", method="sft", teacher="", candidates={"lr0.1-length0.5": (0.1, 0.5)})
    about = {"stage": "sft", "method": None, "teacher": ""}
    files = trials(tmp_path, {"lr0.1-length0.5": [entry(1, 1.0, None)]}, **about)
    run_stage(sft, trials=files, out=tmp_path / "out.json")
    training = Training(lr=9.0, epochs=3)
    ours = TrainSettings("sft", "small", 10, "fp32", training, Sampling())
    given, _ = with_choice(ours, tmp_path / "out.json")
    assert (given.training.lr, given.training.epochs) == (0.1, 1.5)


def test_only_a_trial_survives_what_has_diverged() -> None:
    def diverges() -> list[dict[str, Any]]:
        raise Diverged("step 3: NaN")

    def fails() -> list[dict[str, Any]]:
        raise UserError("no such file")

    assert tried(diverges, True) == ([], "step 3: NaN") and tried(lambda: [{"step": 1}], True) == (
        [{"step": 1}],
        "",
    )
    for train, trial in ((diverges, None), (fails, True)):
        with pytest.raises(UserError):
            tried(train, trial)


def test_a_variant_of_a_supervised_stage_has_a_grid_of_its_own(tmp_path: Path) -> None:
    hpd = settings("dev_loss", method="hpd", candidates={"lr0.1": (0.1, 1.0)})
    files = trials(tmp_path, {"lr0.1": [entry(1, 1.0, None)]}, stage="kd", method="hpd")
    run_stage(hpd, trials=files, out=tmp_path / "out.json")
    training = Training(lr=9.0, epochs=3, loss="hpd")
    ours = TrainSettings("kd", "small", 10, "fp32", training, Sampling(), teacher="big", method="hpd")
    assert with_choice(ours, tmp_path / "out.json")[0].training.lr == 0.1
    with pytest.raises(UserError, match="out.json: the grid of another method, student or teacher"):
        with_choice(dataclasses.replace(ours, method=None), tmp_path / "out.json")
