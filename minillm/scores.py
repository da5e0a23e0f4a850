"""ROUGE-L and exact match of one response against its references, both from 0 to 100.

ROUGE-L as in the paper's code: Google's `rouge_score` with its own tokenizer, stemming, F-measure, the best
of the references (section 5 of the paper and `rouge_metric.py` of the official code).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cache

from rouge_score import rouge_scorer

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@cache
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(response: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure (0 to 100) of the stripped response, the highest over the references.

    Raises ValueError if there is no reference.
    """
    _check(references)
    score = _scorer().score
    return 100.0 * max(score(reference, response.strip())["rougeL"].fmeasure for reference in references)


def exact_match(response: str, references: Sequence[str]) -> float:
    """100 if the response equals a reference in lower case, without punctuation, with single spaces; else 0.

    Articles stay, unlike in SQuAD's exact match: "the cat" is not "cat".
    Raises ValueError if there is no reference.
    """
    _check(references)
    return 100.0 * any(_normalised(response) == _normalised(reference) for reference in references)


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _check(references: Sequence[str]) -> None:
    # A string is a sequence of strings too: its letters would be scored.
    if isinstance(references, str):
        raise ValueError("references is one string; give a list")
    if not references:
        raise ValueError("no reference to score against")
