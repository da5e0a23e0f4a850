"""Stage `human-import`: win, tie and loss of each comparison, counted from the files that annotators send back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.human_page import CHOICES, FORMAT
from minillm.files import write_json

LEVEL = 0.95


def run_stage(*, answers: Sequence[Path], key: Path, out: Path, also: Sequence[Path] | None = None) -> None:
    """Win, tie and loss of each comparison over all annotators, with Wilson's 95% intervals, as JSON in `out`.

    Files that answer a page of the keys `also` are left to that page.  UserError, one line, for a file that is damaged, belongs to
    no page, or comes from an annotator who has a file already.
    """
    page = _read_key(key)
    elsewhere = {_read_key(path)["study"] for path in also or ()} - {page["study"]}
    given: dict[str, dict[str, str]] = {}
    sources: dict[str, str] = {}
    for path in answers:
        found = _read_file(path)
        if found["study"] in elsewhere:
            continue
        annotator, choices = _read_answers(path, found, page, key)
        if annotator in given:
            raise UserError(
                f"{path}: the annotator '{annotator}' has answered in {sources[annotator]} already; name one of the two"
            )
        given[annotator], sources[annotator] = choices, str(path)
    write_json(
        out,
        {
            "metric": "human",
            "dataset": page["dataset"],
            "n": sum(map(len, given.values())),
            "mean": None,
            "standard_error": None,
            "over": f"judgements; Wilson intervals at {LEVEL:.0%} for each comparison",
            "ours": page["ours"],
            "prompts": page["prompts"],
            "annotators": sorted(given),
            "comparisons": [_comparison(page, other, given) for other in page["against"]],
            "agreement": _agreement(given),
            "sources": [str(key), *sources.values()],
        },
    )


def _comparison(page: dict[str, Any], against: str, given: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Counts of one comparison; shares and intervals in percent of its judgements."""
    pairs = {name: pair["ours"] for name, pair in page["pairs"].items() if pair["against"] == against}
    each = {
        annotator: Counter(_outcome(choice, pairs[name]) for name, choice in choices.items() if name in pairs)
        for annotator, choices in sorted(given.items())
    }
    total = sum(each.values(), Counter())
    n = total.total()
    return {
        "against": against,
        "n": n,
        "pairs": len(pairs),
        "unanswered": len(pairs) * len(given) - n,
        **{
            outcome: {"count": total[outcome], **wilson(total[outcome], n)}
            for outcome in ("win", "tie", "loss")
        },
        "annotators": {annotator: dict(counts) for annotator, counts in each.items()},
    }


def _outcome(choice: str, ours: str) -> str:
    return "tie" if choice == "tie" else "win" if choice == ours else "loss"


def wilson(k: int, n: int) -> dict[str, float | None]:
    """Share k / n in percent with Wilson's interval; nulls for n = 0."""
    if not n:
        return {"share": None, "low": None, "high": None}
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return {"share": 100.0 * k / n, "low": 100.0 * float(interval.low), "high": 100.0 * float(interval.high)}


def _agreement(given: dict[str, dict[str, str]]) -> float | None:
    """Share (percent) of equal choices among all that two annotators made on one pair; null where no pair has two."""
    same = [a[name] == b[name] for a, b in combinations(given.values(), 2) for name in a.keys() & b.keys()]
    return 100.0 * sum(same) / len(same) if same else None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: no such file; check human.answers") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); save it from the page again") from None
    if (
        not isinstance(found, dict)
        or found.get("format") != FORMAT
        or not isinstance(found.get("study"), str)
    ):
        raise UserError(f"{path}: no file of a comparison page (format {FORMAT}); check the path")
    return found


def _read_key(path: Path) -> dict[str, Any]:
    found = _read_file(path)
    if not isinstance(found.get("pairs"), dict) or not isinstance(found.get("against"), list):
        raise UserError(f"{path}: no key of a comparison page; make the page again")
    return found


def _read_answers(
    path: Path, found: dict[str, Any], page: dict[str, Any], key: Path
) -> tuple[str, dict[str, str]]:
    if found["study"] != page["study"]:
        raise UserError(
            f"{path}: answers to another page ({found['study']}) than that of {key} ({page['study']})"
        )
    annotator, choices = found.get("annotator"), found.get("answers")
    if not isinstance(annotator, str) or not annotator.strip():
        raise UserError(f"{path}: no 'annotator'; write a name there that tells this person from the others")
    if not isinstance(choices, dict) or not choices:
        raise UserError(f"{path}: no 'answers' in it; save it from the page again")
    for name, choice in choices.items():
        if name not in page["pairs"]:
            raise UserError(f"{path}: there is no pair '{name}' on this page; save it from the page again")
        if choice not in CHOICES:
            raise UserError(
                f"{path}: pair '{name}': {choice!r} is none of {', '.join(CHOICES)}; save it from the page again"
            )
    return annotator.strip(), choices
