"""docs/study.md and what rests on it: `python docs/study/collect.py [results/study-k4 results/mini ...]`.

Each run of the study becomes docs/study/<piece>.csv first: a row for each training, from the run's
metrics.csv and provenance, next to the rows of students that were run before.  Then the generated parts of
docs/study.md are written again, from the csv files and claims.yaml.  `--announce PIECE` only says how long a
piece would take, with further `--options` of Snakemake.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import UserError
from minillm.evaluation.statistics import Part, mean_and_error, part
from minillm.readers import read_yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import evidence  # noqa: E402
import figures  # noqa: E402
from measures import DERIVED, MEASURES, REAL, TEXTS, Row, measured_columns, rows_of, with_earlier  # noqa: E402

CLAIMS, PAGE = HERE / "claims.yaml", HERE.parent / "study.md"
# Of one job of the mini on one core, as in docs/mini.md.
SECONDS = {
    "base": 943, "teacher": 403, "pseudo": 188, "sft": 390, "kd": 515, "seqkd": 460, "minillm": 905,
    "generate": 76, "exposure_bias": 130, "calibration": 30, "reference_loss": 38,
}  # fmt: skip
MINI = {"mini": ("config/mini.yaml",), "mini-all": ("config/mini.yaml", "config/mini-all.yaml")}
# Piece, student, teacher, training seed.
Block = tuple[str, str, str, int]


# --- claims
def blocks(rows: Sequence[Row], claim: Mapping[str, Any], at: Mapping[str, Any]) -> dict[Block, float]:
    """`first` less `second` (methods, averaged) in each place of `at` and training seed.

    Within a block all on-policy methods began with one initial student.  SFT has no teacher, and stands in
    the block of each.  Empty if a value is missing: a claim is decided by all of its cells or not at all.
    """
    values = {
        (row["piece"], row["student"], row["teacher"], row["method"], row["seed"]): row.get(claim["measure"])
        for row in rows
    }
    found: dict[Block, float] = {}
    for piece, student, teacher in places(at, claim.get("slope")):
        seeds = sorted({row["seed"] for row in rows if row["piece"] == piece})
        if not seeds:
            return {}
        for seed in seeds:
            total = 0.0
            for sign, methods in ((1.0, several(claim["first"])), (-1.0, several(claim.get("second")))):
                for method in methods:
                    of = "" if method == "sft" else teacher
                    value = values.get((piece, student, of, method, seed))
                    if value is None:
                        return {}
                    total += sign * value / len(methods)
            found[piece, student, teacher, seed] = total
    return found


def places(at: Mapping[str, Any], slope: Mapping[str, float] | None) -> list[tuple[str, str, str]]:
    """(piece, student, teacher) of `at`, each a value or several; those of `slope` are its teachers."""
    teachers = list(slope) if slope else several(at.get("teacher", "teacher"))
    return list(itertools.product(several(at["piece"]), several(at["student"]), teachers))


def several(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def effect(rows: Sequence[Row], claim: Mapping[str, Any]) -> evidence.Effect | None:
    """What decides a claim; None if one of its cells was not measured, or with fewer than two blocks.

    The mean over the blocks of `at`, less that over those of `less` if the claim has it: the variances of
    both means are added.  Or the slope over the teachers' sizes, `slope`.
    """
    at = blocks(rows, claim, claim["at"])
    if claim.get("slope"):
        found = slope_of(at, claim["slope"])
        return found and evidence.Effect(found[0], [found[1]], claim["direction"])
    groups = [at] + ([blocks(rows, claim, claim["less"])] if claim.get("less") else [])
    means = [mean_and_error(group.values()) if group else (0.0, None) for group in groups]
    spread = [part(list(group.values())) for group in groups if group]
    parts = [each for each in spread if each]
    if len(parts) < len(groups):
        return None
    estimate = means[0][0] - (means[1][0] if len(means) > 1 else 0.0)
    return evidence.Effect(estimate, parts, claim["direction"], claim.get("margin"))


def slope_of(found: Mapping[Block, float], sizes: Mapping[str, float]) -> tuple[float, Part] | None:
    """Slope over size by least squares with an intercept for each seed, and its variance."""
    seeds = sorted({seed for *_, seed in found})
    table = np.array([[found[key] for key in found if key[3] == seed] for seed in seeds])
    if not found or table.shape != (len(seeds), len(sizes)) or table.size <= len(seeds) + 1:
        return None
    teachers = [key[2] for key in found if key[3] == seeds[0]]
    x = np.array([sizes[teacher] for teacher in teachers]) - np.mean(list(sizes.values()))
    y = table - table.mean(axis=1, keepdims=True)
    spread = len(seeds) * float((x**2).sum())
    slope = float((y * x).sum()) / spread
    freedom = table.size - len(seeds) - 1
    return slope, Part(float(((y - slope * x) ** 2).sum()) / freedom / spread, freedom)


Found = tuple[Mapping[str, Any], evidence.Effect | None, evidence.Decision | None]


def decided(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]]) -> list[Found]:
    """Each claim, its effect and decision; Holm's correction is over the claims of one part."""
    found: list[Found] = []
    for _, group in itertools.groupby(claims, key=lambda claim: claim["part"]):
        members = list(group)
        effects = [effect(rows, claim) for claim in members]
        found += zip(members, effects, evidence.decide(effects), strict=True)
    return found


# --- the pages
def claims_text(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]]) -> str:
    """A table of all claims: what decides each, and what was found."""
    lines = [
        "| | claim | refuted or supported by | verdict | effect [90%], p (Holm) |",
        "|:--|:--|:--|:--|:--|",
    ]
    for claim, of, decision in decided(rows, claims):
        verdict = decision.verdict if decision else "not run"
        said = evidence.numbers(of, decision) if of else ""
        lines.append(f"| {claim['id']} | {claim['claim']} | {_how(claim)} | {verdict} | {said} |")
    return "\n".join(lines)


def _how(claim: Mapping[str, Any]) -> str:
    """The contrast in words."""
    sides = [" and ".join(f"`{name}`" for name in several(claim.get(side))) for side in ("first", "second")]
    sign = "of equal size" if claim["direction"] == "equal" else claim["direction"]
    text = f"{claim['measure']}, {' v '.join(filter(None, sides))}, {_where(claim['at'])}"
    if claim.get("slope"):
        text += ", slope over the teacher's size (doublings)"
    if claim.get("less"):
        text += f", less that at {_where(claim['less'])}"
    return f"{text}: {sign}"


def _where(at: Mapping[str, Any]) -> str:
    return "; ".join(" and ".join(several(value)) for value in at.values())


COLUMNS = (
    *("precision", "rouge", "forms", "mass", "dist4", "dev_reverse_kl", "exposure_bias", "ece_total"),
    *(*REAL, "loss_dolly", "bias_dolly", "ece_sst2", "dist4_dolly"),
)


def results_text(rows: Sequence[Row]) -> str:
    """A table for each piece, a line per teacher, student and method: mean and error over seeds."""
    parts = []
    for piece, group in itertools.groupby(rows, key=lambda row: row["piece"]):
        members = list(group)
        columns = [column for column in COLUMNS if any(row.get(column) is not None for row in members)]
        lines = [f"| teacher | student | method | n | {' | '.join(columns)} |"]
        lines.append("|:--|:--|:--|--:|" + "--:|" * len(columns))
        for key in dict.fromkeys((row["teacher"], row["student"], row["method"]) for row in members):
            own = [row for row in members if (row["teacher"], row["student"], row["method"]) == key]
            values = (cell_text([row[c] for row in own if row.get(c) is not None]) for c in columns)
            lines.append(f"| {' | '.join(key)} | {len(own)} | {' | '.join(values)} |")
        parts.append(f"Piece `{piece}`:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or "Not measured yet."


def cell_text(values: Sequence[float]) -> str:
    """Mean ± standard error to three digits; a dash for no value."""
    if not values:
        return "–"
    mean, error = mean_and_error(values)
    digits = 1 if abs(mean) >= 10 else 3 if abs(mean) < 1 else 2
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


REFERENCE = re.compile(r"\{\{\s*(.+?)\s*\}\}")


def with_numbers(text: str, rows: Sequence[Row], claims: Sequence[Mapping[str, Any]]) -> str:
    """A page from its template.

    `{{ID verdict}}`, `{{ID effect}}`: of a claim; `{{measure: piece student method}}`: of a cell, which may
    name its teacher after the method; `{{figure: NAME}}`: a figure's place in the docs, if each of its panels
    has a number.  Raises UserError, one line, for a reference to nothing.
    """
    found = {claim["id"]: (of, decision) for claim, of, decision in decided(rows, claims)}

    def value(match: re.Match[str]) -> str:
        name, _, rest = match[1].partition(":")
        if name == "figure":
            return _picture(rest.strip(), rows)
        if rest:
            piece, student, method, *teacher = rest.split()
            of = "" if method == "sft" else " ".join(teacher) or "teacher"
            if name not in (*MEASURES, *DERIVED):
                raise UserError(f"{{{{{match[1]}}}}}: no such measure")
            place = {"piece": piece, "student": student, "method": method, "teacher": of}
            own = [row for row in rows if all(row[key] == word for key, word in place.items())]
            return cell_text([row[name] for row in own if row.get(name) is not None])
        claim, _, field = name.partition(" ")
        if claim not in found or field not in ("verdict", "effect"):
            raise UserError(f"{{{{{match[1]}}}}}: neither a cell nor a claim's verdict or effect")
        of, decision = found[claim]
        if field == "verdict":
            return decision.verdict if decision else "not run"
        return evidence.numbers(of, decision) if of else "not run"

    return REFERENCE.sub(value, text)


def _picture(name: str, rows: Sequence[Row]) -> str:
    if name not in figures.FIGURES:
        raise UserError(f"{{{{figure: {name}}}}}: no such figure")
    return f"![{name}]({name}.png)" if drawable(rows, name) else "Not drawn yet."


def drawable(rows: Sequence[Row], name: str) -> bool:
    """Whether each panel of a figure has a number."""
    return all(figures.values(rows, panel) for panel in figures.FIGURES[name])


def read() -> list[Row]:
    """The rows of all pieces that are there."""
    return [row for path in sorted(HERE.glob("*.csv")) for row in evidence.read_rows(path, TEXTS)]


def pages(rows: Sequence[Row]) -> dict[Path, str]:
    """Each generated page's path and text: docs/study.md, and what templates (NAME.in.md) there are."""
    claims = read_yaml(CLAIMS)["claims"]
    parts = {"claims": claims_text(rows, claims), "results": results_text(rows)}
    found = {PAGE: evidence.filled(PAGE.read_text(encoding="utf-8"), parts, "docs/study.md")}
    for template in sorted(HERE.glob("*.in.md")):
        text = template.read_text(encoding="utf-8")
        found[HERE.parent / template.name.replace(".in.md", ".md")] = with_numbers(text, rows, claims)
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="results/study-<piece> or results/mini")
    parser.add_argument("--announce", metavar="PIECE")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="Snakemake's, the last here")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.announce in MINI:
        planned = evidence.left("all", ["--configfile", *MINI[arguments.announce], *arguments.options])
        print(evidence.by_part(planned, SECONDS, arguments.cores), flush=True)
        return
    if arguments.announce:
        configs = ["config/study.yaml", f"config/study/{arguments.announce}.yaml"]
        target = f"results/study-{arguments.announce}/metrics.csv"
        said = evidence.announce(target, ["--configfile", *configs, *arguments.options], arguments.cores)
        print(f"{arguments.announce}: {said}", flush=True)
        return
    for run in arguments.runs:
        path = HERE / f"{run.name.removeprefix('study-')}.csv"
        found = with_earlier(rows_of(run), evidence.read_rows(path, TEXTS))
        evidence.write_rows(measured_columns(found), path)
    rows = read()
    for path, text in pages(rows).items():
        path.write_text(text, encoding="utf-8")
    for name, panels in figures.FIGURES.items():
        if drawable(rows, name):
            figures.draw(rows, panels, HERE.parent / f"{name}.png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"collect.py: error: {error}")
