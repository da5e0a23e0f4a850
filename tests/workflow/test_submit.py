"""What the profile asks Slurm for: the sbatch command of every rule that computes, recorded in its place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
CONFIG = "recorded.yaml"
RUN = "results/plan"


def profile(size="13b"):
    """The profile; what it says of models of 13B is said of those with `size` in their names."""
    return yaml.safe_load((REPO / "slurm" / "config.yaml").read_text().replace("'13b'", f"'{size}'"))


class Recorded:
    """Recorded calls of sbatch: rule (or group) -> options of each call."""

    def __init__(self, checkout, tmp_path):
        self.checkout, self.saved, self.record = checkout, tmp_path / "saved", tmp_path / "record.jsonl"
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        text = (Path(__file__).with_name("slurm_recorder.py")).read_text()
        for name in ("sbatch", "squeue", "sacctmgr", "sacct", "sinfo", "scontrol", "scancel"):
            (self.bin / name).write_text(f"#!{sys.executable}\n{text}")
            (self.bin / name).chmod(0o755)
        (checkout.root / "results").rename(self.saved)

    def run(self, profile, *targets):
        folder = self.checkout.root / "recorded"
        folder.mkdir(exist_ok=True)
        profile |= {
            "slurm-init-seconds-before-status-checks": 1,
            "seconds-between-status-checks": 1,
            "latency-wait": 5,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(profile))
        self.record.unlink(missing_ok=True)
        shutil.rmtree(self.checkout.root / "results", ignore_errors=True)
        environment = {
            "PATH": f"{self.bin}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(self.checkout.root), str(self.checkout.root / "no_torch")]),
            "RECORD": str(self.record), "SAVED": str(self.saved),
        }  # fmt: skip
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE_", "SLURM_"))
        }
        command = [
            sys.executable,
            "-m",
            "snakemake",
            *targets,
            "--profile",
            "recorded",
            "--configfile",
            CONFIG,
        ]
        done = subprocess.run(
            command,
            cwd=self.checkout.root,
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found: dict[str, list[dict[str, str]]] = {}
        for line in self.record.read_text().splitlines():
            options = read(json.loads(line))
            name = options["--comment"].split("_wildcards_")[0].removeprefix("rule_").removeprefix("group_")
            found.setdefault(name, []).append(options)
        return found


def read(arguments):
    """Options of one call of sbatch, "--name" or "-x" -> value."""
    options, last = {}, ""
    for word in arguments:
        if word.startswith("-") and not last.startswith("--wrap"):
            last, _, value = word.partition("=")
            options[last] = value
        elif last:
            options[last] = word
            last = ""
    return options


def more(config):
    config["exposure_bias"] = {"tests": ["easy"], "prompts": 4, "responses": 3}
    config["diversity"] = {"tests": ["easy"]}
    config["calibration"] = {
        "tasks": {
            "held": {
                "dataset": "held",
                "prompt": "Which?",
                "input": "{x}",
                "gold": "y",
                "labels": {"a": "a", "b": "b"},
            }
        }
    }


@pytest.fixture
def recorded(finished, tmp_path):
    finished.write(CONFIG, more)
    finished.snakemake("--cores", "4", *TARGETS, "--configfile", CONFIG, "--quiet", "--show-failed-logs")
    found = Recorded(finished, tmp_path)
    yield found
    shutil.rmtree(finished.root / "results")
    found.saved.rename(finished.root / "results")


# A student after each method, and every kind of evaluation.
STUDENT = "small/minillm/big/seed10"
TARGETS = [
    *(f"{RUN}/models/small/{method}/big/seed10" for method in ("kd", "seqkd")),
    *(f"{RUN}/generations/{STUDENT}/{test}.jsonl" for test in ("easy", "hard")),
    f"{RUN}/metrics/exposure_bias/big/{STUDENT}/easy.json",
    f"{RUN}/metrics/calibration/{STUDENT}/held.json",
    f"{RUN}/metrics/reference_loss/{STUDENT}/easy.json",
]


# Partition, minutes, MB, cores, GPUs (a node); SIGTERM two minutes before the end for what saves and resumes.
ONE = {"-p": "gpu", "-t": "240", "--mem": "32000", "--cpus-per-task": "8", "--gres": "gpu:1"}
FOUR = {
    "-p": "gpu",
    "-t": "1440",
    "--mem": "128000",
    "--cpus-per-task": "32",
    "--gres": "gpu:4",
    "--signal": "TERM@120",
}
EXPECTED = {
    **{rule: FOUR for rule in ("teacher", "sft", "kd", "seqkd")},
    "minillm": FOUR | {"-t": "2880"},
    "pseudo": FOUR | {"-t": "720"},
    "base": ONE | {"-t": "1440", "--mem": "64000", "--signal": "TERM@120"},
    "samples": ONE,
    "exposure_bias": ONE | {"-t": "480"},
    "answers_generate": ONE | {"-t": "480"},  # two test sets, one after the other: twice the time, one GPU
    "calibration_calibration": ONE | {"-t": "120"},
    "references_reference_loss": ONE | {"-t": "120"},
}
WITH_TEACHER = ("teacher", "kd", "seqkd", "pseudo", "minillm")
ASKED = (
    "-p",
    "-t",
    "--mem",
    "--cpus-per-task",
    "--gres",
    "--gpus",
    "--signal",
    "--nodes",
    "--ntasks",
    "--ntasks-per-gpu",
)


def asked(options):
    return {key: options[key] for key in ASKED if key in options}


def test_one_gpu_and_one_node(recorded):
    calls = recorded.run(profile(), *TARGETS)
    assert set(calls) == {"data", "testset", *EXPECTED}
    for rule, expected in EXPECTED.items():
        assert {tuple(asked(options).items()) for options in calls[rule]} == {
            tuple(asked(expected).items())
        }, rule
        assert all(
            "--requeue" in options and options["--job-name"].startswith("minillm_") for options in calls[rule]
        )
    assert asked(calls["data"][0]) == {
        "-p": "cpu",
        "-t": "120",
        "--mem": "8000",
        "--cpus-per-task": "1",
        "--ntasks": "1",
    }


def test_several_nodes_for_a_size(recorded):
    """What the profile asks for where a model of 13B (here `big`) is part of the job."""
    calls = recorded.run(profile(size="big"), *TARGETS)
    two = FOUR | {"--mem": "400000", "--nodes": "2", "--ntasks": "2"}
    expected = EXPECTED | {rule: EXPECTED[rule] | two | {"-t": EXPECTED[rule]["-t"]} for rule in WITH_TEACHER}
    expected |= {
        rule: EXPECTED[rule] | {"--mem": "64000"} for rule in EXPECTED if EXPECTED[rule]["--mem"] == "32000"
    }
    for rule in set(EXPECTED) - {"base"}:
        assert {tuple(asked(options).items()) for options in calls[rule]} == {
            tuple(asked(expected[rule]).items())
        }, rule
    assert {options["--mem"] for options in calls["base"]} == {"64000", "128000"}, "of small and of big"
