"""Supervised training: pre-training, healing, SFT, KD and SeqKD are one loop over examples with one loss.

An example is a prompt and a response; cross-entropy is taken on the response (its first EOS included) and,
with a teacher, mixed with the forward KL to it (`kd_ratio`).  The stages differ in examples, initial model
and teacher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm import objectives
from minillm.config.launch import Launch
from minillm.config.sections import Training
from minillm.config.stage_settings import TrainSettings
from minillm.data.batching import collate, moved
from minillm.data.rows import Example, Rows
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.errors import UserError
from minillm.files import identity, stage_key
from minillm.models.head import (
    head_of,
    response_hidden,
)
from minillm.models.loading import check_same_tokenizer, load_tokenizer, special_tokens
from minillm.runtime.engine import Engine, Losses
from minillm.runtime.load_once import load_once
from minillm.runtime.metrics_log import MetricsLog
from minillm.runtime.processes import World, host, start
from minillm.runtime.schedule import batch_of_step, count_steps, evaluation_steps
from minillm.training.adapted import Base, load_frozen, with_adapter
from minillm.training.dev_set import Candidates, Dev, answer, losses
from minillm.training.export import export
from minillm.training.grid import with_choice
from minillm.training.hybrid_policy import numbers
from minillm.training.lengths import check_rows
from minillm.training.supervised_loss import example_loss
from minillm.training.teacher_answers import read_answers
from minillm.training.teacher_cache import TeacherCache
from minillm.training.trial import tried, write_trial

RULES = ("best_rouge", "lowest_loss")


def teacher_cache(
    engine: Engine, teacher: PreTrainedModel, examples: Sequence[Example], settings: Training
) -> TeacherCache | None:
    """Where the teacher's hidden states are kept between epochs; None if it is disabled or would not pay off.

    It takes more than one epoch, space on the disk, and processes that see each other's writes to one file:
    those of one machine.  A sharded teacher needs all processes for each pass, which a process that reads
    would skip.
    """
    lengths = [len(response) for _, response in examples]
    weight = head_of(teacher, 1).weight
    width, dtype = weight.shape[1], weight.dtype
    sharded = engine.launch.shard_teacher and engine.world.size > 1
    if (
        not engine.launch.teacher_cache
        or settings.epochs <= 1
        or sharded
        or len(set(engine.world.gather(host()))) > 1
    ):
        return None
    folder = engine.folder / "teacher"
    if not all(engine.world.gather(TeacherCache.fits(folder, lengths, width, dtype))):
        engine.say(f"{engine.folder}: no room for the teacher's hidden states; it is run again in each epoch")
        return None
    return TeacherCache(folder, lengths, width, dtype, engine.world)


@dataclass(frozen=True)
class Supervision:
    """The examples, the dev examples, and the teacher whose share in the loss is `kd_ratio`.

    With `draws`, a seed and the examples' row ids, the loss is HPD's; the ratio is that of the dev objective,
    since HPD's own values, made of constants, say nothing.

    `own_dev` are dev examples of the same kind as the examples, if these are not gold; `theirs` what the
    teacher reads in place of examples and own_dev, if its prompts are others.
    """

    engine: Engine
    examples: Sequence[Example]
    dev: Dev
    own_dev: Sequence[Example]
    teacher: PreTrainedModel | None
    kd_ratio: float
    cache: TeacherCache | None
    theirs: tuple[Sequence[Example], Sequence[Example]] | None = None
    draws: tuple[int, Sequence[int]] | None = None
    # The teacher's hidden states of both dev sets.
    seen: tuple[dict[int, Tensor], dict[int, Tensor]] = field(default_factory=lambda: ({}, {}))

    def micro_batches(self, chosen: Sequence[int]) -> tuple[list[list[int]], Callable[[list[int]], Losses]]:
        """(this rank's micro-batches of a global batch, the loss of one); all ranks' sum to the loss."""
        engine, examples, teacher = self.engine, self.examples, self.teacher
        denominator = sum(len(examples[i][1]) for i in chosen)
        pad, device = special_tokens(self.dev.tokenizer)[1], engine.world.device
        read = self.theirs[0] if self.theirs else examples
        swap = self.dev.teacher.swap if self.dev.teacher is not None else None

        def length(i: int) -> int:
            return len(examples[i][1]) + max(len(examples[i][0]), len(read[i][0]))

        def loss(part: list[int]) -> Losses:
            batch = collate([examples[i] for i in part], pad).to(device)
            other = collate([read[i] for i in part], pad).to(device) if self.theirs and teacher else batch
            hidden = None
            if self.cache and teacher is not None:
                # All of them are computed as one batch if one is new.
                hidden = self.cache.hidden(part, lambda: response_hidden(teacher, other), device)
            drawn_by = None
            if self.draws is not None:
                seed, ids = self.draws
                lengths = [len(examples[i][1]) for i in part]
                drawn_by = moved(numbers(seed, engine.step, [ids[i] for i in part], lengths), device)
            value = example_loss(
                engine.engine,
                batch,
                self.dev.vocabulary,
                denominator,
                teacher,
                self.kd_ratio,
                hidden,
                engine.launch.compile,
                other,
                swap,
                drawn_by,
            )
            return value, {}

        return engine.mine(chosen, length=length), loss

    def look(self, rouge: bool) -> dict[str, float]:
        """The dev set: "dev_loss", "dev_objective", and if `rouge` what fresh answers to it are like."""
        engine, teacher = self.engine, self.teacher if self.kd_ratio else None
        wanted = {"forward_kl": objectives.forward_kl}
        dev, world = self.dev, engine.world
        on_gold, on_own = self.seen if engine.launch.teacher_cache else (None, None)
        of_gold, of_own = dev.theirs(dev.examples), self.theirs[1] if self.theirs else None
        with engine.whole():
            gold = losses(
                engine.model, dev.examples, dev, world, teacher, wanted, kept=on_gold, theirs=of_gold
            )
            same_kind = gold
            if self.own_dev:
                same_kind = losses(
                    engine.model, self.own_dev, dev, world, teacher, wanted, kept=on_own, theirs=of_own
                )
            kl = same_kind.get("forward_kl", 0.0)
            objective = (1 - self.kd_ratio) * same_kind["nll"] + self.kd_ratio * kl
            values = {"dev_loss": gold["nll"], "dev_objective": objective}
            if rouge:
                answers = answer(engine.model, dev, world)
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
    ids: Sequence[int] = (),
    rouge: bool = True,
    theirs: tuple[Sequence[Example], Sequence[Example]] | None = None,
) -> list[dict[str, Any]]:
    """Train to the end, resuming from the newest checkpoint if there is one; returns the dev evaluations.

    `ids` are the examples' row ids, for messages; without them they are named by place: #0, #1 ...  `theirs`
    is what the teacher reads in place of the examples and of `own_dev`, if its prompts are others.
    Each evaluation has "dev_loss" (cross-entropy on the dev references), "dev_objective" (the training loss,
    for HPD the forward KL, on dev rows or on `own_dev`) and, if `rouge`, "dev_rouge".
    """
    state = engine.resume() or {"history": []}
    history: list[dict[str, Any]] = state["history"]
    candidates = Candidates(engine, dev.tokenizer, RULES if rouge else RULES[1:])
    log = MetricsLog(engine, name)
    kd_ratio = {"ce": 0.0, "kd": settings.kd_ratio, "hpd": 1.0}[settings.loss]
    due = evaluation_steps(engine.steps, settings.evaluations)
    cache = teacher_cache(engine, teacher, examples, settings) if teacher is not None and kd_ratio else None
    draws = (seed, ids or range(len(examples))) if settings.loss == "hpd" else None
    work = Supervision(engine, examples, dev, own_dev, teacher, kd_ratio, cache, theirs, draws)

    def save() -> None:
        if cache:
            cache.save()
        engine.save({"history": history})

    engine.engine.eval()
    if engine.step == 0:
        log.write(work.look(rouge=False))
    with engine.interruptible(), engine.progress(name) as bar:
        while engine.step < engine.steps:
            chosen = batch_of_step(len(examples), settings.batch, engine.step, seed)
            named = [ids[i] if ids else f"#{i}" for i in chosen]
            sums = engine.update(*work.micro_batches(chosen), rows=named)
            bar.update()
            if engine.logs:
                log.write(engine.summed(sums))
            if engine.step in due:
                values = work.look(rouge)
                history.append({"step": engine.step, **values})
                log.write(values)
                candidates.offer(history)
            if engine.step in due or engine.save_due():
                save()
                candidates.prune(history)
            engine.stop_if_asked(save)
    log.close()
    return history


def training_examples(
    data: Path, pseudo: Path | None, teacher_data: Path | None = None
) -> tuple[list[Example], list[Example]]:
    """(training examples, dev examples of the same kind).

    The gold answers (and no dev examples), or with `pseudo` the teacher's answers to the same rows, whose
    prompts and end it has from `teacher_data`, if that is not `data`.
    """
    if pseudo is not None:
        answers = read_answers(pseudo, data, teacher_data)
        return answers["train"], answers["dev"]
    rows = Rows.open(data, "train")
    return [(rows.prompt(i), rows.response(i)) for i in range(len(rows))], []


def read_by_teacher(
    prompts: TeacherPrompts, data: Path, examples: Sequence[Example], own_dev: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """The teacher's prompts with the responses of `examples` and `own_dev`, the first rows of each split."""
    return tuple(  # type: ignore[return-value]
        prompts.of(split, Rows.open(data, split).ids[: len(part)], part)
        for split, part in (("train", examples), ("dev", own_dev))
    )


def check_models(settings: TrainSettings, data: Path, base: Path, teacher: Path | None) -> None:
    """Raises UserError if the loss lacks its teacher, or a model has not the tokens of the data."""
    check_same_tokenizer(base, data / "tokenizer")
    loss = settings.training.loss
    if loss != "ce" and teacher is None:
        raise UserError(f"{settings.stage}: the loss '{loss}' needs a teacher")
    if teacher is not None:
        check_same_tokenizer(base, teacher)


def load_student(
    settings: TrainSettings,
    launch: Launch,
    world: World,
    base: tuple[Path, str],
    data: Path,
    examples: Sequence[Example],
) -> tuple[PreTrainedModel, Base | None]:
    """(the model to train, its base model if it has an adapter); `base`: folder and identity."""
    student = load_once(base[0], settings.precision, world, sharded=launch.zero == 3)
    check_rows(student, data, settings.sampling.max_tokens, examples)
    if settings.adapter is None:
        return student, None
    return student, with_adapter(student, settings.adapter, settings.seed, base, launch, world)


def load_teacher(
    settings: TrainSettings,
    engine: Engine,
    teacher: Path | None,
    data: Path,
    examples: Sequence[Example],
    own_base: Base | None,
) -> PreTrainedModel | None:
    """The frozen teacher, which reads `examples` of the data folder `data`; None if the loss has none."""
    if settings.training.loss == "ce" or teacher is None:
        return None
    loaded = load_frozen(teacher, settings.precision, engine.world, engine.launch.shard_teacher, own_base)
    check_rows(loaded, data, 0, examples)
    return engine.frozen(loaded)


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
    teacher_data: Path | None = None,
    pseudo: Path | None = None,
    grid: Path | None = None,
) -> None:
    """Stages teacher, sft, kd and seqkd: train `base` on `data`.

    Writes the checkpoint of best dev ROUGE-L to `out` and, if asked for, that of lowest dev loss to `init`.
    `teacher_data`: the same rows in the teacher's chat template, if that is another.  `grid`: what the
    method's grid has chosen.  Of a trial `out` is a file with its dev evaluations.
    """
    if settings.stage == "sft" and init is None and not settings.trial:
        raise UserError("sft: the checkpoint of the lowest dev loss needs a place too; give --init FOLDER")
    settings, chosen = with_choice(settings, grid)
    training, stage, seed = settings.training, settings.stage, settings.seed
    world = start(seed, launch.patience)
    paths = {"data": data, "base": base, "teacher": teacher, "teacher_data": teacher_data, "pseudo": pseudo}
    inputs = {key: identity(path) for key, path in {**paths, "grid": grid}.items() if path}
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(data / "tokenizer")
    check_models(settings, data, base, teacher)
    examples, own_dev = training_examples(data, pseudo, teacher_data)
    prompts = TeacherPrompts.open(data, teacher_data)
    theirs = read_by_teacher(prompts, data, examples, own_dev) if prompts else None
    dev = Dev.open(data, training.dev_rows, tokenizer, settings.sampling, launch, seed, prompts)
    raw = dataclasses.asdict(settings)
    student, own_base = load_student(settings, launch, world, (base, inputs["base"]), data, examples)
    folder, steps = checkpoints / f"{stage}-{stage_key(raw, inputs)}", count_steps(len(examples), training)
    engine = Engine(student, training, launch, world, settings.precision, folder, steps, out)
    read = theirs[0] if theirs else examples
    teacher_model = load_teacher(settings, engine, teacher, teacher_data or data, read, own_base)
    # The teacher's answers are named by their place.
    ids = [] if pseudo else [int(row) for row in Rows.open(data, "train").ids]

    train = partial(fit, engine, examples, dev, training, name=stage, seed=seed, teacher=teacher_model)
    history, lost = tried(partial(train, own_dev=own_dev, ids=ids, theirs=theirs), settings.trial)
    if settings.trial:
        write_trial(engine, history, lost, out, raw, inputs, seed)
    else:
        outputs = {"best_rouge": out, **({"lowest_loss": init} if init else {})}
        own = base if settings.adapter else None
        export(engine, dev, history, outputs, raw, inputs, seed, own, chosen)
    world.barrier()
    if world.rank == 0:
        engine.say(f"{stage}: finished after {engine.steps} steps and {engine.elapsed():.0f} s")


def plain_sequences(chunks: Sequence[np.ndarray]) -> list[Example]:
    """Chunks as examples whose first token is the prompt, so that all the others are targets."""
    return [(chunk[:1], chunk[1:]) for chunk in chunks if len(chunk) > 1]
