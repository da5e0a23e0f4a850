"""Dev evaluation of the on-policy phase: the values that choose a checkpoint, and the diagnosis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from minillm import objectives
from minillm.data.rows import Example
from minillm.runtime.engine import Engine
from minillm.training.dev_set import Divergence, answer, losses
from minillm.training.diagnosis import Diagnosis
from minillm.training.divergences import token_divergence
from minillm.training.mini_batch import Task


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
