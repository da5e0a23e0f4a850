"""Which checkpoint of a training run is kept, decided only from its dev evaluations.

Fine-tuned models are chosen by dev ROUGE-L, the start of the on-policy phase by dev loss (appendix B.1 of the
paper).
"""

from __future__ import annotations

import math
from typing import Any

from minillm.errors import UserError

# Rule -> (key, the sign that makes higher better).
RULES = {"best_rouge": ("dev_rouge", 1.0), "lowest_loss": ("dev_loss", -1.0)}


def choose(history: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    """The entry of `history` ("step", "dev_rouge", "dev_loss") that `rule` picks, the earliest on a tie.

    rule: "best_rouge" (highest "dev_rouge") or "lowest_loss" (lowest "dev_loss").  NaN, infinity, None and
    missing values are never picked.  Raises UserError if nothing is left to pick from, ValueError for an
    unknown rule or a key that starts with "test" (test sets choose no checkpoint).
    """
    if rule not in RULES:
        raise ValueError(f"unknown selection rule '{rule}'; known: {', '.join(RULES)}")
    for entry in history:
        for key in entry:
            if key.startswith("test"):
                raise ValueError(
                    f"the history of step {entry.get('step')} has the key '{key}'; "
                    "test results choose no checkpoint"
                )
    key, sign = RULES[rule]
    usable = finite(history, key)
    if not usable:
        raise UserError(
            f"{key}: none of {len(history)} dev evaluations has a finite value, so no model can be chosen; "
            "look at the models' weights, or lower lr"
        )
    return min(usable, key=lambda entry: (-sign * entry[key], entry["step"]))


def finite(history: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The entries that have a finite number as `key`."""
    return [entry for entry in history if entry.get(key) is not None and math.isfinite(entry[key])]


def evidence(history: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    """What was chosen, by which rule and from what, kept with the weights; NaN and infinity become None."""
    return {
        "rule": rule,
        "chosen": plain(choose(history, rule)),
        "history": [plain(entry) for entry in history],
    }


def plain(entry: dict[str, Any]) -> dict[str, Any]:
    """An evaluation as JSON can hold it: NaN and infinity become None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
