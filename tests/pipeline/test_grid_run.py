"""A grid for real on the finished run: trials, one of which is lost, the choice, and the training by it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONFIG, Checkout

from minillm.verify.findings import Findings
from minillm.verify.records import check_records
from minillm.verify.run_folder import Run

STUDENT, TEACHER = "tiny-student", "tiny-teacher"
TRAINED = f"minillm/{STUDENT}/{TEACHER}"
MODEL = f"models/{STUDENT}/minillm/{TEACHER}/seed10"
GRID = {
    "grid": {"lr": [5.0e-4, 2.0e-3, 1.0e8], "rule": "dev_reverse_kl", "methods": {"other": {"lr": [0.001]}}}
}


@pytest.fixture(scope="module")
def gridded(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the finished run, then the same with a grid, up to MiniLLM's model."""
    folder = tmp_path_factory.mktemp("gridded") / "repo"
    shutil.copytree(finished.folder, folder, symlinks=True)
    checkout = Checkout(folder, finished.python)
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    done = checkout.snakemake("grid.yaml", "--", f"results/tiny/{MODEL}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return checkout


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_the_model_is_trained_with_what_was_chosen(gridded: Checkout) -> None:
    choice = read(gridded.run / f"grid/{TRAINED}.json")
    rows = {row["candidate"]: row for row in choice["candidates"]}
    assert list(rows) == ["lr0.0005", "lr0.002", "lr1e+08"]
    assert rows["lr1e+08"]["value"] is None and "NaN" in rows["lr1e+08"]["lost"]
    best = min((row for row in rows.values() if not row["lost"]), key=lambda row: row["dev_reverse_kl"])
    assert choice["chosen"]["lr"] == best["lr"] and choice["chosen"]["value"] == best["dev_reverse_kl"]
    provenance = read(gridded.run / MODEL / "provenance.json")
    assert provenance["settings"]["training"]["lr"] == best["lr"]
    assert provenance["settings"]["training"]["collections"] == 3 and provenance["steps"] == 12
    assert provenance["grid"]["chosen"] == choice["chosen"] and len(provenance["inputs"]["grid"]) == 64
    assert (
        f"| learning rate | {best['lr']:g}, by dev_reverse_kl of short runs with"
        in (gridded.run / MODEL / "README.md").read_text()
    )


def test_a_trial_is_half_as_long_and_leaves_no_weights(gridded: Checkout) -> None:
    trial = read(gridded.run / f"grid/{TRAINED}/lr0.0005.json")
    # Of 3 collections of 4 steps, and of 3 evaluations.
    assert trial["steps"] == 8 and [entry["step"] for entry in trial["history"]] == [4, 8]
    assert trial["settings"]["trial"] is True and trial["settings"]["seed"] == 10
    assert not list((gridded.run / "checkpoints").glob("*/step-*"))
    assert not list((gridded.run / "grid").rglob("*.safetensors"))


def test_nothing_differs_to_verify(gridded: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gridded.folder)
    run = Run(Path("results/tiny"))
    findings = Findings(run.folder)
    check_records(run, findings)
    # What was made of the model before it was trained again is not of it.
    found = [line for line in findings.differences if line.startswith("models/")]
    assert not found and findings.checked["settings of minillm"] >= 1


def test_a_killed_trial_resumes_to_the_same_values(gridded: Checkout, tmp_path: Path) -> None:
    run = gridded.run
    command = [
        *("minillm", "--config", run / f"configs/trial/{TRAINED}/lr0.002.json"),
        *("--data", run / "data/embedded/training", "--init", run / f"models/{STUDENT}/init/seed10"),
        *("--teacher", run / f"models/{TEACHER}/teacher", "--out", tmp_path / "lr0.002.json"),
        *("--checkpoints", tmp_path / "checkpoints"),
        *("--launch", '{"micro_batch": 4, "eval_batch": 16, "save_every": 3}'),
    ]
    process = gridded.stage(*command)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "checkpoints").glob("*/step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143 and not (tmp_path / "lr0.002.json").exists()
    again = gridded.stage(*command)
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and "resumes from step" in output, output
    ours, theirs = read(tmp_path / "lr0.002.json"), read(run / f"grid/{TRAINED}/lr0.002.json")
    assert ours["history"] == theirs["history"] and ours["settings"] == theirs["settings"]


def test_a_run_without_the_grid_has_nothing_to_do(finished: Any) -> None:
    assert "Nothing to be done" in (done := finished.snakemake()).stdout + done.stderr
    assert CONFIG.endswith("tiny.yaml") and not (finished.run / "grid").exists()
