"""Jobs of a grid and of methods of the catalogue: what comes before what, and what an edit plans again."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from checkout import LEFT_OUT, Checkout

TRAINED = ("kd/small/big", "vopd/small/big")


def base(config: dict[str, Any]) -> None:
    """plan.yaml with one student, two gridded methods and one seed."""
    config["run"] = "grids"
    config["pairs"], config["training_seeds"] = [{"teacher": "big", "students": ["small"]}], [10]
    config["methods"], config["variants"] = ["sft", "kd", "vopd"], {}
    config["grid"] = {"lr": [1.0e-4, 3.0e-4], "methods": {"kd": {"lr": [1.0e-3]}}}


def edited(checkout: Checkout, edit: Any = lambda config: None) -> str:
    def both(config: dict[str, Any]) -> None:
        base(config)
        edit(config)

    return checkout.write("grids.yaml", both)


@pytest.fixture(scope="module")
def gridded(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of its own after a whole run."""
    root = tmp_path_factory.mktemp("gridded") / "repo"
    shutil.copytree(checkout.root, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    copy = Checkout(root)
    name = edited(copy)
    copy.snakemake("--cores", "4", "--configfile", name, "--quiet", "--show-failed-logs")
    return copy


def jobs(planned: set[str], *rules: str) -> set[str]:
    return {job for job in planned if job.split()[0] in rules}


def test_trials_and_choice_come_before_the_training(checkout: Checkout) -> None:
    planned = checkout.planned(config=edited(checkout))
    assert jobs(planned, "trial", "grid") == {
        "trial trained=kd/small/big candidate=lr0.001",
        "trial trained=vopd/small/big candidate=lr0.0001",
        "trial trained=vopd/small/big candidate=lr0.0003",
        *(f"grid trained={trained}" for trained in TRAINED),
    }
    shown = checkout.snakemake("-n", "-p", "--cores", "2", "--configfile", "grids.yaml").stdout
    folder = "results/grids"
    assert f"--grid {folder}/grid/vopd/small/big.json --out {folder}/models/small/vopd/big/seed10" in shown
    trial = (
        f"--config {folder}/configs/trial/vopd/small/big/lr0.0001.json --data {folder}/data/letters/training"
    )
    trial += f" --teacher {folder}/models/big/teacher --init {folder}/models/small/init/seed10 "
    assert trial in shown
    # Its launch values are those of the stage.
    assert "minillm kd --launch" in shown and "minillm trial" not in shown


def test_nothing_is_left_after_a_run(gridded: Checkout) -> None:
    assert gridded.planned(config=edited(gridded)) == set()


def test_an_edited_grid_runs_its_own_method_again(gridded: Checkout) -> None:
    def one_rate_more(config: dict[str, Any]) -> None:
        config["grid"]["methods"]["vopd"] = {"lr": [1.0e-4, 3.0e-4, 9.0e-4]}

    planned = gridded.planned(config=edited(gridded, one_rate_more))
    assert jobs(planned, "trial", "grid", "settings", "sft", "kd", "minillm", "generate") == {
        "trial trained=vopd/small/big candidate=lr0.0009",
        "grid trained=vopd/small/big",
        "settings key=trial/vopd/small/big/lr0.0009",
        "settings key=grid/vopd/small/big",
        "minillm student=small method=vopd teacher=big seed=10",
        *(f"generate weights=small/vopd/big/seed10 test={test}" for test in ("easy", "hard")),
    }


def test_another_rule_repeats_no_trial(gridded: Checkout) -> None:
    planned = gridded.planned(
        config=edited(gridded, lambda config: config["grid"]["methods"].update(vopd={"rule": "dev_loss"}))
    )
    assert jobs(planned, "trial", "grid") == {"grid trained=vopd/small/big"}


def test_a_grid_that_is_taken_out_leaves_the_configured_rate(gridded: Checkout) -> None:
    planned = gridded.planned(config=edited(gridded, lambda config: config["grid"].pop("lr")))
    assert not jobs(planned, "trial", "grid", "kd", "settings")
    assert jobs(planned, "minillm") == {"minillm student=small method=vopd teacher=big seed=10"}


def test_an_edited_entry_of_the_catalogue_runs_its_students_again(gridded: Checkout) -> None:
    catalogue = gridded.root / "config/methods.yaml"
    text = catalogue.read_text()
    changed = text.replace("advantage: centred}", "advantage: centred, clip: 0.2}")
    changed = changed.replace("{objective: reverse_kl, alpha: 0.0", "{objective: reverse_kl, alpha: 0.1")
    assert changed.count("alpha: 0.1,") == 1 and changed != text
    catalogue.write_text(changed)
    try:
        planned = gridded.planned(config=edited(gridded))
    finally:
        catalogue.write_text(text)
    assert jobs(planned, "trial", "grid", "settings", "sft", "kd", "minillm") == {
        *(f"trial trained=vopd/small/big candidate=lr{rate}" for rate in ("0.0001", "0.0003")),
        *(f"settings key=trial/vopd/small/big/lr{rate}" for rate in ("0.0001", "0.0003")),
        "settings key=vopd/small/big/10",
        "grid trained=vopd/small/big",
        "minillm student=small method=vopd teacher=big seed=10",
    }
