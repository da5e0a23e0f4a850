"""The on-policy phase (Algorithm 1): rollout -> inner epochs of mini-batches -> dev evaluation.

rollouts.py says where samples come from, rollout_losses.py which loss is taken on them; MiniLLM and the
methods that it is compared with are the same loop under different settings.  Global batch, rollouts and steps
do not depend on the number of processes: every rank holds the whole collection and takes its share of each
mini-batch.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from minillm import objectives
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Launch, Sampling
from minillm.config.stage_settings import OnPolicySettings
from minillm.data.rows import Corpus, Rows
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
from minillm.training.divergences import token_divergence
from minillm.training.export import export
from minillm.training.grid import with_choice
from minillm.training.lengths import check_rows
from minillm.training.moving_target import MovingTarget
from minillm.training.rollout_losses import Task, micro_batches
from minillm.training.rollouts import Memory, Rollouts, collect_rollouts
from minillm.training.trial import tried, write_trial
from minillm.training.vllm_rollouts import VllmRollouts

# Orders of mini-batches are drawn with other keys than orders of prompts.
INNER = 2**40


def train(engine: Engine, task: Task, rows: Rows, name: str, precision: str = "fp32") -> list[dict[str, Any]]:
    """Algorithm 1, phase 2, from the newest checkpoint, rollouts included; returns the dev evaluations."""
    s = task.settings
    saved = engine.resume()
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
    per_collection = s.inner_epochs * updates
    due = {per_collection * c for c in evaluation_steps(s.collections, s.evaluations)}

    def save() -> None:
        # After a collection's last step its samples are not needed again.
        kept = vars(rollouts) if engine.step % per_collection else None
        state = {"history": history, "rollouts": kept, "memory": memory.saved()}
        engine.save(state | ({"target": target.saved()} if target else {}))

    vllm = None
    if s.backend == "vllm":
        vllm = VllmRollouts(engine, s, precision)
    engine.engine.eval()
    if engine.step == 0:
        first = evaluate(engine, task)
        memory.look(first["dev_loss"], s)
        log.write(first)
    with engine.interruptible(), engine.progress(name) as bar:
        while engine.step < engine.steps:
            collection, place = divmod(engine.step, per_collection)
            if place == 0:
                rollouts = collect_rollouts(
                    engine, task.teacher, rows, task.dev, s, memory, collection, task.seed, vllm
                )
                log.write(rollouts.summary | credit_summary(rollouts, s))
                guard(rollouts, memory, s, engine)
            chosen = mini_batch(s, task.seed, collection, *divmod(place, updates))
            sums = engine.update(
                *micro_batches(engine, task, rollouts, chosen, target.t if target else None),
                rows=[rollouts.ids[i] for i in chosen],
            )
            bar.update()
            if engine.logs:
                log.write(engine.summed(sums) | ({"target": target.t} if target else {}))
            if target:
                loss = math.fsum(engine.world.gather(float(sums[s.objective])))
                target.move(loss, (engine.step - 1) / engine.steps)
            if engine.step in due:
                history.append({"step": engine.step, **evaluate(engine, task)})
                memory.look(history[-1]["dev_loss"], s)
                log.write({key: value for key, value in history[-1].items() if key != "step"})
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


def evaluate(engine: Engine, task: Task) -> dict[str, float]:
    """The dev set: ROUGE-L of fresh answers, exact KLs on them, the references' cross-entropy, the objective.

    "dev_objective" is the method's own: its divergence on fresh answers, on the references if it learns from
    them, or on both in the shares that the method starts with.
    """
    s, dev, world = task.settings, task.dev, engine.world

    def divergence(q: Any, p: Any) -> Any:
        return token_divergence(s, q, p)

    # By name, so that a divergence that is reported anyway is computed only once.
    name: str = "reverse_kl" if s.objective == "minillm" else s.objective
    wanted: dict[str, Divergence] = {
        name: divergence,
        "forward_kl": objectives.forward_kl,
        "reverse_kl": objectives.reverse_kl,
    }
    with engine.whole():
        answers = answer(engine.model, dev, world)
        fresh = losses(
            engine.model, answers.examples, dev, world, task.teacher, wanted, s.temperature,
            theirs=dev.theirs(answers.examples),
        )  # fmt: skip
        on_gold = task.teacher if s.student_share < 1 else None
        gold = losses(
            engine.model, dev.examples, dev, world, on_gold, {name: divergence}, s.temperature,
            theirs=dev.theirs(dev.examples),
        )  # fmt: skip
    objective = s.student_share * fresh[name] + (1 - s.student_share) * gold.get(name, 0.0)
    return {
        "dev_rouge": answers.rouge,
        "dev_loss": gold["nll"],
        "dev_objective": objective,
        "dev_reverse_kl": fresh["reverse_kl"],
        "dev_forward_kl": fresh["forward_kl"],
        "dev_length": answers.mean_length,
        "dev_finished": answers.finished,
    }


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
    grid: Path | None = None,
) -> None:
    """Stage minillm: from the SFT checkpoint of lowest dev loss (`init`) to that of best ROUGE-L (`out`).

    A student with an adapter goes on with that of `init`, on its base model (`base`).  `teacher_data`: the
    same rows in the teacher's chat template, if that is another.  `grid`: what the method's grid has chosen.
    Of a trial `out` is a file with its dev evaluations.
    """
    settings, chosen = with_choice(settings, grid)
    training = settings.training
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
    prompts = TeacherPrompts.open(data, teacher_data)
    dev = Dev.open(data, training.dev_rows, tokenizer, sampling, launch, settings.seed, prompts)
    paths = {"data": data, "init": init, "teacher": teacher, "teacher_data": teacher_data, "grid": grid}
    inputs = {key: identity(path) for key, path in paths.items() if path}
    raw, adapter = dataclasses.asdict(settings), settings.adapter
    if adapter is None:
        base = None
    elif base is None:
        raise UserError(f"{settings.method}: a student with an adapter also needs --base, its base model")
    student = load_once(base or init, settings.precision, world, sharded=launch.zero == 3)
    check_rows(student, data, training.max_tokens)
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
        training.collections * training.inner_epochs * (training.rollouts // training.batch),
        out,
    )

    def frozen(folder: Path, rows_of: Path) -> Any:
        model = load_frozen(folder, settings.precision, world, launch.shard_teacher, own_base)
        check_rows(model, rows_of, training.max_tokens)
        return engine.frozen(model)

    anchor = frozen(init, data) if training.init_kl else None
    corpus = Corpus.open(data) if training.lm_coef else Corpus.none()
    task = Task(frozen(teacher, teacher_data or data), anchor, corpus, dev, training, settings.seed)
    history, lost = tried(
        lambda: train(engine, task, rows, settings.method, settings.precision), settings.trial
    )
    if settings.trial:
        write_trial(engine, history, lost, out, raw, inputs, settings.seed)
    else:
        export(engine, dev, history, {"best_rouge": out}, raw, inputs, settings.seed, base, chosen)
