"""Supervised training: pre-training, healing, SFT, KD and SeqKD are one loop over examples with one loss.

An example is a prompt and a response; cross-entropy is taken on the response (its first EOS included), and with a teacher it is mixed
with the forward KL to it (`kd_ratio`).  What differs between the stages is which examples, from which model, and with which teacher.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm import objectives
from minillm.config.sections import Launch, Training
from minillm.config.stage_settings import TrainSettings
from minillm.data.batching import Batch, collate
from minillm.data.rows import Rows
from minillm.errors import UserError
from minillm.files import identity, stage_key
from minillm.models.head import (
    head_of,
    logits_by_tile,
    response_hidden,
    response_loss,
    response_tokens,
    token_logprobs,
)
from minillm.models.loading import check_same_tokenizer, load_model, load_tokenizer, special_tokens
from minillm.models.tiled_loss import Compilable, Terms
from minillm.runtime.engine import Engine, Losses
from minillm.runtime.metrics_log import MetricsLog
from minillm.runtime.processes import host, start
from minillm.runtime.schedule import batch_of_step, count_steps, evaluation_steps
from minillm.training.dev_set import Candidates, Dev, Example, answer, losses
from minillm.training.export import export
from minillm.training.teacher_cache import TeacherCache

RULES = ("best_rouge", "lowest_loss")


@dataclass(frozen=True)
class TokenLoss:
    """(1 - kd_ratio) cross-entropy + kd_ratio KL(p || q) of each token, summed; cross-entropy alone without a teacher."""

    kd_ratio: float

    def __call__(self, logits: Tensor, tokens: Tensor, teacher_logits: Tensor | None) -> Terms:
        """`logits` and `teacher_logits` are (n, vocabulary), `tokens` (n,)."""
        ratio = 0.0 if teacher_logits is None else self.kd_ratio
        found = torch.zeros_like(logits[:, 0])
        if ratio < 1:
            found = found - (1 - ratio) * token_logprobs(logits, tokens)
        if teacher_logits is not None:
            found = found + ratio * objectives.forward_kl(logits, teacher_logits)
        return {"loss": found.sum()}, {}


def token_loss(
    tokens: Tensor, teacher: Callable[[slice], Tensor] | None, kd_ratio: float, compiled: bool = False
) -> Compilable:
    """TokenLoss of `tokens`, (tokens,); `teacher` gives its logits by tile."""
    return Compilable(
        TokenLoss(kd_ratio),
        lambda part: (tokens[part], teacher(part) if teacher else None),
        lambda _: None,
        compiled,
    )


def example_loss(
    model: torch.nn.Module,
    batch: Batch,
    vocabulary: int,
    denominator: float,
    teacher: PreTrainedModel | None,
    kd_ratio: float,
    hidden: Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """(1 - kd_ratio) cross-entropy + kd_ratio KL(p || q) on response tokens: this batch's share of the mean over `denominator` tokens.

    `hidden` are the teacher's hidden states, (valid tokens, width), where they are known already; `compiled` as launch.compile.
    """
    theirs = None
    if teacher is not None and kd_ratio > 0:
        states = response_hidden(teacher, batch) if hidden is None else hidden
        theirs = logits_by_tile(states, head_of(teacher, vocabulary))
    function = token_loss(response_tokens(batch), theirs, kd_ratio, compiled)
    return response_loss(model, batch, vocabulary, function) / denominator


def teacher_cache(
    engine: Engine, teacher: PreTrainedModel, examples: Sequence[Example], settings: Training
) -> TeacherCache | None:
    """Where the teacher's hidden states are kept from one epoch to the next; None where that is not wanted or does not pay.

    It takes more than one epoch, room on the disk, and processes that all see one file as the others left it: those of one machine.  A
    teacher that is spread over the processes needs all of them for each pass, which a process that reads would not make.
    """
    lengths = [len(response) for _, response in examples]
    weight = head_of(teacher, 1).weight
    width, dtype = weight.shape[1], weight.dtype
    spread = engine.launch.shard_teacher and engine.world.size > 1
    if (
        not engine.launch.teacher_cache
        or settings.epochs <= 1
        or spread
        or len(set(engine.world.gather(host()))) > 1
    ):
        return None
    folder = engine.folder / "teacher"
    if not all(engine.world.gather(TeacherCache.fits(folder, lengths, width, dtype))):
        engine.say(f"{engine.folder}: no room for the teacher's hidden states; it is run anew in each epoch")
        return None
    return TeacherCache(folder, lengths, width, dtype, engine.world)


@dataclass(frozen=True)
class Supervision:
    """What is learnt from what: the examples, dev examples (`own_dev`: of the same kind as the examples, where these are not gold), and the
    teacher that has a share of `kd_ratio` in the loss."""

    engine: Engine
    examples: Sequence[Example]
    dev: Dev
    own_dev: Sequence[Example]
    teacher: PreTrainedModel | None
    kd_ratio: float
    cache: TeacherCache | None
    seen: tuple[dict[int, Tensor], dict[int, Tensor]] = field(
        default_factory=lambda: ({}, {})
    )  # the teacher's, of both dev sets

    def micro_batches(self, chosen: Sequence[int]) -> tuple[list[list[int]], Callable[[list[int]], Losses]]:
        """(this rank's micro-batches of one global batch, the loss of one of them); all ranks' add up to the whole loss."""
        engine, examples, teacher = self.engine, self.examples, self.teacher
        denominator = sum(len(examples[i][1]) for i in chosen)
        pad = special_tokens(self.dev.tokenizer)[1]

        def loss(part: list[int]) -> Losses:
            batch = collate([examples[i] for i in part], pad).to(engine.world.device)
            known = None
            if (
                self.cache and teacher is not None
            ):  # of all of them, computed as one batch where one of them is new
                known = self.cache.hidden(part, lambda: response_hidden(teacher, batch), engine.world.device)
            made = example_loss(
                engine.engine,
                batch,
                self.dev.vocabulary,
                denominator,
                teacher,
                self.kd_ratio,
                known,
                engine.launch.compile,
            )
            return made, {}

        return engine.mine(chosen, length=lambda i: sum(map(len, examples[i]))), loss

    def look(self, rouge: bool) -> dict[str, float]:
        """The dev set: "dev_loss", "dev_objective", and what fresh answers to it are like where `rouge`."""
        engine, teacher = self.engine, self.teacher if self.kd_ratio else None
        wanted = {"forward_kl": objectives.forward_kl}
        of_dev, of_own = self.seen if engine.launch.teacher_cache else (None, None)
        with engine.whole():
            found = losses(
                engine.model, self.dev.examples, self.dev, engine.world, teacher, wanted, kept=of_dev
            )
            own = found
            if self.own_dev:
                own = losses(engine.model, self.own_dev, self.dev, engine.world, teacher, wanted, kept=of_own)
            objective = (1 - self.kd_ratio) * own["nll"] + self.kd_ratio * own.get("forward_kl", 0.0)
            values = {"dev_loss": found["nll"], "dev_objective": objective}
            if rouge:
                answers = answer(engine.model, self.dev, engine.world)
                values |= {
                    "dev_rouge": answers.rouge,
                    "dev_length": answers.mean_length,
                    "dev_finished": answers.finished,
                }
        return values


def fit(
    engine: Engine,
    examples: Sequence[Example],
    dev: Dev,
    settings: Training,
    *,
    name: str,
    seed: int,
    teacher: PreTrainedModel | None = None,
    own_dev: Sequence[Example] = (),
    rouge: bool = True,
) -> list[dict[str, Any]]:
    """Train to the end, from the newest checkpoint where there is one; returns the history of dev evaluations.

    Each evaluation holds "dev_loss" (cross-entropy on the dev references), "dev_objective" (the loss that is trained, on dev rows or on
    `own_dev`), and "dev_rouge" where `rouge`.
    """
    state = engine.resume() or {"history": []}
    history: list[dict[str, Any]] = state["history"]
    candidates = Candidates(engine, dev.tokenizer, RULES if rouge else RULES[1:])
    log = MetricsLog(engine, name)
    kd_ratio = settings.kd_ratio if settings.loss == "kd" else 0.0
    due = evaluation_steps(engine.steps, settings.evaluations)
    cache = teacher_cache(engine, teacher, examples, settings) if teacher is not None and kd_ratio else None
    work = Supervision(engine, examples, dev, own_dev, teacher, kd_ratio, cache)

    def save() -> None:
        if cache:
            cache.save()
        engine.save({"history": history})

    engine.engine.eval()
    if engine.step == 0:
        log.write(work.look(rouge=False))
    with engine.interruptible(), engine.progress(name) as bar:
        while engine.step < engine.steps:
            found = engine.update(
                *work.micro_batches(batch_of_step(len(examples), settings.batch, engine.step, seed))
            )
            bar.update()
            if engine.logs:
                log.write(engine.summed(found))
            if engine.step in due:
                values = work.look(rouge)
                history.append({"step": engine.step, **values})
                log.write(values)
                candidates.offer(history)
            if engine.step in due or engine.step % engine.launch.save_every == 0:
                save()
                candidates.prune(history)
            engine.stop_if_asked(save)
    return history


def training_examples(data: Path, pseudo: Path | None) -> tuple[list[Example], list[Example]]:
    """(training examples, dev examples of the same kind): the gold answers, or with `pseudo` the teacher's answers to the same prompts."""
    rows = Rows.open(data, "train")
    if pseudo is None:
        return [(rows.prompt(i), rows.response(i)) for i in range(len(rows))], []
    parts = {"train": rows, "dev": Rows.open(data, "dev")}
    places = {split: {int(row): i for i, row in enumerate(part.ids)} for split, part in parts.items()}
    found: dict[str, list[Example]] = {"train": [], "dev": []}
    for number, line in enumerate(pseudo.read_text().removesuffix("\n").split("\n"), 1):
        answer_ = json.loads(line)
        split = answer_["split"]
        if answer_["id"] not in places[split]:
            raise UserError(
                f"{pseudo}:{number}: no {split} row has the id {answer_['id']}; make the teacher's answers again"
            )
        prompt = parts[split].prompt(places[split][answer_["id"]])
        found[split].append((prompt, np.asarray(answer_["response_tokens"], dtype=np.int32)))
    return found["train"], found["dev"]


def run_stage(
    settings: TrainSettings,
    launch: Launch,
    *,
    data: Path,
    base: Path,
    out: Path,
    checkpoints: Path,
    init: Path | None = None,
    teacher: Path | None = None,
    pseudo: Path | None = None,
) -> None:
    """Stages teacher, sft, kd and seqkd: train `base` on `data`; leave the checkpoint of best dev ROUGE-L at `out`, that of lowest
    dev loss at `init` if that is asked for."""
    world = start(settings.seed, launch.patience)
    inputs = {
        key: identity(path)
        for key, path in {"data": data, "base": base, "teacher": teacher, "pseudo": pseudo}.items()
        if path
    }
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(data / "tokenizer")
    check_same_tokenizer(base, data / "tokenizer")
    needs_teacher = settings.training.loss == "kd"
    if needs_teacher and teacher is None:
        raise UserError(f"{settings.stage}: the loss 'kd' needs a teacher")
    if teacher is not None:
        check_same_tokenizer(base, teacher)
    examples, own_dev = training_examples(data, pseudo)
    dev = Dev.open(data, settings.training.dev_rows, tokenizer, settings.sampling, launch, settings.seed)
    raw = dataclasses.asdict(settings)
    engine = Engine(
        load_model(base, "fp32"),
        settings.training,
        launch,
        world,
        settings.precision,
        checkpoints / f"{settings.stage}-{stage_key(raw, inputs)}",
        count_steps(len(examples), settings.training),
    )
    teacher_model = (
        engine.frozen(load_model(teacher, settings.precision)) if needs_teacher and teacher else None
    )
    history = fit(
        engine,
        examples,
        dev,
        settings.training,
        name=settings.stage,
        seed=settings.seed,
        teacher=teacher_model,
        own_dev=own_dev,
    )
    outputs = {"best_rouge": out, **({"lowest_loss": init} if init else {})}
    export(engine, dev, history, outputs, raw, inputs, settings.seed)
    world.barrier()
    if world.rank == 0:
        engine.say(f"{settings.stage}: finished after {engine.steps} steps and {engine.elapsed():.0f} s")


def plain_sequences(chunks: Sequence[np.ndarray]) -> list[Example]:
    """Chunks as examples whose first token is the prompt, so that all the others are targets."""
    return [(chunk[:1], chunk[1:]) for chunk in chunks if len(chunk) > 1]
