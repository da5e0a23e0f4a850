"""Kill a training stage and run it again: it resumes, and ends in the weights of an uninterrupted run.

The final weights are the same bit for bit.
"""

import json
import signal
import time

import pytest

STUDENT, TEACHER = "tiny-student", "tiny-teacher"


def commands(checkout, out):
    """The stages that are killed.

    SFT has dropout on (GPT-2's 0.1), KD reads the teacher's hidden states in its second epoch.
    """
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
    kd = [
        "kd",
        "--config",
        run / f"configs/kd/{STUDENT}/{TEACHER}/10.json",
        "--base",
        models / STUDENT / "base",
    ]
    kd += ["--teacher", models / TEACHER / "teacher", "--out", out / "model"]
    config = run / f"configs/minillm/{STUDENT}/{TEACHER}/10.json"
    init, teacher = models / STUDENT / "init" / "seed10", models / TEACHER / "teacher"
    minillm = ["minillm", "--config", config, "--init", init, "--teacher", teacher, "--out", out / "model"]
    return {
        "sft": (sft + shared, f"{STUDENT}/sft/seed10"),
        "kd": (kd + shared, f"{STUDENT}/kd/{TEACHER}/seed10"),
        "minillm": (minillm + shared, f"{STUDENT}/minillm/{TEACHER}/seed10"),
    }


def wait_for(process, seen, folder):
    deadline = time.monotonic() + 120
    while not seen(folder):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"not {seen.__name__} within two minutes"
        time.sleep(0.01)


def saved(folder):
    return bool(list(folder.glob("*/step-*")))


def begun(folder):
    """A first line is logged, and nothing saved yet."""
    return bool(so_far(folder))


def collected_behind_a_checkpoint(folder):
    """A collection is logged under the number of a step that is saved already."""
    steps = {int(path.name.removeprefix("step-")) for path in folder.glob("*/step-*")}
    return any(line["step"] in steps and "response_length" in line for line in so_far(folder))


def so_far(folder):
    """Lines of the metrics of the stage that is running; the last may be in the writing."""
    return [
        json.loads(line)
        for path in folder.glob("*/metrics.jsonl")
        for line in path.read_text().split("\n")[:-1]
    ]


def logged(folder, *, updates=True):
    """Lines of a finished model's metrics but for the time; `updates`: those of optimizer steps too."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in lines if updates or "lr" not in line
    ]


@pytest.mark.parametrize(
    ("stage", "how"),
    [("sft", signal.SIGTERM), ("sft", signal.SIGKILL), ("kd", signal.SIGKILL), ("minillm", signal.SIGTERM)],
    ids=str,
)
def test_going_on_is_exact(finished, tmp_path, stage, how):
    command, uninterrupted = commands(finished, tmp_path)[stage]
    process = finished.stage(*command)
    wait_for(process, saved, tmp_path / "checkpoints")
    process.send_signal(how)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == (143 if how == signal.SIGTERM else -signal.SIGKILL), output
    assert not (tmp_path / "model").exists(), "killed before its end"

    again = finished.stage(*command)
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert "resumes from step" in output
    original = finished.run / "models" / uninterrupted
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        original / "model.safetensors"
    ).read_bytes()
    assert logged(tmp_path / "model", updates=False) == logged(original, updates=False)
    if stage == "sft":
        settings = json.loads((original / "provenance.json").read_text())["settings"]
        assert settings["training"]["dropout"] is True
        assert json.loads((original / "config.json").read_text())["resid_pdrop"] == 0.1


@pytest.mark.parametrize("moment", [begun, collected_behind_a_checkpoint])
def test_a_kill_leaves_no_line_of_the_metrics_twice(finished, tmp_path, moment):
    command, uninterrupted = commands(finished, tmp_path)["minillm"]
    # Saved at dev evaluations alone, each of which a collection follows: there is time to kill it.
    command = [
        *command,
        "--launch",
        '{"micro_batch": 4, "eval_batch": 16, "save_every": 100, "log_every": 1}',
    ]
    process = finished.stage(*command)
    wait_for(process, moment, tmp_path / "checkpoints")
    process.kill()
    process.communicate(timeout=120)
    assert moment(tmp_path / "checkpoints") and saved(tmp_path / "checkpoints") == (moment is not begun)

    again = finished.stage(*command)
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    original = finished.run / "models" / uninterrupted
    assert logged(tmp_path / "model") == logged(original)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        original / "model.safetensors"
    ).read_bytes()


def test_going_on_is_exact_by_coins(finished, tmp_path):
    """Coins follow from the seed and the collection: a checkpoint has nothing of them."""
    models, weights = [], []
    for part in ("whole", "killed"):
        out = tmp_path / part
        command, uninterrupted = commands(finished, out)["minillm"]
        place = command.index("--config") + 1
        settings = json.loads(command[place].read_text())
        assert "coins" not in settings["training"]
        settings["training"]["coins"] = 4
        out.mkdir()
        command[place] = out / "settings.json"
        command[place].write_text(json.dumps(settings))
        process = finished.stage(*command)
        if part == "killed":
            wait_for(process, saved, out / "checkpoints")
            process.send_signal(signal.SIGTERM)
            output = process.communicate(timeout=120)[0]
            assert process.returncode == 143, output
            process = finished.stage(*command)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0 and ("resumes from step" in output) == (part == "killed"), output
        models.append(logged(out / "model", updates=False))
        weights.append((out / "model" / "model.safetensors").read_bytes())
    assert models[0] == models[1] and weights[0] == weights[1]
    original = finished.run / "models" / uninterrupted
    assert weights[0] != (original / "model.safetensors").read_bytes()
