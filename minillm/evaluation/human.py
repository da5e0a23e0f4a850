"""Stage `human-import`: wins, ties and losses of each comparison, from the files annotators send back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.human_page import CHOICES, FORMAT
from minillm.files import write_json
from minillm.readers import Kind, all_are, checked, read_json

LEVEL = 0.95
KEY: dict[str, Kind] = {"pairs": dict, "against": list, "dataset": str, "ours": str, "prompts": int}


def run_stage(*, answers: Sequence[Path], key: Path, out: Path, also: Sequence[Path] | None = None) -> None:
    """Write wins, ties and losses of each comparison, over all annotators, with Wilson's 95% intervals.

    Files that answer the page of a key in `also` are left to that page.  Raises UserError, one line, for a
    file that is damaged, belongs to no page, or comes from an annotator who already has a file.
    """
    page = _read_key(key)
    elsewhere = {_read_key(path)["study"] for path in also or ()} - {page["study"]}
    choices: dict[str, dict[str, str]] = {}
    sources: dict[str, str] = {}
    for path in answers:
        content = _read_file(path)
        if content["study"] in elsewhere:
            continue
        annotator, chosen = _read_answers(path, content, page, key)
        if annotator in choices:
            raise UserError(
                f"{path}: the annotator '{annotator}' has answered in {sources[annotator]} already; "
                "name one of the two"
            )
        choices[annotator], sources[annotator] = chosen, str(path)
    write_json(
        out,
        {
            "metric": "human",
            "dataset": page["dataset"],
            "n": sum(map(len, choices.values())),
            "mean": None,
            "standard_error": None,
            "over": f"judgements; Wilson intervals at {LEVEL:.0%} for each comparison",
            "ours": page["ours"],
            "prompts": page["prompts"],
            "annotators": sorted(choices),
            "comparisons": [_comparison(page, against, choices) for against in page["against"]],
            "agreement": _agreement(choices),
            "sources": [str(key), *sources.values()],
        },
    )


def _comparison(page: dict[str, Any], against: str, choices: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Counts of one comparison; shares and intervals in percent of its judgements."""
    pairs = {name: pair["ours"] for name, pair in page["pairs"].items() if pair["against"] == against}
    each = {
        annotator: Counter(_outcome(choice, pairs[name]) for name, choice in chosen.items() if name in pairs)
        for annotator, chosen in sorted(choices.items())
    }
    total = sum(each.values(), Counter())
    n = total.total()
    return {
        "against": against,
        "n": n,
        "pairs": len(pairs),
        "unanswered": len(pairs) * len(choices) - n,
        **{
            outcome: {"count": total[outcome], **wilson(total[outcome], n)}
            for outcome in ("win", "tie", "loss")
        },
        "annotators": {annotator: dict(counts) for annotator, counts in each.items()},
    }


def _outcome(choice: str, ours: str) -> str:
    return "tie" if choice == "tie" else "win" if choice == ours else "loss"


def wilson(k: int, n: int) -> dict[str, float | None]:
    """Share k / n in percent with Wilson's interval; nulls if n = 0."""
    if not n:
        return {"share": None, "low": None, "high": None}
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return {"share": 100.0 * k / n, "low": 100.0 * float(interval.low), "high": 100.0 * float(interval.high)}


def _agreement(choices: dict[str, dict[str, str]]) -> float | None:
    """Percent of equal choices among all that two annotators made on one pair; null if no pair has two."""
    same = [a[name] == b[name] for a, b in combinations(choices.values(), 2) for name in a.keys() & b.keys()]
    return 100.0 * sum(same) / len(same) if same else None


def _read_file(path: Path) -> dict[str, Any]:
    content = read_json(path, "no such file; check human.answers", "save it from the page again")
    known = isinstance(content, dict) and content.get("format") == FORMAT
    if not known or not isinstance(content.get("study"), str):
        raise UserError(f"{path}: not a file of a comparison page (format {FORMAT}); check the path")
    return content


def _read_key(path: Path) -> dict[str, Any]:
    content = _read_file(path)
    checked(content, KEY, path, "make the page again")
    pairs = content["pairs"].values()
    if not all_are(content["against"], str) or not all(
        isinstance(pair, dict)
        and pair.get("against") in content["against"]
        and pair.get("ours") in (CHOICES[0], CHOICES[2])
        for pair in pairs
    ):
        raise UserError(f"{path}: not the key of a comparison page; make the page again")
    return content


def _read_answers(
    path: Path, content: dict[str, Any], page: dict[str, Any], key: Path
) -> tuple[str, dict[str, str]]:
    if content["study"] != page["study"]:
        raise UserError(
            f"{path}: answers to another page ({content['study']}) than that of {key} ({page['study']})"
        )
    annotator, choices = content.get("annotator"), content.get("answers")
    if not isinstance(annotator, str) or not annotator.strip():
        raise UserError(f"{path}: no 'annotator'; write a name there that tells this person from the others")
    if not isinstance(choices, dict) or not choices:
        raise UserError(f"{path}: no 'answers' in it; save it from the page again")
    for name, choice in choices.items():
        if name not in page["pairs"]:
            raise UserError(f"{path}: unknown pair '{name}'; save it from the page again")
        if not isinstance(choice, str) or choice not in CHOICES:
            raise UserError(
                f"{path}: pair '{name}': {choice!r} is none of {', '.join(CHOICES)}; "
                "save it from the page again"
            )
    return annotator.strip(), choices
