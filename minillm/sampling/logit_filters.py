"""What evaluation does to the next token's logits before it is drawn: n-gram block, top-k, top-p.

Of these, rollouts use top-p only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from minillm.config.sections import Sampling


class NgramBlock:
    """No n-gram of prompt and response occurs twice, as with transformers' NoRepeatNGramLogitsProcessor.

    That one collects all n-grams of all rows again at every position, on which a batch of 100 rows or more
    spends its time; this one remembers them.  `prompts` are token ids, without padding.
    """

    def __init__(self, size: int, prompts: Sequence[np.ndarray]) -> None:
        self.size = size
        self.tokens: dict[int, list[int]] = {}
        self.after: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for row, prompt in enumerate(prompts):
            self.begin(row, prompt)

    def begin(self, row: int, prompt: np.ndarray) -> None:
        """Begin a row with its prompt."""
        self.tokens[row], self.after[row] = [], {}
        for token in prompt.tolist():
            self.add(row, token)

    def forget(self, row: int) -> None:
        """Forget a row, if it is known."""
        self.tokens.pop(row, None)
        self.after.pop(row, None)

    def add(self, row: int, token: int) -> None:
        """Append `token` to the row."""
        start = self._last(row)
        if start is not None:
            self.after[row].setdefault(start, []).append(token)
        self.tokens[row].append(token)

    def _last(self, row: int) -> tuple[int, ...] | None:
        """The last n - 1 tokens of a row; None if it has fewer."""
        first = len(self.tokens[row]) - self.size + 1
        return tuple(self.tokens[row][first:]) if first >= 0 else None

    def block(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        """`logits` (rows, vocabulary) with minus infinity where a token would repeat an n-gram of its row."""
        pairs = []
        for i, row in enumerate(rows):
            last = self._last(row)
            if last is not None:
                pairs += [(i, token) for token in self.after[row].get(last, ())]
        if pairs:
            where = torch.tensor(pairs, device=logits.device).T
            logits = logits.clone()
            logits[where[0], where[1]] = -torch.inf
        return logits


class Filters:
    """The filters of a `Sampling` for one batch; false if there are none."""

    def __init__(self, sampling: Sampling, prompts: Sequence[np.ndarray]) -> None:
        self.ngrams = NgramBlock(sampling.no_repeat_ngram, prompts) if sampling.no_repeat_ngram else None
        self.warpers = LogitsProcessorList()
        # The rows of the last call, and the same on the host: reading them waits for a GPU.
        self.rows: tuple[Tensor | None, list[int]] = None, []
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __bool__(self) -> bool:
        return bool(self.ngrams or self.warpers)

    def __call__(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Logits (batch, vocabulary) of these rows, with minus infinity for what must not be drawn."""
        if self.ngrams:
            logits = self.ngrams.block(self._on_host(rows), logits)
        if not self.warpers:
            return logits
        # The warpers look only at the scores.
        tokens: Any = torch.empty(0, dtype=torch.long)
        filtered: Tensor = self.warpers(tokens, logits)
        return filtered

    def add(self, rows: Tensor, tokens: Tensor) -> None:
        """Append the tokens that were drawn for these rows."""
        if self.ngrams:
            for row, token in zip(self._on_host(rows), tokens.tolist(), strict=True):
                self.ngrams.add(row, token)

    def replace(self, old: Sequence[int], rows: Sequence[int], prompts: Sequence[np.ndarray]) -> None:
        """Forget the rows `old`, as far as they are known, and begin `rows` with these prompts."""
        if self.ngrams:
            for row in old:
                self.ngrams.forget(row)
            for row, prompt in zip(rows, prompts, strict=True):
                self.ngrams.begin(row, prompt)

    def _on_host(self, rows: Tensor) -> list[int]:
        """Numbers of the rows; the same tensor, whose values must not change, is read once."""
        if self.rows[0] is not rows:
            self.rows = rows, rows.tolist()
        return self.rows[1]
