"""`minillm plan`: what a run would still do: jobs by rule, hours by stage, the critical path, and what fits.

Snakemake itself says what, in a dry run.

Hours of the first table are those of earlier runs, from the benchmark files that Snakemake left in the run's
folder: of the same job, else the mean over the same rule and model, else over the rule.  What never ran has a
dash.  The tables after it are estimates from the models' shapes (minillm/fits).
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config.experiment import Experiment, experiment
from minillm.config.strict import hint
from minillm.errors import UserError
from minillm.publish.origins import number_of
from minillm.readers import read_text, read_yaml

DASH = "–"
# What Snakemake reads (workflow/Snakefile).
CATALOGUES = tuple(Path(f"config/{name}.yaml") for name in ("models", "datasets", "methods"))
PAPER = Path("config/config.yaml")
# For which changes are searched, unless another is named: the paper's configuration is made for it.
MACHINE = "A100-80G"


@dataclass(frozen=True)
class Job:
    """One job of a dry run, with the files that Snakemake lists for it."""

    rule: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    benchmark: str = ""


def jobs(text: str) -> list[Job]:
    """The jobs in the output of `snakemake -n`, in its order."""
    listed = []
    for block in re.split(r"^(?=(?:local)?(?:rule|checkpoint) \w+:$)", text, flags=re.MULTILINE)[1:]:
        rule = re.match(r"(?:local)?(?:rule|checkpoint) (\w+):", block)
        fields = dict(re.findall(r"^    (input|output|benchmark): (.*)$", block, re.MULTILINE))
        if rule:
            files = {key: tuple(fields.get(key, "").split(", ")) for key in ("input", "output")}
            listed.append(Job(rule[1], files["input"], files["output"], fields.get("benchmark", "")))
    return listed


def hours_of(planned: Sequence[Job], root: Path) -> dict[int, float]:
    """Index of a job in `planned` -> hours, if its stage has run before; benchmark paths are below `root`."""
    measured: dict[str, float] = {}
    for folder in sorted({_stage_folder(job) for job in planned if job.benchmark}):
        for path in sorted((root / folder).rglob("*.tsv")):
            seconds = _seconds(path)
            if seconds is not None:
                measured[path.relative_to(root).as_posix()] = seconds / 3600
    hours = {}
    for i, job in enumerate(planned):
        if job.benchmark in measured:
            hours[i] = measured[job.benchmark]
        elif job.benchmark:
            folder = _stage_folder(job)
            model = folder + job.benchmark.removeprefix(folder).split("/")[0] + "/"
            alike = [h for path, h in measured.items() if path.startswith(model)]
            alike = alike or [h for path, h in measured.items() if path.startswith(folder)]
            if alike:
                hours[i] = sum(alike) / len(alike)
    return hours


def critical_path(planned: Sequence[Job], hours: Mapping[int, float]) -> list[int]:
    """Indices of the jobs on the chain of dependencies that takes longest; jobs without hours count as 0."""
    makes = {output: i for i, job in enumerate(planned) for output in job.outputs if output}
    best: dict[int, tuple[float, tuple[int, ...]]] = {}

    def longest(i: int) -> tuple[float, tuple[int, ...]]:
        if i not in best:
            before = {makes[name] for name in planned[i].inputs if name in makes} - {i}
            total, path = max(
                (longest(j) for j in sorted(before)),
                default=(0.0, ()),
                key=lambda chain: (chain[0], len(chain[1])),
            )
            best[i] = total + hours.get(i, 0.0), (*path, i)
        return best[i]

    return list(
        max(
            (longest(i) for i in range(len(planned))),
            default=(0.0, ()),
            key=lambda chain: (chain[0], len(chain[1])),
        )[1]
    )


def report(planned: Sequence[Job], hours: Mapping[int, float]) -> str:
    """A table of the rules, then the hours of the critical path and its stages, one per line."""
    counts = Counter(job.rule for job in planned)
    lines = ["| Rule | Jobs | Hours a job | Hours |", "|:--|--:|--:|--:|"]
    for rule, count in counts.items():
        measured = [hours[i] for i, job in enumerate(planned) if job.rule == rule and i in hours]
        timed = any(job.benchmark for job in planned if job.rule == rule)
        each = f"{sum(measured) / len(measured):.3g}" if measured else DASH if timed else ""
        total = (
            ""
            if not timed
            else f"{sum(measured):.3g}"
            if len(measured) == count
            else f"> {sum(measured):.3g}"
            if measured
            else DASH
        )
        lines.append(f"| {rule} | {count} | {each} | {total} |")
    path = critical_path(planned, hours)
    path_hours = sum(hours.get(i, 0.0) for i in path)
    steps = []
    for i in path:
        job = planned[i]
        if job.benchmark:
            name = job.benchmark.removeprefix(_stage_folder(job)).removesuffix(".tsv")
            steps.append(f"{job.rule} {name} ({f'{hours[i]:.3g} h' if i in hours else DASH})")
    unknown = sum(1 for i in path if planned[i].benchmark and i not in hours)
    return "\n".join(
        [
            *lines,
            f"| all | {len(planned)} | | {sum(hours.values()):.3g} |",
            "",
            f"Critical path: {path_hours:.3g} h"
            + (f" and {unknown} stages that never ran" if unknown else ""),
            *(f"  {step}" for step in steps),
        ]
    )


def _stage_folder(job: Job) -> str:
    """The folder results/<run>/benchmarks/<stage>/ of a job's benchmark file."""
    parts = job.benchmark.split("/")
    return "/".join(parts[: parts.index("benchmarks") + 2]) + "/" if "benchmarks" in parts else job.benchmark


def _seconds(path: Path) -> float | None:
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t"))
        return number_of(rows[-1]["s"])
    except (UserError, csv.Error, IndexError, KeyError):
        return None


def plan(configfiles: Sequence[Path], targets: Sequence[str] = (), machine: str = "") -> None:
    """Print what Snakemake would run for these configurations (none: the paper's); call it in the checkout.

    Then what these jobs need, with changes for what does not fit into `machine` (a name in
    fits.machines.GPUS; "" is `MACHINE`).  Raises UserError with Snakemake's error, or else its last line, if
    it cannot plan.
    """
    # Snakemake shows a damaged configuration as a traceback, and takes the last of two equal keys.
    for path in configfiles:
        read_yaml(path)
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "all", *targets]
    command += ["--configfile", *map(str, configfiles)] if configfiles else []
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        # Snakemake reads configurations in the locale's encoding.
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    planned = [job for job in jobs(done.stdout) if job.rule != "all"]
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        problem = next(
            (line for line in lines if line.startswith("Error: ")), lines[-1] if lines else "no output"
        )
        raise UserError(f"snakemake cannot plan this: {problem.removeprefix('Error: ')}")
    measured = hours_of(planned, Path())
    print(report(planned, measured), flush=True)
    print("\n" + estimated(planned, measured, configuration(configfiles), machine))


def configuration(configfiles: Sequence[Path]) -> Experiment:
    """What Snakemake makes of these files: the catalogues, then each file over the ones before."""
    merged: dict[str, Any] = {}
    for path in (*CATALOGUES, *(configfiles or (PAPER,))):
        _update(merged, read_yaml(path))
    return experiment(merged)


def _update(values: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Mappings are merged, at any depth; all else is replaced."""
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _update(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def estimated(
    planned: Sequence[Job], measured: Mapping[int, float], config: Experiment, name: str = ""
) -> str:
    """The estimates of the planned jobs, their sum and critical path on each machine.

    Measured hours take the place of estimated ones.  A line instead if a model's shape is not known.
    """
    # Imported only here: torch takes seconds.
    from minillm.fits import estimates, jobs, machines

    every = {**machines.GPUS, "this CPU": machines.this_cpu(config.precision)}
    if name and name not in every:
        raise UserError(f"--machine {name}: unknown; {hint(name, every)}")
    keys = {i: key for i, job in enumerate(planned) if (key := jobs.key_of(config, job.benchmark))}
    if not keys:
        return "Nothing is left that works with a model."
    planner = jobs.Planner(config)
    try:
        found = estimates.Estimates(planner, Counter(keys.values()), list(every.values()))
    except UserError as error:
        return f"No estimates: {error}"
    lines = ["| All jobs | " + " | ".join(every) + " |", "|:--|" + "--:|" * len(every)]
    sums, paths = [], []
    for machine in every.values():
        hours = estimates.measured_first(keys, measured, found, machine)
        sums.append(f"{sum(hours.values()):.3g}")
        paths.append(f"{sum(hours.get(i, 0.0) for i in critical_path(planned, hours)):.3g}")
    lines += [f"| hours, one after the other | {' | '.join(sums)} |"]
    lines += [f"| hours of the critical path | {' | '.join(paths)} |"]
    return "\n".join([planner.assumptions(), "", found.text(every[name or MACHINE]), "", *lines])
