"""The teacher's texts next to the student's, each under its own divergence (DistiLLM-2), by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, Prompts, gradient, settings, task
from onpolicy_case import OneProcess as Engine
from parts_case import drawn
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.objective_parts import Taid, TeacherTexts, Term, TokenWeights
from minillm.config.onpolicy import check_on_policy
from minillm.errors import UserError
from minillm.training import onpolicy
from minillm.training.onpolicy import answers_to
from minillm.training.rollout_losses import micro_batches

ANSWERS = {
    id_: np.append(np.random.default_rng(i).integers(1, VOCABULARY, 1 + 3 * i % 7), EOS).astype(np.int32)
    for i, id_ in enumerate(Prompts.ids)
}


def chosen(texts=None, **more):
    texts = TeacherTexts() if texts is None else texts
    kept = {"objective": "skew_reverse_kl", "alpha": 0.0, "lm_coef": 0.0, "teacher_texts": texts}
    return settings("default", **kept | more)


def law(model, prompt, response):
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :VOCABULARY].log_softmax(-1)


def skewed(a, b, alpha):
    """KL(a || alpha a + (1 - alpha) b) of each token, from log-probabilities."""
    a, b = a.exp(), b.exp()
    return (a * (a / (alpha * a + (1 - alpha) * b)).log()).sum(-1)


def by_hand(student, teacher, made, b, per_response, skews=(0.1, 0.1)):
    """Both parts: sums over tokens, or sums of each text's mean; then what they are divided by."""
    student.zero_grad()
    parts, tokens = [], 0
    for texts, student_s in ((made.responses, True), ([ANSWERS[i] for i in made.ids], False)):
        total = torch.zeros((), dtype=torch.float64)
        for prompt, text in zip(PROMPTS, texts, strict=True):
            q = law(student, prompt, text)
            with torch.no_grad():
                p = law(teacher, prompt, text)
            values = skewed(q, p, skews[0]) if student_s else skewed(p, q, skews[1])
            total = total + (values.mean() if per_response else values.sum())
            tokens += len(text)
        parts.append(total)
    loss = (b * parts[0] + (2 - b) * parts[1]) / (2 * COUNT if per_response else tokens)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in student.named_parameters()}


def assert_same(found, right):
    assert found[0] == pytest.approx(right[0], abs=1e-8)
    for name, values in right[1].items():
        assert_close(found[1][name], values, atol=1e-8, rtol=1e-8, msg=name)


def work_of(teacher, s, pad=EOS):
    return dataclasses.replace(task(teacher, s, pad), answers=ANSWERS)


@pytest.mark.parametrize("b", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("per_response", [False, True])
def test_the_loss_and_its_gradient(per_response, b):
    """With the mean over responses of their means, 1/2 [(2 - b) SKL + b SRKL] over pairs: the paper's."""
    more = {}
    if per_response:
        more = {"normaliser": "sequences", "token_weights": TokenWeights(per_response=True)}
    s = chosen(TeacherTexts(start=b, end=b, skew=0.3), skew=0.2, **more)
    student, teacher, made = drawn(0.0)
    assert len({len(x) for x in ANSWERS.values()}) > 2
    right = by_hand(student, teacher, made, b, per_response, (0.2, 0.3))
    for launch in (Launch(micro_batch=2 * COUNT), Launch(micro_batch=3), Launch(micro_tokens=40)):
        assert_same(gradient(student, made, work_of(teacher, s), launch), right)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    assert_same(gradient(student, made, work_of(teacher, s, pad=7), Launch(micro_batch=3), order), right)


def test_b_rises_until_half_of_the_steps():
    """DistiLLM-2's released code has 1 + 0.5 min(1, 2 step/steps), behind a switch."""
    texts = TeacherTexts(start=1.0, end=1.5)
    s = chosen(texts, collections=5, inner_epochs=2)
    student, teacher, made = drawn(0.0)
    assert s.steps == 10
    for step in range(10):
        engine = Engine(student, Launch(), step=step)
        _, loss = micro_batches(engine, work_of(teacher, s), made, list(range(COUNT)))
        assert loss.func.__self__.balance == pytest.approx(1 + 0.5 * min(1, 2 * step / 10))


def test_its_terms_are_logged_by_themselves():
    s, (student, teacher, made) = chosen(), drawn(0.0)
    parts, loss = micro_batches(
        Engine(student, Launch(micro_batch=5)), work_of(teacher, s), made, list(range(COUNT))
    )
    values, terms = zip(*(loss(part) for part in parts), strict=True)
    logged = [sum(term.get(name, 0.0) for term in terms) for name in ("skew_reverse_kl", "teacher_texts")]
    assert sum(values).item() == pytest.approx(sum(logged).item(), abs=1e-9) and min(logged) > 0


REFUSED = {
    "teacher_texts: the student's texts need": {"objective": "minillm", "alpha": 0.2},
    "teacher_texts: no teacher's text is given to also": {"also": (Term("forward_kl"),)},
    "teacher_texts: no teacher's text is given to taid": {"taid": Taid()},
    "teacher_texts: no teacher's text is given to init_kl": {"init_kl": 0.1},
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_means_nothing_is_refused(text):
    with pytest.raises(UserError) as error:
        check_on_policy(chosen(**REFUSED[text]), "config", "stages.minillm")
    assert str(error.value).startswith(f"config: stages.minillm.{text}") and "\n" not in str(error.value)


def test_every_training_row_needs_an_answer(monkeypatch, tmp_path):
    rows = Prompts()
    every = [(PROMPTS[i], ANSWERS[id_]) for i, id_ in enumerate(rows.ids)]
    monkeypatch.setattr(onpolicy, "read_answers", lambda *_: {"train": every, "dev": []})
    found = answers_to(rows, tmp_path / "big.jsonl", tmp_path, None)
    assert {id_: x.tolist() for id_, x in found.items()} == {i: x.tolist() for i, x in ANSWERS.items()}
    monkeypatch.setattr(onpolicy, "read_answers", lambda *_: {"train": every[:3], "dev": []})
    with pytest.raises(UserError, match=r"answers to 3 of 8 training rows.*stages\.pseudo\.rows: 0"):
        answers_to(rows, tmp_path / "big.jsonl", tmp_path, None)
