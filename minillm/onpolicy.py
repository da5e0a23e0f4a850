"""MiniLLM's on-policy phase (Algorithm 1): rollout -> inner epochs of mini-batches -> dev evaluation.

The samples come from the student, mixed with the teacher (Eq. 4); the loss on them is the single-step term plus the long term with the
clipped ratio (Eqs. 3, 5, 6), plus the pre-training loss on plain text.  Global batch, rollouts and steps do not depend on
the number of processes: every rank holds the whole collection and takes its share of each mini-batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm import models, objectives
from minillm.config import Launch, OnPolicy, Sampling
from minillm.data import Corpus, Rows, collate
from minillm.development import Candidates, Dev, answer, losses
from minillm.engine import Engine, MetricsLog, start
from minillm.errors import UserError
from minillm.files import identity, stage_key
from minillm.sampling import Mixture, sample
from minillm.settings import OnPolicySettings
from minillm.supervised import batch_of_step, evaluation_steps, example_loss, export, plain_sequences

INNER = 2**40  # orders of mini-batches and of plain text come from other keys than orders of prompts
PLAIN = 2**41


@dataclass(frozen=True)
class Rollouts:
    """One collection, the same on every rank: prompts, responses, and per token (rows, time) what the losses need."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    student_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    mask: Tensor
    summary: dict[str, float]


def collect(
    engine: Engine, teacher: PreTrainedModel, rows: Rows, dev: Dev, settings: OnPolicy, collection: int, seed: int
) -> Rollouts:
    """Sample the collection's responses (ranks share the prompts) and turn the recorded log-probabilities into advantages."""
    chosen = batch_of_step(len(rows), settings.rollouts, collection, seed)
    mine = chosen[engine.world.rank :: engine.world.size]
    eos, pad = models.special_tokens(dev.tokenizer)
    found = sample(
        engine.model,
        [rows.prompt(i) for i in mine],
        [int(rows.ids[i]) for i in mine],
        Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens),
        seed=seed,
        step=collection,
        eos=eos,
        pad=pad,
        vocabulary=dev.vocabulary,
        mixture=Mixture(teacher, settings.alpha),
        record=True,
        batch=engine.launch.eval_batch,
    )
    by_row = {i: response for part in engine.world.gather(list(zip(mine, found, strict=True))) for i, response in part}
    responses = [by_row[i] for i in chosen]
    width = max(len(r.tokens) for r in responses)
    mask, student, teacher_ = (torch.zeros(len(chosen), width) for _ in range(3))
    for k, response in enumerate(responses):
        length = len(response.tokens)
        mask[k, :length] = 1.0
        student[k, :length] = recorded(response.student_logprobs)
        teacher_[k, :length] = recorded(response.teacher_logprobs)
    rewards = objectives.token_rewards(student, teacher_, mask, scale=settings.reward_scale, clip=settings.reward_clip or None)
    summary = {
        "reward": objectives.masked_mean(rewards, mask).item(),
        "response_length": mask.sum(1).mean().item(),
        "finished": float(np.mean([r.finished for r in responses])),
    }
    return Rollouts(
        [rows.prompt(i) for i in chosen],
        [r.tokens for r in responses],
        student,
        objectives.returns(rewards, mask, gamma=settings.gamma, length_norm=settings.length_norm),
        objectives.importance_weights(student, teacher_, settings.alpha),
        mask,
        summary,
    )


def recorded(values: np.ndarray | None) -> Tensor:
    """Log-probabilities that the sampler wrote down."""
    assert values is not None
    return torch.from_numpy(values)


def rollout_loss(
    engine: Engine,
    teacher: PreTrainedModel,
    rollouts: Rollouts,
    advantages: Tensor,
    part: Sequence[int],
    dev: Dev,
    settings: OnPolicy,
    denominator: Tensor,
) -> Tensor:
    """This micro-batch's share of the single-step term plus the long term (Eq. 5 with Eq. 6), means over `denominator` tokens."""
    pad = models.special_tokens(dev.tokenizer)[1]
    batch = collate([(rollouts.prompts[i], rollouts.responses[i]) for i in part], pad).to(engine.world.device)
    valid = rollouts.mask[list(part)].bool()

    def cut(values: Tensor) -> Tensor:  # (valid tokens,), as the logits below
        return values[list(part)][valid].to(engine.world.device)

    logits = models.response_logits(engine.engine, batch, dev.vocabulary) / settings.temperature
    with torch.no_grad():
        theirs = models.response_logits(teacher, batch, dev.vocabulary) / settings.temperature
    weights, mask = cut(rollouts.weights), torch.ones_like(logits[:, 0])
    loss = objectives.policy_gradient_loss(
        models.token_logprobs(logits, models.response_tokens(batch)),
        cut(rollouts.student_logprobs),
        cut(advantages),
        mask,
        weights=weights,
        clip=settings.clip,
        denominator=denominator,
    )
    if settings.single_step:
        loss = loss + objectives.single_step_loss(logits, theirs, mask, weights=weights, denominator=denominator)
    return loss


def plain_text_parts(engine: Engine, corpus: Corpus, settings: OnPolicy, seed: int) -> tuple[list[list[int]], float]:
    """(this rank's chunks of the step's plain text, one list a micro-batch; number of target tokens of all ranks)."""
    count = settings.lm_batch or settings.batch
    if count % engine.world.size:
        raise UserError(
            f"lm_batch: {count} chunks cannot be split evenly over {engine.world.size} processes; change one of them"
        )
    # At most once each: a corpus shorter than a batch is used whole.
    chosen = batch_of_step(len(corpus), min(count, len(corpus)), engine.step, seed + PLAIN) if settings.lm_coef else []
    mine = chosen[engine.world.rank :: engine.world.size]
    return [mine[k :: engine.accumulation] for k in range(engine.accumulation)], float(
        sum(len(corpus.chunk(i)) - 1 for i in chosen)
    )


def step_losses(
    engine: Engine,
    teacher: PreTrainedModel,
    rollouts: Rollouts,
    chosen: Sequence[int],
    corpus: Corpus,
    dev: Dev,
    settings: OnPolicy,
    seed: int,
) -> Iterator[Tensor]:
    """Losses of this rank's micro-batches of one mini-batch; all ranks' add up to the mini-batch's loss."""
    rows = list(chosen)
    mask = rollouts.mask[rows]
    advantages = rollouts.advantages
    if settings.whiten:  # statistics of the global mini-batch, whatever it is split into
        advantages = advantages.clone()
        advantages[rows] = objectives.whiten(rollouts.advantages[rows], mask)
    texts, text_tokens = plain_text_parts(engine, corpus, settings, seed)
    pad = models.special_tokens(dev.tokenizer)[1]
    micro_batches = engine.mine(rows, length=lambda i: len(rollouts.prompts[i]) + len(rollouts.responses[i]))
    for part, text in zip(micro_batches, texts, strict=True):
        loss = rollout_loss(engine, teacher, rollouts, advantages, part, dev, settings, mask.sum())
        if text:
            plain = collate(plain_sequences([corpus.chunk(i) for i in text]), pad).to(engine.world.device)
            loss = loss + settings.lm_coef * example_loss(
                engine.engine, plain, dev.vocabulary, text_tokens, teacher, settings.lm_kd_ratio
            )
        yield loss


def train(
    engine: Engine, teacher: PreTrainedModel, rows: Rows, corpus: Corpus, dev: Dev, settings: OnPolicy, seed: int
) -> list[dict[str, Any]]:
    """Algorithm 1, phase 2; goes on from the newest checkpoint, rollout buffer included.  Returns the history of dev evaluations."""
    state = engine.resume() or {"history": [], "rollouts": None}
    history, rollouts = state["history"], state["rollouts"]
    candidates = Candidates(engine, dev.tokenizer, ("best_rouge",))
    log = MetricsLog(engine, "minillm")
    updates = settings.rollouts // settings.batch
    per_collection = settings.inner_epochs * updates
    due = {per_collection * c for c in evaluation_steps(settings.collections, settings.evaluations)}

    def look() -> dict[str, Any]:
        answers = answer(engine.model, dev, engine.world)
        own = losses(engine.model, answers.examples, dev, engine.world, teacher)
        gold = losses(engine.model, dev.examples, dev, engine.world)
        found = {"dev_rouge": answers.rouge, "dev_loss": gold["nll"], "dev_objective": own["reverse_kl"]}
        return found | {"dev_length": answers.mean_length, "dev_finished": answers.finished}

    engine.engine.eval()
    if engine.step == 0:
        log.write(look())
    with engine.interruptible(), engine.progress("minillm") as bar:
        while engine.step < engine.steps:
            collection, place = divmod(engine.step, per_collection)
            if place == 0:
                rollouts = collect(engine, teacher, rows, dev, settings, collection, seed)
                log.write(rollouts.summary)
            inner, update = divmod(place, updates)
            order = np.random.Generator(
                np.random.Philox(key=[seed + INNER, collection * settings.inner_epochs + inner])
            ).permutation(settings.rollouts)
            chosen = [int(i) for i in order[update * settings.batch : (update + 1) * settings.batch]]
            numbers = engine.update(step_losses(engine, teacher, rollouts, chosen, corpus, dev, settings, seed))
            bar.update()
            if engine.step % engine.launch.log_every == 0 or engine.step == engine.steps:
                log.write(numbers)
            state = {"history": history, "rollouts": rollouts}
            if engine.step in due:
                history.append({"step": engine.step, **look()})
                log.write({key: value for key, value in history[-1].items() if key != "step"})
                candidates.offer(history)
            if engine.step in due or engine.step % engine.launch.save_every == 0:
                engine.save(state)
            engine.stop_if_asked(state)
    return history


def run_stage(
    settings: OnPolicySettings, launch: Launch, *, data: Path, init: Path, teacher: Path, out: Path, checkpoints: Path
) -> None:
    """Stage minillm: from the SFT checkpoint of lowest dev loss (`init`) to the checkpoint of best dev ROUGE-L (`out`)."""
    training = settings.training
    if training.rollouts % training.batch:
        raise UserError(
            f"minillm.batch: {training.rollouts} rollouts are not a whole number of mini-batches of {training.batch}"
        )
    world = start(settings.seed)
    models.check_same_tokenizer(init, teacher)
    tokenizer = models.load_tokenizer(data / "tokenizer")
    rows, corpus = Rows.open(data, "train"), Corpus.open(data)
    if len(rows) < training.rollouts:
        raise UserError(
            f"minillm.rollouts: {training.rollouts} prompts a collection, but there are only {len(rows)} training rows"
        )
    sampling = Sampling(temperature=training.temperature, max_tokens=training.max_tokens)
    dev = Dev.open(data, training.dev_rows, tokenizer, sampling, launch.eval_batch, settings.seed)
    inputs = {"data": identity(data), "init": identity(init), "teacher": identity(teacher)}
    raw = dataclasses.asdict(settings)
    engine = Engine(
        models.load_model(init, "fp32"),
        training,
        launch,
        world,
        settings.precision,
        checkpoints / f"minillm-{stage_key(raw, inputs)}",
        training.collections * training.inner_epochs * (training.rollouts // training.batch),
    )
    teacher_model = models.load_model(teacher, settings.precision, world.device)
    history = train(engine, teacher_model, rows, corpus, dev, training, settings.seed)
    export(engine, dev, history, {"best_rouge": out}, raw, inputs, settings.seed)
