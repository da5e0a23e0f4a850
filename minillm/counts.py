"""Counts in a text or a list of tokens: tokens, n-grams, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from minillm.errors import UserError


def token_counter(folder: Path) -> Callable[[str], int]:
    """A function that counts the tokens of a text, without special ones, by the tokenizer.json in `folder`.

    Raises UserError if there is none.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no tokenizer here (tokenizer.json is missing); check the path or make it again"
        )
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def ngrams(items: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """The n-grams of one sequence in order; none if it is shorter than `n`."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def distinct(sequences: Iterable[Sequence[Hashable]], n: int) -> tuple[int, int]:
    """(C, N): number of different n-grams in all sequences together, and of all n-grams; none spans two."""
    counts = Counter(gram for sequence in sequences for gram in ngrams(sequence, n))
    return len(counts), counts.total()


def repetition(tokens: np.ndarray | Sequence[Hashable], n: int = 4) -> float:
    """Share of a response's n-grams that occur earlier in it; 0 for a response of fewer than `n` tokens."""
    grams = ngrams(tokens.tolist() if isinstance(tokens, np.ndarray) else tokens, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
