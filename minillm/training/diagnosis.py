"""What a diagnosis of on-policy training looks at, measured on the student's fresh dev answers.

Prompts and random numbers are the same at every evaluation and for every method, whatever it samples, so the
curves of methods can be compared.  docs/method.md has the definitions.  Nothing of it is used by training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.counts import ngrams, repetition
from minillm.data.batching import Batch, moved
from minillm.data.rows import Example
from minillm.models.head import head_of, logits_by_tile, response_hidden
from minillm.objectives import reverse_kl
from minillm.runtime.processes import World
from minillm.token_sets import on_set

# Rethinking OPD's k (arXiv 2604.13016).
TOP = 16
# Parts of a response, by relative position.
PARTS = 4
# A token is repeated if it ends an n-gram of this length that its response has had before.
NGRAM = 4
# Means over all tokens, in the order of `token_values`, behind the reward.
MEANS = (
    "dev_entropy",
    "dev_teacher_entropy",
    "dev_entropy_gap",
    "dev_overlap",
    "dev_overlap_mass",
    "dev_teacher_overlap_mass",
)
# Means of the reward over groups of tokens, in the order of `groups`.
REWARDS = (
    *(f"dev_reward_{part}_of_{PARTS}" for part in range(1, PARTS + 1)),
    "dev_reward_repeated",
    "dev_reward_other",
)


def repeated(response: np.ndarray) -> np.ndarray:
    """Which tokens end an n-gram that occurs earlier in the response, as in `repetition`; (length,) bool."""
    marks, seen = np.zeros(len(response), dtype=bool), set()
    for end, gram in enumerate(ngrams(response.tolist(), NGRAM), NGRAM - 1):
        marks[end] = gram in seen
        seen.add(gram)
    return marks


def groups(response: np.ndarray) -> np.ndarray:
    """Which tokens belong to each of REWARDS, and to all, (length, groups) of 0 and 1.

    Token t of T, from 0, is in part floor(PARTS t / T) + 1: in each quarter of a response is a quarter of it.
    """
    length, again = len(response), repeated(response)
    part = PARTS * np.arange(length) // max(1, length)
    columns = [*(part == i for i in range(PARTS)), again, ~again, np.ones(length, dtype=bool)]
    return np.stack(columns, axis=1).astype(np.float64)


def token_values(student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> list[Tensor]:
    """r = log p - log q of each token, (n,), and what MEANS names, from logits (n, vocabulary).

    The overlap is that of the two models' TOP likeliest entries (arXiv 2604.13016: Eq. 6, its masses Eq. 9
    and 10 under student and teacher, the entropy gap Eq. 8).
    """
    # The teacher's may be in half precision.
    both = student_logits, teacher_logits.to(student_logits.dtype)
    logprobs, entropies = [], []
    for logits in both:
        logs = logits.log_softmax(-1)
        logprobs.append(logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
        entropies.append(-(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(-1))
    of_student, of_teacher = on_set(*both, "intersection", TOP)
    k = min(TOP, student_logits.shape[-1])
    return [
        logprobs[1] - logprobs[0],
        *entropies,
        (entropies[0] - entropies[1]).abs(),
        (of_student > -torch.inf).sum(-1).to(student_logits.dtype) / k,
        of_student.exp().sum(-1),
        of_teacher.exp().sum(-1),
    ]


class Diagnosis:
    """Sums over the tokens of the student's dev answers, batch by batch; see dev_set.losses.

    `initial`: the initial student, to which the KL is measured, if it is there.
    """

    def __init__(
        self, answers: Sequence[Example], vocabulary: int, temperature: float, initial: PreTrainedModel | None
    ) -> None:
        self.answers, self.vocabulary, self.temperature = answers, vocabulary, temperature
        self.initial = initial
        self._groups = [groups(response) for _, response in answers]
        # Of the batch's tokens, (tokens, groups).
        self._batch_groups = torch.empty(0)
        self._initial_hidden: Tensor | None = None
        # (groups, values), on the device.
        self._sums: Tensor | None = None

    def begin(self, rows: Sequence[int], batch: Batch) -> None:
        """The batch that follows: `rows` of the answers."""
        columns = torch.from_numpy(np.concatenate([self._groups[i] for i in rows]))
        self._batch_groups = moved(columns, batch.tokens.device)
        if self.initial is not None:
            self._initial_hidden = response_hidden(self.initial, batch)

    def of_tile(
        self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor, tile: slice
    ) -> list[Tensor]:
        """What is measured of a tile's tokens, (n,) each, from logits at the temperature."""
        columns = token_values(student_logits, teacher_logits, tokens)
        if self.initial is not None and self._initial_hidden is not None:
            head = head_of(self.initial, self.vocabulary, self.temperature)
            first = logits_by_tile(self._initial_hidden, head)(tile)
            columns.append(reverse_kl(student_logits, first))
        return columns

    def add(self, values: Tensor) -> None:
        """Add the batch's tokens, (tokens, values); nobody waits for the device."""
        sums = self._batch_groups.t() @ values.double()
        self._sums = sums if self._sums is None else self._sums + sums

    def means(self, world: World) -> dict[str, float]:
        """By the name that is logged; NaN for a mean over no token.  Every rank must call it."""
        mine = self._sums.tolist() if self._sums is not None else None
        parts = [part for part in world.gather(mine) if part is not None]
        sums = np.array(
            [[math.fsum(cell) for cell in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
        )
        counts = sum((columns.sum(0) for columns in self._groups), np.zeros(len(REWARDS) + 1))
        by_group = dict(zip(REWARDS, zip(sums[:, 0], counts, strict=False), strict=False))
        means = {name: total / count if count else math.nan for name, (total, count) in by_group.items()}
        names = [*MEANS, *(["dev_init_kl"] if self.initial is not None else [])]
        overall = {name: total / counts[-1] for name, total in zip(names, sums[-1, 1:], strict=True)}
        again = float(np.mean([repetition(response, NGRAM) for _, response in self.answers]))
        return {name: float(value) for name, value in {"dev_repetition": again, **overall, **means}.items()}
