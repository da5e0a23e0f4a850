"""The loss of a mini-batch of samples and its plain text, split over ranks and micro-batches (mini_batch.py).

What is a statistic of the whole mini-batch is made here: advantages, token weights and denominators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from minillm.config.onpolicy import OnPolicy
from minillm.errors import UserError
from minillm.runtime.engine import Engine, Losses
from minillm.runtime.schedule import batch_of_step
from minillm.training import token_weights
from minillm.training.credit import advantages, importance, whitened
from minillm.training.early_end_weights import with_early_end
from minillm.training.mini_batch import MiniBatch, Row, Task
from minillm.training.rollouts import Rollouts

# Orders of plain text are drawn with other keys than orders of prompts.
PLAIN = 2**41


def plain_text(engine: Engine, task: Task) -> list[int]:
    """The plain-text chunks of this step, of all ranks."""
    s, corpus = task.settings, task.corpus
    # Each at most once: a corpus shorter than a batch is used whole.
    count = min(s.lm_batch or s.batch, len(corpus)) if s.lm_coef else 0
    if count % engine.world.size:
        raise UserError(
            f"lm_batch: {count} chunks cannot be split evenly over {engine.world.size} processes; "
            "change one of them" + (f" (the corpus has no more than {count})" if count == len(corpus) else "")
        )
    return batch_of_step(len(corpus), count, engine.step, task.seed + PLAIN) if count else []


def shares(settings: OnPolicy, step: int) -> list[float] | None:
    """What is left of each further term's coefficient after `step` optimizer steps; None if none falls."""
    terms = settings.also or ()
    if all(term.until is None for term in terms):
        return None
    return [1.0 if term.until is None else max(0.0, 1 - step / term.until) for term in terms]


def micro_batches(
    engine: Engine, task: Task, rollouts: Rollouts, chosen: Sequence[int], target: float | None = None
) -> tuple[list[list[Row]], Callable[[list[Row]], Losses]]:
    """(this rank's micro-batches of a mini-batch and its plain text, the loss of one of them).

    Over all micro-batches of all ranks the losses sum to the whole loss.  `target` is TAID's t.
    """
    s, rows = task.settings, list(chosen)
    mask, texts = rollouts.mask[rows], plain_text(engine, task)
    credit = advantages(rollouts, s)
    # Statistics of the global mini-batch, however it is split.
    credit[rows] = whitened(credit[rows], mask, s)
    tokens = float(mask.sum())
    progress = engine.step / s.steps
    # The share of collections that are done, the same for all steps of one.
    done = engine.step // s.steps_of_collection / s.collections
    factors = [
        with_early_end(
            rollouts,
            s,
            token_weights.configured(rollouts, term.token_weights, task.dev.tokenizer, rows, done),
        )
        for term in (s, *s.further_terms())
    ]
    if factors[0] is not None:
        credit = credit * factors[0]
    by_sequence = s.normaliser == "sequences"
    answers: list[Row] = []
    if s.teacher_texts is not None and task.answers is not None:
        answers = [("answer", i) for i in rows]
    both = tokens + sum(len(task.answers[rollouts.ids[i]]) for _, i in answers) if task.answers else tokens
    gold = rollouts.gold if s.gold is not None else None
    mini_batch = MiniBatch(
        task,
        rollouts,
        credit,
        importance(rollouts, s),
        tokens,
        denominator=float(len(rows) + len(answers)) if by_sequence else both,
        text_denominator=float(
            len(texts) if by_sequence else sum(len(task.corpus.chunk(i)) - 1 for i in texts)
        ),
        device=engine.world.device,
        compiled=engine.launch.compile,
        target=target,
        factors=factors,
        gold_denominator=float(len(rows) if by_sequence or gold is None else sum(len(gold[i]) for i in rows)),
        shares=shares(s, engine.step),
        balance=s.teacher_texts.balance(progress) if s.teacher_texts is not None else None,
    )
    samples: list[Row] = [("sample", i) for i in rows]
    golds: list[Row] = [] if gold is None else [("gold", i) for i in rows]
    parts = engine.mine(samples, golds, answers, [("text", i) for i in texts], length=mini_batch.length)
    return parts, partial(mini_batch.loss, engine.engine)
