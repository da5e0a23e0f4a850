"""docs/methods.md from measured runs: `python docs/methods/collect.py [results/methods]`.

With a run, its trainings (tables/methods.csv) are merged into docs/methods/methods.csv first: a row for each
method, training seed, teacher and kind of processor, the newest wins.  So a comparison may be measured in
pieces and on several machines; only rows of one teacher are compared.  Then the parts of the page between
`<!-- name -->` and `<!-- end -->` are written again, from the csv, config/methods.yaml and claims.yaml.
`--announce` only says how long the run would take.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.statistics import mean_and_error, part
from minillm.methods import markdown_table, read_catalogue
from minillm.publish.tables.methods import INITIAL, by_method, comparable, sheet
from minillm.publish.tables.sheet import as_markdown
from minillm.readers import read_yaml

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
import evidence  # noqa: E402

CSV, CLAIMS, PAGE = HERE / "methods.csv", HERE / "claims.yaml", HERE.parent / "methods.md"
KEY = ("method", "seed", "processor", "teacher")
TEXTS = ("method", "label", "pair", "teacher", "initial", "processor", "edge", "settings", "git")
AGAINST = ("minillm", "on-policy-reverse-kl")
# Measure -> decimals, of the differences within seeds.
WITHIN = {"dev_reverse_kl": 3, "dev_forward_kl": 3, "rouge": 1, "precision": 1, "coverage": 1, "length": 1}
CONFIGS = ["config/demo.yaml", "config/methods-demo.yaml"]
TARGET = "results/methods/tables/methods.md"
Row = dict[str, Any]


# --- the csv
def read(path: Path = CSV) -> list[Row]:
    """The rows of a csv; see evidence.read_rows."""
    return evidence.read_rows(path, TEXTS)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Both, a new row in the place of an old one of the same `KEY`, in the catalogue's order."""
    rows = {tuple(row[key] for key in KEY): row for row in (*old, *new)}
    order = [INITIAL, "sft", "kd", "seqkd", "minillm", *read_catalogue(REPO / "config/methods.yaml")]

    def place(row: Row) -> tuple[Any, ...]:
        method = row["method"]
        return row["processor"], order.index(method) if method in order else len(order), method, row["seed"]

    return sorted(rows.values(), key=place)


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
        parts += [part_ for _, rows_ in _groups(group) if (part_ := within_seeds(rows_))]
    return "\n\n".join(parts)


def within_seeds(rows: Sequence[Row], against: str = AGAINST[-1]) -> str:
    """A table of differences to a method from the same initial student: mean and error over seeds; no test.

    The rows are those of one teacher.  Empty if no other method began with the same initial student.
    """
    theirs = {row["initial"]: row for row in rows if row["method"] == against and row["initial"]}
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows if row["method"] not in (against, INITIAL)):
        own = [row for row in rows if row["label"] == label and row["initial"] in theirs]
        cells = []
        for measure in WITHIN:
            pairs = [(row[measure], theirs[row["initial"]][measure]) for row in own]
            differences = [ours - other for ours, other in pairs if None not in (ours, other)]
            mean, error = mean_and_error(differences) if differences else (0.0, None)
            digits = WITHIN[measure]
            cells.append("–" if error is None else f"{mean:+.{digits}f} ± {error:.{digits}f}")
        if set(cells) != {"–"}:
            lines.append(f"| {label} | {' | '.join(cells)} |")
    if not lines:
        return ""
    said = "Within seeds: less on-policy reverse KL from the same initial student, mean ± standard error."
    head = f"| Method | {' | '.join(measure.replace('_', ' ') for measure in WITHIN)} |"
    return "\n".join([said, "", head, "|:--|" + "--:|" * len(WITHIN), *lines])


def verdicts(rows: Sequence[Row], claims: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(verdict, numbers) of each claim: its rule is in docs/methods.md, its p after Holm over all claims.

    The rows are those of one teacher.  "not run" if a side has fewer than two seeds.
    """
    effects = [_effect(rows, claim) for claim in claims]
    decisions = evidence.decide(effects)
    return [
        (decision.verdict if decision else "not run", evidence.numbers(effect, decision) if effect else "")
        for effect, decision in zip(effects, decisions, strict=True)
    ]


def _effect(rows: Sequence[Row], claim: Mapping[str, Any]) -> evidence.Effect | None:
    """The difference of a claim's two methods; None if one has fewer than two seeds."""
    values = by_method(rows, claim["measure"])
    sides = [values.get(claim[side], []) for side in ("first", "second")]
    parts = [each for each in (part(side) for side in sides if side) if each]
    if len(parts) < 2:
        return None
    difference = mean_and_error(sides[0])[0] - mean_and_error(sides[1])[0]
    margin = _margin(rows, claim) if claim["direction"] == "equal" else None
    return evidence.Effect(difference, parts, claim["direction"], margin)


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
    return evidence.filled(text, parts, "docs/methods.md")


# --- the command
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
        print(evidence.announce(TARGET, options(arguments.methods), arguments.cores), flush=True)
        return
    rows = read()
    if arguments.run:
        rows = merged(rows, read(arguments.run / "tables/methods.csv"))
        evidence.write_rows(rows, CSV)
        # As the csv has them.
        rows = read()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"collect.py: error: {error}")
