"""Stages of a pipeline before and after a change, as whole jobs in alternation: `python -m benchmarks.stages --before REVISION`.

Each side is a checkout of its revision, in which that revision's own rules, configuration and launch values run one stage again and
again, on the same models.  Seconds are Snakemake's (`benchmark:`): the job's process from start to end, imports included.  What was
measured is written at once, so that a second call goes on where one was interrupted.  The models that the stages read are made by the
present tree if results/ does not hold them yet.  `--precision fp32` is for processors on which torch has to make bf16 up (docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks import report
from benchmarks.run import say
from benchmarks.speed import spread
from minillm.files import write_json

CONFIG = "config/mini.yaml"
CHANGED = "changed.yaml"  # what is changed in it, in each side's folder
SHORT = {"stages": {"minillm": {"collections": 2}}}  # of six: enough for both parts of the loop
RULES = ("settings", "data", "testset")  # what a side makes for itself, before anything is timed
STUDENT, TEACHER = "smollm2-85m", "smollm2-135m"
# Stage -> the models that its job reads, below results/mini/models.
MODELS = {
    "kd": (f"{STUDENT}/base", f"{TEACHER}/teacher"),
    "minillm": (f"{STUDENT}/init/seed10", f"{TEACHER}/teacher"),
    "generate": (f"{STUDENT}/sft/seed10",),
}
# Stage -> what its job makes, and where Snakemake writes the job's seconds, below results/mini.
TARGETS = {
    "kd": (f"models/{STUDENT}/kd/{TEACHER}/seed10", f"benchmarks/kd/{STUDENT}/{TEACHER}/seed10.tsv"),
    "minillm": (
        f"models/{STUDENT}/minillm/{TEACHER}/seed10",
        f"benchmarks/minillm/{STUDENT}/{TEACHER}/seed10.tsv",
    ),
    "generate": (
        f"generations/{STUDENT}/sft/seed10/dolly.jsonl",
        f"benchmarks/generate/{STUDENT}/sft/seed10/dolly.tsv",
    ),
}


class Side:
    """A checkout of one commit below `folder`, with the present tree's `models`, and `precision` instead of its configuration's."""

    def __init__(self, commit: str, folder: Path, models: list[str], precision: str) -> None:
        self.commit, self.folder = commit, folder / commit
        if not (self.folder / CONFIG).is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
            git("clone", "--quiet", "--shared", "--no-checkout", ".", str(self.folder))
            git("-C", str(self.folder), "checkout", "--quiet", self.commit)
            # Or the first job of each side would be slower, and every one where Python is told to write no bytecode.
            subprocess.run([sys.executable, "-m", "compileall", "-q", "minillm"], cwd=self.folder, check=True)
        self.results = self.folder / "results" / "mini"
        for model in models:
            link = self.results / "models" / model
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((Path("results/mini/models") / model).resolve())
        (self.folder / CHANGED).write_text(yaml.safe_dump(SHORT | {"precision": precision}))

    def seconds(self, stage: str) -> float:
        """The stage's job, from nothing but its inputs."""
        target, timed = TARGETS[stage]
        for left in (self.results / target, self.results / "checkpoints"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        snakemake(self.folder, [CONFIG, CHANGED], [f"results/mini/{target}"], rules=(*RULES, stage))
        head, row = (line.split("\t") for line in (self.results / timed).read_text().splitlines())
        return float(row[head.index("s")])


def git(*words: str) -> str:
    """What git prints; where it fails, its own line ends the command."""
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmarks.stages: git {' '.join(words)}: {done.stderr.strip().splitlines()[0]}")
    return done.stdout.strip()


def snakemake(folder: Path, configs: list[str], targets: list[str], rules: tuple[str, ...] = ()) -> None:
    """Runs the rules of `folder`; of `rules` alone, where given, so that the models there are taken as they are, and silently.

    Where it fails the command ends with its status, after what it said.
    """
    options = ["--cores", str(len(os.sched_getaffinity(0))), "--show-failed-logs", "--configfile", *configs]
    if rules:  # that folder is nobody else's, so that what an interrupted command left can go
        options += ["--nolock", "--rerun-incomplete", "--allowed-rules", *rules]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *options, "--", *targets],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(folder.resolve())},  # the revision's package, wherever this one is installed
        text=True,
        stdout=subprocess.PIPE if rules else None,
        stderr=subprocess.STDOUT if rules else None,
    )
    if done.returncode:
        print(done.stdout or "", file=sys.stderr)
        sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, help="the revision to compare with")
    parser.add_argument("--after", default="HEAD", help="the revision compared (default: HEAD)")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default="bf16",
        help="of both sides, models included (default: bf16)",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    asked = parser.parse_args()
    commits = {
        name: git("rev-parse", "--short", f"{getattr(asked, name)}^{{commit}}")
        for name in ("before", "after")
    }
    folder = asked.out / "stages" / asked.precision
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHANGED).write_text(yaml.safe_dump({"precision": asked.precision}))
    models = sorted({model for stage in asked.only for model in MODELS[stage]})
    say(f"models of {CONFIG}, {asked.precision}")
    snakemake(
        Path("."), [CONFIG, str(folder / CHANGED)], [f"results/mini/models/{model}" for model in models]
    )
    sides = {name: Side(commit, folder, models, asked.precision) for name, commit in commits.items()}
    kept = folder / f"{commits['before']}-{commits['after']}.json"
    times: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for stage in asked.only:
        for repeat in range(asked.repeats):
            for name, side in sides.items():
                mine = times.setdefault(stage, {}).setdefault(name, [])
                if len(mine) > repeat:
                    continue
                mine.append(side.seconds(stage))
                write_json(kept, times)
                say(f"{stage} {repeat + 1}/{asked.repeats}, {name} ({side.commit}): {mine[-1]:.1f} s")
    compared_stages = compared({f"{stage}, {asked.precision}": times[stage] for stage in asked.only})
    found = {"machine": report.machine(), "commits": commits, "stages": compared_stages}
    say(f"written: {report.write(found, asked.out, f'stages-{asked.precision}')} and its .json")
    print(report.summary(found))
    sys.exit(0 if all(check.met for check in report.checks(found)) else 1)


def compared(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Stage -> both sides' medians with extremes, and the ratio of the medians."""
    found = {}
    for stage, sides in times.items():
        spreads = {name: spread(values) for name, values in sides.items()}
        found[stage] = {"sides": spreads, "ratio": spreads["before"]["median"] / spreads["after"]["median"]}
    return found


if __name__ == "__main__":
    main()
