"""Which checkpoint of a training run is kept, decided from its dev evaluations alone.

Fine-tuned models are chosen by dev ROUGE-L, the start of the on-policy phase by dev loss (appendix B.1 of the paper).
"""

from __future__ import annotations

import math
from typing import Any

RULES = {
    "best_rouge": ("dev_rouge", 1.0),
    "lowest_loss": ("dev_loss", -1.0),
}  # key, and the sign that makes more better


def choose(history: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    """The entry of `history` (dicts with "step", "dev_rouge", "dev_loss") that `rule` picks; the earliest step at a tie.

    rule: "best_rouge" (highest "dev_rouge") or "lowest_loss" (lowest "dev_loss").  NaN, None and no value are never picked.
    Raises ValueError: unknown rule, nothing to pick from, or a key that starts with "test" (test sets choose no checkpoint).
    """
    if rule not in RULES:
        raise ValueError(f"unknown selection rule '{rule}'; known: {', '.join(RULES)}")
    for entry in history:
        for key in entry:
            if key.startswith("test"):
                raise ValueError(
                    f"the history of step {entry.get('step')} has the key '{key}'; test results choose no checkpoint"
                )
    key, sign = RULES[rule]
    usable = [entry for entry in history if entry.get(key) is not None and not math.isnan(entry[key])]
    if not usable:
        raise ValueError(f"no evaluation with a number as {key} among {len(history)}; nothing to choose")
    return min(usable, key=lambda entry: (-sign * entry[key], entry["step"]))


def evidence(history: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    """What was chosen, by which rule and from what, to be kept beside the weights; what JSON lacks (NaN, infinity) as None."""
    return {
        "rule": rule,
        "chosen": _plain(choose(history, rule)),
        "history": [_plain(entry) for entry in history],
    }


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
