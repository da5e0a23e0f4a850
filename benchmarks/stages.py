"""Whole stages before and after a change, in alternation: `python -m benchmarks.stages --before REVISION`.

Each side is a checkout of its revision, whose own rules, configuration and launch values run one stage
repeatedly, on the same models.  Seconds are Snakemake's (`benchmark:`): the job's process from start to end,
imports included.  Measurements are written at once, so that a second call resumes an interrupted one.  The
current tree makes the models that the stages read if results/ does not have them yet.  `--precision fp32` is
for processors on which torch has to emulate bf16 (docs/performance.md).
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
# What differs from CONFIG, in each side's folder.
CHANGED = "changed.yaml"
# Two collections of six: enough for both parts of the loop.
SHORT = {"stages": {"minillm": {"collections": 2}}}
# What a side makes for itself before anything is timed.
RULES = ("settings", "data", "testset")
STUDENT, TEACHER = "smollm2-99m", "smollm2-135m"
# Stage -> the models that its job reads, below results/mini/models.
MODELS = {
    "kd": (f"{STUDENT}/base", f"{TEACHER}/teacher"),
    "minillm": (f"{STUDENT}/init/seed10", f"{TEACHER}/teacher"),
    "generate": (f"{STUDENT}/sft/seed10",),
}
# Stage -> what its job makes, and where Snakemake writes its seconds, below results/mini.
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
    """A checkout of one commit below `folder`, with the current tree's `models`, run at `precision`."""

    def __init__(self, commit: str, folder: Path, models: list[str], precision: str) -> None:
        self.commit, self.folder = commit, folder / commit
        if not (self.folder / CONFIG).is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
            git("clone", "--quiet", "--shared", "--no-checkout", ".", str(self.folder))
            git("-C", str(self.folder), "checkout", "--quiet", self.commit)
            # Otherwise each side's first job would be slower, or every job if Python must not write bytecode.
            subprocess.run([sys.executable, "-m", "compileall", "-q", "minillm"], cwd=self.folder, check=True)
        self.results = self.folder / "results" / "mini"
        for model in models:
            link = self.results / "models" / model
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((Path("results/mini/models") / model).resolve())
        (self.folder / CHANGED).write_text(yaml.safe_dump(SHORT | {"precision": precision}), encoding="utf-8")

    def seconds(self, stage: str) -> float:
        """Seconds of the stage's job, from only its inputs."""
        target, timed = TARGETS[stage]
        for path in (self.results / target, self.results / "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        snakemake(self.folder, [CONFIG, CHANGED], [f"results/mini/{target}"], rules=(*RULES, stage))
        head, row = (
            line.split("\t") for line in (self.results / timed).read_text(encoding="utf-8").splitlines()
        )
        return float(row[head.index("s")])


def git(*words: str) -> str:
    """What git prints; if it fails, its first line of error ends the command."""
    result = subprocess.run(["git", *words], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"benchmarks.stages: git {' '.join(words)}: {result.stderr.strip().splitlines()[0]}")
    return result.stdout.strip()


def snakemake(folder: Path, configs: list[str], targets: list[str], rules: tuple[str, ...] = ()) -> None:
    """Run the rules of `folder`; with `rules` only those, silently, so that its models are used as they are.

    If it fails, its output is printed and the command ends with its status.
    """
    options = ["--cores", str(len(os.sched_getaffinity(0))), "--show-failed-logs", "--configfile", *configs]
    # The folder is used by nobody else, so what an interrupted command left can be removed.
    if rules:
        options += ["--nolock", "--rerun-incomplete", "--allowed-rules", *rules]
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", *options, "--", *targets],
        cwd=folder,
        # The revision's package, wherever this one is installed.
        env=os.environ | {"PYTHONPATH": str(folder.resolve())},
        text=True,
        stdout=subprocess.PIPE if rules else None,
        stderr=subprocess.STDOUT if rules else None,
    )
    if result.returncode:
        print(result.stdout or "", file=sys.stderr)
        sys.exit(result.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, help="the revision to compare with")
    parser.add_argument("--after", default="HEAD", help="the revision that is compared (default: HEAD)")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default="bf16",
        help="precision of both sides, models included (default: bf16)",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args()
    commits = {
        name: git("rev-parse", "--short", f"{getattr(args, name)}^{{commit}}") for name in ("before", "after")
    }
    folder = args.out / "stages" / args.precision
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHANGED).write_text(yaml.safe_dump({"precision": args.precision}), encoding="utf-8")
    models = sorted({model for stage in args.only for model in MODELS[stage]})
    say(f"models of {CONFIG}, {args.precision}")
    snakemake(
        Path("."), [CONFIG, str(folder / CHANGED)], [f"results/mini/models/{model}" for model in models]
    )
    sides = {name: Side(commit, folder, models, args.precision) for name, commit in commits.items()}
    kept = folder / f"{commits['before']}-{commits['after']}.json"
    times: dict[str, dict[str, list[float]]] = (
        json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    )
    for stage in args.only:
        for repeat in range(args.repeats):
            for name, side in sides.items():
                repeats = times.setdefault(stage, {}).setdefault(name, [])
                if len(repeats) > repeat:
                    continue
                repeats.append(side.seconds(stage))
                write_json(kept, times)
                say(f"{stage} {repeat + 1}/{args.repeats}, {name} ({side.commit}): {repeats[-1]:.1f} s")
    compared_stages = compared({f"{stage}, {args.precision}": times[stage] for stage in args.only})
    results = {"machine": report.machine(), "commits": commits, "stages": compared_stages}
    say(f"written: {report.write(results, args.out, f'stages-{args.precision}')} and its .json")
    print(report.summary(results))
    sys.exit(0 if all(check.met for check in report.checks(results)) else 1)


def compared(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Stage -> both sides' medians with extremes, and the ratio of the medians."""
    by_stage = {}
    for stage, sides in times.items():
        spreads = {name: spread(values) for name, values in sides.items()}
        by_stage[stage] = {
            "sides": spreads,
            "ratio": spreads["before"]["median"] / spreads["after"]["median"],
        }
    return by_stage


if __name__ == "__main__":
    main()
