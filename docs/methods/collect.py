"""docs/methods.md from measured runs: `python docs/methods/collect.py [results/methods]`.

With a run, its trainings (tables/methods.csv) are merged into docs/methods/methods.csv first: a row for each
method, training seed, teacher and kind of processor, the newest wins.  So a comparison may be measured in
pieces and on several machines; only rows of one teacher are compared.  Then the parts of the page between
`<!-- name -->` and `<!-- end -->` are written again, from the csv, config/methods.yaml and claims.yaml.
`--announce` only says how long the run would take.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.statistics import holm, mean_and_error, part, t_interval, t_test
from minillm.methods import markdown_table, read_catalogue
from minillm.plan import Job, hours_of, jobs
from minillm.publish.tables.methods import INITIAL, LEVEL, by_method, comparable, sheet
from minillm.publish.tables.sheet import as_markdown
from minillm.readers import read_yaml

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
CSV, CLAIMS, PAGE = HERE / "methods.csv", HERE / "claims.yaml", HERE.parent / "methods.md"
KEY = ("method", "seed", "processor", "teacher")
TEXTS = ("method", "label", "pair", "teacher", "initial", "processor", "edge", "settings", "git")
AGAINST = ("minillm", "on-policy-reverse-kl")
CONFIGS = ["config/demo.yaml", "config/methods-demo.yaml"]
TARGET = "results/methods/tables/methods.md"
# Seconds of one core, for jobs that never ran here.
SECONDS = {"teacher": 280, "base": 30, "pseudo": 60, "trial": 25, "minillm": 50, "generate": 8}
SECONDS |= dict.fromkeys(("sft", "kd", "seqkd"), 90)
OTHER = 5
Row = dict[str, Any]


# --- the csv
def read(path: Path = CSV) -> list[Row]:
    """The rows of a csv: numbers where the column has them, None for an empty number."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [{k: v if k in TEXTS else _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | int | None:
    if not text:
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Both, a new row in the place of an old one of the same `KEY`, in the catalogue's order."""
    rows = {tuple(row[key] for key in KEY): row for row in (*old, *new)}
    order = [INITIAL, "sft", "kd", "seqkd", "minillm", *read_catalogue(REPO / "config/methods.yaml")]

    def place(row: Row) -> tuple[Any, ...]:
        method = row["method"]
        return row["processor"], order.index(method) if method in order else len(order), method, row["seed"]

    return sorted(rows.values(), key=place)


def write(rows: Sequence[Row], path: Path = CSV) -> None:
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


# --- the page
def results_text(rows: Sequence[Row]) -> str:
    """A table for each teacher; SFT's rows, which know none, belong to those of their processor."""
    if not rows:
        return "Not measured yet."
    parts = []
    for processor in dict.fromkeys(row["processor"] for row in rows):
        group = [row for row in rows if row["processor"] == processor]
        shown = as_markdown(sheet(group, AGAINST)).strip()
        # The caption and the notes stand in the page.
        table = "\n".join(line for line in shown.splitlines() if line.startswith("|"))
        parts += [f"On {processor}:", table]
        edges: dict[str, dict[str, None]] = {}
        for row in group:
            edges.setdefault(row["edge"] or "", {})[row["label"]] = None
        said = [f"{edge} ({', '.join(labels)})" for edge, labels in edges.items() if edge]
        parts += ["At the edge of the grid: " + "; ".join(said) + "."] if said else []
    return "\n\n".join(parts)


def verdicts(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(verdict, numbers) of each claim: its rule is in docs/methods.md, its p after Holm over all claims.

    The rows are those of one teacher.  "not run" if a side has fewer than two seeds.
    """
    found: list[tuple[float, float, tuple[float, float]] | None] = []
    for claim in claims:
        values = by_method(rows, claim["measure"])
        sides = [values.get(claim[side], []) for side in ("first", "second")]
        parts = [each for each in (part(side) for side in sides if side) if each]
        if len(parts) < 2:
            found.append(None)
            continue
        difference = mean_and_error(sides[0])[0] - mean_and_error(sides[1])[0]
        p = t_test(difference, parts)
        found.append((difference, p, t_interval(difference, parts, 0.9)))
    # Claims of equality have no p: a margin decides.
    tested = [
        i for i, (c, f) in enumerate(zip(claims, found, strict=True)) if f and c["direction"] != "equal"
    ]
    adjusted = dict(zip(tested, holm([found[i][1] for i in tested]), strict=True))  # type: ignore[index]
    said = []
    for i, (claim, values) in enumerate(zip(claims, found, strict=True)):
        if values is None:
            said.append(("not run", ""))
            continue
        difference, p, (low, high) = values
        numbers = f"{difference:+.3g} [{low:.3g}, {high:.3g}]"
        if claim["direction"] == "equal":
            margin = _margin(rows, claim)
            if margin is None:
                said.append(("not run", numbers))
                continue
            inside, outside = max(abs(low), abs(high)) < margin, low > margin or high < -margin
            verdict = "seen" if inside else "not seen" if outside else "undecided"
            said.append((verdict, f"{numbers}, margin {margin:.3g}"))
            continue
        sign = 1 if claim["direction"] == "higher" else -1
        right = sign * difference > 0
        verdict = "seen" if right and adjusted[i] < LEVEL else "undecided"
        verdict = "not seen" if not right and p < LEVEL else verdict
        said.append((verdict, f"{numbers}, p {p:.2g} ({adjusted[i]:.2g})"))
    return said


def _margin(rows: Sequence[Row], claim: Mapping[str, Any]) -> float | None:
    """A tenth of what on-policy reverse KL gains over the initial student on the claim's measure."""
    values = by_method(rows, claim["measure"])
    sides = [
        values.get(name)
        for name in ("on-policy-reverse-kl", INITIAL if claim["measure"][:3] == "dev" else "sft")
    ]
    if not all(sides):
        return None
    first, second = (mean_and_error(side)[0] for side in sides if side)
    return abs(first - second) / 10


def claims_text(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]]) -> str:
    """A line per claim, for each teacher."""
    groups = list(_groups(rows)) or [("", [])]
    lines = []
    for name, group in groups:
        lines += [f"On {name}:", ""] if name else []
        lines += [
            "| claim | of | decided here by | verdict | difference [90%], p (Holm) |",
            "|:--|:--|:--|:--|:--|",
        ]
        for claim, (verdict, numbers) in zip(claims, verdicts(group, claims), strict=True):
            how = f"`{claim['first']}` v `{claim['second']}`, {claim['measure']} {claim['direction']}"
            paper = f"arXiv {claim['arxiv']}" if "arxiv" in claim else claim["paper"]
            lines.append(f"| {claim['claim']} | {paper} | {how} | {verdict} | {numbers} |")
        lines.append("")
    return "\n".join(lines).strip()


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(processor, rows) for each teacher's weights."""
    found = []
    for processor in dict.fromkeys(row["processor"] for row in rows):
        own = [row for row in rows if row["processor"] == processor]
        found += [(processor, [dict(row) for row in group]) for group in comparable(own).values()]
    return found


def page(text: str, rows: Sequence[Row]) -> str:
    """The page with its generated parts written again."""
    claims = read_yaml(CLAIMS)["claims"]
    parts = {
        "catalogue": markdown_table(read_catalogue(REPO / "config/methods.yaml")),
        "results": results_text(rows),
        "claims": claims_text(rows, claims),
    }
    for name, part_ in parts.items():
        pattern = rf"(<!-- {name} -->).*?(<!-- end -->)"
        assert re.search(pattern, text, re.DOTALL), f"docs/methods.md: no part <!-- {name} -->"
        text = re.sub(
            pattern, lambda found, new=part_: f"{found[1]}\n\n{new}\n\n{found[2]}", text, flags=re.DOTALL
        )
    return text


# --- how long
def announce(names: Sequence[str], cores: int) -> str:
    """One line: what is left to run, and about how long; times of earlier jobs where there are any."""
    command = [sys.executable, "-m", "snakemake", "-n", TARGET, "--cores", "all", *options(names)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"})
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        sys.exit(
            next((line for line in lines if line.startswith("Error: ")), lines[-1] if lines else "no output")
        )
    planned = jobs(done.stdout)
    return estimate(planned, hours_of(planned, Path()), cores)


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


def options(names: Sequence[str]) -> list[str]:
    """Snakemake's options for these methods; for none, all of config/methods-demo.yaml."""
    chosen = ["--config", f"methods=[{','.join(names)}]"] if names else []
    return ["--configfile", *CONFIGS, *chosen]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="results/methods")
    parser.add_argument("--announce", action="store_true", help="only say how long the run would take")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--methods", nargs="*", default=[], metavar="NAME")
    arguments = parser.parse_args()
    if arguments.announce:
        print(announce(arguments.methods, arguments.cores), flush=True)
        return
    rows = read()
    if arguments.run:
        rows = merged(rows, read(arguments.run / "tables/methods.csv"))
        write(rows)
        # As the csv has them.
        rows = read()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"collect.py: error: {error}")
