"""The on-policy phase (Algorithm 1): rollout -> inner epochs of mini-batches -> dev evaluation.

rollouts.py says where samples come from, rollout_losses.py which loss is taken on them, run_state.py what is
kept from step to step; MiniLLM and the methods that it is compared with are the same loop under different
settings.  Global batch, rollouts and steps
do not depend on the number of processes: every rank holds the whole collection and takes its share of each
mini-batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Sampling
from minillm.config.stage_settings import OnPolicySettings
from minillm.config.teaching import FURTHER
from minillm.data.rows import Corpus, Rows
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.errors import Diverged, UserError
from minillm.files import identity, stage_key
from minillm.models.loading import check_same_tokenizer, load_tokenizer
from minillm.runtime.engine import Engine
from minillm.runtime.load_once import load_once
from minillm.runtime.metrics_log import MetricsLog
from minillm.runtime.processes import World, start
from minillm.runtime.schedule import evaluation_steps
from minillm.training.adapted import Base, load_frozen, with_adapter
from minillm.training.credit import credit_summary
from minillm.training.dev_evaluation import evaluate
from minillm.training.dev_set import Candidates, Dev
from minillm.training.export import export
from minillm.training.grid import with_choice
from minillm.training.lengths import check_rows
from minillm.training.mini_batch import Task
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Memory, Rollouts
from minillm.training.run_state import RunState
from minillm.training.teacher_answers import read_answers
from minillm.training.trial import tried, write_trial
from minillm.training.who_teaches import Models, check_launch, taught, teachers_of

# Orders of mini-batches are drawn with other keys than orders of prompts.
INNER = 2**40


def train(engine: Engine, task: Task, rows: Rows, name: str, precision: str = "fp32") -> list[dict[str, Any]]:
    """Algorithm 1, phase 2, from the newest checkpoint, rollouts included; returns the dev evaluations.

    A task whose teacher is a mean of the student has that with the initial weights.
    """
    s = task.settings
    run = RunState(engine, task, rows, precision)
    candidates = Candidates(engine, task.dev.tokenizer, ("best_rouge",))
    log = MetricsLog(engine, name)
    updates = s.rollouts // s.batch
    due = {s.steps_of_collection * c for c in evaluation_steps(s.collections, s.evaluations)}

    def measured() -> dict[str, float]:
        values, more = evaluate(engine, task)
        run.memory.look(values["dev_loss"], s)
        log.write(values | more)
        return values

    def save() -> None:
        engine.save(run.saved())

    engine.engine.eval()
    if engine.step == 0:
        measured()
    with engine.interruptible(), engine.progress(name) as bar:
        run.draw_ahead()
        while engine.step < engine.steps:
            collection, place = divmod(engine.step, s.steps_of_collection)
            if place == 0:
                run.take(collection)
                log.write(run.rollouts.summary | credit_summary(run.rollouts, s, task.dev.tokenizer))
                guard(run.rollouts, run.memory, s, engine)
            update(run, mini_batch(s, task.seed, collection, *divmod(place, updates)), log)
            bar.update()
            if engine.step in due:
                values = measured()
                run.history.append({"step": engine.step, **values})
                candidates.offer(run.history)
            if engine.step in due or engine.save_due():
                save()
                candidates.prune(run.history)
            engine.stop_if_asked(save)
    log.close()
    return run.history


def update(run: RunState, chosen: Sequence[int], log: MetricsLog) -> None:
    """One optimizer step on these rows of the collection, its terms logged, and what follows from it."""
    engine, rollouts, t = run.engine, run.rollouts, run.target.t if run.target else None
    parts, loss_of = micro_batches(engine, run.task, rollouts, chosen, t)
    sums = engine.update(parts, loss_of, rows=[rollouts.ids[i] for i in chosen], sizes=list(map(len, parts)))
    if engine.logs:
        log.write(engine.summed(sums) | ({} if t is None else {"target": t}))
    run.move(sums)


def mini_batch(settings: OnPolicy, seed: int, collection: int, inner: int, update: int) -> list[int]:
    """One mini-batch's places in the collection.

    Each inner epoch is a permutation drawn from (seed, collection, inner epoch).
    """
    key = [seed + INNER, collection * settings.inner_epochs + inner]
    order = np.random.Generator(np.random.Philox(key=key)).permutation(settings.rollouts)
    return [int(i) for i in order[update * settings.batch : (update + 1) * settings.batch]]


def guard(rollouts: Rollouts, memory: Memory, settings: OnPolicy, engine: Engine) -> None:
    """Raise Diverged if length or reverse KL has run away from the first collection's; it says how far."""
    for key, limit, value in (
        ("response_length", "stop_length", settings.stop_length),
        ("rollout_reverse_kl", "stop_kl", settings.stop_kl),
    ):
        if not value or key not in rollouts.summary:
            continue
        now = rollouts.summary[key]
        # Broken numbers are no measure for later ones; gradients that follow from them end the run.
        if not math.isfinite(now):
            continue
        # The first collection may have no samples of the student.
        first = memory.first.setdefault(key, now)
        if now > value * first or (limit == "stop_length" and now * value < first):
            raise Diverged(
                f"{limit}: {key.replace('_', ' ')} is {now:.4g} at step {engine.step}, from {first:.4g} "
                f"at the start: more than a factor of {value:g}; lower lr, raise alpha or init_kl, "
                f"or set {limit}: 0.0 (the best model so far: {engine.folder}/candidates)"
            )


def answers_to(rows: Rows, pseudo: Path, data: Path, teacher_data: Path | None) -> dict[int, np.ndarray]:
    """Row id -> the teacher's answer; UserError if a training row has none."""
    answers = read_answers(pseudo, data, teacher_data)["train"]
    if len(answers) < len(rows):
        raise UserError(
            f"{pseudo}: answers to {len(answers)} of {len(rows)} training rows, but teacher_texts needs all; "
            "set stages.pseudo.rows: 0"
        )
    return {id_: response for id_, (_, response) in zip(rows.ids, answers, strict=True)}


@dataclass(frozen=True)
class Files:
    """What the phase is trained from: folders, and of `grid` a file; `further`: teachers by name."""

    data: Path
    init: Path
    teacher: Path
    teacher_data: Path | None
    pseudo: Path | None
    prompts: Path | None
    grid: Path | None
    further: Mapping[str, Path]
    base: Path | None

    def identities(self) -> dict[str, str]:
        """The content of each, for checkpoints and provenance."""
        paths = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        further = {f"{FURTHER}{name}": path for name, path in paths.pop("further").items()}
        # In the order that provenance files have had.
        base = {"base": paths.pop("base")}
        return {key: identity(path) for key, path in (paths | further | base).items() if path}


def load_student(
    settings: OnPolicySettings, launch: Launch, world: World, files: Files, inputs: Mapping[str, str]
) -> tuple[PreTrainedModel, Base | None]:
    """(the initial student, its base model if it has an adapter); `inputs`: the files' identities."""
    student = load_once(files.base or files.init, settings.precision, world, sharded=launch.zero == 3)
    check_rows(student, files.data, settings.training.max_tokens)
    if settings.adapter is None or files.base is None:
        return student, None
    named = files.base, inputs["base"]
    return student, with_adapter(student, settings.adapter, settings.seed, named, launch, world, files.init)


def task_of(
    settings: OnPolicySettings, engine: Engine, files: Files, dev: Dev, own_base: Base | None
) -> Task:
    """The task with its frozen models: who teaches, and the initial student if it is needed."""
    s, launch = settings.training, engine.launch

    def frozen(folder: Path, sharded: bool = launch.shard_teacher) -> PreTrainedModel:
        return engine.frozen(
            load_frozen(folder, settings.precision, engine.world, sharded, own_base), sharded
        )

    initial = frozen(files.init) if s.anchored or launch.initial_kl else None
    pair = frozen(files.teacher)
    check_rows(pair, files.teacher_data or files.data, s.max_tokens)
    corpus = Corpus.open(files.data) if s.lm_coef else Corpus.none()
    task = Task(pair, initial if s.anchored else None, corpus, dev, s, settings.seed, initial)
    if s.teacher is None:
        return task
    models = Models(engine.model, files.init, files.further, frozen)
    return taught(task, s.teacher, models, files.data, files.prompts)


def run_stage(
    settings: OnPolicySettings,
    launch: Launch,
    *,
    data: Path,
    init: Path,
    teacher: Path,
    out: Path,
    checkpoints: Path,
    base: Path | None = None,
    teacher_data: Path | None = None,
    pseudo: Path | None = None,
    prompts: Path | None = None,
    panel: Sequence[Path] | None = None,
    grid: Path | None = None,
) -> None:
    """Stage minillm: from the SFT checkpoint of lowest dev loss (`init`) to that of best ROUGE-L (`out`).

    A student with an adapter goes on with that of `init`, on its base model (`base`).  `teacher_data`: the
    same rows in the teacher's chat template, if that is another.  `pseudo`: the teacher's answers, if the
    method learns from them as well (`teacher_texts`).  `prompts`: the same rows as who teaches is shown them,
    if `teacher` of the settings says so; `panel`: the further teachers that it names, in order.
    `grid`: what the method's grid has chosen.  Of a trial `out` is a file with its dev evaluations.
    """
    settings, chosen = with_choice(settings, grid)
    training = settings.training
    check_launch(settings, launch)
    if (pseudo is None) != (training.teacher_texts is None):
        raise UserError(f"{settings.method}: --pseudo belongs to teacher_texts; give both or neither")
    if settings.adapter is None:
        base = None
    elif base is None:
        raise UserError(f"{settings.method}: a student with an adapter also needs --base, its base model")
    world = start(settings.seed, launch.patience)
    check_same_tokenizer(init, teacher)
    tokenizer = load_tokenizer(data / "tokenizer")
    rows = Rows.open(data, "train")
    if len(rows) < training.rollouts:
        raise UserError(
            f"{settings.method}.rollouts: {training.rollouts} prompts a collection, "
            f"but there are only {len(rows)} training rows"
        )
    sampling = Sampling(temperature=training.temperature, max_tokens=training.max_tokens)
    usual = TeacherPrompts.open(data, teacher_data)
    dev = Dev.open(data, training.dev_rows, tokenizer, sampling, launch, settings.seed, usual)
    answers = None if pseudo is None else answers_to(rows, pseudo, data, teacher_data)
    further = teachers_of(training.teacher, panel, init)
    files = Files(data, init, teacher, teacher_data, pseudo, prompts, grid, further, base)
    raw, inputs = dataclasses.asdict(settings), files.identities()
    student, own_base = load_student(settings, launch, world, files, inputs)
    if answers is not None:
        check_rows(student, data, 0, [(rows.prompt(i), answers[id_]) for i, id_ in enumerate(rows.ids)])
    folder = checkpoints / f"{settings.method}-{stage_key(raw, inputs)}"
    engine = Engine(student, training, launch, world, settings.precision, folder, training.steps, out)
    task = dataclasses.replace(task_of(settings, engine, files, dev, own_base), answers=answers)
    history, lost = tried(
        lambda: train(engine, task, rows, settings.method, settings.precision), settings.trial
    )
    if settings.trial:
        write_trial(engine, history, lost, out, raw, inputs, settings.seed)
    else:
        export(engine, dev, history, {"best_rouge": out}, raw, inputs, settings.seed, base, chosen)
