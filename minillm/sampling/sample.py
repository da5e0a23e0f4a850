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
from transformers import PreTrainedModel

from minillm.config.sections import Sampling
from minillm.data.batching import at_once, by_length
from minillm.errors import UserError
from minillm.models.onednn_layout import packed
from minillm.models.positions import check_positions
from minillm.sampling.coins import coins
from minillm.sampling.draw import draw, token_values
from minillm.sampling.kv_cache import COMPACT_AT, Decoder
from minillm.sampling.logit_filters import Filters
from minillm.sampling.progress import Progress
from minillm.sampling.unread import Unread


@dataclass(frozen=True)
class Mixture:
    """The teacher's part in sampling: p~ = alpha p + (1 - alpha) q.

    With `groups`, the group of each row, coins shared by a group's rows say which of p and q draws a token
    (coins.py), and the teacher reads only when it draws; without, tokens are drawn from p~ itself.

    The teacher reads `prompts`, its own rendering of the same rows (None: the student's), and the response's
    tokens; what it says of `end`, its own end token, counts as said of the student's (None: the same).
    """

    teacher: PreTrainedModel
    alpha: float
    groups: Sequence[int] | None = None
    prompts: Sequence[np.ndarray] | None = None
    end: int | None = None


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
    """A response to one prompt: token ids (with its end if `finished`), and on request their `Record`."""

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


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    rows: Sequence[int],
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    ends: Sequence[int],
    pad: int,
    vocabulary: int,
    mixture: Mixture | None = None,
    record: bool = False,
    batch: int = 32,
    budget: int = 0,
) -> list[Response]:
    """A response to each prompt (1-D id arrays), in order; the random numbers come from the ids `rows`.

    Any of the tokens `ends` ends a response; the first is the student's own, for which the teacher's stands
    (`Mixture.end`).  With a `mixture`, tokens are drawn from alpha p + (1 - alpha) q; `record` keeps a
    `Record` of every sampled token, so that nothing has to be scored again.  Filters (top-k, top-p, n-gram
    block) are for evaluation: with a mixture or with `record` they raise ValueError, because the recorded
    values would not be those of the policy.  Prompts of similar length are answered together, at most `batch`
    of them, and only as many as have, with the longest responses, at most `budget` positions (0: any number);
    `vocabulary` cuts off padded entries, which can never be sampled.
    """
    if (mixture or record) and Filters(sampling, ()):
        raise ValueError("rollouts take only a temperature: no top-k, top-p or n-gram block")
    check_room(model, prompts, sampling)
    theirs = None if mixture is None else mixture.prompts
    if mixture:
        if theirs is not None and len(theirs) != len(prompts):
            raise ValueError(f"{len(theirs)} prompts for the teacher, {len(prompts)} for the student")
        check_room(mixture.teacher, prompts if theirs is None else theirs, sampling)
    responses: dict[int, Response] = {}
    device = next(model.parameters()).device
    with packed([model, mixture.teacher] if mixture else [model]):
        for chunk in by_length(
            range(len(prompts)),
            lambda i: max(len(x[i]) for x in (prompts, theirs) if x is not None) + sampling.max_tokens,
            batch,
            budget,
        ):
            numbers = uniforms(seed, step, [rows[i] for i in chunk], sampling.max_tokens)
            heads = None
            if mixture and mixture.groups is not None:
                groups = [mixture.groups[i] for i in chunk]
                heads = coins(seed, step, groups, sampling.max_tokens, mixture.alpha)
            progress = Progress.of(
                [prompts[i] for i in chunk],
                sampling.max_tokens,
                pad,
                device,
                None if theirs is None else [theirs[i] for i in chunk],
            )
            done = _sample_batch(
                model,
                progress,
                torch.from_numpy(numbers).to(device),
                heads,
                sampling,
                ends,
                vocabulary,
                mixture,
                record,
            )
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
    progress: Progress,
    uniform: Tensor,
    heads: np.ndarray | None,
    sampling: Sampling,
    ends: Sequence[int],
    vocabulary: int,
    mixture: Mixture | None,
    record: bool,
) -> list[Response]:
    device, horizon = uniform.device, uniform.shape[1]
    filters = Filters(sampling, progress.student.prompts)
    contexts = [progress.student]
    decoders = [Decoder(model, vocabulary, sampling.temperature, contexts[0].width + horizon)]
    if mixture:
        swap = None if mixture.end in (None, ends[0]) else (ends[0], mixture.end)
        contexts.append(progress.teacher)
        decoders.append(
            Decoder(mixture.teacher, vocabulary, sampling.temperature, progress.teacher.width + horizon, swap)
        )
    unread = None
    if mixture and heads is not None:
        own, other = decoders
        unread = Unread(progress, own.head, mixture.teacher, other, heads, mixture.alpha, record)
        decoders, contexts = [own], contexts[:1]
    # (rows, positions, the teacher's hidden states).
    kept: list[tuple[Tensor, Tensor | int, Tensor]] = []
    # Rows of the caches -> rows of the batch.
    alive = torch.arange(len(uniform), device=device)
    # The first column that each cache holds.
    starts = [0] * len(decoders)
    hidden = []
    for decoder, c in zip(decoders, contexts, strict=True):
        padded = c.history[:, : c.width], c.attention[:, : c.width], c.places[:, : c.width]
        hidden.append(decoder.prompts(*padded, list(map(len, c.prompts)), at_once(device, 0)))
    # Rows that have not ended; those of them whose next token the teacher draws.
    remaining, asked = len(alive), 0 if heads is None else int(heads[:, 0].sum())
    for t in range(horizon):
        states = [values[:, -1] for values in hidden]
        if unread is not None:
            chosen = unread.draw(t, alive, states[0], uniform[alive, t], asked, remaining)
        else:
            logits = [decoder.head.logits(x) for decoder, x in zip(decoders, states, strict=True)]
            if filters:
                logits[0] = filters(alive, logits[0])
            chosen, values = _position(logits, mixture.alpha if mixture else 0.0, uniform[alive, t], record)
            if values is not None:
                progress.records[:, alive, t] = values.to(progress.records.dtype)
            if record and mixture:
                kept.append((alive, t, states[1]))
            if filters:
                filters.add(alive, chosen)
        still = progress.put(t, alive, chosen, ends)
        # The one synchronisation point of a position.
        counts = [still.sum(), (chosen < 0).sum()]
        if unread is not None:
            counts.append(unread.asked(t + 1, alive, still))
        remaining, broken, *rest = torch.stack(counts).tolist()
        asked = sum(rest)
        if broken:
            raise _broken(model)
        if remaining == 0 or t + 1 == horizon:
            break
        if remaining <= COMPACT_AT * len(alive):
            alive = alive[still]
            croppable, kept_rows = all(d.croppable for d in decoders), still.nonzero().squeeze(-1)
            for i, (decoder, c) in enumerate(zip(decoders, contexts, strict=True)):
                first = int(c.attention[alive].argmax(-1).min()) if croppable else starts[i]
                decoder.keep(kept_rows, first - starts[i])
                starts[i] = first
        hidden = []
        for decoder, c, start in zip(decoders, contexts, starts, strict=True):
            end = c.width + t
            tokens, visible = c.history[alive, end : end + 1], c.attention[alive, start : end + 1]
            hidden.append(decoder.hidden(tokens, visible, c.places[alive, end : end + 1]))

    if unread is not None:
        unread.finish()
        kept = unread.kept
        if progress.records.isnan().any():
            raise _broken(unread.teacher)
    return _responses(progress, record, kept)


def _broken(model: PreTrainedModel) -> UserError:
    name = model.name_or_path or type(model).__name__
    return UserError(f"{name}: its logits are not numbers (NaN); it has diverged or is damaged")


def _responses(
    progress: Progress, record: bool, kept: Sequence[tuple[Tensor, Tensor | int, Tensor]]
) -> list[Response]:
    """Each row's part of the tensors, on the CPU."""
    tokens = progress.student.history[:, progress.student.width :].cpu().numpy().astype(np.int32)
    lengths, finished = progress.lengths.tolist(), progress.finished.tolist()
    values = progress.records.cpu().numpy() if record else None
    states = _by_row(kept, len(lengths), max(lengths))
    responses = []
    for i, (length, ended) in enumerate(zip(lengths, finished, strict=True)):
        # Copies here and below: a view would keep, and perhaps send, the arrays of the whole batch.
        record_of = None if values is None else Record(*values[:, i, :length].copy())
        if record_of is not None and states is not None:
            record_of = dataclasses.replace(record_of, teacher_hidden=states[i, :length].clone())
        responses.append(Response(tokens[i, :length].copy(), ended, record_of))
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
    # All logits are finite: filters are refused here.
    return chosen, token_values(student, teacher, q, mixed.gather(-1, at), at)


def _by_row(kept: Sequence[tuple[Tensor, Tensor | int, Tensor]], size: int, length: int) -> Tensor | None:
    """Hidden states (size, length, width) on the CPU, from those of (rows, positions)."""
    if not kept:
        return None
    hidden = kept[0][2]
    states = hidden.new_zeros(size, length, hidden.shape[-1])
    for rows, positions, hidden in kept:
        states[rows, positions] = hidden
    return states.cpu()
