"""Which checkpoint is kept."""

from __future__ import annotations

import json
import math

import pytest

from minillm.errors import UserError
from minillm.training.selection import choose, evidence

HISTORY = [
    {"step": 10, "dev_rouge": 20.0, "dev_loss": 3.0},
    {"step": 20, "dev_rouge": 25.0, "dev_loss": 2.0},
    {"step": 30, "dev_rouge": 25.0, "dev_loss": 2.0},
    {"step": 40, "dev_rouge": 24.0, "dev_loss": 2.5},
]


@pytest.mark.parametrize("rule", ["best_rouge", "lowest_loss"])
def test_the_earliest_of_the_best(rule: str) -> None:
    assert choose(HISTORY, rule)["step"] == 20
    assert choose(HISTORY[::-1], rule)["step"] == 20


def test_the_rules_look_at_their_own_key() -> None:
    history = [{"step": 1, "dev_rouge": 1.0, "dev_loss": 1.0}, {"step": 2, "dev_rouge": 2.0, "dev_loss": 2.0}]
    assert choose(history, "best_rouge")["step"] == 2
    assert choose(history, "lowest_loss")["step"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_is_never_chosen(place: int, value: float | None) -> None:
    for rule, key in (("best_rouge", "dev_rouge"), ("lowest_loss", "dev_loss")):
        history: list[dict] = [{"step": 1, key: 1.0}]
        history.insert(place, {"step": 2 * place, key: value})
        assert choose(history, rule)["step"] == 1


@pytest.mark.parametrize("history", [[], [{"step": 1, "dev_rouge": math.nan}], [{"step": 1}]])
def test_nothing_to_choose(history: list) -> None:
    with pytest.raises(UserError, match=f"^dev_rouge: none of {len(history)} dev evaluations .*; look at"):
        choose(history, "best_rouge")


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="unknown selection rule 'last'; known: best_rouge, lowest_loss"):
        choose(HISTORY, "last")


def test_test_results_are_refused() -> None:
    with pytest.raises(ValueError, match="step 2 has the key 'test_rouge'"):
        choose([HISTORY[0], {"step": 2, "dev_rouge": 1.0, "test_rouge": 1.0}], "best_rouge")


def test_evidence() -> None:
    assert evidence(HISTORY, "best_rouge") == {"rule": "best_rouge", "chosen": HISTORY[1], "history": HISTORY}


def test_evidence_is_strict_json() -> None:
    history = [
        {"step": 1, "dev_rouge": math.nan, "dev_loss": math.inf},
        {"step": 2, "dev_rouge": 1.0, "dev_loss": math.nan},
    ]
    found = evidence(history, "best_rouge")
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "rule": "best_rouge",
        "chosen": {"step": 2, "dev_rouge": 1.0, "dev_loss": None},
        "history": [
            {"step": 1, "dev_rouge": None, "dev_loss": None},
            {"step": 2, "dev_rouge": 1.0, "dev_loss": None},
        ],
    }
    assert math.isnan(history[0]["dev_rouge"])  # the history itself is left alone
