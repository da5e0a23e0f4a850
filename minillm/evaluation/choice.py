"""Stage `choice`: which responses choose the right option of a multiple-choice question; needs no model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.generations import AGAIN, read_generations
from minillm.evaluation.row_scores import scored
from minillm.files import write_json

# Labels that are English words as well.
AMBIGUOUS = ("A", "I")


def run_stage(*, generations: Path, out: Path) -> None:
    """Write the share of responses that name the right option first to the metric file `out`.

    Keys as in ROUGE-L's file; a row's score is 100 or 0.  "unanswered" counts the responses, over all seeds,
    that name no option: they are wrong.  Raises UserError, one line, if `generations` is damaged, or a row
    has no options or a reference that is none of them.
    """
    meta, rows, ids = read_generations(generations)
    for seed in meta["seeds"]:
        for id_ in ids:
            _check(generations, rows[seed][id_])
    head = scored("choice", meta, rows, ids, score)
    chosen = [named(row["response"], row["options"]) for answers in rows.values() for row in answers.values()]
    write_json(
        out,
        {
            **head,
            "unanswered": sum(label is None for label in chosen),
            "responses": len(chosen),
            "sampling": meta["sampling"],
            "sources": [str(generations)],
        },
    )


def score(row: Mapping[str, Any]) -> float:
    """100 if the response names the right option first, whose label is the row's first reference; else 0."""
    return 100.0 * (named(row["response"], row["options"]) == row["references"][0])


def named(response: str, options: Mapping[str, str]) -> str | None:
    """The label of the option that `response` names first, or None; options: label -> text.

    Named is an option by its label, standing alone and written as given, or by its whole text in any case and
    spacing.  A label that is an English word too (`AMBIGUOUS`) counts only before a punctuation mark or the
    end of a line.  Of options named at one place the longest counts: "red wine" before "red".
    """
    found = []
    for label, text in options.items():
        after = r"(?=\s*(?:[^\w\s]|$))" if label in AMBIGUOUS else r"(?!\w)"
        words = r"\s+".join(map(re.escape, text.split()))
        patterns = (
            re.compile(rf"(?<!\w){re.escape(label)}{after}", re.MULTILINE),
            re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE),
        )
        matches = [match for pattern in patterns if (match := pattern.search(response))]
        found += [(match.start(), -len(match[0]), label) for match in matches]
    return min(found)[2] if found else None


def _check(path: Path, row: Mapping[str, Any]) -> None:
    options = row.get("options")
    where = f"{path}: seed {row['seed']}, id {row['id']}"
    if not isinstance(options, dict) or not all(isinstance(text, str) for text in options.values()):
        raise UserError(f"{where}: 'options' is missing or not labels with texts; {AGAIN}")
    if row["references"][0] not in options:
        raise UserError(f"{where}: the first reference is not the label of an option; {AGAIN}")
