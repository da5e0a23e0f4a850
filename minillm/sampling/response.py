"""What goes into sampling and what comes out: how, the teacher's part, responses and their records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from minillm.config.sampler import EarlyEnd
from minillm.config.sections import Sampling
from minillm.errors import Diverged
from minillm.sampling.progress import Progress

# (rows, positions, the teacher's hidden states).
Kept = Sequence[tuple[Tensor, Tensor | int, Tensor]]


@dataclass(frozen=True)
class How:
    """What all rows of a call of `sample` share, in its words."""

    sampling: Sampling
    seed: int
    step: int
    ends: Sequence[int]
    pad: int
    vocabulary: int
    record: bool = False
    batch: int = 32
    budget: int = 0
    graphs: bool = True

    def swap(self, mixture: Mixture) -> tuple[int, int] | None:
        """The end tokens that the teacher's head exchanges, if they differ."""
        same = mixture.end is None or mixture.end == self.ends[0]
        return None if same or mixture.end is None else (self.ends[0], mixture.end)


@dataclass(frozen=True)
class Mixture:
    """The teacher's part in sampling: p~ = alpha p + (1 - alpha) q.

    With `groups`, the group of each row, coins shared by a group's rows say which of p and q draws a token
    (coins.py), and the teacher reads only when it draws; without, tokens are drawn from p~ itself.

    The teacher reads `prompts`, its own rendering of the same rows (None: the student's), and the response's
    tokens; what it says of `end`, its own end token, counts as said of the student's (None: the same).

    With `teacher_top_k` a token that is not among so many of the teacher's likeliest is replaced by a draw of
    the teacher (draw.corrected); with `early_end` a response on which the models drift apart ends.
    """

    teacher: PreTrainedModel
    alpha: float
    groups: Sequence[int] | None = None
    prompts: Sequence[np.ndarray] | None = None
    end: int | None = None
    teacher_top_k: int = 0
    early_end: EarlyEnd | None = None

    @property
    def interferes(self) -> bool:
        """Whether the teacher may replace a token or end a response."""
        return self.teacher_top_k > 0 or self.early_end is not None

    @property
    def along(self) -> bool:
        """Whether the teacher has a say in what is drawn, or in when a response ends."""
        return self.alpha > 0 or self.interferes


@dataclass(frozen=True)
class Record:
    """What was computed when each token was drawn, (length,) float32 each.

    Log-probabilities of the token under student, teacher and mixture; and for its position, summed over the
    vocabulary, the reverse KL to the teacher and the student's entropy (both in nats).  Without a teacher,
    its values are the student's.  All are of whole distributions, whatever a top-p leaves out of the draw;
    where the teacher may replace tokens, the mixture is what they were drawn from.  `teacher_hidden` (length,
    width), in the teacher's precision and on the CPU, is what its output matrix turns into the position's
    logits.  (length,) bool, None if not asked for: tokens that the teacher `replaced`, positions where the
    models `drifted` apart.
    """

    student_logprobs: np.ndarray
    teacher_logprobs: np.ndarray
    mixture_logprobs: np.ndarray
    reverse_kl: np.ndarray
    entropy: np.ndarray
    teacher_hidden: Tensor | None = None
    replaced: np.ndarray | None = None
    drifted: np.ndarray | None = None


@dataclass(frozen=True)
class Response:
    """A response to one prompt: token ids (with its end if `finished`), and on request their `Record`.

    `cut`: whether an early end was made to it.
    """

    tokens: np.ndarray
    finished: bool
    record: Record | None = None
    cut: bool = False


def broken(model: PreTrainedModel) -> Diverged:
    """The error of a model whose logits are NaN."""
    name = model.name_or_path or type(model).__name__
    return Diverged(f"{name}: its logits are not numbers (NaN); it has diverged or is damaged")


def responses(progress: Progress, record: bool, kept: Kept) -> list[Response]:
    """Each row's part of the tensors, on the CPU."""
    tokens = progress.student.history[:, progress.student.width :].cpu().numpy().astype(np.int32)
    lengths, finished = progress.lengths.tolist(), progress.finished.tolist()
    cut = [False] * len(lengths) if progress.cut is None else progress.cut.tolist()
    values = progress.records.cpu().numpy() if record else None
    marks = {name: marked.cpu().numpy() for name, marked in progress.marks.items()} if record else {}
    # Between two looks positions after all ends are sampled, too.
    inside = [part for part in kept if not isinstance(part[1], int) or part[1] < max(lengths)]
    states = _by_row(inside, len(lengths), max(lengths))
    made = []
    for i, (length, ended) in enumerate(zip(lengths, finished, strict=True)):
        # Copies here and below: a view would keep, and perhaps send, the arrays of the whole batch.
        record_of = None
        if values is not None:
            marked: dict[str, Any] = {name: every[i, :length].copy() for name, every in marks.items()}
            record_of = Record(*values[:, i, :length].copy(), **marked)
        if record_of is not None and states is not None:
            record_of = dataclasses.replace(record_of, teacher_hidden=states[i, :length].clone())
        made.append(Response(tokens[i, :length].copy(), ended and not cut[i], record_of, cut[i]))
    return made


def _by_row(kept: Kept, size: int, length: int) -> Tensor | None:
    """Hidden states (size, length, width) on the CPU, from those of (rows, positions)."""
    if not kept:
        return None
    hidden = kept[0][2]
    states = hidden.new_zeros(size, length, hidden.shape[-1])
    for rows, positions, hidden in kept:
        states[rows, positions] = hidden
    return states.cpu()
