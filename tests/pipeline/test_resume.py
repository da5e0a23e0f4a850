"""Kill a training stage and run it again: it goes on, and the final weights are those of an uninterrupted run, bit for bit."""

import json
import signal
import time

import pytest

STUDENT, TEACHER = "tiny-student", "tiny-teacher"


def commands(checkout, out):
    """The stages that are killed; SFT has dropout on (GPT-2's 0.1), KD reads the teacher's hidden states in its second epoch."""
    run = checkout.run
    data, models = run / "data" / "embedded" / "training", run / "models"
    shared = [
        "--data",
        data,
        "--checkpoints",
        out / "checkpoints",
        "--launch",
        '{"micro_batch": 4, "eval_batch": 16, "save_every": 3}',
    ]
    sft = [
        "sft",
        "--config",
        run / f"configs/sft/{STUDENT}/10.json",
        "--base",
        models / STUDENT / "base",
        "--out",
        out / "model",
        "--init",
        out / "init",
    ]
    kd = ["kd", "--config", run / f"configs/kd/{STUDENT}/{TEACHER}/10.json", "--base", models / STUDENT / "base"]
    kd += ["--teacher", models / TEACHER / "teacher", "--out", out / "model"]
    config = run / f"configs/minillm/{STUDENT}/{TEACHER}/10.json"
    init, teacher = models / STUDENT / "init" / "seed10", models / TEACHER / "teacher"
    minillm = ["minillm", "--config", config, "--init", init, "--teacher", teacher, "--out", out / "model"]
    return {
        "sft": (sft + shared, f"{STUDENT}/sft/seed10"),
        "kd": (kd + shared, f"{STUDENT}/kd/{TEACHER}/seed10"),
        "minillm": (minillm + shared, f"{STUDENT}/minillm/{TEACHER}/seed10"),
    }


def wait_for_checkpoint(process, folder):
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/step-*")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.02)


@pytest.mark.parametrize("stage", ["sft", "kd", "minillm"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_going_on_is_exact(finished, tmp_path, stage, how):
    command, uninterrupted = commands(finished, tmp_path)[stage]
    process = finished.stage(*command)
    wait_for_checkpoint(process, tmp_path / "checkpoints")
    process.send_signal(how)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == (143 if how == signal.SIGTERM else -signal.SIGKILL), output
    assert not (tmp_path / "model").exists(), "killed before its end"

    again = finished.stage(*command)
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert "goes on from step" in output
    original = finished.run / "models" / uninterrupted
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()

    def logged(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines if "lr" not in json.loads(line)]

    assert logged(tmp_path / "model") == logged(original)
    if stage == "sft":
        settings = json.loads((original / "provenance.json").read_text())["settings"]
        assert settings["training"]["dropout"] is True
        assert json.loads((original / "config.json").read_text())["resid_pdrop"] == 0.1
