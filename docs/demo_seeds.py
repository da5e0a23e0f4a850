"""`python docs/demo_seeds.py results/demo-seeds` prints docs/demo.md's table of several training seeds.

Means over training seeds with their standard error, and the two-sided p of MiniLLM's difference to each other
method: Student's t, the variances over prompts (paired) and over training seeds added; in brackets with
Holm's correction over all comparisons of the table.  Then each seed's ROUGE-L on the open test set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from minillm.evaluation.statistics import holm, mean_and_error, part, t_test
from minillm.evaluation.validity import RIGHT, WRONG_FACT, verdict

TEACHER, STUDENT, OPEN, CLOSED = "demo-teacher", "demo-student", "embedded-open", "embedded-closed"
METHODS = {"sft": "SFT", "kd": "KD", "seqkd": "SeqKD", "minillm": "MiniLLM"}
# Heading -> (metric, test set).
MEASURES = {
    "ROUGE-L, closed": ("rouge", CLOSED),
    "ROUGE-L, open": ("rouge", OPEN),
    "precision": ("precision", OPEN),
    "facts": ("facts", OPEN),
    "coverage of three samples": ("coverage", OPEN),
    "mass": ("mass", OPEN),
    "effective forms": ("forms", OPEN),
}


def scores(run: Path, model: str, metric: str, test: str) -> np.ndarray:
    """One score for each prompt, mean over sampling seeds; `facts` has NaN where no response has a form."""
    if metric in ("precision", "facts"):
        path = run / "generations" / model / f"{test}.jsonl"
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found: dict[int, list[str]] = {}
        for row in rows:
            found.setdefault(row["id"], []).append(
                verdict(row["response"], row["references"], row["finished"])
            )
        right = np.array([verdicts.count(RIGHT) for _, verdicts in sorted(found.items())])
        if metric == "precision":
            return 100 * right / len(next(iter(found.values())))
        formed = right + np.array([verdicts.count(WRONG_FACT) for _, verdicts in sorted(found.items())])
        return np.where(formed > 0, 100 * right / np.maximum(formed, 1), np.nan)
    if metric == "rouge":
        content = metrics(run, "rouge", model, test)
        return np.mean(list(content["scores"].values()), axis=0)
    if metric == "coverage":
        content = metrics(run, "validity", model, test)
        return 100 * np.array(content["reached"]) / np.array(content["right_answers"])
    logprobs = [np.array(row) for row in metrics(run, "mode_mass", model, test)["logprobs"]]
    if metric == "mass":
        return np.array([100 * np.exp(row).sum() for row in logprobs])
    shares = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logprobs]
    return np.array([np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum()) for share in shares])


def metrics(run: Path, kind: str, model: str, test: str) -> dict[str, Any]:
    """A metric file."""
    path = run / "metrics" / kind / model / f"{test}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def compared(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """p of the difference; an array (prompts,) for each training seed."""
    both = np.array([ours, theirs])
    # Prompts to which each method has an answer in a right form.
    both = both[..., ~np.isnan(both).all(axis=1).any(axis=0)]
    prompts = np.nanmean(both[0], axis=0) - np.nanmean(both[1], axis=0)
    parts = [part([float(np.nanmean(seed)) for seed in seeds]) for seeds in (ours, theirs)]
    parts.append(part(prompts.tolist()))
    difference = np.mean([np.nanmean(s) for s in ours]) - np.mean([np.nanmean(s) for s in theirs])
    return t_test(float(difference), [each for each in parts if each])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 20, 30])
    options = parser.parse_args()
    cells: dict[tuple[str, str], str] = {}
    p: dict[tuple[str, str], float] = {}
    each: dict[str, list[float]] = {}
    for heading, (metric, test) in MEASURES.items():
        teacher = scores(options.run, f"{TEACHER}/teacher", metric, test)
        cells["Teacher", heading] = f"{np.nanmean(teacher):.1f}"
        of_method = {}
        for method in METHODS:
            folder = f"{STUDENT}/{method}" if method == "sft" else f"{STUDENT}/{method}/{TEACHER}"
            of_method[method] = [
                scores(options.run, f"{folder}/seed{seed}", metric, test) for seed in options.seeds
            ]
            if heading == "ROUGE-L, open":
                each[METHODS[method]] = [float(np.nanmean(seed)) for seed in of_method[method]]
            mean, error = mean_and_error([float(np.nanmean(seed)) for seed in of_method[method]])
            cells[METHODS[method], heading] = f"{mean:.1f}" + (f" ± {error:.1f}" if error else "")
        for method in METHODS:
            if method != "minillm":
                p[method, heading] = compared(of_method["minillm"], of_method[method])
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    print("| |", " | ".join(MEASURES), "|")
    print("|:--|" + "--:|" * len(MEASURES))
    for name in ("Teacher", *METHODS.values()):
        print(f"| {name} |", " | ".join(cells[name, heading] for heading in MEASURES), "|")
    for method, name in METHODS.items():
        if method != "minillm":
            row = (f"{p[method, heading]:.2g} ({adjusted[method, heading]:.2g})" for heading in MEASURES)
            print(f"| p, MiniLLM and {name} |", " | ".join(row), "|")
    print()
    for name, values in each.items():
        print(f"{name}: {', '.join(f'{value:.1f}' for value in values)}")


if __name__ == "__main__":
    main()
