"""Sets of vocabulary entries that a divergence is taken over, at each token.

A set is a few columns: gathered from a tile's logits, so that what follows needs no second tensor as wide as
the vocabulary.  docs/method.md says what each set makes of a divergence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.objectives import _full

# Sets that need the number k.
TOP_K = ("student_topk", "teacher_topk", "union", "intersection")


def on_set(
    student_logits: Tensor,
    teacher_logits: Tensor,
    tokens: str,
    k: int = 0,
    sampled: Tensor | None = None,
    *,
    renormalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (log q, log p) of a set of entries of each token, (n, entries) each.

    Logits are (n, vocabulary), `sampled` (n,).  The set: the `k` likeliest entries of the student
    ("student_topk"), the teacher ("teacher_topk"), of either ("union") or of both ("intersection"), or the
    `sampled` token.  It is a constant.  -inf for both marks a column that is no entry.  With `renormalise`
    each sums to 1 over the set, and an empty set gives two equal distributions; otherwise they are the
    probabilities in the whole vocabulary.  Raises ValueError for any other set, or if the
    sampled tokens are missing.
    """
    index, present = _columns(student_logits, teacher_logits, tokens, k, sampled)
    pair = []
    for logits in (student_logits, teacher_logits):
        values = _full(logits.gather(-1, index))
        if not renormalise:
            values = values - _full(logits).logsumexp(-1, keepdim=True)
        if present is not None:
            values = values.masked_fill(~present, -torch.inf)
            if renormalise:
                values = values.masked_fill(~present.any(-1, keepdim=True), 0.0)
        pair.append(values.log_softmax(-1) if renormalise else values)
    return pair[0], pair[1]


@torch.no_grad()
def _columns(
    student_logits: Tensor, teacher_logits: Tensor, tokens: str, k: int, sampled: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(the entries of each token, (n, entries); which of them belong to the set, None for all)."""
    if tokens == "sampled":
        if sampled is None:
            raise ValueError("tokens 'sampled' needs the sampled tokens")
        return sampled.unsqueeze(-1), None
    if tokens not in TOP_K:
        raise ValueError(f"tokens must be 'sampled' or one of {', '.join(TOP_K)}, not {tokens!r}")
    k = min(k, student_logits.shape[-1])
    if tokens == "student_topk":
        return student_logits.topk(k).indices, None
    teachers = teacher_logits.topk(k).indices
    if tokens == "teacher_topk":
        return teachers, None
    students = student_logits.topk(k).indices
    of_student = torch.zeros_like(student_logits, dtype=torch.bool).scatter_(-1, students, True)
    shared = of_student.gather(-1, teachers)
    if tokens == "intersection":
        return teachers, shared
    return torch.cat([students, teachers], -1), torch.cat([torch.ones_like(shared), ~shared], -1)
