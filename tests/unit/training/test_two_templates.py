"""A teacher with prompts and an end token of its own, in every loss and measurement of training.

The reference reads each row alone, without padding, in float64, and permutes the teacher's whole vocabulary.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hpd_case import hpd_by_hand
from onpolicy_case import (
    COUNT,
    EOS,
    PROMPTS,
    WHOLE,
    OneProcess,
    Prompts,
    Texts,
    Tokenizer,
    gradient,
    settings,
)
from tiny_models import make
from torch.testing import assert_close

from minillm import objectives
from minillm.config.launch import Launch
from minillm.config.objective_parts import TeacherTexts
from minillm.config.sections import Sampling
from minillm.data.batching import collate
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.evaluation.exposure_bias import token_kl
from minillm.models.head import response_hidden
from minillm.training.dev_set import Dev, losses
from minillm.training.mini_batch import Task
from minillm.training.rollouts import Memory, collect_rollouts
from minillm.training.supervised import Supervision
from minillm.training.supervised_loss import example_loss

# The student ends with EOS (0), the teacher with 2.
END, VOCABULARY = 2, 11
ORDER = [END, 1, EOS, *range(3, VOCABULARY)]
THEIRS = [
    np.array(p, dtype=np.int32)
    for p in ([1], [7, 7, 3, 10, 2, 4, 6], [5], [9, 8], [4, 1, 1], [2, 3, 2], [6], [10, 3, 1, 4, 5, 9])
]
SHOWN = dict(zip(Prompts.ids, THEIRS, strict=True))
TEACHER = TeacherPrompts({"train": SHOWN, "dev": SHOWN}, (EOS, END))


def pair():
    return make("llama", 1).double(), make("gpt2", 2).double()


def dev_of(prompts=TEACHER, tokenizer=None):
    examples = [(PROMPTS[i], Prompts().response(i)) for i in range(COUNT)]
    records = [{"id": id_, "references": ["x"]} for id_ in Prompts.ids]
    tokenizer = tokenizer or Tokenizer()
    return Dev(examples, records, tokenizer, Sampling(), VOCABULARY, 3, 0, teacher=prompts)


def law(model, prompt, response, order=slice(None), temperature=1.0):
    """Log-probabilities at each token of a response, (length, vocabulary), from a pass over the row alone."""
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
    return (logits[:, order] / temperature).log_softmax(-1)


def collected(student, teacher, prompts=TEACHER, launch=WHOLE, share=1.0, **changes):
    chosen = settings("default", student_share=share, **changes)
    engine = OneProcess(student, launch)
    engine.model = student
    return chosen, collect_rollouts(engine, teacher, Prompts(), dev_of(prompts), chosen, Memory(share), 0, 3)


# --- rollouts
@pytest.mark.parametrize("coins", [None, 0, 3])
@pytest.mark.parametrize("batch", [3, COUNT])
def test_recorded_values_are_those_of_each_model_on_its_own_prompt(coins, batch):
    student, teacher = pair()
    chosen, made = collected(student, teacher, launch=Launch(eval_batch=batch), coins=coins)
    ended = 0
    for k, (id_, response) in enumerate(zip(made.ids, made.responses, strict=True)):
        prompt, theirs = PROMPTS[id_ - 100], SHOWN[id_]
        assert made.prompts[k] is prompt and made.teacher_prompts[k] is theirs
        with torch.no_grad():
            q, p = law(student, prompt, response), law(teacher, theirs, response, ORDER)
            ids = torch.tensor([[*theirs.tolist(), *response.tolist()]])
            states = teacher.base_model(ids).last_hidden_state[0, len(theirs) - 1 : -1]
        at = torch.from_numpy(response).long()[:, None]
        for name, values in (
            ("student_logprobs", q.gather(1, at)[:, 0]),
            ("teacher_logprobs", p.gather(1, at)[:, 0]),
            ("reverse_kl", (q.exp() * (q - p)).sum(-1)),
        ):
            recorded = getattr(made, name)[k, : len(response)].double()
            assert_close(recorded, values, atol=1e-5, rtol=0, msg=name)
        assert_close(made.teacher_hidden[k].double(), states, atol=1e-9, rtol=0)
        if response[-1] == EOS:
            # The student's end, with what the teacher says of its own.
            ended += 1
            with torch.no_grad():
                whole = law(teacher, theirs, response)[-1]
            last = made.teacher_logprobs[k, len(response) - 1].item()
            assert last == pytest.approx(whole[END].item(), abs=1e-5)
            assert abs(last - whole[EOS].item()) > 1e-2
    assert ended > 0 and chosen.alpha == 0.3


def test_other_renderers_change_what_the_teacher_says_and_nothing_else():
    student, teacher = pair()
    runs = {}
    own = TeacherPrompts({"train": dict(zip(Prompts.ids, PROMPTS, strict=True))}, (EOS, END))
    for name, prompts in (("own", TEACHER), ("student's", own), ("one end", None)):
        _, runs[name] = collected(student, teacher, prompts, alpha=0.0)
    first = runs["own"]
    for other in (runs["student's"], runs["one end"]):
        assert [r.tolist() for r in first.responses] == [r.tolist() for r in other.responses]
        assert torch.equal(first.student_logprobs, other.student_logprobs)
        changed = (first.teacher_logprobs - other.teacher_logprobs).abs()[first.mask.bool()]
        assert (changed > 1e-2).double().mean() > 0.3
    assert runs["one end"].teacher_prompts is None


def test_gold_rows_are_read_after_the_teachers_prompts_too():
    student, teacher = pair()
    _, made = collected(student, teacher, share=0.5, objective="forward_kl")
    assert 0 < made.summary["fresh"] < 1
    for theirs, response, hidden in zip(
        made.teacher_prompts, made.responses, made.teacher_hidden, strict=True
    ):
        ids = torch.tensor([[*theirs.tolist(), *response.tolist()]])
        with torch.no_grad():
            states = teacher.base_model(ids).last_hidden_state[0, len(theirs) - 1 : -1]
        assert_close(hidden.double(), states, atol=1e-9, rtol=0)


# --- the losses
def work_of(teacher, chosen, **more):
    return Task(teacher, None, Texts(), dev_of(**more), chosen, 5)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl"])
def test_a_divergence_equals_an_independent_one(objective, temperature, cached):
    student, teacher = pair()
    more = {"objective": objective, "temperature": temperature, "lm_coef": 0.0, "normaliser": "tokens"}
    chosen, made = collected(student, teacher, launch=Launch(teacher_cache=cached, eval_batch=3), **more)
    assert (made.teacher_hidden is not None) == cached
    loss, found = gradient(student, made, work_of(teacher, chosen), Launch(micro_batch=3))
    student.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for id_, response in zip(made.ids, made.responses, strict=True):
        q = law(student, PROMPTS[id_ - 100], response, temperature=temperature)
        with torch.no_grad():
            p = law(teacher, SHOWN[id_], response, ORDER, temperature)
        total = total + ((p.exp() * (p - q)) if objective == "forward_kl" else (q.exp() * (q - p))).sum()
    total = total / sum(map(len, made.responses))
    total.backward()
    assert loss == pytest.approx(total.item(), abs=1e-6)
    for name, weight in student.named_parameters():
        assert_close(found[name], weight.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("cached", [True, False])
def test_the_baseline_over_the_students_top_k(cached):
    """vOPD's, of the teacher's own prompt and end, at the current student; rewards as recorded."""
    student, teacher = pair()
    more = {"advantage": "centred", "single_step": False, "gamma": 0.0, "length_norm": False, "alpha": 0.0}
    more |= {"whiten": "none", "clip": 0.0, "lm_coef": 0.0, "baseline_top_k": 4}
    chosen, made = collected(student, teacher, launch=Launch(teacher_cache=cached), **more)
    loss, found = gradient(student, made, work_of(teacher, chosen), Launch(micro_batch=3))
    student.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row, (id_, response) in enumerate(zip(made.ids, made.responses, strict=True)):
        q = law(student, PROMPTS[id_ - 100], response)
        with torch.no_grad():
            p = law(teacher, SHOWN[id_], response, ORDER)
        for t, y in enumerate(response.tolist()):
            kept = q[t].detach().argsort(descending=True)[:4]
            a, b = (x[t].detach()[kept].exp() for x in (q, p))
            a, b = a / a.sum(), b / b.sum()
            reward = (made.teacher_logprobs - made.student_logprobs)[row, t].item()
            advantage = reward + (a * (a / b).log()).sum().item()
            old = made.student_logprobs[row, t].item()
            total = total - advantage * (q[t, y] - old).exp() / sum(map(len, made.responses))
    total.backward()
    assert loss == pytest.approx(total.item(), abs=1e-6)
    for name, weight in student.named_parameters():
        assert_close(found[name], weight.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_the_teachers_texts_are_read_after_its_own_prompts():
    student, teacher = pair()
    texts = {id_: np.array([5, 1 + id_ % 4, EOS], dtype=np.int32)[id_ % 2 :] for id_ in Prompts.ids}
    more = {"objective": "reverse_kl", "alpha": 0.0, "lm_coef": 0.0}
    chosen, made = collected(student, teacher, teacher_texts=TeacherTexts("forward_kl"), **more)
    work = dataclasses.replace(work_of(teacher, chosen), answers=texts)
    loss, found = gradient(student, made, work, Launch(micro_batch=3))
    student.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for id_, response in zip(made.ids, made.responses, strict=True):
        for text, ours in ((response, True), (texts[id_], False)):
            q = law(student, PROMPTS[id_ - 100], text)
            with torch.no_grad():
                p = law(teacher, SHOWN[id_], text, ORDER)
            total = total + (q.exp() * (q - p) if ours else p.exp() * (p - q)).sum()
            count += len(text)
    (total / count).backward()
    assert loss == pytest.approx(total.item() / count, abs=1e-6)
    for name, weight in student.named_parameters():
        assert_close(found[name], weight.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_minillms_loss_does_not_depend_on_batches_padding_or_the_cache(preset):
    student, teacher = pair()
    chosen, made = collected(student, teacher)
    chosen = dataclasses.replace(settings(preset), lm_kd_ratio=0.5)
    work = work_of(teacher, chosen)
    loss, first = gradient(student, made, work)
    plain = dataclasses.replace(made, teacher_hidden=None)
    for other, launch, pad in (
        (made, Launch(micro_batch=1), EOS),
        (plain, WHOLE, EOS),
        (plain, Launch(micro_batch=3), EOS),
        (plain, Launch(micro_tokens=40), 7),
    ):
        task = work_of(teacher, chosen, tokenizer=Tokenizer(pad_token_id=pad))
        value, found = gradient(student, other, task, launch)
        assert value == pytest.approx(loss, abs=1e-9)
        for name, values in first.items():
            assert_close(found[name], values, atol=1e-9, rtol=1e-9, msg=name)
    # Without its own prompts and end the teacher says something else.
    alone = Task(teacher, None, Texts(), dev_of(None), chosen, 5)
    value, _ = gradient(student, dataclasses.replace(plain, teacher_prompts=None), alone)
    assert abs(value - loss) > 1e-3


EXAMPLES = [
    (prompt, np.random.default_rng(i).integers(1, VOCABULARY, 1 + i % 5).astype(np.int32))
    for i, prompt in enumerate(PROMPTS)
]
ANSWERS = [(prompt, np.append(response, EOS).astype(np.int32)) for prompt, response in EXAMPLES]
READ = [(prompt, response) for prompt, (_, response) in zip(THEIRS, ANSWERS, strict=True)]


def kd_reference(student, teacher, ratio):
    total = torch.zeros((), dtype=torch.float64)
    for (prompt, response), (theirs, _) in zip(ANSWERS, READ, strict=True):
        q = law(student, prompt, response)
        with torch.no_grad():
            p = law(teacher, theirs, response, ORDER)
        nll = -q.gather(1, torch.from_numpy(response).long()[:, None])[:, 0]
        total = total + ((1 - ratio) * nll + ratio * (p.exp() * (p - q)).sum(-1)).sum()
    return total / sum(len(response) for _, response in ANSWERS)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
@pytest.mark.parametrize(
    "launch",
    [Launch(micro_batch=COUNT), Launch(micro_batch=3), Launch(micro_batch=1), Launch(micro_tokens=30)],
    ids=("whole", "three", "one", "tokens"),
)
def test_kd_equals_an_independent_loss_however_it_is_split(launch, ratio):
    student, teacher = pair()
    work = Supervision(OneProcess(student, launch), ANSWERS, dev_of(), (), teacher, ratio, None, (READ, ()))
    student.zero_grad()
    parts, loss = work.micro_batches(list(range(COUNT)))
    total = torch.stack([loss(part)[0] for part in parts]).sum()
    total.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    right = kd_reference(student, teacher, ratio)
    right.backward()
    assert total.item() == pytest.approx(right.item(), abs=1e-9)
    for name, weight in student.named_parameters():
        assert_close(found[name], weight.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_hpd_reads_the_teachers_prompts_and_its_end():
    student, teacher = pair()
    launch, ids = Launch(micro_batch=3), [7 * i for i in range(COUNT)]
    work = Supervision(
        OneProcess(student, launch, step=4), ANSWERS, dev_of(), (), teacher, 1.0, None, (READ, ()), (9, ids)
    )
    student.zero_grad()
    parts, loss = work.micro_batches(list(range(COUNT)))
    total = torch.stack([loss(part)[0] for part in parts]).sum()
    total.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    right = torch.zeros((), dtype=torch.float64)
    for i, ((prompt, response), (theirs, _)) in enumerate(zip(ANSWERS, READ, strict=True)):
        q = law(student, prompt, response)
        with torch.no_grad():
            p = law(teacher, theirs, response, ORDER)
        right = right + hpd_by_hand(q, p, response, 9, 4, ids[i])
    right = right / sum(len(response) for _, response in ANSWERS)
    right.backward()
    assert total.item() == pytest.approx(right.item(), abs=1e-9)
    for name, weight in student.named_parameters():
        assert_close(found[name], weight.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_kd_from_kept_hidden_states():
    student, teacher = pair()
    batch, other = collate(ANSWERS, 5), collate(READ, 7)
    count = sum(len(response) for _, response in ANSWERS)
    how = {"teacher_batch": other, "swap": (EOS, END)}
    with torch.no_grad():
        whole = example_loss(student, batch, VOCABULARY, count, teacher, 0.5, **how)
        kept = example_loss(
            student, batch, VOCABULARY, count, teacher, 0.5, response_hidden(teacher, other), **how
        )
        right = kd_reference(student, teacher, 0.5)
    assert torch.equal(whole, kept) and whole.item() == pytest.approx(right.item(), abs=1e-9)


# --- measurements
def test_divergences_on_the_dev_set():
    student, teacher = pair()
    dev, kept = dev_of(), {}
    wanted = {"forward_kl": objectives.forward_kl, "reverse_kl": objectives.reverse_kl}
    world = OneProcess(student, WHOLE).world
    theirs = dev.theirs(dev.examples)
    runs = [
        losses(student, dev.examples, d, world, teacher, wanted, kept=cache, theirs=theirs)
        for d, cache in ((dev, kept), (dev, kept), (dataclasses.replace(dev, batch=1), None))
    ]
    sums = dict.fromkeys(("nll", *wanted), 0.0)
    for prompt, (own, response) in zip(THEIRS, dev.examples, strict=True):
        with torch.no_grad():
            q, p = law(student, own, response), law(teacher, prompt, response, ORDER)
        sums["nll"] -= q.gather(1, torch.from_numpy(response).long()[:, None]).sum().item()
        sums["forward_kl"] += (p.exp() * (p - q)).sum().item()
        sums["reverse_kl"] += (q.exp() * (q - p)).sum().item()
    count = sum(len(response) for _, response in dev.examples)
    for found in runs:
        for name, value in sums.items():
            assert found[name] == pytest.approx(value / count, abs=1e-6), name


def test_exposure_biass_divergences():
    student, teacher = pair()
    how = {"vocabulary": VOCABULARY, "pad": 0, "theirs": READ, "swap": (EOS, END)}
    for batch in (COUNT, 3, 1):
        found = token_kl(student, teacher, ANSWERS, batch=batch, **how)
        for values, (prompt, response), (theirs, _) in zip(found, ANSWERS, READ, strict=True):
            with torch.no_grad():
                q, p = law(student, prompt, response), law(teacher, theirs, response, ORDER)
            assert values == pytest.approx((p.exp() * (p - q)).sum(-1).numpy(), abs=1e-6)
