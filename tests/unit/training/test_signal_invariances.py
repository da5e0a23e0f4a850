"""Sampled gradients, the teacher's texts and HPD: processes, a padded vocabulary, and stopping half-way."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from onpolicy_case import (
    COUNT,
    EOS,
    PROMPTS,
    VOCABULARY,
    OneProcess,
    Prompts,
    Tokenizer,
    engine_of,
    pair,
    rollouts,
    settings,
    task,
)
from onpolicy_case import gradient as gradient_of
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.objective_parts import Signal, TeacherTexts, Term, TokenWeights
from minillm.config.sections import Sampling, Training
from minillm.data.rows import Corpus
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World, start
from minillm.training import onpolicy, supervised
from minillm.training.dev_set import Dev
from minillm.training.rollout_losses import micro_batches
from minillm.training.supervised import Supervision, fit

TEXTS = {
    id_: np.append(np.random.default_rng(i).integers(1, VOCABULARY, 1 + i % 5), EOS).astype(np.int32)
    for i, id_ in enumerate(Prompts.ids)
}
EXAMPLES = [(PROMPTS[i], TEXTS[id_]) for i, id_ in enumerate(Prompts.ids)]
SAMPLED = {
    "single_step": False, "gamma": 0.0, "length_norm": False, "whiten": "none", "alpha": 0.0, "lm_coef": 0.0,
    "advantage": "centred", "include_current": False,
}  # fmt: skip
CASES = {
    "top-k baseline and a floor": SAMPLED | {"baseline_top_k": 3, "reward_floor": 0.45},
    "masks": SAMPLED
    | {
        "token_weights": TokenWeights(
            log_ratio_at_least=-0.2, most_uncertain=0.6, drift=0.2, drift_block=2, normalise=True
        )
    },
    "further terms": SAMPLED
    | {"also": (Term("cross_entropy"), Term("forward_kl", signal=Signal("teacher_topk", 3)))},
    "teacher's texts": {
        "objective": "skew_reverse_kl", "alpha": 0.0, "lm_coef": 0.0, "normaliser": "sequences",
        "token_weights": TokenWeights(per_response=True), "teacher_texts": TeacherTexts(start=0.7, end=1.5),
    },
}  # fmt: skip


def work_of(teacher, chosen):
    work = task(teacher, chosen)
    return dataclasses.replace(work, answers=TEXTS) if chosen.teacher_texts is not None else work


def assert_same(a, b, tolerance=1e-9):
    assert a[0] == pytest.approx(b[0], abs=tolerance)
    for name in b[1]:
        assert_close(a[1][name], b[1][name], atol=tolerance, rtol=tolerance, msg=name)


def summed(student, losses):
    student.zero_grad()
    total = torch.stack(losses).sum()
    total.backward()
    return total.item(), {n: p.grad.clone() for n, p in student.named_parameters()}


def of_processes(size):
    return [World(rank, size, torch.device("cpu")) for rank in range(size)]


@pytest.mark.parametrize("case", CASES)
def test_processes_share_the_batch(case):
    chosen = settings("default", **CASES[case])
    student, teacher = pair()
    made, work = rollouts(student, teacher, chosen), work_of(teacher, chosen)
    whole, losses = gradient_of(student, made, work), []
    for world in of_processes(2):
        engine = OneProcess(student, Launch(micro_batch=3), world)
        parts, loss = micro_batches(engine, work, made, list(range(COUNT)))
        losses += [loss(part)[0] for part in parts]
    assert_same(summed(student, losses), whole)


@pytest.mark.parametrize("case", CASES)
def test_padded_vocabulary(case):
    chosen = settings("default", **CASES[case])
    student, teacher = pair()
    made, work = rollouts(student, teacher, chosen), work_of(teacher, chosen)
    before = gradient_of(student, made, work)
    padded(student, teacher)
    assert_same(cut(gradient_of(student, made, work)), before)


def padded(*models):
    torch.manual_seed(9)
    for model, rows in zip(models, (20, 17), strict=True):
        model.resize_token_embeddings(rows, mean_resizing=False)
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            matrix.data[13:] = 3 * torch.randn_like(matrix.data[13:])


def cut(found):
    return found[0], {n: g[:13] if len(g) == 20 else g for n, g in found[1].items()}


def hpd(student, teacher, launch, world):
    dev = Dev([], [], Tokenizer(), Sampling(), VOCABULARY, 8, 0)
    engine = OneProcess(student, launch, world, step=2)
    work = Supervision(engine, EXAMPLES, dev, (), teacher, 1.0, None, draws=(4, Prompts.ids))
    parts, loss = work.micro_batches(range(COUNT))
    return [loss(part)[0] for part in parts]


def test_hpd():
    """Processes, and a padded vocabulary, of which nothing is drawn."""
    student, teacher = pair()
    [one], two = of_processes(1), of_processes(2)
    whole = summed(student, hpd(student, teacher, Launch(micro_batch=COUNT), one))
    shared = [x for world in two for x in hpd(student, teacher, Launch(micro_batch=3), world)]
    assert_same(summed(student, shared), whole)
    # Others, since the losses above still hold the weights' graph.
    student, teacher = pair()
    padded(student, teacher)
    assert_same(cut(summed(student, hpd(student, teacher, Launch(micro_batch=COUNT), one))), whole)


# --- a run that is stopped and resumed
def stopping(engine, stop):
    usual = engine.update

    def update(*arguments, **more):
        sums = usual(*arguments, **more)
        engine._stop = engine.step == stop
        return sums

    engine.update = update


RUNS = {
    "masks that switch": CASES["top-k baseline and a floor"]
    | {"token_weights": TokenWeights(log_ratio_at_least=-0.2, most_uncertain=0.6, switch=0.5)},
    "teacher's texts": CASES["teacher's texts"],
}


@pytest.mark.parametrize("case", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(case, monkeypatch, tmp_path):
    monkeypatch.setattr(onpolicy, "evaluate", lambda *_: ({"dev_rouge": 1.0, "dev_loss": 1.0}, {}))
    monkeypatch.setattr(onpolicy.Candidates, "offer", lambda *_: None)
    monkeypatch.setattr(onpolicy.Candidates, "prune", lambda *_: None)

    def run(folder, stop=None):
        launch = Launch(micro_batch=COUNT, save_every=100, log_every=1)
        engine, teacher, made = engine_of(
            folder, "llama", launch, **RUNS[case], collections=2, inner_epochs=2, batch=COUNT // 2
        )
        engine.steps = made.steps
        work = work_of(teacher, made)
        dev = dataclasses.replace(
            work.dev, examples=EXAMPLES, records=[{"id": i, "references": ["x"]} for i in Prompts.ids]
        )
        stopping(engine, stop)
        onpolicy.train(engine, dataclasses.replace(work, dev=dev, corpus=Corpus.none()), Prompts(), "x")
        return torch.cat([p.detach().flatten() for p in engine.model.parameters()])

    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", stop=3)
    assert torch.equal(run(tmp_path / "parts"), whole)


def test_a_resumed_run_of_hpd_is_the_uninterrupted_one(monkeypatch, tmp_path):
    look = {"dev_loss": 1.0, "dev_objective": 1.0, "dev_rouge": 1.0}
    monkeypatch.setattr(Supervision, "look", lambda self, rouge: dict(look))
    monkeypatch.setattr(supervised.Candidates, "offer", lambda *_: None)
    monkeypatch.setattr(supervised.Candidates, "prune", lambda *_: None)

    def run(folder, stop=None):
        chosen = Training(lr=1e-2, epochs=3, batch=4, loss="hpd", dropout=False)
        student, teacher = (model.float() for model in pair())
        engine = Engine(student, chosen, Launch(micro_batch=3, log_every=1), start(0), "fp32", folder, 6)
        dev = Dev(EXAMPLES, [], Tokenizer(), Sampling(), VOCABULARY, 8, 0)
        stopping(engine, stop)
        fit(
            engine, EXAMPLES, dev, chosen, name="hpd", seed=3, teacher=engine.frozen(teacher), ids=Prompts.ids
        )
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        weights = torch.cat([p.detach().flatten() for p in engine.model.parameters()])
        return weights, [line["loss"] for line in lines if "loss" in line]

    whole, losses = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", stop=2)
    resumed, again = run(tmp_path / "parts")
    assert torch.equal(whole, resumed) and losses == again and len(losses) == 6
