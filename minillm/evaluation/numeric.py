"""Stage `numeric`: which responses have the number of a reference; needs no model.

math-verify reads and compares the numbers; what it cannot read is read by one simple rule (`last_number`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.evaluation.generations import read_generations
from minillm.evaluation.row_scores import count_and_first, scored
from minillm.files import write_json

# What stands before the final answer in GSM8K, in references and in responses that imitate them.
MARK = "####"
# Seconds for one text or one comparison: a response may hold 9**9**9**9.
PATIENCE = 5
DIGITS = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")
UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
VALUES = {word: value for value, word in enumerate(UNITS)}
VALUES |= {word: 10 * i for i, word in enumerate(TENS, start=2)}
_TEN, _UNIT, _ANY = "|".join(TENS), "|".join(UNITS[1:10]), "|".join(VALUES)
WORDS = re.compile(rf"\b(?:({_TEN})[- ]({_UNIT})|({_ANY}))\b", re.IGNORECASE)


def run_stage(*, generations: Path, out: Path) -> None:
    """Write the share of responses whose number equals that of a reference to the metric file `out`.

    Keys as in ROUGE-L's file; a row's score is 100 or 0.  "read" counts how the responses' numbers were found
    ("math-verify", "last number", "none"); "without_number" the rows that score 0 whatever the response,
    since no reference has a number.  Raises UserError, one line, if `generations` is damaged or no row has
    a number.
    """
    meta, rows, ids = read_generations(generations)
    first = rows[meta["seeds"][0]]
    without = [id_ for id_ in ids if not any(read(text)[0] for text in first[id_]["references"])]
    if len(without) == len(ids):
        raise UserError(
            f"{generations}: no reference has a number; remove numeric from metrics.{meta['dataset']}"
        )
    head = scored("numeric", meta, rows, ids, lambda row: score(row["response"], row["references"]))
    ways = Counter(read(row["response"])[1] for answers in rows.values() for row in answers.values())
    write_json(
        out,
        {
            **head,
            "read": {way: ways[way] for way in ("math-verify", "last number", "none")},
            **({"without_number": count_and_first(without)} if without else {}),
            "sampling": meta["sampling"],
            "sources": [str(generations)],
        },
    )


def score(response: str, references: Sequence[str]) -> float:
    """100 if the number of `response` is that of a reference, as math-verify compares them; else 0.

    1/2, 0.5 and 50% are equal.  What takes longer than `PATIENCE` seconds is not.
    """
    verify = _math_verify().verify
    answer = read(response)[0]
    wanted = [read(reference)[0] for reference in references]
    return 100.0 * any(
        verify(list(number), list(answer), timeout_seconds=PATIENCE)
        for number in dict.fromkeys(wanted)
        if number and answer
    )


@cache
def read(text: str) -> tuple[tuple[Any, ...], str]:
    """(the number of `text` as math-verify has it, empty if there is none; how it was found).

    Only what follows the last `MARK` counts, if there is one.  First math-verify reads the text (LaTeX and
    plain expressions; "final answer is" and \\boxed before others, of equals the last), then `last_number`.
    """
    text = text.rpartition(MARK)[2]
    found = _parse(text)
    if found:
        return found, "math-verify"
    number = last_number(text)
    found = _parse(number) if number else ()
    return (found, "last number") if found else ((), "none")


def last_number(text: str) -> str:
    """The last number in ASCII digits, without commas; in a text without digits the last English number word.

    Words are those from zero to ninety-nine.  "" if there is none.
    """
    digits = DIGITS.findall(text)
    if digits:
        return str(digits[-1]).replace(",", "")
    words = WORDS.findall(text)
    if not words:
        return ""
    ten, unit, word = (part.lower() for part in words[-1])
    return str(VALUES[word] if word else VALUES[ten] + VALUES[unit])


def _parse(text: str) -> tuple[Any, ...]:
    library = _math_verify()
    kinds = (library.LatexExtractionConfig(), library.ExprExtractionConfig())
    return tuple(library.parse(text, extraction_config=kinds, parsing_timeout=PATIENCE))


@cache
def _math_verify() -> Any:
    import math_verify

    # It logs each text that it cannot read.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return math_verify
