"""What a teacher without a share in sampling says of samples: one pass over each, as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from minillm.data.batching import at_once, collate, least_padding, moved
from minillm.models.head import head_of, response_hidden
from minillm.models.onednn_layout import packed_head
from minillm.models.tiled_loss import Head, tile_of, tiles
from minillm.sampling.draw import token_values
from minillm.sampling.response import How, Mixture, Record, Response, broken


def values_of(
    heads: tuple[Head, Head], students: Tensor, teachers: Tensor, tokens: Tensor, alpha: float
) -> Tensor:
    """The five values of a `Record` of `tokens` (n,), (5, n), tile by tile.

    From hidden states (n, width) of student and teacher, of which `heads` make logits.
    """
    parts = []
    for part in tiles(len(tokens), heads[0].vocabulary, tile_of(tokens.device)):
        student, teacher = (
            head.logits(x[part]).log_softmax(-1) for head, x in zip(heads, (students, teachers), strict=True)
        )
        q, at = student.exp(), tokens[part].unsqueeze(-1)
        mixture = torch.lerp(q.gather(-1, at), teacher.gather(-1, at).exp(), alpha)
        parts.append(token_values(student, teacher, q, mixture, at))
    return torch.cat(parts, 1) if parts else students.new_zeros(5, 0)


def scored(
    sampled: Iterable[tuple[int, Response, Tensor]],
    student: Head,
    mixture: Mixture,
    prompts: Sequence[np.ndarray],
    how: How,
) -> Iterator[tuple[int, Response]]:
    """The samples with their records; `sampled` has the student's hidden states of each, (length, width).

    `prompts` are the teacher's.
    """
    head = packed_head(head_of(mixture.teacher, how.vocabulary, how.sampling.temperature, how.swap(mixture)))
    waiting: list[tuple[int, Response, Tensor]] = []
    for one in sampled:
        waiting.append(one)
        if len(waiting) == how.batch:
            yield from _scored(waiting, (student, head), mixture, prompts, how)
            waiting = []
    yield from _scored(waiting, (student, head), mixture, prompts, how)


def _scored(
    samples: Sequence[tuple[int, Response, Tensor]],
    heads: tuple[Head, Head],
    mixture: Mixture,
    prompts: Sequence[np.ndarray],
    how: How,
) -> Iterator[tuple[int, Response]]:
    if not samples:
        return
    device = samples[0][2].device
    both = [(prompts[item], response.tokens) for item, response, _ in samples]
    for part in least_padding(
        range(len(both)), lambda i: sum(map(len, both[i])), len(both), at_once(device, how.budget)
    ):
        batch = collate([both[i] for i in part], how.pad).to(device)
        teachers, students = response_hidden(mixture.teacher, batch), torch.cat([samples[i][2] for i in part])
        tokens = np.concatenate([both[i][1] for i in part]).astype(np.int64)
        found = values_of(heads, students, teachers, moved(torch.from_numpy(tokens), device), 0.0)
        values, states, start = found.float().cpu().numpy(), teachers.cpu(), 0
        if np.isnan(values).any():
            raise broken(mixture.teacher)
        for i in part:
            item, response, _ = samples[i]
            end = start + len(response.tokens)
            # Copies: a view would keep the whole batch.
            record = Record(*values[:, start:end].copy())
            record = dataclasses.replace(record, teacher_hidden=states[start:end].clone())
            yield item, dataclasses.replace(response, record=record)
            start = end
