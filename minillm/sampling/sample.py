"""Sampling from one model or from the teacher-mixed distribution (Eq. 4), each model with its own KV cache.

Every random number comes from (seed, step, row id, position) by a counter-based generator, so a row's
response does not depend on its batch, its neighbours, their order, the number of processes, or resuming
(beyond rounding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from minillm.config.sections import Sampling
from minillm.data.batching import at_once, by_length
from minillm.errors import UserError
from minillm.models.onednn_layout import packed
from minillm.models.positions import check_positions
from minillm.sampling.kv_cache import Decoder
from minillm.sampling.logit_filters import Filters

# Entries of the vocabulary that are summed at once when a token is drawn.
BLOCK = 256
# Finished rows are dropped once at most this share is alive: each drop copies the KV cache.
COMPACT_AT = 0.75


@dataclass(frozen=True)
class Mixture:
    """The teacher's part in sampling: p~ = alpha p + (1 - alpha) q."""

    teacher: PreTrainedModel
    alpha: float


@dataclass(frozen=True)
class Record:
    """What was computed when each token was drawn, (length,) float32 each.

    Log-probabilities of the token under student, teacher and mixture; and for its position, summed over the
    vocabulary, the reverse KL to the teacher and the student's entropy (both in nats).  Without a teacher,
    its values are the student's.  `teacher_hidden` (length, width), in the teacher's precision and on the
    CPU, is what its output matrix turns into the position's logits.
    """

    student_logprobs: np.ndarray
    teacher_logprobs: np.ndarray
    mixture_logprobs: np.ndarray
    reverse_kl: np.ndarray
    entropy: np.ndarray
    teacher_hidden: Tensor | None = None


@dataclass(frozen=True)
class Response:
    """A response to one prompt: token ids (with the EOS if `finished`), and on request their `Record`."""

    tokens: np.ndarray
    finished: bool
    record: Record | None = None


def uniforms(seed: int, step: int, rows: Sequence[int], length: int) -> np.ndarray:
    """Numbers in [0, 1), shape (rows, length): Philox with key (seed, step) and the row id in its counter."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, row, 0])).random(length)
            for row in rows
        ]
    )


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token per row by inverse transform: the first whose cumulative probability exceeds u; -1 for NaN.

    Never one of probability 0.  `probabilities` (batch, vocabulary), `uniform` (batch,) float64.  First the
    block of entries, then the entry in it, so that one pass over the vocabulary is enough and only block sums
    are in float64.
    """
    blocks = functional.pad(probabilities, (0, -probabilities.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1).double()
    cumulative = sums.cumsum(-1)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True).clamp(max=sums.shape[-1] - 1)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)  # (batch, BLOCK)
    before = cumulative.gather(-1, block) - sums.gather(-1, block)
    place = torch.searchsorted(inside.double().cumsum(-1), target - before, right=True)
    last = torch.where(inside > 0, torch.arange(BLOCK, device=inside.device), -1).amax(-1, keepdim=True)
    # Rounding may overshoot.
    token = block * BLOCK + torch.minimum(place, last)
    return torch.where(target.isnan(), -1, token).squeeze(-1)


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
    budget: int = 0,
) -> list[Response]:
    """A response to each prompt (1-D id arrays), in order; the random numbers come from the ids `rows`.

    With a `mixture`, tokens are drawn from alpha p + (1 - alpha) q; `record` keeps a `Record` of every
    sampled token, so that nothing has to be scored again.  Filters (top-k, top-p, n-gram block) are for
    evaluation: with a mixture or with `record` they raise ValueError, because the recorded values would not
    be those of the policy.  Prompts of similar length are answered together, at most `batch` of them, and
    only as many as have, with the longest responses, at most `budget` positions (0: any number); `vocabulary`
    cuts off padded entries, which can never be sampled.
    """
    if (mixture or record) and Filters(sampling, ()):
        raise ValueError("rollouts take only a temperature: no top-k, top-p or n-gram block")
    for each in [model, mixture.teacher] if mixture else [model]:
        check_room(each, prompts, sampling)
    responses: dict[int, Response] = {}
    with packed([model, mixture.teacher] if mixture else [model]):
        for chunk in by_length(
            range(len(prompts)), lambda i: len(prompts[i]) + sampling.max_tokens, batch, budget
        ):
            numbers = uniforms(seed, step, [rows[i] for i in chunk], sampling.max_tokens)
            together = [prompts[i] for i in chunk]
            done = _sample_batch(model, together, numbers, sampling, eos, pad, vocabulary, mixture, record)
            responses.update(zip(chunk, done, strict=True))
    return [responses[i] for i in range(len(prompts))]


def check_room(model: PreTrainedModel, prompts: Sequence[np.ndarray], sampling: Sampling) -> None:
    """Raises UserError if the longest prompt and response are more than the model takes."""
    longest = max(map(len, prompts), default=0)
    what = f"a prompt has {longest} tokens and max_tokens is {sampling.max_tokens}"
    # The last token is sampled and not read.
    check_positions(model, longest + sampling.max_tokens - 1, what)


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
    history, attention = (values.to(device) for values in _left_padded(prompts, width + horizon, pad))
    uniform = torch.from_numpy(numbers).to(device)
    records = torch.zeros((5, size, horizon), device=device)
    lengths = torch.zeros(size, dtype=torch.long, device=device)
    finished = torch.zeros(size, dtype=torch.bool, device=device)
    both = [model, mixture.teacher] if mixture else [model]
    decoders = [Decoder(m, vocabulary, sampling.temperature, width + horizon) for m in both]
    # (rows, the teacher's hidden states) of each position.
    kept: list[tuple[Tensor, Tensor]] = []
    filters = Filters(sampling, prompts)
    # Rows of the caches -> rows of the batch.
    alive = torch.arange(size, device=device)
    # The first column that the caches hold.
    start = 0
    padded = history[:, :width], attention[:, :width], (attention[:, :width].cumsum(-1) - 1).clamp(min=0)
    hidden = [decoder.prompts(*padded, [len(p) for p in prompts], at_once(device, 0)) for decoder in decoders]
    for t in range(horizon):
        end = width + t
        logits = [decoder.head.logits(values) for decoder, values in zip(decoders, hidden, strict=True)]
        if filters:
            logits[0] = filters(alive, logits[0])
        chosen, recorded = _position(logits, mixture.alpha if mixture else 0.0, uniform[alive, t], record)
        if recorded is not None:
            records[:, alive, t] = recorded.to(records.dtype)
        if record and mixture:
            kept.append((alive, hidden[1]))
        if filters:
            filters.add(alive, chosen)
        running = ~finished[alive]
        history[alive, end] = torch.where(running, chosen, pad)
        still = running & (chosen != eos)
        lengths[alive] += running
        finished[alive] = ~still
        # The one synchronisation point of a position.
        remaining, broken = torch.stack([still.sum(), (chosen < 0).sum()]).tolist()
        if broken:
            name = model.name_or_path or type(model).__name__
            raise UserError(f"{name}: its logits are not numbers (NaN); it has diverged or is damaged")
        if remaining == 0 or t + 1 == horizon:
            break
        if remaining <= COMPACT_AT * len(alive):
            alive = alive[still]
            first = int(attention[alive].argmax(-1).min()) if all(d.croppable for d in decoders) else start
            for decoder in decoders:
                decoder.keep(still.nonzero().squeeze(-1), first - start)
            start = first
        tokens, visible = history[alive, end : end + 1], attention[alive, start : end + 1]
        positions = attention[alive, : end + 1].sum(-1, keepdim=True) - 1
        hidden = [decoder.hidden(tokens, visible, positions) for decoder in decoders]

    return _responses(history[:, width:], lengths, finished, records if record else None, _by_row(kept, size))


def _left_padded(prompts: Sequence[np.ndarray], width: int, pad: int) -> tuple[Tensor, Tensor]:
    """(tokens, attention), (batch, width) each: prompts end at one column.

    The room after it is for the responses, which are attended to.
    """
    history = torch.full((len(prompts), width), pad, dtype=torch.long)
    attention = torch.zeros((len(prompts), width), dtype=torch.long)
    end = max(map(len, prompts))
    for i, prompt in enumerate(prompts):
        history[i, end - len(prompt) : end] = torch.from_numpy(prompt.astype(np.int64))
        attention[i, end - len(prompt) :] = 1
    return history, attention


def _responses(
    tokens: Tensor, lengths: Tensor, finished: Tensor, records: Tensor | None, states: Tensor | None
) -> list[Response]:
    """Each row's part of the tensors, on the CPU."""
    out, ends = tokens.cpu().numpy().astype(np.int32), zip(lengths.tolist(), finished.tolist(), strict=True)
    values = None if records is None else records.cpu().numpy()
    responses = []
    for i, (length, ended) in enumerate(ends):
        # Copies here and below: a view would keep, and perhaps send, the arrays of the whole batch.
        record = None if values is None else Record(*values[:, i, :length].copy())
        if record is not None and states is not None:
            record = dataclasses.replace(record, teacher_hidden=states[i, :length].clone())
        responses.append(Response(out[i, :length].copy(), ended, record))
    return responses


def _position(
    logits: list[Tensor], alpha: float, uniform: Tensor, record: bool
) -> tuple[Tensor, Tensor | None]:
    """(a token per row (batch,), on request the five values of a `Record` (5, batch)).

    `logits` are the student's, and the teacher's if there is one.
    """
    if not record and (len(logits) == 1 or not alpha):
        return draw(logits[0].softmax(-1), uniform), None
    student = logits[0].log_softmax(-1)
    teacher = logits[1].log_softmax(-1) if len(logits) > 1 else student
    q = student.exp()
    mixed = torch.lerp(q, teacher.exp(), alpha) if alpha else q
    chosen = draw(mixed, uniform)
    if not record:
        return chosen, None
    # -1 if nothing could be drawn because of NaN, which the caller reports.
    at = chosen.clamp(min=0).unsqueeze(-1)
    of_token = torch.cat([student.gather(-1, at), teacher.gather(-1, at), mixed.gather(-1, at).log()], -1).T
    # All logits are finite: filters are refused here.
    gap = (q * (student - teacher)).sum(-1)
    return chosen, torch.cat([of_token, gap[None], -(q * student).sum(-1)[None]])


def _by_row(kept: list[tuple[Tensor, Tensor]], size: int) -> Tensor | None:
    """Hidden states (rows, positions, width) on the CPU, from those of the rows alive at each position."""
    if not kept:
        return None
    states = kept[0][1].new_zeros(size, len(kept), kept[0][1].shape[-1])
    for t, (alive, hidden) in enumerate(kept):
        states[alive, t] = hidden
    return states.cpu()
