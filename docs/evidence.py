"""Claims decided by measured trainings: contrasts of means over training seeds, Student's t, Holm.

For docs/methods/collect.py and docs/study/collect.py, which run from the repository's root.
"""

from __future__ import annotations

import csv
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.evaluation.statistics import Part, holm, t_interval, t_test
from minillm.plan import Job, hours_of, jobs

# Of a p after Holm's correction.
LEVEL = 0.05
# Seconds of one core, for jobs that never ran here.
SECONDS = {"teacher": 280, "base": 30, "pseudo": 60, "trial": 25, "minillm": 50, "generate": 8}
SECONDS |= dict.fromkeys(("sft", "kd", "seqkd"), 90)
OTHER = 5
Row = dict[str, Any]


# --- the csv
def read_rows(path: Path, texts: Sequence[str]) -> list[Row]:
    """The rows of a csv: numbers but in the columns `texts`, None for an empty number."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [{k: v if k in texts else _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | int | None:
    if not text:
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """The csv, numbers to six digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- decisions
@dataclass(frozen=True)
class Effect:
    """An estimate, the independent parts of its variance, and what a claim says of it.

    direction: "higher" or "lower" than 0, or "equal", within `margin` of it.
    """

    estimate: float
    parts: Sequence[Part]
    direction: str
    margin: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Of 90%: for a claim of equality it is that of two one-sided tests at 0.05."""
        return t_interval(self.estimate, self.parts, 0.9)

    @property
    def p(self) -> float | None:
        """Two-sided; None for a claim of equality, which its margin decides."""
        return None if self.direction == "equal" else t_test(self.estimate, self.parts)


@dataclass(frozen=True)
class Decision:
    """ "seen", "not seen" or "undecided", and p after Holm's correction."""

    verdict: str
    adjusted: float | None = None


def decide(effects: Sequence[Effect | None]) -> list[Decision | None]:
    """Of each claim of a family, the rule of docs/methods.md; None stays None: it was not run.

    Seen: the right sign, and p after Holm's correction over the family is below LEVEL.  Not seen: the wrong
    sign, and p without correction is below LEVEL.  A claim of equality is seen if its interval lies within
    the margin, not seen if all of it lies outside.
    """
    raw = [effect.p if effect else None for effect in effects]
    tested = [i for i, p in enumerate(raw) if p is not None]
    adjusted = dict(zip(tested, holm([p for p in raw if p is not None]), strict=True))
    return [effect and _decision(effect, raw[i], adjusted.get(i)) for i, effect in enumerate(effects)]


def _decision(effect: Effect, p: float | None, adjusted: float | None) -> Decision | None:
    if p is None or adjusted is None:
        if effect.margin is None:
            return None
        low, high = effect.interval
        outside = low > effect.margin or high < -effect.margin
        inside = max(abs(low), abs(high)) < effect.margin
        return Decision("seen" if inside else "not seen" if outside else "undecided")
    right = (effect.estimate > 0) == (effect.direction == "higher") and effect.estimate != 0
    if right:
        return Decision("seen" if adjusted < LEVEL else "undecided", adjusted)
    return Decision("not seen" if p < LEVEL else "undecided", adjusted)


def numbers(effect: Effect, decision: Decision | None) -> str:
    """Estimate, interval, and p with the corrected one or the margin."""
    low, high = effect.interval
    said = f"{effect.estimate:+.3g} [{low:.3g}, {high:.3g}]"
    if effect.direction == "equal":
        return said if effect.margin is None else f"{said}, margin {effect.margin:.3g}"
    assert decision and decision.adjusted is not None and effect.p is not None
    return f"{said}, p {effect.p:.2g} ({decision.adjusted:.2g})"


# --- how long
def announce(target: str, options: Sequence[str], cores: int) -> str:
    """One line: what is left to run, and about how long; times of earlier jobs where there are any."""
    planned = left(target, options)
    return estimate(planned, hours_of(planned, Path()), cores)


def left(target: str, options: Sequence[str]) -> list[Job]:
    """The jobs that Snakemake would run for `target`; exits with its line if the configuration is wrong."""
    command = [sys.executable, "-m", "snakemake", "-n", target, "--cores", "all", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"})
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        sys.exit(
            next((line for line in lines if line.startswith("Error: ")), lines[-1] if lines else "no output")
        )
    return jobs(done.stdout)


def estimate(planned: Sequence[Job], measured: Mapping[int, float], cores: int) -> str:
    """The line, of these jobs; those without measured hours take `SECONDS`."""
    timed = [i for i, job in enumerate(planned) if job.benchmark or job.rule in SECONDS]
    total = sum(measured.get(i, SECONDS.get(planned[i].rule, OTHER) / 3600) for i in timed)
    total += sum(3 / 3600 for i in range(len(planned)) if i not in timed)
    count = {rule: sum(job.rule == rule for job in planned) for rule in ("trial", "minillm", "generate")}
    if not planned:
        return "Nothing is left to run."
    return (
        f"{len(planned)} jobs: {count['trial']} trials of a grid, {count['minillm']} on-policy trainings, "
        f"{count['generate']} evaluations; about {total / cores:.1f} hours on {cores} cores."
    )


def by_part(planned: Sequence[Job], seconds: Mapping[str, float], cores: int) -> str:
    """A line for each rule of `seconds`, of a job on a core, that has jobs left; then their sum."""
    lines, total = [], 0.0
    for rule, each in seconds.items():
        count = sum(job.rule == rule for job in planned)
        total += count * each
        if count:
            lines.append(f"{rule}: {count} jobs, {count * each / 60 / cores:.0f} min")
    lines.append(
        f"about {total / 3600 / cores:.1f} hours on {cores} cores" if lines else "Nothing long is left."
    )
    return "\n".join(lines)


# --- the page
def filled(text: str, parts: Mapping[str, str], page: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- end -->` written again."""
    for name, part in parts.items():
        pattern = rf"(<!-- {name} -->).*?(<!-- end -->)"
        assert re.search(pattern, text, re.DOTALL), f"{page}: no part <!-- {name} -->"
        text = re.sub(
            pattern, lambda found, new=part: f"{found[1]}\n\n{new}\n\n{found[2]}", text, flags=re.DOTALL
        )
    return text
