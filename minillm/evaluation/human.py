"""Blind pairwise comparisons by people: one HTML page to hand out, and the counts of the answers that come back.

The page holds texts and opaque ids only; which side is which stands in a key file beside it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from minillm.config.evaluation_settings import HumanSettings
from minillm.errors import UserError
from minillm.evaluation.answers import Answers, question, read_answers
from minillm.files import whole_file, write_json

FORMAT = "minillm-human-1"
CHOICES = ("left", "tie", "right")
PAGE = Path(__file__).with_name("human.html")
LEVEL = 0.95


def export(settings: HumanSettings, generations: Path, against: Sequence[Path], out: Path) -> None:
    """The page `out`, and which side is which in `out`'s name with .key.json: `settings.prompts` prompts, each against each other.

    Of each file the first sampling seed is shown.  Raises UserError where two files answer different prompts.
    """
    ours, others = read_answers(Path(generations)), [read_answers(Path(path)) for path in against]
    for other in others:
        _check_same(ours, other)
    chosen = random.Random(f"{settings.seed} prompts").sample(ours.ids, min(settings.prompts, len(ours.ids)))
    pairs = []
    for number, other in enumerate(others):
        for id_ in sorted(chosen):
            row = ours.rows[ours.seeds[0]][id_]
            texts = [row["response"].strip(), other.rows[other.seeds[0]][id_]["response"].strip()]
            name = _hash(settings.seed, number, id_, row["prompt"], *sorted(texts))[:12]
            side = random.Random(f"{settings.seed} {name}").randrange(2)  # 0: ours is on the left
            shown = {"id": name, "question": question(row["prompt"]), "left": texts[side], "right": texts[1 - side]}
            key = {"ours": CHOICES[2 * side], "against": str(other.path), "row": id_}
            pairs.append((shown, key))
    random.Random(f"{settings.seed} order").shuffle(pairs)
    study = _hash(*(json.dumps(shown) for shown, _ in pairs))[:16]
    page = {"format": FORMAT, "study": study, "pairs": [shown for shown, _ in pairs]}
    with whole_file(out) as partial:
        partial.write_text(PAGE.read_text().replace("{{DATA}}", embedded(page)))
    key_values = {
        "format": FORMAT,
        "study": study,
        "dataset": ours.dataset,
        "ours": str(ours.path),
        "against": [str(other.path) for other in others],
        "prompts": len(chosen),
        "seed": settings.seed,
        "pairs": {shown["id"]: key for shown, key in pairs},
    }
    write_json(key_file(out), key_values)


def key_file(page: Path) -> Path:
    """Where the key of a page lies."""
    return Path(page).with_suffix(".key.json")


def embedded(value: object) -> str:
    """JSON for a script element: no "<" is left in it that could end the element or begin a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_same(ours: Answers, other: Answers) -> None:
    a, b = ours.rows[ours.seeds[0]], other.rows[other.seeds[0]]
    differing = [id_ for id_ in ours.ids if id_ not in b or a[id_]["prompt"] != b[id_]["prompt"]]
    if differing or len(ours.ids) != len(other.ids):
        first = f", first id {differing[0]}" if differing else ""
        raise UserError(f"{other.path}: its prompts are not those of {ours.path}{first}; compare answers to one test set")


# --- answers come back
def count(answers: Sequence[Path], key: Path, out: Path, also: Sequence[Path] = ()) -> None:
    """Win, tie and loss of each comparison over all annotators, with Wilson's 95% intervals, as JSON in `out`.

    Files that answer a page of the keys `also` are left to that page.  UserError, one line, for a file that is damaged, belongs to
    no page, or comes from an annotator who has a file already.
    """
    page = _read_key(Path(key))
    elsewhere = {_read_key(Path(path))["study"] for path in also} - {page["study"]}
    given: dict[str, dict[str, str]] = {}
    sources: dict[str, str] = {}
    for path in answers:
        found = _read_file(Path(path))
        if found["study"] in elsewhere:
            continue
        annotator, choices = _read_answers(Path(path), found, page, Path(key))
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
        **{outcome: {"count": total[outcome], **wilson(total[outcome], n)} for outcome in ("win", "tie", "loss")},
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
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("study"), str):
        raise UserError(f"{path}: no file of a comparison page (format {FORMAT}); check the path")
    return found


def _read_key(path: Path) -> dict[str, Any]:
    found = _read_file(path)
    if not isinstance(found.get("pairs"), dict) or not isinstance(found.get("against"), list):
        raise UserError(f"{path}: no key of a comparison page; make the page again")
    return found


def _read_answers(path: Path, found: dict[str, Any], page: dict[str, Any], key: Path) -> tuple[str, dict[str, str]]:
    if found["study"] != page["study"]:
        raise UserError(f"{path}: answers to another page ({found['study']}) than that of {key} ({page['study']})")
    annotator, choices = found.get("annotator"), found.get("answers")
    if not isinstance(annotator, str) or not annotator.strip():
        raise UserError(f"{path}: no 'annotator'; write a name there that tells this person from the others")
    if not isinstance(choices, dict) or not choices:
        raise UserError(f"{path}: no 'answers' in it; save it from the page again")
    for name, choice in choices.items():
        if name not in page["pairs"]:
            raise UserError(f"{path}: there is no pair '{name}' on this page; save it from the page again")
        if choice not in CHOICES:
            raise UserError(f"{path}: pair '{name}': {choice!r} is none of {', '.join(CHOICES)}; save it from the page again")
    return annotator.strip(), choices
