"""Which loss is taken on the samples of a collection: MiniLLM's two terms, or one divergence; and plain text beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm import models, objectives
from minillm.data import Batch, Corpus, collate
from minillm.development import Dev
from minillm.engine import Engine
from minillm.errors import UserError
from minillm.rollouts import Rollouts
from minillm.semantics import OnPolicy
from minillm.supervised import batch_of_step, example_loss, plain_sequences

PLAIN = 2**41  # orders of plain text come from other keys than orders of prompts


@dataclass(frozen=True)
class Task:
    """What a loss needs beside the student and the samples; `anchor` is the initial student, where the guard wants it."""

    teacher: PreTrainedModel
    anchor: PreTrainedModel | None
    corpus: Corpus
    dev: Dev
    settings: OnPolicy
    seed: int


def importance(rollouts: Rollouts, settings: OnPolicy) -> Tensor:
    """w_t of every token, (rows, time): Eq. 5 by its last factor ("token"), as it stands ("product"), or 1 ("none")."""
    if settings.importance == "none":
        return rollouts.mask
    weights = objectives.importance_weights(rollouts.student_logprobs, rollouts.teacher_logprobs, settings.alpha)
    if settings.importance == "product":
        return objectives.sequence_weights(weights, rollouts.mask)
    return weights * rollouts.mask


def advantages(rollouts: Rollouts, settings: OnPolicy) -> Tensor:
    """What multiplies grad log q of every token in the long term, (rows, time), before whitening."""
    s, mask = settings, rollouts.mask
    rewards = objectives.token_rewards(
        rollouts.student_logprobs, rollouts.teacher_logprobs, mask, scale=s.reward_scale, clip=s.reward_clip or None
    )
    expected = -rollouts.reverse_kl * mask / s.reward_scale  # the mean of r_t given what stands before it
    if s.advantage == "expected":
        rewards = expected
    if s.advantage == "centred":  # r_t less its mean, then the rewards that follow
        baseline = objectives.returns(expected, mask, gamma=0.0, length_norm=s.length_norm, include_current=True)
        return objectives.returns(rewards, mask, gamma=s.gamma, length_norm=s.length_norm, include_current=True) - baseline
    return objectives.returns(rewards, mask, gamma=s.gamma, length_norm=s.length_norm, include_current=s.include_current)


def whitened(values: Tensor, mask: Tensor, settings: OnPolicy) -> Tensor:
    """Advantages of one global mini-batch, (rows, time), whitened or not.

    "positions" counts `max_tokens` positions a row, absent ones as zeros, as the released code does with its padding, here
    whatever the padding is; "tokens" counts the response tokens.
    """
    if settings.whiten == "none":
        return values
    if settings.whiten == "tokens":
        return objectives.whiten(values, mask)
    total = len(values) * settings.max_tokens
    mean = objectives.masked_mean(values, mask, denominator=total)
    present = objectives.masked_mean(torch.ones_like(values), mask, denominator=total)
    # Squares of differences, not the difference of squares, which float32 can leave negative.
    variance = objectives.masked_mean((values - mean) ** 2, mask, denominator=total) + (1 - present) * mean**2
    return objectives.whiten(values, mask, statistics=(mean, variance))


def token_divergence(settings: OnPolicy, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The configured divergence of each token; reverse KL for "minillm", which is what it minimises."""
    if settings.objective == "minillm":
        return objectives.reverse_kl(student_logits, teacher_logits)
    if settings.objective == "jensen_shannon":
        return objectives.jensen_shannon(student_logits, teacher_logits, settings.beta)
    if settings.objective == "skew_forward_kl":
        return objectives.skew_forward_kl(student_logits, teacher_logits, settings.skew)
    if settings.objective == "skew_reverse_kl":
        return objectives.skew_reverse_kl(student_logits, teacher_logits, settings.skew)
    plain = {
        "forward_kl": objectives.forward_kl,
        "reverse_kl": objectives.reverse_kl,
        "total_variation": objectives.total_variation,
    }
    return plain[settings.objective](student_logits, teacher_logits)


@dataclass(frozen=True)
class Known:
    """What a micro-batch's loss takes as given: of each valid token, (tokens,) in the order of the logits; frozen models' logits by tile."""

    tokens: Tensor
    old_logprobs: Tensor
    weights: Tensor
    advantages: Tensor
    teacher: Callable[[slice], Tensor] | None
    initial: Callable[[slice], Tensor] | None


def terms(settings: OnPolicy, logits: Tensor, tile: slice, known: Known) -> dict[str, Tensor]:
    """The loss of a tile's tokens by name, each a sum over them.

    "minillm": the single-step term plus the long term (Eq. 5 with Eq. 6); any other objective: its divergence.
    """
    s, every = settings, torch.ones_like(logits[:, 0])
    found: dict[str, Tensor] = {}
    if s.objective != "minillm":
        assert known.teacher is not None
        found[s.objective] = token_divergence(s, logits, known.teacher(tile)).sum()
    else:
        new, old, w = models.token_logprobs(logits, known.tokens[tile]), known.old_logprobs[tile], known.weights[tile]
        found["long_term"] = objectives.policy_gradient_loss(
            new, old, known.advantages[tile], every, weights=w, clip=s.clip or None, surrogate=s.surrogate, denominator=1
        )
        if known.teacher is not None:
            weighted = w if s.single_step_weights else None
            found["single_step"] = objectives.single_step_loss(
                logits, known.teacher(tile), every, weights=weighted, denominator=1
            )
    if known.initial is not None:
        found["init_kl"] = s.init_kl * objectives.reverse_kl(logits, known.initial(tile)).sum()
    return found


def clipped(settings: OnPolicy, logits: Tensor, tile: slice, known: Known) -> Tensor:
    """How many of a tile's tokens have a ratio that the surrogate clips."""
    new = models.token_logprobs(logits.detach(), known.tokens[tile])
    ratio = torch.exp(new - known.old_logprobs[tile]) * known.weights[tile]
    return ((ratio - 1.0).abs() > settings.clip).sum()


def rollout_loss(
    engine: Engine,
    task: Task,
    rollouts: Rollouts,
    credit: Tensor,
    weights: Tensor,
    part: Sequence[int],
    denominator: Tensor,
    numbers: dict[str, float],
) -> Tensor:
    """This micro-batch's share of the loss on the samples, a sum over its tokens divided by `denominator`.

    What is logged is added to `numbers`: the terms, and counts of tokens.
    """
    s, rows = task.settings, list(part)
    pad = models.special_tokens(task.dev.tokenizer)[1]
    batch = collate([(rollouts.prompts[i], rollouts.responses[i]) for i in part], pad).to(engine.world.device)
    valid = rollouts.mask[rows].bool()

    def cut(values: Tensor) -> Tensor:  # (valid tokens,), in the order of the logits
        return values[rows][valid].to(engine.world.device)

    known = Known(
        models.response_tokens(batch),
        cut(rollouts.student_logprobs),
        cut(weights),
        cut(credit),
        teacher_logits(task, rollouts, rows, batch) if s.objective != "minillm" or s.single_step else None,
        frozen_logits(task.anchor, batch, task) if task.anchor is not None else None,
    )
    sums: dict[str, Tensor] = {}

    def values(logits: Tensor, tile: slice) -> Tensor:
        found = terms(s, logits, tile, known)
        logged = {name: value.detach() for name, value in found.items()}
        if s.objective == "minillm" and s.clip:
            logged["clipped"] = clipped(s, logits, tile, known) * denominator  # a count, not a share of the loss
        for name, value in logged.items():
            sums[name] = sums[name] + value if name in sums else value
        return torch.stack(list(found.values()))

    loss = models.response_loss(engine.engine, batch, task.dev.vocabulary, values, s.temperature) / denominator
    for name, total in sums.items():
        numbers[name] = numbers.get(name, 0.0) + (total / denominator).item()
    return loss


def frozen_logits(model: PreTrainedModel, batch: Batch, task: Task) -> Callable[[slice], Tensor]:
    """Logits of a model that is not trained, a tile of the batch's valid tokens at a time."""
    head = models.head_of(model, task.dev.vocabulary, task.settings.temperature)
    return models.frozen_logits(models.response_hidden(model, batch), head)


def teacher_logits(task: Task, rollouts: Rollouts, rows: Sequence[int], batch: Batch) -> Callable[[slice], Tensor]:
    """The teacher's, from the hidden states that were kept when the samples were drawn, or from a pass of its own."""
    if rollouts.teacher_hidden is None:
        return frozen_logits(task.teacher, batch, task)
    hidden = torch.cat([rollouts.teacher_hidden[i] for i in rows]).to(batch.tokens.device)
    return models.frozen_logits(hidden, models.head_of(task.teacher, task.dev.vocabulary, task.settings.temperature))


def plain_text_parts(engine: Engine, task: Task) -> tuple[list[list[int]], float]:
    """(this rank's chunks of the step's plain text, one list a micro-batch; the normaliser of all ranks' plain text)."""
    s, corpus = task.settings, task.corpus
    # At most once each: a corpus shorter than a batch is used whole.
    count = min(s.lm_batch or s.batch, len(corpus)) if s.lm_coef else 0
    if count % engine.world.size:
        raise UserError(
            f"lm_batch: {count} chunks cannot be split evenly over {engine.world.size} processes; change one of them"
            + (f" (the corpus has no more than {count})" if count == len(corpus) else "")
        )
    chosen = batch_of_step(len(corpus), count, engine.step, task.seed + PLAIN) if count else []
    mine = chosen[engine.world.rank :: engine.world.size]
    tokens = sum(len(corpus.chunk(i)) - 1 for i in chosen)
    return [mine[k :: engine.accumulation] for k in range(engine.accumulation)], float(
        len(chosen) if s.normaliser == "sequences" else tokens
    )


def step_losses(
    engine: Engine, task: Task, rollouts: Rollouts, chosen: Sequence[int], numbers: dict[str, float]
) -> Iterator[Tensor]:
    """Losses of this rank's micro-batches of one mini-batch; all ranks' add up to the mini-batch's loss, and so do the `numbers`."""
    s, rows = task.settings, list(chosen)
    mask = rollouts.mask[rows]
    credit = advantages(rollouts, s)
    credit[rows] = whitened(credit[rows], mask, s)  # statistics of the global mini-batch, whatever it is split into
    weights = importance(rollouts, s)
    denominator = mask.sum() if s.normaliser == "tokens" else torch.tensor(float(len(rows)))
    texts, normaliser = plain_text_parts(engine, task)
    pad = models.special_tokens(task.dev.tokenizer)[1]
    micro_batches = engine.mine(rows, length=lambda i: len(rollouts.prompts[i]) + len(rollouts.responses[i]))
    for part, text in zip(micro_batches, texts, strict=True):
        loss = rollout_loss(engine, task, rollouts, credit, weights, part, denominator, numbers)
        if text:
            plain = collate(plain_sequences([task.corpus.chunk(i) for i in text]), pad).to(engine.world.device)
            lm = s.lm_coef * example_loss(engine.engine, plain, task.dev.vocabulary, normaliser, task.teacher, s.lm_kd_ratio)
            numbers["plain_text"] = numbers.get("plain_text", 0.0) + lm.item()
            loss = loss + lm
        yield loss


def credit_summary(rollouts: Rollouts, settings: OnPolicy) -> dict[str, float]:
    """What is logged of a collection's rewards, advantages (before whitening) and weights; nothing for plain divergences."""
    if settings.objective != "minillm":
        return {}
    mask = rollouts.mask
    rewards = (rollouts.teacher_logprobs - rollouts.student_logprobs)[mask.bool()]
    credit = advantages(rollouts, settings)[mask.bool()]
    weights = importance(rollouts, settings)[mask.bool()]
    return {
        "reward": rewards.mean().item(),
        "advantage_mean": credit.mean().item(),
        "advantage_std": credit.std(correction=0).item(),
        "advantage_min": credit.min().item(),
        "advantage_max": credit.max().item(),
        # Kish's effective sample size, as a share of the tokens: 1 for equal weights
        "effective_samples": (weights.sum() ** 2 / (weights**2).sum() / len(weights)).item(),
    }
