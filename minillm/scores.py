"""ROUGE and exact match of one response against its references, from 0 to 100.

ROUGE as in the paper's code: Google's `rouge_score` with its own tokenizer, stemming, F-measure, the best
of the references (section 5 of the paper and `rouge_metric.py` of the official code).
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Literal

from rouge_score import rouge_scorer, tokenizers

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
Words = Literal["rouge_score", "unicode"]
# Scripts that are written without spaces between words, as their characters' Unicode names begin.
_SPACELESS = (
    *("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
)


class _UnicodeWords(tokenizers.Tokenizer):
    """Runs of letters, marks and digits in lower case; ASCII words stemmed as rouge_score does."""

    def __init__(self) -> None:
        self.ascii = tokenizers.DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        words, before = [""], False
        for character in unicodedata.normalize("NFC", text.lower()):
            kind = unicodedata.category(character)[0]
            alone = kind == "L" and unicodedata.name(character, "").startswith(_SPACELESS)
            # A mark belongs to the character before it.
            if kind not in "LMN" or (kind != "M" and (alone or before)):
                words.append("")
            if kind in "LMN":
                words[-1] += character
            if kind != "M":
                before = alone
        return [token for word in words if word for token in self._tokens(word)]

    def _tokens(self, word: str) -> list[str]:
        tokens: list[str] = self.ascii.tokenize(word) if word.isascii() else [word]
        return tokens


@cache
def _tokenizer(words: Words) -> tokenizers.Tokenizer:
    return _UnicodeWords() if words == "unicode" else tokenizers.DefaultTokenizer(use_stemmer=True)


Kind = Literal["rouge1", "rouge2", "rougeL"]


@cache
def _scorer(kind: Kind, words: Words) -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer([kind], tokenizer=_tokenizer(words))


def rouge_l(response: str, references: Sequence[str], words: Words = "rouge_score") -> float:
    """ROUGE-L F-measure (0 to 100) of the stripped response, the highest over the references.

    words: what counts as a word.  "rouge_score" knows only a-z and 0-9; "unicode" knows all scripts, and
    takes each character of those without spaces (Chinese, Japanese, Thai ...) for one; ASCII text scores the
    same.
    Raises ValueError if there is no reference.
    """
    return rouge("rougeL", response, references, words)


def rouge(kind: Kind, response: str, references: Sequence[str], words: Words = "rouge_score") -> float:
    """The same for single words (`rouge1`), pairs of words (`rouge2`) or the longest common subsequence."""
    _check(references)
    score = _scorer(kind, words).score
    return 100.0 * max(score(reference, response.strip())[kind].fmeasure for reference in references)


def has_tokens(references: Sequence[str], words: Words = "rouge_score") -> bool:
    """Whether a reference has any word; if none has, `rouge_l` is 0 even for a reference itself."""
    return any(_tokenizer(words).tokenize(reference) for reference in references)


def exact_match(response: str, references: Sequence[str]) -> float:
    """100 if the response equals a reference in lower case, without punctuation, with single spaces; else 0.

    SQuAD's normalisation (Rajpurkar et al. 2016) but for articles, which stay, as in the evaluation of
    Super-NaturalInstructions (Wang et al. 2022): "the cat" is not "cat".  Punctuation is ASCII's.
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
