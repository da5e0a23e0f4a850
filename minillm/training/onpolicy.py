"""The on-policy phase (Algorithm 1): rollout -> inner epochs of mini-batches -> dev evaluation.

rollouts.py says where samples come from, rollout_losses.py which loss is taken on them; MiniLLM and the
methods that it is compared with are the same loop under different settings.  Global batch, rollouts and steps
do not depend on the number of processes: every rank holds the whole collection and takes its share of each
mini-batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from minillm import objectives
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Launch, Sampling
from minillm.config.stage_settings import OnPolicySettings
from minillm.config.teaching import FURTHER
from minillm.data.rows import Corpus, Example, Rows
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.errors import Diverged, UserError
from minillm.files import identity, stage_key
from minillm.models.loading import check_same_tokenizer, load_tokenizer
from minillm.runtime.engine import Engine
from minillm.runtime.load_once import load_once
from minillm.runtime.metrics_log import MetricsLog
from minillm.runtime.processes import start
from minillm.runtime.schedule import evaluation_steps
from minillm.training.adapted import load_frozen, with_adapter
from minillm.training.credit import credit_summary
from minillm.training.dev_set import Candidates, Dev, Divergence, answer, losses
from minillm.training.diagnosis import Diagnosis
from minillm.training.divergences import token_divergence
from minillm.training.drawn_ahead import OnDisk, Queue
from minillm.training.export import export
from minillm.training.grid import with_choice
from minillm.training.lengths import check_rows
from minillm.training.moving_target import MovingTarget
from minillm.training.rollout_losses import Task, micro_batches
from minillm.training.rollouts import Memory, Rollouts, collect_rollouts
from minillm.training.teacher_answers import read_answers
from minillm.training.teaching import MeanTeacher
from minillm.training.trial import tried, write_trial
from minillm.training.vllm_rollouts import VllmRollouts
from minillm.training.who_teaches import Models, check_launch, taught, teachers_of

# Orders of mini-batches are drawn with other keys than orders of prompts.
INNER = 2**40


def train(engine: Engine, task: Task, rows: Rows, name: str, precision: str = "fp32") -> list[dict[str, Any]]:
    """Algorithm 1, phase 2, from the newest checkpoint, rollouts included; returns the dev evaluations.

    A task whose teacher is a mean of the student has that with the initial weights.
    """
    s = task.settings
    saved = engine.resume()
    mean = MeanTeacher.of(s, task.teacher, engine.model, saved.get("mean") if saved else None)
    engine.checkpoint_bytes += mean.bytes if mean else 0
    history: list[dict[str, Any]] = saved["history"] if saved else []
    # Drawn at the first step of each collection.
    rollouts: Any = None
    if saved and saved["rollouts"]:
        rollouts = Rollouts.restored(saved["rollouts"], engine.world)
    memory = Memory.restored(saved["memory"]) if saved else Memory(s.student_share)
    target = MovingTarget.of(s.taid, saved.get("target") if saved else None)
    candidates = Candidates(engine, task.dev.tokenizer, ("best_rouge",))
    log = MetricsLog(engine, name)
    updates = s.rollouts // s.batch
    per_collection = s.steps_of_collection
    vllm = VllmRollouts(engine, s, precision) if s.backend == "vllm" else None

    def draw(collection: int) -> Rollouts:
        return collect_rollouts(engine, task.teacher, rows, task.dev, s, memory, collection, task.seed, vllm)

    source: Queue | OnDisk
    if s.sampler and s.sampler.cached:
        source = OnDisk(draw, s.collections, engine)
        if engine.step % per_collection:
            rollouts = source.take(engine.step // per_collection)
    else:
        lag, ahead = s.sampler.lag if s.sampler else 0, saved.get("ahead", []) if saved else []
        source = Queue(draw, s.collections, lag, -(-engine.step // per_collection), ahead, engine.world)
    due = {per_collection * c for c in evaluation_steps(s.collections, s.evaluations)}

    def save() -> None:
        # After a collection's last step its samples are not needed again.
        again = engine.step % per_collection and isinstance(source, Queue)
        state = {
            "history": history,
            "rollouts": vars(rollouts) if again else None,
            "memory": memory.saved(),
            "ahead": source.saved(),
        }
        state |= {"target": target.saved()} if target else {}
        engine.save(state | ({"mean": mean.means} if mean else {}))

    engine.engine.eval()
    if engine.step == 0:
        first, more = evaluate(engine, task)
        memory.look(first["dev_loss"], s)
        log.write(first | more)
    with engine.interruptible(), engine.progress(name) as bar:
        if isinstance(source, OnDisk):
            source.fill(engine.step // per_collection)
        while engine.step < engine.steps:
            collection, place = divmod(engine.step, per_collection)
            if place == 0:
                rollouts = source.take(collection)
                log.write(rollouts.summary | credit_summary(rollouts, s, task.dev.tokenizer))
                guard(rollouts, memory, s, engine)
            chosen = mini_batch(s, task.seed, collection, *divmod(place, updates))
            parts, loss_of = micro_batches(engine, task, rollouts, chosen, target.t if target else None)
            sums = engine.update(
                parts, loss_of, rows=[rollouts.ids[i] for i in chosen], sizes=list(map(len, parts))
            )
            if mean:
                mean.move()
            bar.update()
            if engine.logs:
                log.write(engine.summed(sums) | ({"target": target.t} if target else {}))
            if target:
                loss = math.fsum(engine.world.gather(float(sums[s.objective])))
                target.move(loss, (engine.step - 1) / engine.steps)
            if engine.step in due:
                values, more = evaluate(engine, task)
                history.append({"step": engine.step, **values})
                memory.look(values["dev_loss"], s)
                log.write(values | more)
                candidates.offer(history)
            if engine.step in due or engine.save_due():
                save()
                candidates.prune(history)
            engine.stop_if_asked(save)
    log.close()
    return history


def mini_batch(settings: OnPolicy, seed: int, collection: int, inner: int, update: int) -> list[int]:
    """One mini-batch's places in the collection.

    Each inner epoch is a permutation drawn from (seed, collection, inner epoch).
    """
    key = [seed + INNER, collection * settings.inner_epochs + inner]
    order = np.random.Generator(np.random.Philox(key=key)).permutation(settings.rollouts)
    return [int(i) for i in order[update * settings.batch : (update + 1) * settings.batch]]


def evaluate(engine: Engine, task: Task) -> tuple[dict[str, float], dict[str, float]]:
    """The dev set: ROUGE-L of fresh answers, exact KLs on them, the references' cross-entropy, the objective.

    "dev_objective" is the method's own: its divergence from who teaches on fresh answers, on the references
    if it learns from them, or on both in the shares that the method starts with.  KLs are to the teacher of
    the pair with its usual prompts, whoever teaches.  Also, only to be logged, the diagnosis of the
    answers (diagnosis.py), by the same teacher.
    """
    s, dev, world = task.settings, task.dev, engine.world

    def divergence(q: Any, p: Any) -> Any:
        return token_divergence(s, q, p)

    # By name, so that a divergence that is reported anyway is computed only once.
    name: str = "reverse_kl" if s.objective == "minillm" else s.objective
    kls: dict[str, Divergence] = {"forward_kl": objectives.forward_kl, "reverse_kl": objectives.reverse_kl}
    with engine.whole():
        answers = answer(engine.model, dev, world)
        watch = Diagnosis(answers.examples, dev.vocabulary, s.temperature, task.initial)
        if task.pair is None:
            fresh = losses(
                engine.model, answers.examples, dev, world, task.teacher, {name: divergence, **kls},
                s.temperature, theirs=dev.theirs(answers.examples), watch=watch,
            )  # fmt: skip
            own = fresh[name]
        else:
            model, prompts = task.pair
            usual = dataclasses.replace(dev, teacher=prompts)
            fresh = losses(
                engine.model, answers.examples, usual, world, model, kls, s.temperature,
                theirs=usual.theirs(answers.examples), watch=watch,
            )  # fmt: skip
            own = to_who_teaches(engine, task, answers.examples, divergence)["objective"]
        if task.pair is None:
            on_gold = task.teacher if s.student_share < 1 else None
            gold = losses(
                engine.model, dev.examples, dev, world, on_gold, {name: divergence}, s.temperature,
                theirs=dev.theirs(dev.examples),
            )  # fmt: skip
        elif s.student_share < 1:
            gold = to_who_teaches(engine, task, dev.examples, divergence)
            gold[name] = gold["objective"]
        else:
            gold = losses(engine.model, dev.examples, dev, world)
    objective = s.student_share * own + (1 - s.student_share) * gold.get(name, 0.0)
    values = {
        "dev_rouge": answers.rouge,
        "dev_loss": gold["nll"],
        "dev_objective": objective,
        "dev_reverse_kl": fresh["reverse_kl"],
        "dev_forward_kl": fresh["forward_kl"],
        "dev_length": answers.mean_length,
        "dev_finished": answers.finished,
    }
    return values, watch.means(world)


def to_who_teaches(
    engine: Engine, task: Task, examples: Sequence[Example], divergence: Divergence
) -> dict[str, float]:
    """ "nll" and "objective" of a response to each dev row: means over tokens, each row's to its own teacher.

    In `engine.whole()`; every rank must call.
    """
    dev, panel = task.dev, task.panel
    read, places = dev.theirs(examples), list(range(len(examples)))
    parts = [(task.teacher, places)]
    if panel is not None:
        ids = dev.ids
        places.sort(key=lambda i: panel.teacher_of("dev", ids[i]))
        parts = panel.grouped("dev", places, ids.__getitem__)
    sums, tokens = {"nll": 0.0, "objective": 0.0}, 0
    for model, part in parts:
        count = sum(len(examples[i][1]) for i in part)
        found = losses(
            engine.model, [examples[i] for i in part], dev, engine.world, model, {"objective": divergence},
            task.settings.temperature, theirs=None if read is None else [read[i] for i in part],
        )  # fmt: skip
        sums = {name: total + count * found[name] for name, total in sums.items()}
        tokens += count
    return {name: total / tokens for name, total in sums.items()}


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
    paths = {"data": data, "init": init, "teacher": teacher, "teacher_data": teacher_data, "pseudo": pseudo}
    further = teachers_of(training.teacher, panel, init)
    paths |= {
        "prompts": prompts,
        "grid": grid,
        **{f"{FURTHER}{name}": path for name, path in further.items()},
    }
    inputs = {key: identity(path) for key, path in paths.items() if path}
    raw, adapter = dataclasses.asdict(settings), settings.adapter
    if adapter is None:
        base = None
    elif base is None:
        raise UserError(f"{settings.method}: a student with an adapter also needs --base, its base model")
    student = load_once(base or init, settings.precision, world, sharded=launch.zero == 3)
    check_rows(student, data, training.max_tokens)
    if answers is not None:
        check_rows(student, data, 0, [(rows.prompt(i), answers[id_]) for i, id_ in enumerate(rows.ids)])
    own_base = None
    if adapter is not None and base is not None:
        inputs["base"] = identity(base)
        named = base, inputs["base"]
        own_base = with_adapter(student, adapter, settings.seed, named, launch, world, init)
    engine = Engine(
        student,
        training,
        launch,
        world,
        settings.precision,
        checkpoints / f"{settings.method}-{stage_key(raw, inputs)}",
        training.steps,
        out,
    )

    def frozen(folder: Path, sharded: bool = launch.shard_teacher) -> PreTrainedModel:
        return engine.frozen(load_frozen(folder, settings.precision, world, sharded, own_base), sharded)

    initial = frozen(init) if training.anchored or launch.initial_kl else None
    pair = frozen(teacher)
    check_rows(pair, teacher_data or data, training.max_tokens)
    corpus = Corpus.open(data) if training.lm_coef else Corpus.none()
    anchor = initial if training.anchored else None
    task = Task(pair, anchor, corpus, dev, training, settings.seed, initial, answers)
    if training.teacher is not None:
        models = Models(engine.model, init, further, frozen)
        task = taught(task, training.teacher, models, data, prompts)
    history, lost = tried(
        lambda: train(engine, task, rows, settings.method, settings.precision), settings.trial
    )
    if settings.trial:
        write_trial(engine, history, lost, out, raw, inputs, settings.seed)
    else:
        export(engine, dev, history, {"best_rouge": out}, raw, inputs, settings.seed, base, chosen)
