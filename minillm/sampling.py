"""Sampling with one model or with the teacher-mixed distribution (Eq. 4), each model with its own KV cache.

Every random number comes from (seed, step, row id, position) through a counter-based generator, so that a row's response does
not depend on the batch it is in, its neighbours, their order, the number of processes, or on resuming (beyond rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillm.config import Sampling
from minillm.objectives import kl

COMPACT_AT = 0.75  # drop finished rows once fewer than this share is alive: each drop copies the KV cache


@dataclass(frozen=True)
class Mixture:
    """The teacher's part in sampling: p~ = alpha p + (1 - alpha) q."""

    teacher: PreTrainedModel
    alpha: float


@dataclass(frozen=True)
class Record:
    """What was known when each token was drawn, (length,) float32 each.

    Log-probabilities of the token under student, teacher and mixture; and of its position, summed over the vocabulary, the reverse
    KL to the teacher and the student's entropy (both in nats).  Without a teacher, the teacher's are the student's.
    """

    student_logprobs: np.ndarray
    teacher_logprobs: np.ndarray
    mixture_logprobs: np.ndarray
    reverse_kl: np.ndarray
    entropy: np.ndarray


@dataclass(frozen=True)
class Response:
    """What was sampled for one prompt: token ids (the EOS included where `finished`), and on request a `Record` of each token."""

    tokens: np.ndarray
    finished: bool
    record: Record | None = None


def uniforms(seed: int, step: int, rows: Sequence[int], length: int) -> np.ndarray:
    """Numbers in [0, 1) of shape (rows, length): Philox with key (seed, step) and the row id in its counter."""
    return np.stack(
        [np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, row, 0])).random(length) for row in rows]
    )


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by inverse transform: the first whose cumulative probability exceeds u; never one of probability 0."""
    cumulative = probabilities.double().cumsum(-1)
    return (
        torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:], right=True)
        .squeeze(-1)
        .clamp(max=probabilities.shape[-1] - 1)
    )


class _Decoder:
    """One model, its KV cache, and the logits of the next position."""

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.cache = DynamicCache(config=model.config)

    def logits(self, tokens: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1, : self.vocabulary].float()  # (batch, vocabulary)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)


def _filters(sampling: Sampling) -> LogitsProcessorList:
    filters = LogitsProcessorList()
    if sampling.no_repeat_ngram:
        filters.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        filters.append(TopPLogitsWarper(sampling.top_p))
    return filters


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    rows: Sequence[int],
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    eos: int,
    pad: int,
    vocabulary: int,
    mixture: Mixture | None = None,
    record: bool = False,
    batch: int = 32,
) -> list[Response]:
    """A response to each prompt (1-D id arrays), in the order given; `rows` are the ids that the random numbers come from.

    With a `mixture`, tokens are drawn from alpha p + (1 - alpha) q; `record` keeps a `Record` of every sampled token, so that
    nothing has to be scored again.  Filters (top-k, top-p, n-gram block) are for evaluation: with a mixture
    or with `record` they raise ValueError, for then the recorded values would not be those of the policy.
    Batches hold prompts of similar length; `vocabulary` cuts off padded entries, which can never be sampled.
    """
    if (mixture or record) and _filters(sampling):
        raise ValueError("rollouts take a temperature only: no top-k, top-p or n-gram block")
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    responses: dict[int, Response] = {}
    for first in range(0, len(order), batch):
        chunk = order[first : first + batch]
        numbers = uniforms(seed, step, [rows[i] for i in chunk], sampling.max_tokens)
        done = _sample_batch(model, [prompts[i] for i in chunk], numbers, sampling, eos, pad, vocabulary, mixture, record)
        responses.update(zip(chunk, done, strict=True))
    return [responses[i] for i in range(len(prompts))]


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    numbers: np.ndarray,
    sampling: Sampling,
    eos: int,
    pad: int,
    vocabulary: int,
    mixture: Mixture | None,
    record: bool,
) -> list[Response]:
    device = next(model.parameters()).device
    size, width, horizon = len(prompts), max(map(len, prompts)), sampling.max_tokens
    history = torch.full((size, width + horizon), pad, dtype=torch.long)
    attention = torch.zeros((size, width + horizon), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        history[i, width - len(prompt) : width] = torch.from_numpy(prompt.astype(np.int64))
        attention[i, width - len(prompt) :] = 1
    history, attention = history.to(device), attention.to(device)
    uniform = torch.from_numpy(numbers).to(device)
    records = torch.zeros((5, size, horizon), device=device)
    lengths = torch.full((size,), horizon, device=device)
    finished = torch.zeros(size, dtype=torch.bool, device=device)

    decoders = [_Decoder(model, vocabulary)] + ([_Decoder(mixture.teacher, vocabulary)] if mixture else [])
    filters = _filters(sampling)
    alive = torch.arange(size, device=device)  # rows of the caches -> rows of the batch
    tokens, positions = history[:, :width], (attention[:, :width].cumsum(-1) - 1).clamp(min=0)
    for t in range(horizon):
        end = width + t
        # The teacher's part first only where there is one: index 0 is always the student.
        logits = [decoder.logits(tokens, attention[alive, :end], positions) / sampling.temperature for decoder in decoders]
        if filters:
            logits[0] = filters(history[alive, :end], logits[0])  # type: ignore[arg-type]
        student = logits[0].log_softmax(-1)
        teacher = logits[-1].log_softmax(-1) if mixture else student
        log_mixture = student
        if mixture and mixture.alpha:
            log_mixture = torch.logaddexp(teacher + np.log(mixture.alpha), student + np.log1p(-mixture.alpha))
        chosen = draw(log_mixture.exp(), uniform[alive, t])
        if record:
            for k, values in enumerate((student, teacher, log_mixture)):
                records[k, alive, t] = values.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            records[3, alive, t] = kl(student, teacher)
            records[4, alive, t] = -torch.xlogy(student.exp(), student.exp()).sum(-1)
        running = ~finished[alive]
        history[alive, end] = torch.where(running, chosen, pad)
        ends = running & (chosen == eos)
        lengths[alive[ends]] = t + 1
        finished[alive[ends]] = True
        still = ~finished[alive]
        remaining = int(still.sum())  # a synchronisation point on a GPU, once a position
        if remaining == 0 or t + 1 == horizon:
            break
        if remaining <= COMPACT_AT * len(alive):
            for decoder in decoders:
                decoder.keep(still.nonzero().squeeze(-1))
            alive = alive[still]
        tokens = history[alive, end : end + 1]
        positions = attention[alive, : end + 1].sum(-1, keepdim=True) - 1

    out, values_of = history[:, width:].cpu().numpy().astype(np.int32), records.cpu().numpy()
    return [
        Response(out[i, :length], ended, Record(*values_of[:, i, :length]) if record else None)
        for i, (length, ended) in enumerate(zip(lengths.tolist(), finished.tolist(), strict=True))
    ]
